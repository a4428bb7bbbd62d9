"""`hubhead query`: read-only SQL over the scores, isolated from files and network."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.commands.query import query
from hubhead import hubhead
from serving.errors import InputError, OutputError
from tests.support.repository import REPO


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
    (top / "scores" / "notes.md").write_text("no rows")
    (top / "_hubhead" / "runs").mkdir(parents=True)
    for day, photos in (("2026-05-30", 60), ("2026-05-31", 100)):
        run = {"run_id": day, "started": f"{day}T01:00:00+00:00", "photos": photos, "seconds": 4.0, "x": [1]}
        (top / "_hubhead" / "runs" / f"{day}.json").write_text(json.dumps(run))
    (top / "_hubhead" / "runs" / "torn.json").write_text('{"run_id": "to')
    return top


def run_command(statement: str, output: Path | str, *options: str) -> Result:
    return CliRunner().invoke(query, [statement, "--scores", str(output), *options])


def select(statement: str, output: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a result."""
    done = run_command(statement, output, "--format", "json")
    assert done.exit_code == 0, done.exception
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def fail(statement: str, output: Path | str, *options: str) -> str:
    """Return the message of a command that fails with an InputError."""
    done = run_command(statement, output, *options)
    assert isinstance(done.exception, InputError), done.exception
    return str(done.exception)


COUNTS = "select label, count(*) as photos from scores group by 1 order by 1 nulls last"


