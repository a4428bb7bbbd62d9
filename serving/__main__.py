"""`python -m serving`: the commands that need only this package."""

from serving.commands.loadtest import loadtest
from serving.commands.main import run_group
from serving.commands.predict import predict
from serving.commands.serve import serve
from serving.commands.status import status

if __name__ == "__main__":
    run_group([serve, predict, status, loadtest], "python -m serving", "Serve a model or query one.")
