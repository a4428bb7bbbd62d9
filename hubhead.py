"""The `hubhead` command: the sub-commands of trainer, batch and serving in one group."""

from __future__ import annotations

import click

from batch.commands.embeddings import embeddings
from batch.commands.query import query
from batch.commands.rescore import rescore
from batch.commands.score import score
from serving.commands.loadtest import loadtest
from serving.commands.main import run
from serving.commands.models import models
from serving.commands.predict import predict
from serving.commands.promote import promote, rollback
from serving.commands.serve import serve
from serving.commands.status import status
from trainer.commands.backbone import backbone
from trainer.commands.compare import compare
from trainer.commands.demo import demo
from trainer.commands.export import export
from trainer.commands.train import train
from trainer.commands.validate import validate


class OrderedGroup(click.Group):
    """Group whose help lists the commands in the order of a workflow instead of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


@click.group(
    cls=OrderedGroup,
    commands=[
        train,
        export,
        score,
        rescore,
        query,
        embeddings,
        validate,
        models,
        promote,
        rollback,
        compare,
        serve,
        predict,
        status,
        loadtest,
        backbone,
        demo,
    ],
    context_settings={"max_content_width": 100},
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
