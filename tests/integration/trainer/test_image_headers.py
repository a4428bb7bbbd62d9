"""The ops that parse headers, compared with reference implementations in Python on mutated headers."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = pytest.mark.tf

EXAMPLES = int(os.environ.get("HUBHEAD_FUZZ_EXAMPLES", "150"))
"""Number of examples; `make fuzz` sets more."""

fuzzed = settings(max_examples=EXAMPLES, deadline=None)

Scalar = Callable[[bytes], Any]


def traced(function: Callable[[Any], Any]) -> Scalar:
    """Trace a function of a string scalar once as a graph."""
    import tensorflow as tf

    graph = tf.function(function, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    return lambda content: graph(tf.constant(content)).numpy()


# --- EXIF ---------------------------------------------------------------------------------------------


def tiff(order: str, entries: list[tuple[int, int, int, int]], directory: int = 8) -> bytes:
    """Return a TIFF header and a directory of (tag, type, count, value) entries (TIFF 6.0, section 2)."""
    body = struct.pack(f"{order}2sHI", {"<": b"II", ">": b"MM"}[order], 42, directory)
    body += struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and value < 1 << 16
        body += struct.pack(f"{order}HHI", tag, kind, count)
        body += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    return body + bytes(4)


def reference_orientation(data: bytes) -> int:
    """Reference implementation of trainer.preprocessing.exif.read_orientation."""
    if data[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        piece = (data[at : at + size] + bytes(size))[:size]
        return int.from_bytes(piece, "little" if data[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 512)):
        at = directory + 2 + 12 * entry
        if at + 12 > len(data):
            return 1
        tag, kind = number(at, 2), number(at + 2, 2)
        if tag == 0x0112 and kind in (3, 4):
            value = number(at + 8, 2 if kind == 3 else 4)
            if kind == 4 and value >= 1 << 16:
                continue
            return value if 1 <= value <= 8 else 1
    return 1


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    order = draw(st.sampled_from("<>"))
    entry = st.tuples(
        st.sampled_from([0x0112, 0x0112, 0x010F, 0x8769]),
        st.sampled_from([1, 2, 3, 4]),
        st.integers(0, 2),
        st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    )
    data = bytearray(
        tiff(order, draw(st.lists(entry, max_size=4)), draw(st.sampled_from([8, 8, 8, 9, 2**31])))
    )
    for place, value in draw(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=3)):
        data[min(place, len(data) - 1)] = value
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@pytest.fixture(scope="module")
def read_orientation() -> Scalar:
    from trainer.preprocessing import exif

    return traced(exif.read_orientation)


@fuzzed
@given(data=tiffs())
@example(data=tiff("<", [(0x0112, 3, 1, 6)]))
@example(data=tiff(">", [(0x0112, 4, 1, 8)]))
@example(data=tiff("<", [(0x0112, 4, 1, 6 + (1 << 16))]))
def test_the_exif_orientation_equals_that_of_a_reference_parser(
    read_orientation: Scalar, data: bytes
) -> None:
    assert read_orientation(data) == reference_orientation(data)


# --- The scan guard of JPEG ---------------------------------------------------------------------------

SCAN_DATA = [b"", b"\x12\x34", b"\xff\x00\x55", b"\xff\xd0\x01", b"\xff\xff\x00", b"\x00" * 40]


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def frame(marker: int, components: int = 3) -> bytes:
    each = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    return segment(marker, struct.pack(">BHHB", 8, 16, 16, components) + each)


def scan(components: int) -> bytes:
    each = b"".join(bytes([number, 0]) for number in range(1, components + 1))
    return segment(0xDA, bytes([components]) + each + b"\0\x3f\0")


@st.composite
def jpegs_with_scans(draw: st.DrawFn) -> tuple[bytes, int]:
    """Draw the segments of a JPEG, and the number of scans that its decoder processes."""
    marker = draw(st.sampled_from([0xC0, 0xC1, 0xC2]))
    content = b"\xff\xd8" + segment(0xE1, b"Exif\0\0" + b"\xff\xda" * draw(st.integers(0, 3))) + frame(marker)
    sizes = draw(st.lists(st.sampled_from([1, 1, 3]), max_size=12))
    for size in sizes:
        content += draw(
            st.sampled_from([b"", segment(0xC4, b"\xff\xd9\xff\xda"), segment(0xFE, b"\xff\xda")])
        )
        content += scan(size) + draw(st.sampled_from(SCAN_DATA))
    count = len(sizes)
    if marker != 0xC2 and sizes and sizes[0] == 3:
        count = 1
    content += draw(st.sampled_from([b"", b"\xff\xd9", b"\xff\xd9" + b"\xff\xda" * 9]))
    return content, count


@pytest.fixture(scope="module")
def count_scans() -> Scalar:
    import tensorflow as tf

    from trainer.preprocessing import jpeg

    return traced(lambda content: jpeg._count_scans(content, tf.constant(1000, tf.int64)))


@fuzzed
@given(photo=jpegs_with_scans())
def test_the_scan_guard_counts_only_scans_of_the_image_itself(
    count_scans: Scalar, photo: tuple[bytes, int]
) -> None:
    content, count = photo
    assert count_scans(content) == count


@fuzzed
@given(data=st.binary(max_size=300))
def test_the_scan_guard_accepts_arbitrary_bytes(count_scans: Scalar, data: bytes) -> None:
    assert 0 <= count_scans(b"\xff\xd8\xff" + data) <= len(data)


def test_the_scan_guard_exceeds_the_limit_for_too_many_segments(count_scans: Scalar) -> None:
    assert count_scans(b"\xff\xd8" + frame(0xC2) + segment(0xFE, b"") * 5000) > 1000


# --- Sub-blocks of GIF --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skip_sub_blocks() -> Scalar:
    import tensorflow as tf

    from trainer.preprocessing import gif

    return traced(lambda content: gif._skip_sub_blocks(content, 0, tf.constant(0))[0])


def reference_end_of_sub_blocks(data: bytes) -> int:
    position = 0
    while position < len(data):
        size = data[position]
        if size == 0:
            return position + 1
        position += size + 1
    return len(data)


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    blocks = draw(st.lists(st.one_of(st.just(255), st.integers(1, 255)), max_size=30))
    repeated = draw(st.integers(1, 60))
    data = b"".join(bytes([size]) + bytes([7]) * size for size in blocks * repeated)
    data += draw(st.sampled_from([b"\0", b"\0;", b"", b"\0\0\0"]))
    return data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]


@fuzzed
@given(data=chains())
def test_gif_sub_blocks_end_where_a_reference_loop_ends(skip_sub_blocks: Scalar, data: bytes) -> None:
    assert skip_sub_blocks(data) == reference_end_of_sub_blocks(data)


# --- Dimensions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sides() -> Scalar:
    """Return status, height and width of decode_photos."""
    import tensorflow as tf

    from trainer.preprocessing import Preprocessing, decode_photos

    def look(content: Any) -> Any:
        _, status, heights, widths = decode_photos(content[None], Preprocessing(height=32, width=32))
        return tf.stack([status[0], heights[0], widths[0]])

    return traced(look)


@settings(max_examples=max(EXAMPLES // 3, 30), deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]),
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    number=st.integers(1, 8),
)
def test_height_and_width_are_those_of_the_upright_photo(
    sides: Scalar, kind: str, width: int, height: int, number: int
) -> None:
    about = Image.Exif()
    about[0x0112] = number
    options: dict[str, Any] = {"exif": about} if kind in ("JPEG", "PNG", "WEBP") else {}
    buffer = io.BytesIO()
    image = Image.new("RGB", (width, height), (90, 160, 30))
    (image.quantize(4) if kind == "GIF" else image).save(buffer, kind, **options)
    turned = bool(options) and number >= 5
    np.testing.assert_array_equal(
        sides(buffer.getvalue()), [0, width, height] if turned else [0, height, width]
    )
