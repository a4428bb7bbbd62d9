"""`python -m trainer`: the commands of this package alone."""

import click

from serving.commands.main import run
from trainer.commands.backbone import backbone
from trainer.commands.demo import demo
from trainer.commands.export import export
from trainer.commands.train import train

if __name__ == "__main__":
    group = click.Group(commands=[train, export, backbone, demo], help="Train a head and export the bundle.")
    run(group, "python -m trainer")
