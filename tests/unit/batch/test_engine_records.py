"""Which engine embedded the photos of a run, and on which CPU: counts, run.json, rows of the reports."""

from __future__ import annotations

import json

from batch.monitoring.engines import describe_engines
from batch.monitoring.stats import Stats
from serving.process import get_cpu_model
from tests.support.batch_report import make_run


def make_stats() -> Stats:
    first, second = Stats(), Stats()
    first.count_engine("onnx", "AMD EPYC 7B13", 3)
    first.count_engine("tensorflow", "Neoverse-N1", 5)
    second.count_engine("onnx", "AMD EPYC 7B13", 4)
    second.count_engine("onnx", "Xeon", 1)
    second.count_engine("server", "", 0)
    return first + second


def test_engines_of_several_workers_add_up_and_survive_json() -> None:
    stats = make_stats()
    expected = [
        {"engine": "onnx", "cpu": "AMD EPYC 7B13", "photos": 7},
        {"engine": "tensorflow", "cpu": "Neoverse-N1", "photos": 5},
        {"engine": "onnx", "cpu": "Xeon", "photos": 1},
    ]
    assert stats.list_engines() == expected
    read = Stats.from_json(json.loads(stats.encode()))
    assert read.list_engines() == expected
    assert (read + make_stats()).list_engines()[0]["photos"] == 14


def test_a_run_record_names_the_cpu_and_the_engines() -> None:
    run = make_run(make_stats())
    assert run["cpu"] == get_cpu_model()
    assert run["this_run"]["engines"] == run["all_runs"]["engines"] == make_stats().list_engines()


def test_rows_of_a_report_name_engines_and_cpus() -> None:
    unknown = {"engine": "server", "cpu": "", "photos": 1200}
    assert describe_engines("Xeon", [*make_stats().list_engines()[:1], unknown]) == {
        "CPU": "Xeon",
        "onnx on AMD EPYC 7B13": "7 embedded",
        "server": "1,200 embedded",
    }
    assert describe_engines("", []) == {}, "a record of an earlier version"
