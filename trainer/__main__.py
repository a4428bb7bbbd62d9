"""`python -m trainer`: the commands of this package alone."""

import click

from serving.command import run
from trainer.backbone.cli import backbone
from trainer.cli import export, train
from trainer.demo import demo

if __name__ == "__main__":
    group = click.Group(commands=[train, export, backbone, demo], help="Train a head and export the bundle.")
    run(group, "python -m trainer")
