"""`python -m serving`: the commands of this package alone."""

import click

from serving.cli import predict, serve
from serving.command import run

if __name__ == "__main__":
    group = click.Group(commands=[serve, predict], help="Serve a model, or ask one.")
    run(group, "python -m serving")