def test_hubhead_query_prints_a_table(output: Path) -> None:
    done = CliRunner().invoke(hubhead, ["query", COUNTS, "--scores", str(output)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["label", "photos"]
    assert [line.split() for line in lines[1:]] == [[f"crème/{n}", "20"] for n in range(4)] + [["20"]]


def test_table_cells_are_aligned_text(output: Path) -> None:
    statement = "select 1 as n, 1 as n, null as e, ['a', 'b'] as l, 0.1::float as f, 2e9 as d, true as b"
    statement += " union all select 20, 3, 'x', [], 12.3456789, 0.25, false"
    lines = run_command(statement, output).stdout.splitlines()
    assert lines == [
        " n  n  e  l                f      d  b    ",
        ' 1  1     ["a","b"]      0.1  2e+09  true ',
        "20  3  x  []         12.3457   0.25  false",
    ]


@pytest.mark.parametrize("where", ["", "scores"])
def test_accepts_the_output_directory_or_its_scores_directory(output: Path, where: str) -> None:
    for table, rows in (("scores", 100), ("runs", 2)):
        assert select(f"select count(*) as n from {table}", output / where) == [{"n": rows}]


def test_schema_promotion_fills_missing_columns_with_null(output: Path) -> None:
    result = select("select album, count(*) as n from scores group by 1 order by 1", output)
    assert result == [{"album": "summer", "n": 40}, {"album": None, "n": 60}]


def test_runs_table_has_one_row_per_run_record(output: Path) -> None:
    result = select("select run_id, photos / seconds as rate, json->>'$.x[0]' as x from runs", output)
    assert result == [
        {"run_id": "2026-05-30", "rate": 15.0, "x": "1"},
        {"run_id": "2026-05-31", "rate": 25.0, "x": "1"},
    ]


def test_runs_table_falls_back_to_run_json(output: Path) -> None:
    for path in (output / "_hubhead" / "runs").iterdir():
        path.unlink()
    assert select("from runs", output) == []
    (output / "run.json").write_text('{"photos": 7, "started": "2026-05-31T01:00:00+02:00"}')
    statement = "select started at time zone 'UTC' as at, typeof(started) as kind, photos, run_id from runs"
    assert select(statement, output / "scores") == [
        {"at": "2026-05-30 23:00:00", "kind": "TIMESTAMP WITH TIME ZONE", "photos": 7, "run_id": None}
    ]


def test_runs_of_an_output_that_is_itself_called_scores(output: Path) -> None:
    moved = output.rename(output.with_name("scores"))
    for directory in (moved, moved / "scores"):
        assert select("select count(*) as n from runs", directory) == [{"n": 2}]


def test_scores_keep_their_types(output: Path) -> None:
    kinds = {row["column_name"]: row["column_type"] for row in select("describe scores", output)}
    assert kinds["score"] == "FLOAT"
    assert kinds["top_labels"] == "VARCHAR[]"
    assert kinds["scored_at"] == "TIMESTAMP WITH TIME ZONE"


@pytest.mark.parametrize("by", ["label", "date"])
def test_hive_partitions_become_columns(tmp_path: Path, by: str) -> None:
    top = tmp_path / "out" / "scores"
    for name in ("label=cr%C3%A8me%2F1", "label=007", "label=__HIVE_DEFAULT_PARTITION__"):
        path = top / (name if by == "label" else "date=2026-05-31")
        path.mkdir(parents=True, exist_ok=True)
        table = rows(0, 3).drop_columns(["label"])
        pq.write_table(table, path / f"scores-{len(list(top.rglob('*')))}.parquet")
    statement = f"select {by}, typeof({by}) as kind, count(*) as n from scores group by all order by 1"
    found = [(row[by], row["kind"], row["n"]) for row in select(statement, top.parent)]
    if by == "label":
        assert found == [("007", "VARCHAR", 3), ("crème/1", "VARCHAR", 3), (None, "VARCHAR", 3)]
    else:
        assert found == [("2026-05-31", "DATE", 9)]


def test_the_reference_says_how_other_readers_take_labels_like_numbers_as_text(
    tmp_path: Path,
) -> None:
    for label in ("01", "2"):
        (tmp_path / f"label={label}").mkdir()
        pq.write_table(pa.table({"uri": ["a"]}), tmp_path / f"label={label}" / "scores-a.parquet")
    page = (REPO / "docs/reference/scores.md").read_text("utf-8")
    hive = "hive_types={label: varchar}"
    partitioning = 'ds.partitioning(pa.schema([("label", pa.string())]), flavor="hive")'
    assert hive in page
    assert partitioning in page
    statement = f"select label from read_parquet('{tmp_path}/**/*.parquet', {hive}) order by 1"
    assert duckdb.sql(statement).fetchall() == [("01",), ("2",)]
    made = eval(partitioning, {"ds": pyarrow.dataset, "pa": pa})  # the page's own words
    assert sorted(pq.read_table(tmp_path, partitioning=made)["label"].to_pylist()) == ["01", "2"]


def test_directories_outside_of_the_scores_add_no_columns(output: Path) -> None:
    moved = output.rename(output.with_name("team=[a]*"))
    (row,) = select("from scores limit 1", moved)
    assert "team" not in row


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
        ("select * from read_text('/etc/passwd')", ["query failed", "disabled"]),
        ("select * from read_text('{output}/notes.txt')", ["query failed", "disabled"]),
        ("select * from read_text('{output}/scores/*')", ["query failed", "disabled"]),
        ("select * from read_text('memory://bucket/notes.txt')", ["query failed", "disabled"]),
        ("select * from read_json('https://127.0.0.1:1/')", ["query failed"]),
        ("select * from glob('/etc/*')", ["query failed", "disabled"]),
        ("select * from rows", ["query failed", "rows"]),
    ],
)
def test_rejects_invalid_writing_and_file_reading_statements(
    output: Path, statement: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (output / "notes.txt").write_text("private")
    before = sorted(tmp_path.rglob("*"))
    message = fail(statement.format(output=output), output)
    for word in words:
        assert word in message
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_are_locked(output: Path) -> None:
    names = ("enable_external_access", "python_enable_replacements")
    columns = ", ".join(f"current_setting('{name}') as {name}" for name in names)
    assert select(f"select {columns}", output) == [dict.fromkeys(names, False)]
    assert select("select current_setting('lock_configuration') as locked", output) == [{"locked": True}]


@pytest.fixture
def remote(output: Path) -> str:
    """Copy of the output in an object store."""
    storage = fsspec.filesystem("memory")
    for path in output.rglob("*.*"):
        storage.pipe_file(f"/bucket/out/{path.relative_to(output)}", path.read_bytes())
    storage.pipe_file("/bucket/notes.txt", b"private")
    return "memory://bucket/out"


def test_remote_scores_are_read_through_fsspec(remote: str) -> None:
    result = select("select album, count(*) as n from scores group by 1 order by 1", remote)
    assert result == [{"album": "summer", "n": 40}, {"album": None, "n": 60}]
    assert select("select count(*) as n from runs", f"{remote}/scores/") == [{"n": 2}]
    assert "disabled" in fail("select * from read_text('memory://bucket/notes.txt')", remote)
    assert "disabled" in fail("select * from glob('memory://bucket/*')", remote)
    assert "no scores in memory://bucket/none" in fail("select 1", "memory://bucket/none")


def test_remote_outputs_are_written_atomically(remote: str) -> None:
    path = "memory://bucket/results/labels.csv"
    assert run_command(COUNTS, remote, "--output", path).exit_code == 0
    storage = fsspec.filesystem("memory")
    assert storage.cat_file(path).decode().splitlines()[:2] == ["label,photos", "crème/0,20"]
    failing = "select case when score > 0.8 then error('late') else uri end from scores"
    assert "late" in fail(failing, remote, "--output", "memory://bucket/results/never.csv")
    assert storage.find("memory://bucket/results") == ["/bucket/results/labels.csv"]


def test_a_failing_object_store_is_an_input_error(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_open(*_: Any, **__: Any) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", fail_to_open)
    message = fail("select count(*) from scores", remote)
    assert message.startswith(f"The scores in {remote} cannot be read: PermissionError: access denied.")


def test_missing_storage_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_import(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", fail_to_import)
    assert "pip install 'hubhead[s3]'" in fail("select 1", "s3://bucket/out")


def test_missing_or_corrupt_scores_are_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        message = fail("select 1", path)
        assert f"no scores in {path}" in message
        assert "--output" in message
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores-a.parquet").write_bytes(b"no Parquet")
    assert f"{tmp_path} cannot be read" in fail("select 1", tmp_path)


def test_missing_duckdb_names_the_extra_to_install(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "hubhead[query]" in fail("select 1", output)


def test_csv_and_json_contain_every_row(output: Path, tmp_path: Path) -> None:
    statement = "select * from scores order by uri"
    done = run_command(statement, output, "--format", "csv")
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(found) == 100
    assert found[0]["uri"] == "photo 0.jpg"
    assert json.loads(found[0]["top_labels"]) == ["a", 'b "c"']
    assert datetime.fromisoformat(found[0]["scored_at"]) == datetime(2026, 5, 31, tzinfo=UTC)
    assert [row["score"] for row in found[:2]] == ["0.0", "0.1"]
    done = run_command(statement, output, "--output", str(tmp_path / "all.json"))
    assert done.stdout == ""
    assert "100 rows" in done.stderr
    kept = json.loads((tmp_path / "all.json").read_text())
    assert [row["uri"] for row in kept] == [row["uri"] for row in found]
    assert kept[0]["top_labels"] == ["a", 'b "c"']


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "table"])
def test_empty_results_have_columns_and_no_rows(output: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "empty"
    done = run_command(
        "select label, score from scores where false", output, "--format", kind, "--output", str(path)
    )
    assert "0 rows" in done.stderr
    if kind == "parquet":
        assert pq.read_table(path).schema.names == ["label", "score"]
    elif kind == "json":
        assert json.loads(path.read_text()) == []
    else:
        assert path.read_text().replace(",", " ").split() == ["label", "score"]


@pytest.mark.parametrize(
    "statement",
    ["describe scores", "summarize scores", "explain from scores", "pivot scores on label using count(*)"],
)
@pytest.mark.parametrize("kind", ["csv", "json", "table"])
def test_statements_other_than_select_have_results_in_all_formats(
    output: Path, statement: str, kind: str
) -> None:
    done = run_command(statement, output, "--format", kind)
    assert done.exit_code == 0, done.exception
    assert len(done.stdout.splitlines()) > 1


def test_output_file_is_written_atomically(output: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "labels.parquet"
    assert run_command(COUNTS, output, "--output", str(path)).exit_code == 0
    assert pq.read_table(path)["photos"].to_pylist() == [20] * 5
    assert run_command("select 1", output, "--format", "parquet").exit_code == 2
    failing = "select case when score > 0.8 then error('late') else uri end from scores"
    assert "late" in fail(failing, output, "--output", str(tmp_path / "deep" / "never.parquet"))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["labels.parquet"]


def test_an_output_that_cannot_be_written_is_an_output_error(output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_command("select 1", output, "--output", str(tmp_path / "file" / "labels.csv"))
    assert isinstance(done.exception, OutputError)
    assert "labels.csv" in str(done.exception)


def test_long_tables_are_truncated_with_a_note(output: Path) -> None:
    done = run_command("select i from range(12345) as t(i)", output)
    assert len(done.stdout.splitlines()) == 102
    assert done.stdout.splitlines()[1:101] == [f"{i:>2}" for i in range(100)]
    assert "First 100 of 12,345 rows" in done.stdout
    assert len(run_command("select i from range(100) as t(i)", output).stdout.splitlines()) == 101


def test_a_table_of_the_user_is_joined_with_the_scores(output: Path, tmp_path: Path) -> None:
    (tmp_path / "shops.csv").write_text(
        "label,shop,stars\ncr\u00e8me/1,Chez Annette,4.5\ncr\u00e8me/2,Caf\u00e9 B,3\n", "utf-8"
    )
    (tmp_path / "cities.jsonl").write_text('{"shop": "Chez Annette", "city": "Bern"}\n')
    result = run_command(
        "select shop, city, count(*) as photos, max(stars) + 1 from scores join shops using (label) "
        "left join cities using (shop) group by all order by 1 desc",
        output,
        "--table",
        f"shops={tmp_path / 'shops.csv'}",
        "--table",
        f"cities={tmp_path / 'cities.jsonl'}",
        "--format",
        "csv",
    )
    assert result.exit_code == 0, result.output
    assert list(csv.reader(io.StringIO(result.stdout)))[1:] == [
        ["Chez Annette", "Bern", "20", "5.5"],
        ["Caf\u00e9 B", "", "20", "4.0"],
    ]


def test_labels_like_numbers_stay_text_in_a_table(output: Path, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("label,name\n01,one\n02,two\n")
    table = f"names={tmp_path / 'names.csv'}"
    result = run_command("select label from names", output, "--table", table, "--format", "csv")
    assert result.stdout.split() == ["label", "01", "02"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("shops", "expected NAME=FILE"),
        ("=shops.csv", "cannot be the name of a table"),
        ("scores=shops.csv", "cannot be the name of a table"),
        ('a"; drop view scores; --=shops.csv', "cannot be the name of a table"),
        ("shops=missing.csv", "is not a local file"),
        ("shops=s3://bucket/shops.csv", "is not a local file"),
        ("shops=shops.xlsx", "has an unknown format"),
        ("shops=broken.parquet", "cannot be read from broken.parquet"),
    ],
)
def test_a_table_that_cannot_be_used_is_reported(
    table: str, message: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shops.csv", "shops.xlsx", "broken.parquet"):
        Path(name).write_text("label,shop\na,b\n")
    result = CliRunner().invoke(hubhead, ["query", "select 1", "--scores", str(output), "--table", table])
    assert result.exit_code in (1, 2)
    assert message in " ".join((result.output + str(result.exception)).split())


def test_other_files_beside_a_table_stay_closed(output: Path, tmp_path: Path) -> None:
    for name in ("shops.csv", "secret.csv"):
        (tmp_path / name).write_text("label,shop\na,b\n")
    result = run_command(
        f"select * from read_csv('{tmp_path / 'secret.csv'}')",
        output,
        "--table",
        f"shops={tmp_path / 'shops.csv'}",
    )
    assert isinstance(result.exception, InputError)
