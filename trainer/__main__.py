"""Entry point of `python -m trainer`: the commands of this package only."""

from serving.commands.main import run_group
from trainer.commands.backbone import backbone
from trainer.commands.demo import demo
from trainer.commands.export import export
from trainer.commands.train import train

if __name__ == "__main__":
    run_group([train, export, backbone, demo], "python -m trainer", "Train a head and export the bundle.")
