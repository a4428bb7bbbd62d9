"""Dataset manifests: tables of photo and label, and the errors about unusable ones."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
import tempfile
import tracemalloc
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.monitoring.stats import Progress
from serving.errors import InputError
from trainer import dataset
from trainer.dataset import Columns, DatasetListing, SplitSettings, Subset, list_photos, scan
from trainer.dataset.split import count_groups

TRAINING, VALIDATION, TESTING = Subset.TRAINING, Subset.VALIDATION, Subset.TESTING

Row = Mapping[str, Any]


def write_manifest(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as a manifest in the format of the file's suffix."""
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def write_photos(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(name.encode())


def labels_by_path(folder: DatasetListing, top: Path) -> dict[str, str]:
    """Return relative path -> label of each photo."""
    return {os.path.relpath(photo.uri, top): folder.labels[label] for photo, label in folder.photos.items()}


FORMATS = [".csv", ".jsonl", ".parquet"]
BOTH = [{"image": "a.jpg", "label": "pizza"}, {"image": "deep/b.jpg", "label": "sushi"}]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    write_photos(tmp_path, "a.jpg", "deep/b.jpg", "c.jpg")
    return tmp_path


# --- Reading rows and columns ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_paths_are_relative_to_the_manifest(top: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(top / f"m{suffix}", BOTH)
    monkeypatch.chdir(top / "deep")
    folder = scan(f"../m{suffix}")
    assert folder.labels == ("pizza", "sushi")
    assert labels_by_path(folder, top) == {"a.jpg": "pizza", "deep/b.jpg": "sushi"}
    assert not folder.left_out


def test_a_manifest_lists_the_same_photos_as_their_folder(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("pizza", "sushi") for number in range(3)]
    write_photos(tmp_path / "photos", *names)
    rows = [{"path": f"./photos/x/../{name}", "label": name.partition("/")[0]} for name in names]
    assert scan(write_manifest(tmp_path / "m.csv", rows)) == dataset.scan(tmp_path / "photos")


@pytest.mark.parametrize("photo", ["absolute", "file"])
def test_absolute_paths_and_file_addresses_are_taken_as_they_are(top: Path, photo: str) -> None:
    spelled = str(top / "a.jpg") if photo == "absolute" else (top / "a.jpg").as_uri()
    (top / "lists").mkdir()
    rows = [{"uri": spelled, "label": "pizza"}, {"uri": "../c.jpg", "label": "sushi"}]
    assert labels_by_path(scan(write_manifest(top / "lists" / "m.jsonl", rows)), top) == {
        "a.jpg": "pizza",
        "c.jpg": "sushi",
    }


@pytest.mark.parametrize("photo", ["image", "Photo", "path", "uri", "file", "filename", " FILE_NAME"])
@pytest.mark.parametrize("label", ["label", "Class", "category"])
def test_default_column_names_are_recognised(top: Path, photo: str, label: str) -> None:
    rows = [{"size": 1, label: row["label"], photo: row["image"]} for row in BOTH]
    assert sorted(labels_by_path(scan(write_manifest(top / "m.csv", rows)), top).values()) == [
        "pizza",
        "sushi",
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_can_be_named_explicitly(top: Path, suffix: str) -> None:
    rows = [
        {"image": "thumb", "picture": "a.jpg", "dish": "pizza", "plate": "p1", "part": "train"},
        {"image": "thumb", "picture": "c.jpg", "dish": "pizza", "plate": "p2", "part": "test"},
        {"image": "thumb", "picture": "deep/b.jpg", "dish": "sushi", "plate": None, "part": None},
    ]
    folder = scan(write_manifest(top / f"m{suffix}", rows), Columns("picture", "dish", "plate", "part"))
    assert labels_by_path(folder, top) == {"a.jpg": "pizza", "c.jpg": "pizza", "deep/b.jpg": "sushi"}
    assert folder.groups == {str(top / "a.jpg"): "p1", str(top / "c.jpg"): "p2"}
    assert folder.subsets == {str(top / "c.jpg"): TESTING}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_from_a_spreadsheet_is_read(top: Path, separator: str) -> None:
    lines = ["\ufeffimage,label,note", 'a.jpg,pizza,"two\r\nlines"', "", "deep/b.jpg,sushi,"]
    (top / "m.csv").write_text("\r\n".join(lines).replace(",", separator), encoding="utf-8", newline="")
    assert sorted(labels_by_path(scan(top / "m.csv"), top).values()) == ["pizza", "sushi"]


def test_integers_are_valid_labels(top: Path) -> None:
    rows = [{"image": row["image"], "label": number} for number, row in enumerate(BOTH)]
    for suffix in FORMATS:
        assert scan(write_manifest(top / f"m{suffix}", rows)).labels == ("0", "1")


def test_parquet_columns_may_be_dictionary_encoded_and_other_columns_are_not_read(top: Path) -> None:
    table = pa.table(
        {
            "image": pa.array(["a.jpg", "deep/b.jpg"], pa.large_string()),
            "label": pa.array(["pizza", "sushi"]).dictionary_encode(),
            "bytes": [b"\xff", b"\xfe"],
        }
    )
    pq.write_table(table, top / "m.pq")
    assert sorted(labels_by_path(scan(top / "m.pq"), top).values()) == ["pizza", "sushi"]


def test_json_lines_may_leave_optional_keys_out(top: Path) -> None:
    rows = [BOTH[0], {**BOTH[1], "group": "g"}, {"image": "c.jpg", "label": "sushi", "split": "val"}]
    folder = scan(write_manifest(top / "m.jsonl", rows))
    assert folder.groups == {str(top / "deep/b.jpg"): "g"}
    assert folder.subsets == {str(top / "c.jpg"): VALIDATION}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            # No line break in a label, nothing that a file system refuses in a name.
            st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
                lambda name: name.strip() and name not in (".", "..") and "://" not in name
            ),
            st.sampled_from(["pizza", "寿司", 'crème "brûlée", a', "100%; b"]),
            st.sampled_from(["", "g 1", "gruppe, ö"]),
        ),
        min_size=2,
        max_size=12,
        unique_by=lambda row: row[0],
    ).filter(lambda rows: len({row[1] for row in rows}) > 1),
    suffix=st.sampled_from(FORMATS),
)
def test_manifest_round_trip(rows: list[tuple[str, str, str]], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        written = [{"image": f"photos/{name}", "label": label, "group": group} for name, label, group in rows]
        (top / "photos").mkdir()
        for name, _, _ in rows:
            (top / "photos" / name).write_bytes(b"x")
        folder = scan(write_manifest(top / f"m{suffix}", written))
        assert not folder.left_out
        assert labels_by_path(folder, top / "photos") == {name: label for name, label, _ in rows}
        assert folder.groups == {str(top / "photos" / name): group for name, _, group in rows if group}


# --- Sets and groups ------------------------------------------------------------------------------------


def test_predefined_sets_of_the_manifest_are_used_and_reported(top: Path) -> None:
    names = ["train", "TRAINING", "", "val", "Valid", "validation", "dev", "test", " testing"]
    rows = []
    for label in ("pizza", "sushi"):
        for number, name in enumerate(names):
            write_photos(top, f"{label}{number}.jpg")
            rows.append({"image": f"{label}{number}.jpg", "label": label, "split": name})
    folder = scan(write_manifest(top / "m.csv", rows))
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    found = dict(zip(examples, dataset.split(examples, SplitSettings()), strict=True))
    wanted = [TRAINING] * 3 + [VALIDATION] * 4 + [TESTING] * 2
    assert [found[example] for example in examples] == wanted * 2
    assert folder.warnings[0] == (
        "The sets are predefined by the manifest: 6 for training, 8 for validation, 4 for testing."
    )
    assert folder.warnings[1] == "Label 'pizza' has 3 photos to train on; fewer than 20 rarely train well."


def test_a_group_stays_in_one_set_across_labels(top: Path) -> None:
    rows = []
    for number in range(120):
        write_photos(top, f"{number}.jpg")
        label = ("pizza", "sushi")[number % 2]
        rows.append({"image": f"{number}.jpg", "label": label, "group": f"meal {number // 4}"})
    folder = scan(write_manifest(top / "m.csv", rows))
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    subsets = dataset.split(examples, SplitSettings())
    assert set(subsets) == set(Subset)
    of_group: dict[str, set[Subset]] = {}
    for example, subset in zip(examples, subsets, strict=True):
        of_group.setdefault(example.group, set()).add(subset)
    assert all(len(found) == 1 for found in of_group.values())
    assert count_groups(examples, folder.labels) == {"pizza": 30, "sushi": 30}


# --- Photos that are left out ---------------------------------------------------------------------------


def test_a_missing_photo_is_left_out_with_the_reason(top: Path) -> None:
    (top / "dangling.jpg").symlink_to(top / "nowhere")
    rows = [
        *BOTH,
        *({"image": name, "label": "soup"} for name in ("gone.jpg", "deep", "dangling.jpg", "x" * 300)),
    ]
    folder = scan(write_manifest(top / "m.csv", rows))
    reasons = {Path(uri).name[:12]: reason for uri, reason in folder.left_out}
    assert reasons == {
        "gone.jpg": "there is no such file",
        "deep": "not a file",
        "dangling.jpg": "there is no such file",
        "x" * 12: "File name too long",
    }
    assert folder.labels == ("pizza", "sushi")
    assert "Label 'soup' has no photos and is left out." in folder.warnings


def test_a_photo_with_two_labels_is_left_out_with_both_and_their_lines(top: Path) -> None:
    rows = [*BOTH, {"image": "c.jpg", "label": "soup"}, {"image": "./c.jpg", "label": "pizza"}, BOTH[0]]
    folder = scan(write_manifest(top / "m.csv", rows))
    assert folder.left_out == ((str(top / "c.jpg"), "labelled 'soup' on line 4 and 'pizza' on line 5"),)
    assert labels_by_path(folder, top) == {"a.jpg": "pizza", "deep/b.jpg": "sushi"}
    assert folder.warnings[0] == "2 lines repeat a photo of an earlier line; each photo counts once."


def test_a_manifest_without_existing_photos_is_an_error_with_a_reason(top: Path) -> None:
    rows = [{"image": "no.jpg", "label": "pizza"}, {"image": "none.jpg", "label": "sushi"}]
    with pytest.raises(InputError, match=r"no label with photos.*no\.jpg, for example, .*no such file"):
        scan(write_manifest(top / "m.csv", rows))


def test_progress_counts_missing_photos_as_rejected(top: Path) -> None:
    rows = [*BOTH, *({"image": f"{number}.jpg", "label": "pizza"} for number in range(1500))]
    seen: list[Progress] = []
    scan(write_manifest(top / "m.csv", rows), progress=seen.append)
    assert seen == [Progress(1000, 1502, 998), Progress(1502, 1502, 1500)]


# --- Photos for an evaluation, which need no labels -----------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_photos_without_a_label_are_listed_for_an_evaluation(top: Path, suffix: str) -> None:
    rows = [{"image": "a.jpg", "label": "pizza"}, {"image": "deep/b.jpg", "label": None}]
    listing = list_photos(write_manifest(top / f"m{suffix}", [*rows, {"image": "no.jpg", "label": "x"}]))
    found = {os.path.relpath(photo.photo.uri, top): photo.label for photo in listing.photos}
    assert found == {"a.jpg": "pizza", "deep/b.jpg": None}
    assert listing.left_out == [(str(top / "no.jpg"), "there is no such file")]


def test_a_text_file_lists_photos_without_labels(top: Path) -> None:
    (top / "m.txt").write_text(f"a.jpg\n\n{top}/c.jpg\n")
    listing = list_photos(top / "m.txt")
    assert [(photo.photo.uri, photo.label) for photo in listing.photos] == [
        (str(top / "a.jpg"), None),
        (str(top / "c.jpg"), None),
    ]
    with pytest.raises(InputError, match="no column label or class"):
        scan(top / "m.txt")


def test_a_manifest_without_photos_is_an_error_for_an_evaluation(top: Path) -> None:
    (top / "m.csv").write_text("image,label\n")
    with pytest.raises(InputError, match=r"No photos in .*m\.csv"):
        list_photos(top / "m.csv")
    (top / "m.csv").write_text("image,label\nno.jpg,x\n")
    with pytest.raises(InputError, match=r"no\.jpg, for example, is left out: there is no such file"):
        list_photos(top / "m.csv")


# --- Manifests that cannot be used ----------------------------------------------------------------------

UNUSABLE = {
    "no photo column": (
        "m.csv",
        "name,label\na.jpg,pizza\n",
        r"line 1: no column image or photo .*'name', 'label'",
    ),
    "no label column": ("m.csv", "image,dish\na.jpg,pizza\n", r"line 1: no column label or class .*'dish'"),
    "no header": ("m.csv", "a.jpg,pizza\ndeep/b.jpg,sushi\n", r"no column image .*'a.jpg', 'pizza'"),
    "nothing": ("m.csv", "", "no column image .* there are no columns"),
    "a header alone": ("m.csv", "image,label\n", "no label with photos"),
    "two photo columns": ("m.csv", "image,path,label\na,b,c\n", "'image' and 'path' could be the photo"),
    "two columns of one name": ("m.csv", "image,label,label\na,b,c\n", "'label' and 'label' could be"),
    "an empty label": ("m.csv", "image,label\na.jpg,pizza\nc.jpg,\n", "line 3: the label is empty"),
    "an empty photo": ("m.csv", "image,label\n\n ,pizza\n", "line 3: the photo is empty"),
    "too few cells": ("m.csv", "image,label\na.jpg\n", "line 2: 1 cells, but the header has 2"),
    "too many cells": ("m.csv", 'image,label\n"a\nb",x\na,b,c\n', "line 4: 3 cells"),
    "an open quote": ("m.csv", 'image,label\na.jpg,pizza\n"c.jpg,sushi\nd.jpg,x\n', "line 3: unexpected end"),
    "an unknown set": (
        "m.csv",
        "image,label,set\na.jpg,pizza,hidden\n",
        "line 2: the set 'hidden' is unknown",
    ),
    "a compressed table": ("m.csv", gzip.compress(b"image,label\n"), "compressed with gzip. Unpack it"),
    "an old spreadsheet": ("m.tsv", b"\xd0\xcf\x11\xe0\xa1", "old spreadsheets .* Export it as text"),
    "Parquet under another name": ("m.jsonl", b"PAR1\x15\x04", "it is Parquet. Call it .parquet"),
    "a line that is no UTF-8": ("m.csv", b"image,label\na.jpg,cr\xe8me\n", "line 2: byte 9 is not UTF-8"),
    "half of a UTF-16 character": (
        "m.csv",
        "image,label\na.jpg,x\n".encode("utf-16")[:-1],
        "line 2: character 8 is not UTF-16",
    ),
    "a lone surrogate in UTF-16": ("m.csv", b"\xff\xfei\0\x00\xd8\n\0", "line 1: character 2 is not UTF-16"),
    "a photo in two sets": (
        "m.csv",
        "image,label,split\na.jpg,pizza,train\nc.jpg,pizza,\na.jpg,pizza,test\n",
        "lines 2 and 4 give the photo .*a.jpg different groups or sets",
    ),
    "a group in two sets": (
        "m.csv",
        "image,label,group,split\na.jpg,pizza,g,\nc.jpg,pizza,g,test\n",
        "group 'g' is in two sets: training on line 2, testing on line 3",
    ),
    "a label that is tested on alone": (
        "m.csv",
        "image,label,split\na.jpg,pizza,train\nc.jpg,sushi,test\n",
        "nothing to train on for 'sushi'.* for testing",
    ),
    "labels that differ in case": ("m.csv", "image,label\na.jpg,Pizza\nc.jpg,pizza\n", "differ only in case"),
    "a label of two lines": ("m.csv", 'image,label\na.jpg,"piz\nza"\nc.jpg,x\n', "line break"),
    "one label": ("m.csv", "image,label\na.jpg,pizza\n", "only the label 'pizza'"),
    "no JSON": ("m.jsonl", '{"image": "a.jpg", "label": "x"}\n{"image": \n', "line 2: invalid JSON"),
    "deep JSON": ("m.jsonl", "[" * 200_000, "line 1: invalid JSON"),
    "a JSON list": ("m.jsonl", '["a.jpg", "pizza"]\n', "line 1: expected a JSON object, found list"),
    "a key missing": ("m.jsonl", '{"image": "a", "label": "x"}\n{"image": "c"}\n', "line 2: no column label"),
    "a list of labels": (
        "m.jsonl",
        '{"image": "a.jpg", "label": ["x"]}\n',
        "line 1: the label has the type list",
    ),
    "half a character": (
        "m.jsonl",
        '{"image": "a.jpg", "label": "\\ud800"}\n',
        "line 1: the label .* not Unicode",
    ),
    "a null character": ("m.csv", b"image,label\na.jpg,pi\0za\n", "line 2: character 9 is a null character"),
    "null characters alone": ("m.csv", bytes(1000), "line 1: character 1 is a null character"),
    "a spreadsheet with another ending": (
        "m.csv",
        b"PK\3\4\0\0\0",
        "a ZIP archive, as spreadsheets .* Export it as text",
    ),
    "a key given twice": (
        "m.jsonl",
        '{"image": "a.jpg", "label": "x", "image": "c.jpg"}\n',
        "line 1: invalid JSON .the key 'image' is repeated",
    ),
    "no Parquet": ("m.parquet", b"PAR1 no", "as Parquet"),
    "another format": ("m.xlsx", b"PK", "ends in .txt"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_manifest_is_an_error_with_line_and_remedy(name: str, top: Path) -> None:
    file, content, message = UNUSABLE[name]
    (top / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        scan(top / file)
    assert str(top / file) in caught.value.what
    assert caught.value.remedy
    assert len(caught.value.what.splitlines()) == 1


def test_a_missing_named_column_is_an_error(top: Path) -> None:
    write_manifest(top / "m.csv", BOTH)
    with pytest.raises(InputError, match=r"no column 'meal' for the group; the columns are 'image', 'label'"):
        scan(top / "m.csv", Columns(group="meal"))


def test_a_parquet_column_of_structs_is_an_error(top: Path) -> None:
    rows = [{"image": {"bytes": b"\xff", "path": "a.jpg"}, "label": 0}]
    with pytest.raises(InputError, match="line 1: the photo has the type dict"):
        scan(write_manifest(top / "m.parquet", rows))


def test_a_manifest_that_cannot_be_read_is_an_error(top: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the manifest .*nowhere.csv"):
        scan(top / "nowhere.csv")


def test_memory_does_not_grow_with_unused_columns(tmp_path: Path) -> None:
    count = 20_000
    with (tmp_path / "m.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"image": f"{number}.jpg", "label": number % 9, "text": "x" * 2000}) + "\n")
    write_photos(tmp_path, "0.jpg", "1.jpg")
    tracemalloc.start()
    try:
        scan(tmp_path / "m.jsonl")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Far below the 2,000 bytes of text per line. In isolation it is about 500; other threads of a long
    # test run allocate too.
    assert peak < 1000 * count


# --- Tables as spreadsheets and other programs write them ------------------------------------------------

TABLE = "image,label,note\na.jpg,pizza,1\ndeep/b.jpg,crème,2\n"
WRITTEN = {
    "byte-order mark": TABLE.encode("utf-8-sig"),
    "UTF-16 with a mark": TABLE.encode("utf-16"),
    "UTF-16 of a big-endian machine": b"\xfe\xff" + TABLE.encode("utf-16-be"),
    "UTF-16 without a mark": TABLE.encode("utf-16-le"),
    "UTF-16 without a mark, big-endian": TABLE.encode("utf-16-be"),
    "UTF-32": TABLE.encode("utf-32"),
    "UTF-32 without a mark": TABLE.encode("utf-32-le"),
    "UTF-32 without a mark, big-endian": TABLE.encode("utf-32-be"),
    "CRLF": TABLE.replace("\n", "\r\n").encode(),
    "CR alone": TABLE.replace("\n", "\r").encode(),
    "CRLF in UTF-16": TABLE.replace("\n", "\r\n").encode("utf-16"),
    "no newline at the end": TABLE.rstrip().encode(),
    "spaces around cells": TABLE.replace(",", " , ").replace("\n", " \n ").encode(),
    "spaces around quotes": (
        ' "image" , "label","note"\n "a.jpg" , "pizza" ,"" \n"deep/b.jpg",\t"crème" , x\n'
    ).encode(),
    "stated separator": f"sep=;\r\n{TABLE.replace(',', ';')}".encode(),
    "delimiters in a quoted name": TABLE.replace("note", '"a;b;c;d"').encode(),
    "empty cells and lines at the end": TABLE.replace("\n", ",,\n").encode() + b",,,,\r\n , \n",
    "a quoted cell of two lines": (
        'image,label,note\na.jpg,pizza,"5 "" , \n"\ndeep/b.jpg,crème,5" wide\n'
    ).encode(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_table_of_a_spreadsheet_is_read_rightly(top: Path, name: str) -> None:
    (top / "m.csv").write_bytes(WRITTEN[name])
    assert labels_by_path(scan(top / "m.csv"), top) == {"a.jpg": "pizza", "deep/b.jpg": "crème"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_lines_in_another_encoding_are_read(top: Path, encoding: str) -> None:
    (top / "m.jsonl").write_bytes("".join(f"{json.dumps(row)}\r\n" for row in BOTH).encode(encoding))
    assert scan(top / "m.jsonl").labels == ("pizza", "sushi")


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.string_view(), pa.large_string()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.binary()), pa.binary(5)),
    ],
    ids=str,
)
def test_parquet_columns_of_any_text_or_of_bytes_in_utf8_are_read(top: Path, kind: pa.DataType) -> None:
    rows = [["a.jpg", "c.jpg"], ["pizza", "sushi"]]
    if pa.types.is_dictionary(kind):
        columns = [pa.array(row).cast(kind.value_type).dictionary_encode() for row in rows]
    elif pa.types.is_fixed_size_binary(kind):
        columns = [pa.array([value.encode() for value in row], kind) for row in rows]
    else:
        columns = [pa.array(row).cast(kind) for row in rows]
    pq.write_table(pa.table(columns, names=["image", "label"]), top / "m.parquet")
    assert labels_by_path(scan(top / "m.parquet"), top) == {"a.jpg": "pizza", "c.jpg": "sushi"}


def test_parquet_bytes_that_are_no_text_are_an_error_with_line_and_column(top: Path) -> None:
    pq.write_table(
        pa.table({"image": ["a.jpg", "c.jpg"], "label": [b"pizza", b"cr\xe8me"]}), top / "m.parquet"
    )
    with pytest.raises(InputError, match="column 'label', line 2: byte 3 is not UTF-8"):
        scan(top / "m.parquet")
    text = pa.array([b"pizza", b"cr\xe8me"]).view(pa.string())  # as writers do that do not check
    pq.write_table(pa.table({"image": ["a.jpg", "c.jpg"], "label": text}), top / "m.parquet")
    with pytest.raises(InputError, match="column 'label', line 2: byte 3 is not UTF-8"):
        scan(top / "m.parquet")


def test_dates_in_parquet_are_read_as_they_are_written(top: Path) -> None:
    days = [datetime.date(2026, 11, 30), datetime.date(1969, 12, 31)]
    pq.write_table(pa.table({"image": ["a.jpg", "c.jpg"], "label": days}), top / "m.parquet")
    assert labels_by_path(scan(top / "m.parquet"), top) == {"a.jpg": "2026-11-30", "c.jpg": "1969-12-31"}


@pytest.mark.parametrize("address", ["file://[x/a.jpg", "http://[x/a.jpg"])
def test_photo_with_an_invalid_address_is_left_out(top: Path, address: str) -> None:
    folder = scan(write_manifest(top / "m.csv", [{"image": address, "label": "pizza"}, *BOTH]))
    assert len(folder.photos) == len(BOTH)
    assert [reason for _, reason in folder.left_out] == ["there is no such file"]


def test_photo_whose_name_is_in_another_unicode_form_is_found(top: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "crème.jpg") for form in ("NFC", "NFD"))
    write_photos(top, decomposed)
    rows = [{"image": composed, "label": "crème"}, *BOTH]
    assert labels_by_path(scan(write_manifest(top / "m.csv", rows)), top)[decomposed] == "crème"


def test_one_label_in_two_unicode_forms_is_one_label_spelled_as_first(top: Path) -> None:
    forms = [unicodedata.normalize(form, "crème") for form in ("NFD", "NFC")]
    rows = [
        *(
            {"image": name, "label": form, "grüppe": "g"}
            for name, form in zip(["a.jpg", "c.jpg"], forms, strict=True)
        ),
        {"image": "a.jpg", "label": forms[1], "grüppe": "g"},
        {"image": "deep/b.jpg", "label": "sushi", "grüppe": ""},
    ]
    group = Columns(group=unicodedata.normalize("NFD", "grüppe"))
    folder = scan(write_manifest(top / "m.csv", rows), group)
    assert labels_by_path(folder, top) == {"a.jpg": forms[0], "c.jpg": forms[0], "deep/b.jpg": "sushi"}
    assert set(folder.groups.values()) == {"g"}
