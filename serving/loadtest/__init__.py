"""Open-loop load test of a model server: arrivals are independent of earlier responses."""

from serving.loadtest.figures import Result as Result
from serving.loadtest.generator import Load as Load
from serving.loadtest.generator import run_load as run_load
from serving.loadtest.report import render_page as render_page
