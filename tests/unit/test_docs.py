"""Commands, links and examples of the documents are valid."""

from __future__ import annotations

import contextlib
import re
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

import hubhead
from tests.support.docs import python
from tests.support.docs.compare import compare, elide, mask, outline
from tests.support.docs.markdown import DOCUMENTS, Fence, anchors, code_spans, fences, links, resolve
from tests.support.docs.shell import find_commands, list_recorded, split_commands, split_console
from tests.support.repository import REPO

GUIDES = tuple(document for document in DOCUMENTS if document != "CHANGELOG.md")
"""Documents of the present state; the changelog may name what is gone."""

COMMANDS = [
    pytest.param(words, id=place)
    for document in GUIDES
    for place, words in find_commands(document, "hubhead")
]
SPANS = [
    pytest.param(span, id=f"{document} {span[:60]}")
    for document in GUIDES
    for span in dict.fromkeys(code_spans(document))
    if re.match(r"hubhead [a-z]", span)
]
EXAMPLES = [
    pytest.param(fence, id=fence.place) for document in GUIDES for fence in fences(document, "python", "py")
]
LINKS = [
    pytest.param(document, link, id=f"{document} {link}")
    for document in DOCUMENTS
    for link in dict.fromkeys(links(document))
    if not urlsplit(link).scheme
]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that these words name, and the words after its name.

    Raises:
        UsageError: there is no such command.
    """
    command: click.Command = hubhead.hubhead
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    return command, words


def test_the_documents_show_commands_examples_and_links() -> None:
    assert len(COMMANDS) >= 40
    assert len(EXAMPLES) >= 2
    assert len(LINKS) >= 40


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_in_the_documents_parses(words: list[str]) -> None:
    command, arguments = find_command(words)
    if "--config" in arguments:  # a file that the reader writes
        at = arguments.index("--config")
        arguments = [*arguments[:at], *arguments[at + 2 :], "--print_config"]
    with contextlib.suppress(click.exceptions.Exit):  # raised by options that print and exit
        command.make_context(command.name, arguments)


@pytest.mark.parametrize("span", SPANS)
def test_every_command_in_a_sentence_exists_with_its_flags(span: str) -> None:
    words = span.split()[1:]
    command, arguments = find_command([word for word in words if word not in ("[OPTIONS]", "...")])
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    if isinstance(command, click.Group):
        known |= {
            flag for name in command.list_commands(click.Context(command)) for flag in _flags(command, name)
        }
    flags = {word.partition("=")[0].rstrip(",;.") for word in arguments if re.match(r"--\w", word)}
    assert flags <= known | {"--help"}, flags - known


def _flags(group: click.Group, name: str) -> list[str]:
    command = group.get_command(click.Context(group), name)
    return [flag for option in command.params for flag in option.opts] if command else []


def test_every_command_of_hubhead_is_in_the_reference() -> None:
    text = (REPO / "docs/reference/cli.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^### hubhead (\w+)\n\n```{eval-rst}\n\.\. click:: ([\w.]+):(\w+)$", text, re.MULTILINE
    )
    assert {name: module for name, module, attribute in shown if name == attribute} == hubhead.COMMANDS
    assert len(shown) == len(hubhead.COMMANDS)


def test_every_command_of_hubhead_is_in_a_guide() -> None:
    texts = [(REPO / name).read_text(encoding="utf-8") for name in GUIDES if name != "docs/reference/cli.md"]
    for name in hubhead.COMMANDS:
        assert any(f"hubhead {name}" in text for text in texts), name


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    shown = {
        (word, place)
        for document in GUIDES
        for place, words in find_commands(document, "make")
        for word in words
        if re.fullmatch(r"[a-z0-9-]+", word)
    }
    shown |= {
        (word, document)
        for document in GUIDES
        for span in code_spans(document)
        if span.startswith("make ")
        for word in span.split()[1:]
        if re.fullmatch(r"[a-z0-9-]+", word)
    }
    assert {"demo", "test", "lint", "lock", "docs"} <= {target for target, _ in shown}
    assert not {(target, place) for target, place in shown if target not in targets}


def test_the_guide_for_contributors_names_every_benchmark() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^(bench-[a-z0-9-]+):", makefile, re.MULTILINE)
    assert len(targets) >= 20
    spans = {span.removeprefix("make ") for span in code_spans("CONTRIBUTING.md")}
    assert set(targets) <= spans


def test_every_module_that_the_documents_run_exists() -> None:
    shown = {
        (words[words.index("-m") + 1], place)
        for document in GUIDES
        for program in ("python", "python3")
        for place, words in find_commands(document, program)
        if "-m" in words
    }
    shown |= {
        (found[1], document)
        for document in GUIDES
        for span in code_spans(document)
        if (found := re.match(r"python3? -m ([\w.]+)", span))
    }
    assert len(shown) >= 5
    assert not {(module, place) for module, place in shown if not python.is_runnable(module)}


def test_every_test_file_that_the_documents_name_exists() -> None:
    texts = [(document, (REPO / document).read_text(encoding="utf-8")) for document in GUIDES]
    shown = {(name, doc) for doc, text in texts for name in re.findall(r"\btests/[\w/]+\.py\b", text)}
    assert not {(name, document) for name, document in shown if not (REPO / name).exists()}


@pytest.mark.parametrize(("document", "link"), LINKS)
def test_every_relative_link_and_its_anchor_exist(document: str, link: str) -> None:
    path, anchor = resolve(document, link)
    assert path.exists(), path
    assert path.is_relative_to(REPO)
    if anchor:
        assert path.suffix != ".md" or anchor in anchors(path.relative_to(REPO).as_posix()), anchor


@pytest.mark.parametrize("fence", EXAMPLES)
def test_every_python_example_compiles_and_its_imports_exist(fence: Fence) -> None:
    tree = python.compile_example(fence)
    if fence.language == "python":  # py: code of other tools
        assert not python.find_missing_imports(tree)


RECORDED = [name for name in DOCUMENTS if fences(name, "console")]

NOT_OUTPUTS = {
    "README.md": [
        "food_images/pizza/*.jpg  ─┐",  # a diagram
        "1. Photos  542 photos",  # the output of `make demo`, which tests/integration/test_demo.py compares
    ],
    "CONTRIBUTING.md": ["make test ", "make test-unit ", ".venv/bin/python -m hatchling"],
    "SECURITY.md": ["make sbom"],
    "docs/cluster-e2e.md": ["apt-get install"],
    "docs/explanation/embedding-store.md": ["embeddings/"],  # a directory
    "docs/explanation/one-graph.md": ["photo bytes ─>", "photo bytes ─>"],  # diagrams
    "docs/explanation/releases.md": ["models/food_images/ "],  # a directory
    "docs/how-to/release.md": ["model_config_list {"],  # a file that the reader writes
    "docs/how-to/serve.md": ["model_config_list {"],  # a file that the reader writes
    "docs/how-to/train.md": ["path,label,group,split"],  # a file that the reader writes
    "docs/migration/make-image-classifier.md": ["make_image_classifier \\"],  # another tool's command
    "docs/migration/tensorflow-for-poets.md": [
        "pip install",
        "pip install",
        "tf_files/flower_photos/",
        "IMAGE_SIZE=224",
        "python -m scripts.label_image",
        "toco",
    ],
    "docs/reference/bundle.md": ["models/fruit/1/"],  # a directory
    "docs/reference/scores.md": ["scores/scores/<shard>.parquet"],  # a directory
    "docs/seeds/food-101.md": [
        "food-101/images/",  # a directory
        "uri,lat,lon",  # files that the reader writes
        "label,name,lat,lon",
    ],
}
"""First lines of the blocks without a recorded output: inputs, diagrams, other tools, and why."""


@pytest.mark.parametrize("document", GUIDES)
def test_a_page_shows_no_output_that_is_not_recorded(document: str) -> None:
    first_lines = [fence.text.partition("\n")[0] for fence in fences(document, "", "text")]
    expected = NOT_OUTPUTS.get(document, [])
    assert len(first_lines) == len(expected), first_lines
    for line, start in zip(first_lines, expected, strict=True):
        assert line.startswith(start)


def test_no_page_shows_outputs_that_would_need_a_cluster() -> None:
    needs_cluster = {"docs/how-to/flink.md", "docs/how-to/kubernetes.md"}
    assert needs_cluster <= set(DOCUMENTS)
    assert not [name for name in RECORDED if name.startswith("k8s/") or name in needs_cluster]


def test_the_guides_show_recorded_outputs() -> None:
    guides = {name for name in RECORDED if name.startswith("docs/how-to/")}
    assert {Path(name).stem for name in guides} >= {
        *("train", "label-errors", "none-of-these", "score", "rescore", "query", "serve", "configuration"),
        "release",
    }


@pytest.mark.parametrize("document", RECORDED)
def test_outputs_stand_below_commands(document: str) -> None:
    for fence in fences(document, "console"):
        recorded = split_console(fence)
        assert all(one.command for one in recorded), fence.place
        # A block is there for an output; commands without one are in a block `sh`.
        assert any(one.output for one in recorded) or document == "docs/tutorial.md", fence.place


def test_hidden_commands_run_between_those_that_a_page_shows(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n\n<!-- run\nmkdir a\nhubhead serve --port 8500\n-->\n\n"
        "```sh\ncd a\n```\n\n```console\n$ ls\nb\n```\n\n<!-- run\nrm b\n-->\n"
    )
    found = list_recorded(str(page))
    assert [one.command for one in found] == ["mkdir a", "hubhead serve --port 8500 &", "ls", "rm b"]
    assert [one.hidden for one in found] == [True, True, False, True]
    assert [one.command for one in list_recorded(str(page), whole=True)][2:4] == ["cd a", "ls"]


def test_no_document_has_a_path_of_the_machine_that_recorded_it() -> None:
    for document in GUIDES:
        for fence in fences(document, "console"):
            assert str(Path.home()) + "/" not in fence.text, fence.place
            assert str(REPO) not in fence.text, fence.place
            assert "/tmp/hubhead" not in fence.text, fence.place


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.endswith("index.md")])
def test_every_page_below_an_index_is_in_its_text_and_its_contents(document: str) -> None:
    directory = (REPO / document).parent
    pages = {page.name for page in directory.glob("*.md")} - {"index.md"}
    trees = {
        line.partition("<")[2].rstrip(">") or line
        for f in fences(document, "{toctree}")
        for line in f.text.split("\n")
    }
    assert pages <= {f"{entry}.md" for entry in trees}
    if document != "docs/index.md":
        assert pages <= {link.partition("#")[0] for link in links(document)}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_file_has_hashes_and_no_urls(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    assert "://" not in text
    pinned = re.findall(r"^[A-Za-z0-9][^\s=]*==.*?(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(pinned) > 50
    assert all("--hash=sha256:" in entry for entry in pinned)


def test_redirections_and_assignments_are_no_arguments() -> None:
    line = "A=1 hubhead score --photos 'a b' > x.txt 2>&1 | head -3 && (hubhead status --wait 3) # hubhead x"
    assert split_commands(line) == [
        ["hubhead", "score", "--photos", "a b"],
        ["head", "-3"],
        ["hubhead", "status", "--wait", "3"],
    ]


def test_outputs_are_below_their_commands_with_continued_lines() -> None:
    fence = Fence("a.md", 3, "console", "$ ls \\\n    -l\na\nb\n$ pwd\n")
    first, second = split_console(fence)
    assert (first.command, first.output) == ("ls \\\n    -l", ("a", "b"))
    assert (second.command, second.output) == ("pwd", ())
    with pytest.raises(ValueError, match=r"a\.md:3: .* begins with a line"):
        split_console(Fence("a.md", 3, "console", "ls\n"))


def test_mask_keeps_the_structure_of_a_line() -> None:
    assert mask("Final test accuracy: 75.6% (N=41)") == mask("Final test accuracy: 9% (N=1,041)")
    assert mask("Bundle: models/food/1") == mask("Bundle: /home/ann/models/food/12")
    assert mask("│ a │ 0.1 │") == mask("│ a     │ 0.12  │")
    assert mask('"scores": [0.9, 1.2e-05]') == mask('"scores": [1, 3E-7]'.lower())
    assert mask("1 truncated: cut off") != mask("1 empty: nothing")


def test_outline_has_one_row_of_a_table() -> None:
    rows = ["│ a.jpeg │ fruits │", "│        │ and oils │", "│ b.jpeg │ fish │"]
    assert outline(["Found 2:", *rows]) == ["Found N:", "row of 2 cells"]
    assert outline(rows) != outline(["│ a.jpeg │"])


def test_elide_leaves_out_as_much_as_the_written_output() -> None:
    new = ["a 1", "b 1", "c 1", "d 1", "e 1"]
    assert elide([], new) == new
    assert elide(["..."], new) == ["..."]
    assert elide(["a 0", "...", "e 0"], new) == ["a 1", "...", "e 1"]
    assert elide(["a 0", "...", "c 0", "..."], new) == ["a 1", "...", "c 1", "..."]
    assert elide(["...", "e 0"], new) == ["...", "e 1"]
    assert elide(["a 0", "b 0", "...", "e 0"], new[:2]) == new[:2]


def test_elide_shows_rows_of_a_table_to_their_end() -> None:
    new = ["│ a │ 1 │", "│ b │ 1 of │", "│   │ 2 │", "│ c │ 1 │", "Done."]
    assert elide(["...", "│ b │ 7 │", "...", "Done."], new) == ["...", *new[1:3], "...", "Done."]


def test_compare_sees_a_line_that_the_page_does_not_show() -> None:
    (score,) = split_console(Fence("a.md", 3, "console", "$ hubhead score\n40 rows in /b/c\n1 truncated\n"))
    found, shown = compare(score, ["39 rows in /a/b", "2 truncated"])
    assert found == shown
    found, shown = compare(score, ["39 rows in /a/b", "17 without a label", "2 truncated"])
    assert found != shown


def test_compare_sees_the_columns_of_a_query_and_that_there_are_rows() -> None:
    text = '$ hubhead query "select label, n"\nlabel  n\nfruits 7\nmarine fish 5\n'
    (query,) = split_console(Fence("a.md", 3, "console", text))
    found, shown = compare(query, ["label  n", "marine fish 8"])
    assert found == shown
    for lines in (["label  m", "marine fish 8"], ["label  n"]):
        found, shown = compare(query, lines)
        assert found != shown


def test_every_reference_to_a_module_of_commands_is_lazy() -> None:
    for name, module in hubhead.COMMANDS.items():
        assert isinstance(getattr(import_module(module), name), click.Command)
