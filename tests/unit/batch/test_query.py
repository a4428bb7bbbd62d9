"""`hubhead query`: read-only SQL over the scores, isolated from files and network."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.commands.query import query
from batch.query import sql
from hubhead import hubhead
from serving.errors import InputError


def rows(start: int, count: int) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {
            "uri": [f"photo {number}.jpg" for number in numbers],
            "label": pa.array([None if n % 5 == 4 else f"crème/{n % 5}" for n in numbers], pa.string()),
            "score": pa.array([number % 10 / 10 for number in numbers], pa.float32()),
            "top_labels": [["a", 'b "c"'] for _ in numbers],
            "scored_at": pa.array([datetime(2026, 5, 31, tzinfo=UTC)] * count, pa.timestamp("us", tz="UTC")),
        }
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Output of a run: two files, one with a pass-through column, a temporary file and run records."""
    top = tmp_path / "out"
    (top / "scores").mkdir(parents=True)
    pq.write_table(rows(0, 60), top / "scores" / "scores-a.parquet")
    more = rows(60, 40).append_column("album", pa.array(["summer"] * 40))
    pq.write_table(more, top / "scores" / "scores-b.parquet")
    (top / "scores" / ".tmp-0.parquet").write_bytes(b"half a file")
    (top / "_hubhead" / "runs").mkdir(parents=True)
    for day, photos in (("2026-05-30", 60), ("2026-05-31", 100)):
        run = {"run_id": day, "started": f"{day}T01:00:00+00:00", "photos": photos, "seconds": 4.0, "x": [1]}
        (top / "_hubhead" / "runs" / f"{day}.json").write_text(json.dumps(run))
    (top / "_hubhead" / "runs" / "torn.json").write_text('{"run_id": "to')
    return top


def run_command(statement: str, output: Path, *options: str) -> Result:
    return CliRunner().invoke(query, [statement, "--scores", str(output), *options])


COUNTS = "select label, count(*) as photos from scores group by 1 order by 1 nulls last"


