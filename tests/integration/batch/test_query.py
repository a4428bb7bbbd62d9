"""`hubhead query` over scores in object stores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.commands.query import query
from tests.support import object_stores

pytestmark = pytest.mark.server

FILES = 8


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    with object_stores.serve_s3() as s3, object_stores.serve_gs() as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture
def output(request: pytest.FixtureRequest, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Output of a run, in a store."""
    top = object_stores.new_base_path(request.param, monkeypatch, servers)
    storage, path = fsspec.url_to_fs(top, skip_instance_cache=True)
    for number in range(FILES):
        content = pa.BufferOutputStream()
        pq.write_table(pa.table({"label": ["a", "b"] * 50, "number": [number] * 100}), content)
        storage.pipe_file(f"{path}/scores/scores-{number}.parquet", content.getvalue().to_pybytes())
    storage.pipe_file(f"{path}/_hubhead/runs/1.json", b'{"run_id": "1", "photos": 800}')
    storage.pipe_file(f"{path}-other/notes.txt", b"private")
    return top


@pytest.mark.parametrize("output", ["s3", "gs"], indirect=True)
def test_scores_and_results_in_an_object_store(output: str) -> None:
    statement = (
        "select label, count(*) as n, sum(number) as s, (select photos from runs) as p from scores group by 1"
    )
    result = f"{output}-results/labels.json"
    done = CliRunner().invoke(query, [f"{statement} order by 1", "--scores", output, "--output", result])
    assert done.exit_code == 0, done.exception
    storage, path = fsspec.url_to_fs(result, skip_instance_cache=True)
    assert json.loads(storage.cat_file(path)) == [
        {"label": label, "n": 400, "s": 50 * sum(range(FILES)), "p": 800} for label in "ab"
    ]
    done = CliRunner().invoke(query, [f"from read_text('{output}-other/notes.txt')", "--scores", output])
    assert "disabled" in str(done.exception)


@pytest.mark.parametrize("output", ["s3"], indirect=True)
def test_each_small_file_is_requested_once(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: Counter[str] = Counter()
    storage: Any = type(fsspec.filesystem("s3"))
    original = storage._call_s3

    async def count(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        requests[method] += 1
        return await original(self, method, *arguments, **named)

    monkeypatch.setattr(storage, "_call_s3", count)
    done = CliRunner().invoke(query, ["select label, sum(number) from scores group by 1", "--scores", output])
    assert done.exit_code == 0, done.exception
    assert requests["get_object"] == FILES
    assert requests["head_object"] == 0
