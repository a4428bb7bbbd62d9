"""Records with a schema: hubhead.json, verdict.json and run.json, of all versions, and damaged ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batch.output import run_record
from batch.output.dataset import Output
from serving import contract
from serving.bundle import METADATA_FORMAT
from serving.errors import BundleError, HubheadError, InputError
from serving.registry import verdict
from serving.storage.records import RecordFormat

CORPUS = Path(__file__).parents[2] / "corpus"
METADATA, VERDICT, RUN = (CORPUS / f"{name}_0_1.json" for name in ("hubhead", "verdict", "run"))
"""Records that hubhead 0.1 wrote."""

FIRST_RUN = CORPUS / "run_schema_1.json"

FORMATS: list[Any] = [(METADATA_FORMAT, METADATA), (verdict.FORMAT, VERDICT), (run_record.FORMAT, RUN)]


@dataclass(frozen=True)
class Record:
    """A record that lists the upgrades it went through."""

    steps: list[str]
    schema: int


def parse(kind: RecordFormat[Any], record: Any) -> Any:
    return kind.parse(json.dumps(record).encode(), "models/food/1/record.json", remedy="Do something.")


def change(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a record with another value at a path."""
    copy = json.loads(json.dumps(record))
    part = copy
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return copy


def test_records_of_hubhead_0_1_are_read_and_written_unchanged(tmp_path: Path) -> None:
    metadata = METADATA_FORMAT.read(str(METADATA), remedy="")
    metadata.write(tmp_path)
    assert (tmp_path / contract.METADATA_FILE).read_text("utf-8") == METADATA.read_text("utf-8")
    assert (metadata.dimension, len(metadata.labels)) == (1280, 10)
    found = verdict.FORMAT.read(str(VERDICT), remedy="")
    assert found.blessed
    assert len(found.checks) == 10
    assert json.loads(verdict.write(tmp_path, found).read_bytes()) == json.loads(VERDICT.read_bytes())
    run = run_record.read_run(str(RUN))
    output = Output(str(tmp_path))
    output.publish_run(run["run_id"], run_record.encode_run(run), None)
    assert Path(output.run_file).read_text("utf-8") == RUN.read_text("utf-8")
    assert run_record.read_run(output.run_record_file("2026-05-31")) == run


def test_run_record_of_the_first_schema_is_upgraded() -> None:
    run = run_record.read_run(str(FIRST_RUN))
    assert (run["schema"], run["run_id"], run["lines"], run["rows"]) == (2, "", 68, 68)
    (model,) = run["models"]
    assert (model["name"], model["version"], model["labels"]["fruits"], model["abstained"]) == (
        "food",
        1,
        65,
        1,
    )
    assert run["this_run"]["photos"] == 68
    assert run["this_run"]["photos_per_second"] == pytest.approx(68 / 14)
    damaged = change(json.loads(FIRST_RUN.read_bytes()), ("model",), "food")
    with pytest.raises(
        InputError, match=r"record\.json cannot be read: it is not a record of schema 1\. Do som"
    ):
        parse(run_record.FORMAT, damaged)


@pytest.mark.parametrize(("kind", "path"), FORMATS)
def test_newer_schema_asks_for_an_upgrade_of_hubhead(kind: RecordFormat[Any], path: Path) -> None:
    record = json.loads(path.read_bytes()) | {"schema": 9, "labels": "of another type"}
    with pytest.raises(
        kind.error, match=r"record\.json has schema 9; .* up to schema \d\. Upgrade hubhead\.$"
    ):
        parse(kind, record)


@pytest.mark.parametrize(("kind", "path"), FORMATS)
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("1", r"Expected `int`, got `str` - at `\$\.schema`"),
        (True, r"Expected `int`, got `bool` - at `\$\.schema`"),
        (None, r"Expected `int`, got `null` - at `\$\.schema`"),
        (0, "it is not a record of schema 0"),
    ],
)
def test_invalid_schema_is_an_error(kind: RecordFormat[Any], path: Path, schema: Any, message: str) -> None:
    with pytest.raises(kind.error, match=rf"record\.json cannot be read: {message}\. Do something\.$"):
        parse(kind, json.loads(path.read_bytes()) | {"schema": schema})


