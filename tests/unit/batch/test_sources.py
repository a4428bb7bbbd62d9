"""Input of scoring runs: dataset manifests, pass-through columns, errors with line numbers, external sort."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Source
from batch.output.dataset import Output
from serving.errors import InputError, OutputError
from serving.storage import external_sort
from serving.storage.external_sort import Sorter


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def read(path: Path | str, **settings: Any) -> tuple[list[str], pa.Table]:
    """Return the names of the photos and the table of the pass-through columns."""
    source = Source(manifest=str(path), **settings)
    lines = list(source.iter_lines())
    return [Path(photo.uri).name for photo, _ in lines], source.columns.to_table(
        [values for _, values in lines]
    )


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


class TestFormats:
    def test_txt_has_one_photo_per_line(self, top: Path) -> None:
        names, table = read(write(top / "m.txt", "a.jpg\r\n\nc d.jpg\n"))
        assert names == ["a.jpg", "c d.jpg"]
        assert table.num_columns == 0

    @pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
    def test_csv_columns_pass_through(self, top: Path, suffix: str, separator: str) -> None:
        rows = [("uri", "shop", "price"), ("a.jpg", "x1", "1.5"), ("b.jpg", "", "2")]
        names, table = read(write(top / f"m.{suffix}", "".join(separator.join(row) + "\n" for row in rows)))
        assert names == ["a.jpg", "b.jpg"]
        assert table.to_pylist() == [{"shop": "x1", "price": 1.5}, {"shop": None, "price": 2.0}]

    def test_json_lines_may_omit_columns_and_contain_lists(self, top: Path) -> None:
        rows = [{"uri": "a.jpg", "n": 1}, {"uri": "b.jpg", "tags": ["x"], "n": 2.5}, {"uri": "c d.jpg"}]
        _, table = read(write(top / "m.jsonl", "\n".join(map(json.dumps, rows))))
        assert table.to_pylist() == [
            {"n": 1.0, "tags": None},
            {"n": 2.5, "tags": '["x"]'},
            {"n": None, "tags": None},
        ]

    def test_json_lines_may_name_the_address_differently(self, top: Path) -> None:
        rows = [{"image": "a.jpg", "n": 1}, {"path": "b.jpg", "n": 2}, {"image": "c d.jpg", "n": 3}]
        names, table = read(write(top / "m.jsonl", "\n".join(map(json.dumps, rows))))
        assert names == ["a.jpg", "b.jpg", "c d.jpg"]
        assert table.to_pylist() == [{"n": 1}, {"n": 2}, {"n": 3}]

    def test_parquet_types_are_preserved(self, top: Path) -> None:
        rows = pa.table(
            {
                "uri": ["a.jpg", "b.jpg"],
                "taken": pa.array([1, None], pa.timestamp("ns", "UTC")),
                "day": pa.array([datetime.date(2026, 5, 31), None]),
                "price": pa.array([decimal.Decimal("1.20"), None], pa.decimal128(6, 2)),
                "raw": pa.array([b"\xff\x00", None]),
                "small": pa.array([7, None], pa.int8()),
                "ratio": pa.array([0.1, None], pa.float32()),
                "tags": pa.array([["x", None], None], pa.list_(pa.string())),
                "box": pa.array([{"x": 1, "y": 2.5}, None]),
                "kind": pa.array(["k", None]).dictionary_encode(),
            }
        )
        pq.write_table(rows, top / "m.parquet")
        names, table = read(top / "m.parquet")
        assert names == ["a.jpg", "b.jpg"]
        others = rows.drop_columns(["uri"])
        kind = others.schema.get_field_index("kind")
        expected = others.set_column(kind, "kind", others["kind"].cast(pa.string()))
        assert table.schema == expected.schema
        assert table.equals(expected.combine_chunks())

    def test_glob_matches_several_manifests(self, top: Path) -> None:
        write(top / "part-1.csv", "uri,n\na.jpg,1\n")
        write(top / "part-2.csv", "uri,n\nb.jpg,2\n")
        names, table = read(top / "part-*.csv")
        assert names == ["a.jpg", "b.jpg"]
        assert table["n"].to_pylist() == [1, 2]

    def test_relative_addresses_are_resolved_and_missing_photos_are_kept(self, top: Path) -> None:
        (top / "lists").mkdir()
        manifest = write(top / "lists" / "m.txt", f"../a.jpg\n{top / 'b.jpg'}\nnowhere.jpg\n")
        found = [photo for photo, _ in Source(manifest=str(manifest)).iter_lines()]
        assert [photo.uri for photo in found] == [
            str(top / "a.jpg"), str(top / "b.jpg"), str(top / "lists" / "nowhere.jpg"),
        ]  # fmt: skip
        assert [photo.size for photo in found] == [5, 5, 0]

    def test_uri_column_can_be_named(self, top: Path) -> None:
        names, table = read(write(top / "m.csv", "where,path\na.jpg,x\n"), uri_column="where")
        assert names == ["a.jpg"]
        assert table.to_pylist() == [{"path": "x"}]


class TestOddTables:
    """Tables and lists as spreadsheets, shells and other programs write them."""

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_photo_whose_name_is_in_another_unicode_form_is_found(self, top: Path, form: Any) -> None:
        other = "NFD" if form == "NFC" else "NFC"
        path = top / unicodedata.normalize(form, "crème") / unicodedata.normalize(form, "brûlée.jpg")
        path.parent.mkdir()
        path.write_bytes(b"x")
        manifest = write(top / "m.txt", unicodedata.normalize(other, "crème/brûlée.jpg\ncrème/gone.jpg"))
        found = [photo for photo, _ in Source(manifest=str(manifest)).iter_lines()]
        assert (found[0].uri, found[0].size) == (str(path), 1)
        assert found[1].size == 0

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_list_in_another_encoding_is_read(self, top: Path, encoding: str, end: str) -> None:
        (top / "m.txt").write_bytes(f"a.jpg{end} b.jpg {end}{end}c d.jpg".encode(encoding))
        assert read(top / "m.txt")[0] == ["a.jpg", "b.jpg", "c d.jpg"]

    @pytest.mark.parametrize("name", ["m.txt", "m.csv", "m.jsonl", "m.parquet"])
    def test_spaces_count_in_an_address_if_the_file_has_them(self, top: Path, name: str) -> None:
        (top / "x.jpg ").write_bytes(b"x")
        rows = [{"uri": "x.jpg "}, {"uri": "a.jpg "}]
        if name == "m.parquet":
            pq.write_table(pa.Table.from_pylist(rows), top / name)
        else:
            line = json.dumps if name == "m.jsonl" else lambda row: row["uri"]
            write(top / name, "\n".join([*["uri"] * (name == "m.csv"), *map(line, rows)]))
        assert read(top / name)[0] == ["x.jpg ", "a.jpg"]

    def test_spaces_around_numbers_do_not_make_text_and_text_keeps_them(self, top: Path) -> None:
        _, table = read(write(top / "m.csv", 'uri , n , t\na.jpg , 1 , "  x "\nb.jpg, 2.5 ,  \n'))
        assert table.to_pylist() == [{"n": 1.0, "t": "  x "}, {"n": 2.5, "t": None}]

    def test_column_in_two_unicode_forms_is_one_column(self, top: Path) -> None:
        composed, decomposed = "größe", unicodedata.normalize("NFD", "größe")
        rows = [{"uri": "a.jpg", decomposed: 1}, {"uri": "b.jpg", composed: 2}]
        _, table = read(write(top / "m.jsonl", "\n".join(map(json.dumps, rows))))
        assert table.to_pylist() == [{decomposed: 1}, {decomposed: 2}]
        columns = PassThroughColumns({composed: "string"})
        line = columns.encode_row({decomposed: "7"}, text=True)
        assert columns.to_table([line]).to_pylist() == [{composed: "7"}]
        with pytest.raises(InputError, match="more than one column is called"):
            read(write(top / "m.csv", f"uri,{composed},{decomposed}\na.jpg,1,2\n"))

    def test_address_in_bytes_is_text_and_other_types_are_stored_plainly(self, top: Path) -> None:
        kinds = {
            "view": pa.string_view(), "bytes": pa.binary_view(), "large": pa.large_binary(),
            "fixed": pa.binary(1), "number": pa.uint64(),
        }  # fmt: skip
        values = {"view": "x", "bytes": b"x", "large": b"\xff", "fixed": b"\xff", "number": 2**64 - 1}
        columns = {name: pa.array([values[name]], kind) for name, kind in kinds.items()}
        pq.write_table(pa.table({"uri": [b"a.jpg"], **columns}), top / "m.parquet")
        names, table = read(top / "m.parquet")
        assert names == ["a.jpg"]
        assert table.to_pylist() == [values]

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), "the column 'x' is of the type map"),
            (pa.array([1.5], pa.float16()), "the column 'x' is of the type halffloat"),
        ],
    )
    def test_column_of_another_type_is_named(self, top: Path, column: Any, message: str) -> None:
        pq.write_table(pa.table({"uri": ["a.jpg"], "x": column}), top / "m.parquet")
        with pytest.raises(InputError, match=rf"m\.parquet: {message}"):
            read(top / "m.parquet")

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ({"uri": "\ud800.jpg"}, "the address"),
            ({"uri": "a.jpg", "n": "\ud800"}, "'n'"),
            ({"uri": "a.jpg", "n": {"\udfff": 1}}, "'n'"),
        ],
    )
    def test_text_that_is_not_unicode_is_an_error(self, top: Path, line: dict[str, Any], what: str) -> None:
        with pytest.raises(InputError, match=f"line 1: {what} is not Unicode text"):
            read(write(top / "m.jsonl", json.dumps(line)))

    @pytest.mark.parametrize(
        ("cell", "value"),
        [("9223372036854775807", (1 << 63) - 1), ("9223372036854775808", 2.0**63), ("1e999", "1e999")],
    )
    def test_number_at_the_edge_of_its_type(self, top: Path, cell: str, value: Any) -> None:
        _, table = read(write(top / "m.csv", f"uri,n\na.jpg,{cell}\n"))
        assert table["n"].to_pylist() == [value]


class TestCsvTypeInference:
    @pytest.mark.parametrize(
        ("cells", "kind", "values"),
        [
            (["1", "-20", ""], "int64", [1, -20, None]),
            (["1", "2.5", "1e3"], "double", [1.0, 2.5, 1000.0]),
            (["true", "false"], "bool", [True, False]),
            (["01234", "5"], "string", ["01234", "5"]),
            (["1", "x"], "string", ["1", "x"]),
            (["true", "1"], "string", ["true", "1"]),
            (["9" * 30], "double", [1e30]),
            (["nan"], "string", ["nan"]),
            (["", ""], "string", [None, None]),
        ],
    )
    def test_column_type_holds_all_cells(self, cells: list[str], kind: str, values: list[Any]) -> None:
        columns = PassThroughColumns()
        lines = [columns.encode_row({"c": cell}, text=True) for cell in cells]
        table = columns.to_table(lines)
        assert str(table.schema.field("c").type) == kind
        assert table["c"].to_pylist() == pytest.approx(values) if kind == "double" else values

    def test_previous_types_are_kept_where_the_cells_allow_it(self) -> None:
        columns = PassThroughColumns({"code": "string", "price": "double", "n": "int64"})
        line = columns.encode_row({"code": "7", "price": "3", "n": "x"}, text=True)
        assert columns.to_table([line]).to_pylist() == [{"code": "7", "price": 3.0, "n": "x"}]


INVALID_MANIFESTS = {
    "no address": ("m.csv", "uri,n\na.jpg,1\n,2\n", "line 3: there is no address"),
    "no column": ("m.csv", "shop,n\na.jpg,1\n", "line 1: no column image or"),
    "two columns": ("m.csv", "uri,path\na.jpg,b.jpg\n", "'uri' and 'path' could be the address"),
    "ours": ("m.csv", "uri,Score\na.jpg,1\n", "'Score' passes through to the scores, where score is one of"),
    "twice": ("m.csv", "uri,n,N\na.jpg,1,2\n", "more than one column is called 'n'"),
    "ours in the plan": (
        "m.csv",
        "uri,hubhead:uri\na.jpg,1\n",
        "'hubhead:uri' passes .*, where hubhead: begins",
    ),
    "nameless": ("m.csv", "uri,\na.jpg,1\n", "a column has no name"),
    "cells": ("m.csv", "uri,n\na.jpg\n", "line 2: 1 cells, but the header has 2"),
    "types": (
        "m.jsonl",
        '{"uri": "a.jpg", "n": 1}\n{"uri": "b.jpg", "n": "x"}\n',
        "line 2: 'n' is text here",
    ),
    "large": ("m.jsonl", '{"uri": "a.jpg", "n": 99999999999999999999}\n', "line 1: 9+ has more than 64 bits"),
    "json": ("m.jsonl", '{"uri": "a.jpg"}\n{"uri"\n', "line 2: invalid JSON"),
    "missing": ("elsewhere/m.csv", None, "Cannot read the manifest"),
    "suffix": ("m.xlsx", "x", "a manifest's name ends in .txt, .csv"),
    "parquet": ("m.parquet", "x", "as Parquet"),
}


@pytest.mark.parametrize("name", INVALID_MANIFESTS)
def test_invalid_manifest_names_file_and_line(name: str, top: Path) -> None:
    file, content, message = INVALID_MANIFESTS[name]
    if content is not None:
        write(top / file, content)
    with pytest.raises(InputError, match=message) as caught:
        read(top / file, reserved={"score": "where score is one of hubhead's columns"})
    assert caught.value.remedy


def test_unsupported_parquet_type_is_rejected(top: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"], "x": pa.array([{"b": b"x"}])}), top / "m.parquet")
    with pytest.raises(InputError, match="cannot pass through"):
        read(top / "m.parquet")


def test_conflicting_column_types_in_a_glob_are_rejected(top: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"], "x": [1]}), top / "p1.parquet")
    pq.write_table(pa.table({"uri": ["b.jpg"], "x": ["1"]}), top / "p2.parquet")
    with pytest.raises(InputError, match=r"p2\.parquet: 'x' is string, and int64 in an earlier file"):
        read(top / "p*.parquet")


def test_manifest_given_as_photos_suggests_the_manifest_flag(top: Path) -> None:
    source = Source(photos=str(write(top / "m.csv", "uri\na.jpg\n")))
    with pytest.raises(InputError, match="--manifest"):
        list(source.iter_lines())


@pytest.mark.parametrize("photos", ["", "/", "/**", "/../link"])
def test_files_of_the_run_itself_are_no_photos(top: Path, photos: str) -> None:
    (top.parent / "link").unlink(missing_ok=True)
    (top.parent / "link").symlink_to(top)
    for name in ("out/scores/scores-1.parquet", "out/_hubhead/input.json", "out/run.json", "out/d.jpg"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"x")
    source = Source(photos=f"{top}{photos}", own=Output(str(top / "out")).own)
    found = {Path(photo.uri).name for photo, _ in source.iter_lines()}
    assert found == {"a.jpg", "b.jpg", "c d.jpg", "d.jpg"}


class TestExternalSort:
    def test_lines_beyond_the_memory_limit_are_merged_from_disk(self) -> None:
        lines = [f"{random.Random(number).random()} {number}\n".encode() for number in range(5000)]
        with Sorter(memory=400) as sorter:  # some 300 sorted runs, merged in two passes
            for line in lines:
                sorter.add(line)
            assert list(sorter.lines()) == sorted(lines)

    def test_each_line_is_written_once_for_each_level_of_merges(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []

        def write_run(lines: Any) -> Any:
            content = list(lines)
            written.append(len(content))
            return write(iter(content))

        write = external_sort._write_run
        monkeypatch.setattr(external_sort, "_write_run", write_run)
        monkeypatch.setattr(external_sort, "_FAN_IN", 4)
        lines = [b"%06d\n" % number for number in random.Random(0).sample(range(1000), 640)]
        with Sorter(memory=70) as sorter:  # 64 runs of ten lines
            for line in lines:
                sorter.add(line)
            assert list(sorter.lines()) == sorted(lines)
        assert sum(written) == 640 * 4  # the runs, and three levels of merges: 64, 16, 4, 1

    def test_full_temporary_directory_is_named_in_the_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(**_: Any) -> Any:
            return Path("/dev/full").open("w+b")

        monkeypatch.setattr(external_sort.tempfile, "TemporaryFile", full)
        with (
            Sorter(memory=10) as sorter,
            pytest.raises(OutputError, match="Cannot write temporary files") as caught,
        ):
            sorter.add(b"x" * (1 << 20) + b"\n")
        assert "TMPDIR" in caught.value.remedy
