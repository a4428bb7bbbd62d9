"""Corpus of unusual and damaged files (tests/corpus) on every path: each must get its expected status."""

from __future__ import annotations

import hashlib
import random
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from batch.jobs import score
from batch.jobs.score import ScoreSettings
from serving import contract, runtime
from serving.bundle import Bundle
from serving.client import Client
from serving.contract import Status
from serving.photos.formats import detect_unsupported_format
from serving.runtime.session import ClassicSession
from serving.server import ServerSettings, start
from tests import corpus
from tests.corpus import Case
from tests.support.decoding import Decode, make_decoder
from trainer.export.bundle import HeadExport, export
from trainer.export.templates import prepare_template
from trainer.heads import Head, Scaling
from trainer.preprocessing import STATUSES

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.slow(seconds=6)]

BATCH = 32
SIZE = 224


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return corpus.cases()


def shuffled(cases: Iterable[Case], seed: int) -> list[Case]:
    """Return the cases shuffled, so that every batch mixes formats, good and bad files."""
    order = list(cases)
    random.Random(seed).shuffle(order)
    return order


def every_third(cases: Sequence[Case], first: int) -> list[Case]:
    """Return a third of the cases of every format and status: number `first`, and every third after it.

    All paths run the same graph, which decodes the whole corpus above and in the reloaded bundle. What
    they add depends on the mix of good and bad files in a batch, not on the fault in a file.
    """
    groups: dict[tuple[str, Status], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.format, case.status), []).append(case)
    return [case for group in groups.values() for case in (group[first::3] or group)]


def contents_of(cases: Sequence[Case]) -> list[bytes]:
    return [case.content for case in cases]