def test_hubhead_query_prints_a_table(output: Path) -> None:
    done = CliRunner().invoke(hubhead, ["query", COUNTS, "--scores", str(output)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["label", "photos"]
    assert [line.split() for line in lines[1:]] == [[f"crème/{n}", "20"] for n in range(4)] + [["20"]]


@pytest.mark.parametrize("where", ["", "scores"])
def test_accepts_the_output_directory_or_its_scores_directory(output: Path, where: str) -> None:
    assert sql.run_query("select count(*) from scores", str(output / where)).read_all()[0][0].as_py() == 100
    assert sql.run_query("select count(*) from runs", str(output / where)).read_all()[0][0].as_py() == 2


def test_schema_promotion_fills_missing_columns_with_null(output: Path) -> None:
    result = sql.run_query(
        "select album, count(*) as n from scores group by 1 order by 1", str(output)
    ).read_all()
    assert result.to_pylist() == [{"album": "summer", "n": 40}, {"album": None, "n": 60}]


def test_runs_table_has_one_row_per_run_record(output: Path) -> None:
    result = sql.run_query(
        "select run_id, photos / seconds as rate, json->>'$.x[0]' as x from runs", str(output)
    )
    assert result.read_all().to_pylist() == [
        {"run_id": "2026-05-30", "rate": 15.0, "x": "1"},
        {"run_id": "2026-05-31", "rate": 25.0, "x": "1"},
    ]


def test_runs_table_falls_back_to_run_json(output: Path) -> None:
    for path in (output / "_hubhead" / "runs").iterdir():
        path.unlink()
    (output / "run.json").write_text('{"photos": 7, "started": "2026-05-31T01:00:00+02:00"}')
    (row,) = sql.run_query("select started, photos, run_id from runs", str(output)).read_all().to_pylist()
    assert row == {"started": datetime(2026, 5, 30, 23, tzinfo=UTC), "photos": 7, "run_id": None}


@pytest.mark.parametrize("by", ["label", "date"])
def test_hive_partitions_become_columns(tmp_path: Path, by: str) -> None:
    top = tmp_path / "out" / "scores"
    for name in ("label=cr%C3%A8me%2F1", "label=007", "label=__HIVE_DEFAULT_PARTITION__"):
        path = top / (name if by == "label" else "date=2026-05-31")
        path.mkdir(parents=True, exist_ok=True)
        table = rows(0, 3).drop_columns(["label"])
        pq.write_table(table, path / f"scores-{len(list(top.rglob('*')))}.parquet")
    result = sql.run_query(f"select {by}, count(*) as n from scores group by 1 order by 1", str(top.parent))
    found = {row[by]: row["n"] for row in result.read_all().to_pylist()}
    expected = {"crème/1": 3, "007": 3, None: 3} if by == "label" else {date(2026, 5, 31): 9}
    assert found == expected


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("select lable from scores", ["lable", "label", "LINE 1", "^^^^^"]),
        ("selec 1", ["syntax error", "LINE 1"]),
        ("select 1; select 2", ["Expected one SQL statement", "found 2"]),
        ("", ["Expected one SQL statement", "found 0"]),
        ("insert into scores values (1)", ["INSERT statements are not allowed"]),
        ("drop view scores", ["DROP statements are not allowed"]),
        ("copy scores to 'there.csv'", ["COPY statements are not allowed"]),
        ("set threads=1", ["SET statements are not allowed"]),
        ("attach 'there.db'", ["ATTACH statements are not allowed"]),
        ("select * from read_csv('/etc/passwd')", ["query failed", "disabled"]),
        ("select * from '/etc/passwd'", ["query failed"]),
        ("select * from read_text('/etc/passwd')", ["query failed"]),
        ("select * from rows", ["query failed", "rows"]),
    ],
)
def test_rejects_invalid_writing_and_file_reading_statements(
    output: Path, statement: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        sql.run_query(statement, str(output)).read_all()
    for word in words:
        assert word in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_or_corrupt_scores_are_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no scores in .*--output"):
            sql.run_query("select 1", str(path))
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores-a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="cannot be read"):
        sql.run_query("select 1", str(tmp_path))


def test_missing_duckdb_names_the_extra_to_install(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InputError, match=r"hubhead\[query\]"):
        sql.run_query("select 1", str(output))


def test_csv_and_json_contain_every_row(output: Path, tmp_path: Path) -> None:
    statement = "select * from scores order by uri"
    done = run_command(statement, output, "--format", "csv")
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(found) == 100
    assert found[0]["uri"] == "photo 0.jpg"
    assert json.loads(found[0]["top_labels"]) == ["a", 'b "c"']
    assert found[0]["scored_at"].startswith("2026-05-31")
    done = run_command(statement, output, "--output", str(tmp_path / "all.json"))
    assert done.stdout == ""
    assert "100 rows" in done.stderr
    kept = json.loads((tmp_path / "all.json").read_text())
    assert [row["uri"] for row in kept] == [row["uri"] for row in found]
    assert run_command("select 1 as one where false", output, "--format", "json").stdout == "[\n]\n"


def test_output_file_is_written_atomically(output: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "labels.parquet"
    assert run_command(COUNTS, output, "--output", str(path)).exit_code == 0
    assert pq.read_table(path)["photos"].to_pylist() == [20] * 5
    assert run_command("select 1", output, "--format", "parquet").exit_code == 2
    failing = "select case when score > 0.8 then error('late') else uri end from scores"
    done = run_command(failing, output, "--output", str(tmp_path / "deep" / "never.parquet"))
    assert done.exit_code != 0
    assert isinstance(done.exception, InputError), done.exception
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["labels.parquet"]


def test_long_tables_are_truncated_with_a_note(output: Path) -> None:
    done = run_command("select i from range(12345) as t(i)", output)
    assert len(done.stdout.splitlines()) == 102
    assert "First 100 of 12,345 rows" in done.stdout
