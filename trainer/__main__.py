"""`python -m trainer`: the commands of this package alone."""

import click

from serving.command import run
from trainer.backbone.cli import backbone
from trainer.cli import train
from trainer.demo import demo
from trainer.export_cli import export

if __name__ == "__main__":
    group = click.Group(commands=[train, export, backbone, demo], help="Train a head and export the bundle.")
    run(group, "python -m trainer")