def batches(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    for first in range(0, len(cases), BATCH):
        yield cases[first : first + BATCH]


def assert_answers(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Assert equality, and report only the differences."""
    wrong = [
        f"{name}: {answer} expected, {found.get(name)} found"
        for name, answer in wanted.items()
        if found.get(name) != answer
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(wanted)} cases:", *wrong])
    assert len(found) == len(wanted)


# --- The corpus itself --------------------------------------------------------------------------------


def test_the_corpus_covers_all_formats_and_statuses(cases: list[Case]) -> None:
    assert len(cases) >= 500
    assert max(Counter(case.name for case in cases).values()) == 1
    assert {case.status for case in cases} == set(STATUSES)
    formats = Counter(case.format for case in cases)
    assert formats.keys() == {"jpeg", "png", "gif", "bmp", "webp", "other"}
    assert min(formats.values()) >= 50
    assert sum(len(case.content) for case in cases) < 8 << 20


def test_cases_have_sides_if_they_decode(cases: list[Case]) -> None:
    for case in cases:
        assert (case.height > 0 and case.width > 0) == case.status.usable, case.name
        assert (case.height == case.width == 0) != case.status.usable, case.name


def test_the_corpus_is_deterministic(cases: list[Case]) -> None:
    assert digest(corpus.cases()) == digest(cases)


def digest(cases: Iterable[Case]) -> str:
    return hashlib.sha256(repr(list(cases)).encode()).hexdigest()


def test_expected_results_come_from_rules_or_the_golden_file(cases: list[Case]) -> None:
    by_file = [case.name for case in cases if case.golden]
    assert len(by_file) < len(cases) / 5
    assert sorted(by_file) == sorted(corpus.flips.golden()["answers"])


def test_only_formats_that_the_preprocessing_does_not_decode_are_converted(cases: list[Case]) -> None:
    # JPEGs of unusual processes are the exception: no available library decodes them.
    foreign = [case.name for case in cases if detect_unsupported_format(case.content)]
    refused = [case.name for case in cases if case.status is Status.UNSUPPORTED_FORMAT]
    assert set(foreign) ^ {name for name in refused if not name.startswith("jpeg/")} == set()


# --- The preprocessing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decode() -> Decode:
    return make_decoder()


def test_the_preprocessing_returns_the_expected_status_and_sides(cases: list[Case], decode: Decode) -> None:
    found, wanted, painted = {}, {}, []
    for batch in batches(shuffled(cases, 1)):
        for case, row in zip(batch, decode(contents_of(batch)), strict=True):
            found[case.name] = (str(row.status), row.height, row.width)
            wanted[case.name] = (str(case.status), case.height, case.width)
            if not row.status.usable and (row.pixels != 128).any():
                painted.append(case.name)
    assert_answers(found, wanted)
    assert painted == []


def test_a_good_photo_among_bad_ones_is_bit_identical_to_a_single_call(
    cases: list[Case], decode: Decode
) -> None:
    good = shuffled((case for case in cases if case.status.usable), 3)[:150]
    bad = shuffled((case for case in cases if not case.status.usable), 4)[:150]
    for batch in batches([case for pair in zip(good, bad, strict=True) for case in pair]):
        for case, row in list(zip(batch, decode(contents_of(batch)), strict=True))[::2]:
            [alone] = decode([case.content])
            np.testing.assert_array_equal(row.pixels, alone.pixels, err_msg=case.name)


_ORIENTED = re.compile(r"(.+)/orientation (\d)/(.+)")
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}
"""Transposition that makes stored pixels upright, by orientation (TIFF 6.0, Orientation)."""


def test_every_exif_orientation_of_every_format_is_applied(cases: list[Case], decode: Decode) -> None:
    named = [(case, match) for case in cases if (match := _ORIENTED.fullmatch(case.name))]
    rows = decode([case.content for case, _ in named])
    pixels = {match.groups(): row.pixels for (_, match), row in zip(named, rows, strict=True)}
    assert len(pixels) == 8 * 2 * 4  # numbers, byte orders, formats
    for (kind, number, order), found in pixels.items():
        upright = _TURNS[int(number)](pixels[kind, "1", order])
        np.testing.assert_array_equal(found, upright, err_msg=f"{kind}, {number}, {order}")


def test_a_thin_photo_needs_memory_for_its_pixels_only(decode: Decode) -> None:
    """Without transposing wide photos, the resize would hold 224 rows of a million pixels: 2.7 GB."""
    content = corpus.png.png(1_000_000, 1, 1, corpus.png.GREY, 0, bytes(125_001))
    decode([corpus.png.plain()])
    before = peak_megabytes()
    [row] = decode([content])
    assert (row.status, row.height, row.width) == (Status.OK, 1, 1_000_000)
    assert peak_megabytes() - before < 300


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- Every path ---------------------------------------------------------------------------------------

Answers = dict[str, Status]
Way = Callable[[Bundle, Sequence[Case], Path], Answers]


@pytest.fixture(scope="module")
def light_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle whose backbone is the mean of the pixels, so that its only cost is the decoding.

    With it the corpus goes through every path in a third of the time.
    """
    import tensorflow as tf

    top = tmp_path_factory.mktemp("light_bundle")
    root = tf.train.Checkpoint()
    root.__call__ = tf.function(
        lambda photos: tf.reduce_mean(photos, [1, 2]) + 1.0,
        input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)],
        autograph=False,
    )
    tf.saved_model.save(root, str(top / "backbone"))
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    head = Head(Scaling(zeros, ones), np.eye(3, 2, dtype=np.float32), zeros[:2], 1.0)
    template = prepare_template(str(top / "backbone"), top / "cache")
    return export(template, HeadExport(head, ["this", "that"]), top / "models" / "light_bundle")


def by_runtime(model: Bundle, cases: Sequence[Case], work: Path) -> Answers:
    """Return the results of the signature `embed`, which also returns height and width."""
    names = (contract.STATUS, contract.HEIGHT, contract.WIDTH)
    contents = (case.content for case in cases)
    outputs = list(runtime.load(model.path).imap(contract.EMBED, contract.IMAGE_BYTES, contents))
    statuses, *sides = (np.concatenate([output[name] for output in outputs]) for name in names)
    told = zip(cases, *(side.tolist() for side in sides), strict=True)
    assert_answers(
        {case.name: tuple(height_and_width) for case, *height_and_width in told},
        {case.name: (case.height, case.width) for case in cases},
    )
    return answers(cases, statuses)


def answers(cases: Sequence[Case], statuses: Iterable[bytes]) -> Answers:
    return {case.name: Status(status.decode()) for case, status in zip(cases, statuses, strict=True)}


