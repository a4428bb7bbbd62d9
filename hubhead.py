"""The `hubhead` command: the sub-commands of trainer, batch and serving in one group."""

from __future__ import annotations

from importlib import import_module

import click

from serving.commands.common.command import Group
from serving.commands.main import run

COMMANDS = {
    "train": "trainer.commands.train",
    "label": "trainer.commands.label",
    "export": "trainer.commands.export",
    "score": "batch.commands.score",
    "rescore": "batch.commands.rescore",
    "query": "batch.commands.query",
    "similar": "batch.commands.similar",
    "embeddings": "batch.commands.embeddings",
    "validate": "trainer.commands.validate",
    "models": "serving.commands.models",
    "promote": "serving.commands.promote",
    "rollback": "serving.commands.promote",
    "compare": "trainer.commands.compare",
    "serve": "serving.commands.serve",
    "predict": "serving.commands.predict",
    "status": "serving.commands.status",
    "loadtest": "serving.commands.loadtest",
    "backbone": "trainer.commands.backbone",
    "demo": "trainer.commands.demo",
    "doctor": "serving.commands.doctor",
    "completion": "serving.commands.common.completion",
}
"""Module of each command, in the order of a workflow."""


class LazyGroup(Group):
    """Group that imports the module of a command when the command is used, and lists them in order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        module = COMMANDS.get(cmd_name)
        return getattr(import_module(module), cmd_name) if module else None


@click.group(
    cls=LazyGroup,
    epilog="\b\nFrom a folder of photos to a prediction:\n"
    "  hubhead train --image_dir food_images\n"
    "  hubhead predict photo.jpg --model models/food_images",
)
@click.version_option(package_name="hubhead")
def hubhead() -> None:
    """Train, evaluate, deploy and run image classifiers.

    Train a head on a pretrained backbone from a folder of labelled photos, score millions of photos with
    it, and serve it over TensorFlow Serving's protocol. See the --help of each command.
    """


def main() -> None:
    """Run the console script."""
    run(hubhead, "hubhead")


if __name__ == "__main__":
    main()
