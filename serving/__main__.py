"""`python -m serving`: the commands of this package alone."""

import click

from serving.commands.loadtest import loadtest
from serving.commands.main import run
from serving.commands.predict import predict
from serving.commands.serve import serve
from serving.commands.status import status

if __name__ == "__main__":
    group = click.Group(commands=[serve, predict, status, loadtest], help="Serve a model, or ask one.")
    run(group, "python -m serving")