def by_classic_session(model: Bundle, cases: Sequence[Case], work: Path) -> Answers:
    found: Answers = {}
    with ClassicSession(model.path) as session:
        for batch in batches(cases):
            asked = {contract.IMAGE_BYTES: [case.content for case in batch]}
            found |= answers(batch, session.run(contract.SERVING_DEFAULT, asked)[contract.STATUS])
    return found


def by_server(model: Bundle, cases: Sequence[Case], work: Path) -> Answers:
    return _ask_server(model, cases, convert=False)


def by_converting_client(model: Bundle, cases: Sequence[Case], work: Path) -> Answers:
    return _ask_server(model, cases, convert=True)


def _ask_server(model: Bundle, cases: Sequence[Case], *, convert: bool) -> Answers:
    settings = ServerSettings(model_base_path=model.path.parent, port=0)
    with (
        start(settings) as server,
        Client(
            f"localhost:{server.port}", model=server.manager.settings[0].name, timeout=60, convert=convert
        ) as client,
    ):
        found = client.classify(case.content for case in cases)
    return {case.name: answer.status for case, answer in zip(cases, found, strict=True)}


def by_beam_job(model: Bundle, cases: Sequence[Case], work: Path) -> Answers:
    """Return the results of a Beam job with its own store; all files are named .jpg, which is ignored."""
    import pyarrow.parquet as pq

    photos = work / "photos"
    photos.mkdir()
    paths = {str(photos / f"{number:04}.jpeg"): case for number, case in enumerate(cases)}
    for path, case in paths.items():
        Path(path).write_bytes(case.content)
    settings = ScoreSettings(
        photos=str(photos),
        model=(model.path,),
        output=str(work / "output"),
        embedding_store=str(work / "store"),
    )
    assert score.score(settings).total.photos == len(cases)
    table = pq.read_table(work / "output" / "scores", columns=["uri", "status"])
    return {paths[row["uri"]].name: Status(row["status"]) for row in table.to_pylist()}


AS_THEY_ARE: dict[str, tuple[Way, int]] = {
    "a classic session, as in TensorFlow Serving": (by_classic_session, 0),
    "the local server over gRPC": (by_server, 1),
}
CONVERTED: dict[str, tuple[Way, int]] = {
    "the Beam job": (by_beam_job, 2),
    "the client, which converts": (by_converting_client, 0),
}
"""Function and the third of the corpus that it gets."""


def test_the_reloaded_bundle_returns_the_expected_status_of_all_cases(
    light_bundle: Bundle, cases: list[Case], tmp_path: Path
) -> None:
    found = by_runtime(light_bundle, shuffled(cases, 5), tmp_path)
    assert_answers(found, {case.name: case.status for case in cases})


@pytest.mark.server
@pytest.mark.parametrize("path", AS_THEY_ARE)
def test_every_path_returns_the_expected_status(
    light_bundle: Bundle, cases: list[Case], tmp_path: Path, path: str
) -> None:
    run, first = AS_THEY_ARE[path]
    some = shuffled(every_third(cases, first), 5)
    assert_answers(run(light_bundle, some, tmp_path), {case.name: case.status for case in some})


@pytest.mark.server
@pytest.mark.parametrize("path", CONVERTED)
def test_every_converting_path_returns_the_expected_status(
    light_bundle: Bundle, cases: list[Case], tmp_path: Path, path: str
) -> None:
    run, first = CONVERTED[path]
    # All files that the converter gets, and a third of the others.
    foreign = {case.name: case for case in cases if detect_unsupported_format(case.content)}
    others = [case for case in cases if case.name not in foreign]
    some = shuffled([*foreign.values(), *every_third(others, first)], 6)
    expected = {case.name: case.converted or case.status for case in some}
    assert_answers(run(light_bundle, some, tmp_path), expected)


def test_a_trained_bundle_returns_the_same_statuses(
    trained: Trained, cases: list[Case], tmp_path: Path
) -> None:
    some = shuffled(cases, 7)[:100]
    found = by_classic_session(trained.result.bundle, some, tmp_path)
    assert_answers(found, {case.name: case.status for case in some})