@pytest.mark.parametrize(
    ("number", "at", "value", "message"),
    [
        (0, ("labels", 2), 3, r"Expected `str`, got `int` - at `\$\.labels\[2\]`"),
        (0, ("top_k",), 5.5, r"Expected `int`, got `float` - at `\$\.top_k`"),
        (0, ("backbone", "dimension"), "1280", r"Expected `int`, got `str` - at `\$\.backbone\.dimension`"),
        (0, ("backbone",), {}, r"Object missing required field `\w+` - at `\$\.backbone`"),
        (
            0,
            ("calibration", "threshold"),
            "0",
            r"Expected `float`, got `str` - at `\$\.calibration\[\.\.\.\]`",
        ),
        (
            1,
            ("checks", 3, "passed"),
            "yes",
            r"Expected `bool \| null`, got `str` - at `\$\.checks\[3\]\.passed`",
        ),
        (1, ("checks",), [{"name": "a"}], r"Object missing required field `passed` - at `\$\.checks\[0\]`"),
        (1, ("content",), None, r"Expected `str`, got `null` - at `\$\.content`"),
        (
            2,
            ("models", 0, "scores", 1),
            "1",
            r"Expected `int`, got `str` - at `\$\.models\[0\]\.scores\[1\]`",
        ),
        (2, ("this_run", "photos"), None, r"Expected `int`, got `null` - at `\$\.this_run\.photos`"),
        (2, ("embeddings",), [], r"Expected `object`, got `array` - at `\$\.embeddings`"),
    ],
)
def test_wrong_value_is_reported_with_its_path(
    number: int, at: tuple[Any, ...], value: Any, message: str
) -> None:
    kind, path = FORMATS[number]
    with pytest.raises(
        kind.error, match=rf"^models/food/1/record\.json cannot be read: {message}\. Do something\.$"
    ):
        parse(kind, change(json.loads(path.read_bytes()), at, value))


@pytest.mark.parametrize(("kind", "_"), FORMATS)
@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b"[1]", b"{}", b"\xff{}", b"null"])
def test_content_that_is_no_record_is_an_error(kind: RecordFormat[Any], _: Path, content: bytes) -> None:
    with pytest.raises(kind.error, match=r"record\.json cannot be read: .*\. Do something\."):
        kind.parse(content, "record.json", remedy="Do something.")


def test_unknown_keys_are_errors_in_bundles_and_ignored_in_runs() -> None:
    for kind, path in FORMATS[:2]:
        with pytest.raises(BundleError, match=r"cannot be read: unknown keys: labells, x\."):
            parse(kind, json.loads(path.read_bytes()) | {"x": 1, "labells": []})
    assert parse(run_record.FORMAT, json.loads(RUN.read_bytes()) | {"x": 1}) == json.loads(RUN.read_bytes())


def test_metrics_may_contain_nan() -> None:
    record = json.loads(METADATA.read_bytes()) | {"metrics": {"log_loss": float("nan")}}
    assert str(parse(METADATA_FORMAT, record).metrics["log_loss"]) == "nan"


def test_upgrades_run_one_after_the_other_from_the_schema_of_the_record() -> None:
    def upgrade(name: str) -> Any:
        return lambda record: {**record, "steps": [*record["steps"], name]}

    kind = RecordFormat(Record, 3, HubheadError, {1: upgrade("1 to 2"), 2: upgrade("2 to 3")})
    assert parse(kind, {"schema": 1, "steps": []}) == Record(["1 to 2", "2 to 3"], 3)
    assert parse(kind, {"schema": 2, "steps": []}) == Record(["2 to 3"], 3)
    assert parse(kind, {"schema": 3, "steps": []}) == Record([], 3)


@pytest.mark.parametrize(("kind", "path"), FORMATS)
def test_json_schema_describes_the_record(kind: RecordFormat[Any], path: Path) -> None:
    record = json.loads(path.read_bytes())
    found = kind.json_schema()
    described = found["$defs"][found["$ref"].rpartition("/")[2]]
    names = set(record) - (kind.ignored or set())
    assert set(described["required"]) <= names <= described["properties"].keys(), "later keys are optional"
    assert described["properties"]["schema"]["type"] == "integer"
    assert "Attributes:" in described["description"]
