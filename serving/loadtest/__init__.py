"""Load on a model server as real callers make it: they do not wait for one another."""

from serving.loadtest.figures import Result as Result
from serving.loadtest.generator import Load as Load
from serving.loadtest.generator import run as run
from serving.loadtest.report import page as page
