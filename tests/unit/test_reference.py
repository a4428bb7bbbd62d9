"""The generated parts of the pages in docs/ are what the code says, and nothing is missing from them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.output import run_record
from serving import bundle, contract
from serving.registry import verdict
from tests.bench import results
from tests.support.reference import benchmarks
from tests.support.reference.contents import GENERATORS
from tests.support.reference.markers import drop_superseded, fill, list_parts, list_superseded
from tests.support.reference.tables import format_table
from tests.support.repository import REPO

PAGES = sorted(path for path in (REPO / "docs").rglob("*.md") if list_parts(path.read_text("utf-8")))
PACKAGES = ("serving", "batch", "trainer")
REFERENCE = REPO / "docs" / "reference"


def read_page(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


def read_sources(*directories: str) -> Iterator[tuple[Path, str]]:
    for directory in directories:
        for path in sorted((REPO / directory).rglob("*.py")):
            yield path, path.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_generated_parts_that_the_code_gives(page: Path) -> None:
    text = page.read_text("utf-8")
    assert fill(drop_superseded(text, benchmarks.has_record), GENERATORS) == text, "run: make docs-reference"


def test_every_generated_part_is_on_a_page() -> None:
    assert {part for page in PAGES for part in list_parts(page.read_text("utf-8"))} == GENERATORS.keys()


def test_a_generated_part_is_replaced_and_the_text_around_it_stays() -> None:
    page = "Before.\n\n<!-- generated: one -->\nold\n<!-- end -->\n\nAfter.\n"
    assert fill(page, {"one": lambda: "new\n"}) == page.replace("old", "new")


def test_figures_are_kept_until_a_part_has_its_own() -> None:
    page = "Before.\n\n<!-- until: one -->\nold\n\n| a |\n<!-- end until -->\n\nAfter.\n"
    assert drop_superseded(page, lambda name: name != "one") == page
    assert drop_superseded(page, lambda name: name == "one") == "Before.\n\nAfter.\n"


def test_every_kept_figure_is_of_a_benchmark() -> None:
    text = (REPO / "docs/benchmarks.md").read_text("utf-8")
    assert set(list_superseded(text)) <= GENERATORS.keys()
    assert len(list_superseded(text)) == text.count("<!-- until:") == text.count("<!-- end until -->")
    outside = re.sub(r"<!-- until:.*?<!-- end until -->", "", text, flags=re.DOTALL)
    assert "Kept by hand" not in outside


RECORDS = sorted((REPO / results.DIRECTORY).glob("*.json"))


def read_targets() -> dict[str, str]:
    """Return the module that a recipe of the Makefile runs, by the record that it writes."""
    text = (REPO / "Makefile").read_text("utf-8").replace("\\\n", " ")
    recipe = rf"python -m ([\w.]+)(?: .*)? --output {results.DIRECTORY.as_posix()}/([\w-]+)\.json"
    return {name: module for module, name in re.findall(recipe, text)}


def test_every_table_of_figures_has_a_target_that_writes_its_record() -> None:
    assert read_targets().keys() == set(benchmarks.NAMES)


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_a_benchmark_writes_the_record_that_its_target_names(name: str) -> None:
    module = (REPO / read_targets()[name].replace(".", "/")).with_suffix(".py")
    source = (module if module.exists() else module.with_suffix("") / "__main__.py").read_text("utf-8")
    assert f'"{name.removesuffix("-10m")}"' in source
    assert "results.add_row(" in source


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_states_where_when_and_how_it_was_measured(path: Path) -> None:
    record = results.read(path)
    assert path.stem in benchmarks.NAMES
    assert path.stem.startswith(record.name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record.date)
    assert record.command.startswith(f"python -m {read_targets()[path.stem]}")
    assert record.cpu
    assert record.cores > 0
    assert record.load >= 0
    assert {"hubhead", "tensorflow", "numpy"} <= record.packages.keys()
    assert all(len(row) == len(table.columns) for table in record.tables for row in table.rows)
    assert record.tables


@pytest.mark.parametrize("page", ["<!-- generated: one -->\n", "<!-- generated: two -->\n<!-- end -->\n"])
def test_a_marker_without_counterpart_or_with_an_unknown_name_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match=r"counterpart|unknown"):
        fill(page, {"one": str})


def test_flags_and_names_in_cells_are_code_and_pipes_are_escaped() -> None:
    table = format_table(("a",), [["use --top_k or `x_y`, see [b](c_d.md), a|b"]])
    assert table.splitlines()[2] == "| use `--top_k` or `x_y`, see [b](c_d.md), a\\|b |"


def test_every_environment_variable_of_hubhead_is_documented() -> None:
    texts = [text for _, text in read_sources(*PACKAGES, "tests")]
    texts += [(REPO / name).read_text("utf-8") for name in ("Makefile", ".ci/run", "k8s/Dockerfile")]
    found = {name for text in texts for name in re.findall(r"\bHUBHEAD_[A-Z_]*[A-Z]\b", text)}
    assert "HUBHEAD_CACHE_DIR" in found
    assert not found - set(re.findall(r"`(\w+)`", read_page("environment.md")))


def test_every_environment_variable_that_the_packages_read_is_documented() -> None:
    access = re.compile(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"|\"(\w+)\" (?:not )?in os\.environ")
    found = {
        name for _, text in read_sources(*PACKAGES) for pair in access.findall(text) for name in pair if name
    }
    assert {"XDG_CACHE_HOME", "TF_CPP_MIN_LOG_LEVEL", "COLUMNS"} <= found
    assert not found - set(re.findall(r"`(\w+)`", read_page("environment.md")))


def test_every_file_of_a_bundle_is_on_its_page() -> None:
    files = {value for name, value in vars(contract).items() if name.endswith("_FILE")}
    assert "assets/labels.txt" in files
    assert [file for file in files if file not in read_page("bundle.md")] == []


def test_every_check_of_the_gate_is_on_the_page_of_the_verdict() -> None:
    makers = {"Check", "run_step", "add_passed", "check_ratio", "_make_proportion", "_make_recorded"}
    page = read_page("verdict.md")
    names = set()
    for _, text in read_sources("trainer/gate"):
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in makers and call.args and isinstance(call.args[0], ast.Constant):
                names.add(call.args[0].value)
    assert {"accuracy", "size", "signatures", "labels agree"} <= names
    assert [name for name in sorted(names) if name not in page] == []


def read_example(name: str) -> bytes:
    [block] = re.findall(r"^```json\n(.*?)^```$", read_page(name), re.DOTALL | re.MULTILINE)
    return block.encode()


def test_the_example_of_run_json_is_a_record() -> None:
    run = run_record.FORMAT.parse(read_example("run.md"), "run.md", remedy="")
    assert sum(run["statuses"].values()) == run["photos"] == run["rows"]
    assert not run.keys() - run_record.RunRecord.__annotations__.keys()


def test_the_example_of_verdict_json_is_a_verdict() -> None:
    found = verdict.FORMAT.parse(read_example("verdict.md"), "verdict.md", remedy="")
    assert found.to_dict()["blessed"] is json.loads(read_example("verdict.md"))["blessed"] is True


def test_the_example_of_hubhead_json_is_metadata() -> None:
    metadata = bundle.METADATA_FORMAT.parse(read_example("bundle.md"), "bundle.md", remedy="")
    assert metadata.dimension == 1280
    assert metadata.top_k == len(metadata.labels)
