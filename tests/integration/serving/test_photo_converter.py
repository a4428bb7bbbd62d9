"""Photos that the graph does not decode: every format becomes the right PNG, and nothing harms the caller."""

from __future__ import annotations

import gc
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.contract import PhotoRejection, Status
from serving.photos.converter import ConversionLimits, Converted, Converter, detect_unsupported_format
from tests.support.repository import REPO

HEIGHT, WIDTH = 40, 60


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth, and different in every corner, so that a turn shows."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, (across + down) / 4], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(file, quality=95, chroma=444, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: bytes, width: int, height: int, order: str = "<", **tags: int) -> bytes:
    """One uncompressed strip of one sample a pixel, with tags as numbers: `t258=12`."""
    values = {256: width, 257: height, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(pixels)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    values[273] = 10 + 12 * len(values) + 4
    begin = b"II*\0" if order == "<" else b"MM\0*"
    entries = b""
    for tag, value in sorted(values.items()):
        # A SHORT stands in the first two of the four bytes.
        short = tag in (258, 259, 262, 277, 339)
        entries += struct.pack(f"{order}HHI", tag, 3 if short else 4, 1)
        entries += struct.pack(f"{order}HH" if short else f"{order}I", *((value, 0) if short else (value,)))
    return begin + struct.pack(f"{order}IH", 8, len(values)) + entries + bytes(4) + pixels


def bmp(
    rows: bytes,
    width: int,
    height: int,
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    after: bytes = b"",
) -> bytes:
    """A BMP by hand: `after` the header come masks or the palette."""
    if header == 12:
        about = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 0, 0, 0, 0)
    start = 14 + len(about) + len(after)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + about + after + rows


def iso(brand: bytes, *compatible: bytes) -> bytes:
    body = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter(ConversionLimits(processes=2)) as one:
        yield one


def pixels_of(result: Converted | PhotoRejection | None) -> np.ndarray:
    assert isinstance(result, Converted), result
    with Image.open(io.BytesIO(result.content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert not {"icc_profile", "transparency", "exif"} & image.info.keys()
        return np.asarray(image).astype(int)


def assert_close(found: np.ndarray, expected: Image.Image | np.ndarray, tolerance: float = 2.0) -> None:
    wanted = np.asarray(expected).astype(int)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() <= tolerance


def refused(result: Converted | PhotoRejection | None, status: Status, *, permanent: bool) -> str:
    assert isinstance(result, PhotoRejection), result
    assert (result.status, result.permanent) == (status, permanent), result
    return result.detail


# --- Which photos ---------------------------------------------------------------------------------------

FOREIGN = {
    "HEIC": lambda: encoded(scene(), "HEIF"),
    "AVIF": lambda: encoded(scene(), "AVIF", quality=95),
    "TIFF": lambda: encoded(scene(), "TIFF", compression="tiff_lzw"),
    "JPEG 2000": lambda: encoded(scene(), "JPEG2000"),
    "animated WebP": lambda: encoded(
        scene(), "WEBP", save_all=True, append_images=[scene().rotate(180)], lossless=True
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_every_format_becomes_the_same_pixels(name: str, converter: Converter) -> None:
    content = FOREIGN[name]()
    result = converter.convert(content)
    assert detect_unsupported_format(content) == name
    assert_close(pixels_of(result), scene())
    assert isinstance(result, Converted)
    assert (result.height, result.width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"MM\0*", "TIFF"),
        (iso(b"mif1", b"mif1", b"avif"), "AVIF"),
        (iso(b"mif1", b"mif1", b"heic"), "HEIC"),
        (iso(b"isom", b"avc1"), "ISO media isom"),
        (iso(b"\0\1\2\3"), "ISO media 00010203"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xff\x0a\0", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"BM", "BMP of OS/2"),
        (encoded(scene(), "JPEG"), None),
        (encoded(scene(), "PNG"), None),
        (encoded(scene(), "GIF"), None),
        (encoded(scene(), "BMP"), None),
        (encoded(scene(), "WEBP"), None),
        (encoded(scene().convert("RGBA"), "WEBP"), None),
        (b"\xff\xd8\xff\xe0ftypheic", None),
        (b"GIF8ftypheic", None),
        (b"", None),
        (b"this is no photo", None),
        (b"II", None),
    ],
)
def test_a_header_tells_what_the_graph_does_not_decode(content: bytes, name: str | None) -> None:
    assert detect_unsupported_format(content) == name


def test_what_the_graph_decodes_is_left_as_it_is_and_starts_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with Converter() as converter:
        for content in (encoded(scene(), "JPEG"), b"", b"text"):
            assert converter.convert(content) is None
            assert converter.convert_if_needed(content) == content
        film = refused(converter.convert(iso(b"isom")), Status.UNSUPPORTED_FORMAT, permanent=True)
        assert film == "ISO media isom, which is not converted"


@pytest.mark.tf
def test_the_graph_refuses_as_unsupported_what_is_foreign_here_and_nothing_else(converter: Converter) -> None:
    import tensorflow as tf

    from trainer import preprocessing

    photos = [make() for make in (*FOREIGN.values(), *ODD_BMPS.values())]
    photos += [b"8BPS\0\1", b"\xff\x0a\0", b"\0\0\0\x0cJXL ", iso(b"isom"), b"MM\0*", b"BM"]
    photos += [encoded(scene(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")]
    photos += [b"", b"text", b"\xff\xd8\xff\xe0ftypheic", b"GIF8ftypheic", b"BM" + bytes(60)]
    statuses = preprocessing.decode_photos(tf.constant(photos), preprocessing.Preprocessing())[1]
    unsupported = [preprocessing.STATUSES[number] is Status.UNSUPPORTED_FORMAT for number in statuses.numpy()]
    assert [detect_unsupported_format(photo) is not None for photo in photos] == unsupported


@pytest.mark.tf
def test_a_loaded_model_converts_what_its_graph_does_not_decode(tmp_path: Path) -> None:
    import tensorflow as tf

    from serving import runtime

    def classify(image_bytes: Any) -> dict[str, Any]:
        count = tf.shape(image_bytes)[0]
        return {
            "label": tf.strings.substr(image_bytes + "    ", 1, 3),
            "classes": tf.fill([count, 1], "a"),
            "scores": tf.fill([count, 1], 0.5),
            "status": tf.fill([count], "ok"),
        }

    specs = [tf.TensorSpec([None], tf.string, "image_bytes")]
    module = tf.Module()
    module.classify = tf.function(classify, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.classify})
    model = runtime.load(tmp_path)
    photos = [b" one", FOREIGN_BYTES["HEIC"], b"8BPS", b"II*\0", *[b" two"] * 5]
    converted = model.classify(photos)
    assert [p.label for p in converted] == ["one", "PNG", None, None, *["two"] * 5]
    assert [p.detail is None for p in converted] == [True, True, False, False, *[True] * 5]
    assert all(p.detail is None for p in model.classify(photos[2:], convert=False))


# --- What comes out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "TIFF"])
def test_photos_are_upright(kind: str, orientation: int, converter: Converter) -> None:
    from PIL import ImageOps

    about = Image.Exif()
    about[0x0112] = orientation
    turned = scene()
    turned.info["exif"] = about.tobytes()
    expected = ImageOps.exif_transpose(turned)
    result = converter.convert(encoded(scene(), kind, exif=about.tobytes()))
    assert_close(pixels_of(result), expected.convert("RGB"))
    assert isinstance(result, Converted)
    assert (result.width, result.height) == expected.size


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "TIFF", "JPEG2000", "WEBP"])
def test_transparency_is_laid_on_white(kind: str, converter: Converter) -> None:
    clear = scene()
    clear.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    options: dict[str, Any] = {}
    if kind == "WEBP":
        options = {"save_all": True, "append_images": [Image.new("RGBA", clear.size)], "lossless": True}
    expected = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    assert_close(pixels_of(converter.convert(encoded(clear, kind, **options))), expected, 3.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "LAB"])
def test_every_mode_of_a_tiff_keeps_its_colours(mode: str, converter: Converter) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(scene(), *profiles, outputMode="LAB")
        assert image is not None
        expected = scene()
    else:
        image = scene().convert(mode)
        expected = image.convert("RGB")
    assert_close(pixels_of(converter.convert(encoded(image, "TIFF"))), expected, 3.0)


RAMP = np.linspace(0, 1, 200).reshape(10, 20)


@pytest.mark.parametrize(
    "content",
    [
        tiff((RAMP * 65535).astype("<u2").tobytes(), 20, 10, t258=16),
        tiff((RAMP * 65535).astype(">u2").tobytes(), 20, 10, ">", t258=16),
        tiff(((1 - RAMP) * 65535).astype("<u2").tobytes(), 20, 10, t258=16, t262=0),
        tiff((RAMP * 2e9).astype("<u4").tobytes(), 20, 10, t258=32, t339=1),
        tiff((RAMP * 4e6 - 2e6).astype("<i4").tobytes(), 20, 10, t258=32, t339=2),
        tiff((RAMP * 7 - 3).astype("<f4").tobytes(), 20, 10, t258=32, t339=3),
        encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "JPEG2000"),
    ],
    ids=["16 bit", "big-endian", "white is zero", "32 bit", "signed", "float", "JPEG 2000"],
)
def test_more_than_8_bits_are_scaled_and_not_clipped(content: bytes, converter: Converter) -> None:
    grey = np.repeat((RAMP * 255)[:, :, None], 3, axis=2)
    assert_close(pixels_of(converter.convert(content)), grey, 1.0)


def test_12_bits_are_scaled_by_their_own_range(converter: Converter) -> None:
    values = (RAMP * 4095).astype(int).reshape(-1, 2)
    packed = bytes(part for a, b in values.tolist() for part in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    grey = np.repeat((RAMP * 255)[:, :, None], 3, axis=2)
    assert_close(pixels_of(converter.convert(tiff(packed, 20, 10, t258=12))), grey, 1.0)


def test_a_constant_photo_without_a_range_is_no_division_by_zero(converter: Converter) -> None:
    flat = tiff(np.full(200, 3.0, "<f4").tobytes(), 20, 10, t258=32, t339=3)
    assert len(np.unique(pixels_of(converter.convert(flat)))) == 1


PALETTE = bytes([0, 0, 255, 0, 255, 0, 0, 0])  # red and blue, as BGR0
STRIPES = np.array([[[255, 0, 0], [0, 0, 255]] * 4] * 2)

ODD_BMPS: dict[str, Callable[[], bytes]] = {
    "1 bit": lambda: bmp(bytes([0b01010101, 0, 0, 0]) * 2, 8, 2, 1, after=PALETTE),
    "4 bits": lambda: bmp(bytes([0x01] * 4) * 2, 8, 2, 4, after=PALETTE + bytes(56)),
    "8 bits": lambda: bmp(bytes([0, 1] * 4) * 2, 8, 2, 8, after=PALETTE + bytes(1016)),
    "8 bits, top down": lambda: bmp(bytes([0, 1] * 4) * 2, 8, -2, 8, after=PALETTE + bytes(1016)),
    "run lengths": lambda: bmp(
        (bytes([1, 0, 1, 1] * 4) + b"\0\0") * 2 + b"\0\1", 8, 2, 8, compression=1, after=PALETTE + bytes(1016)
    ),
    "16 bits": lambda: bmp(np.array([0x7C00, 0x001F] * 8, "<u2").tobytes(), 8, 2, 16),
    "bit masks": lambda: bmp(
        np.array([0xF800, 0x001F] * 8, "<u2").tobytes(),
        8,
        2,
        16,
        compression=3,
        after=struct.pack("<III", 0xF800, 0x07E0, 0x001F),
    ),
    "32 bits by masks": lambda: bmp(
        np.array([0xFF0000, 0x0000FF] * 8, "<u4").tobytes(),
        8,
        2,
        32,
        compression=3,
        after=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF),
    ),
    "OS/2, 24 bits": lambda: bmp(bytes([0, 0, 255, 255, 0, 0] * 4) * 2, 8, 2, 24, header=12),
    "OS/2, 8 bits": lambda: bmp(
        bytes([0, 1] * 4) * 2, 8, 2, 8, header=12, after=bytes([0, 0, 255, 255, 0, 0]) + bytes(762)
    ),
}


@pytest.mark.parametrize("kind", ODD_BMPS)
def test_odd_bmps(kind: str, converter: Converter) -> None:
    content = ODD_BMPS[kind]()
    assert (detect_unsupported_format(content) or "").startswith("BMP ")
    assert_close(pixels_of(converter.convert(content)), STRIPES, 0.0)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "AVIF"])
def test_of_many_frames_the_first_is_taken(kind: str, converter: Converter) -> None:
    rest = [scene().rotate(180), Image.new("RGB", (WIDTH, HEIGHT))]
    assert_close(
        pixels_of(converter.convert(encoded(scene(), kind, save_all=True, append_images=rest))), scene()
    )


def test_a_large_photo_is_reduced_and_keeps_its_sides_in_the_record(converter: Converter) -> None:
    large = scene(3 * 1024 + 5, 4000)
    result = converter.convert(encoded(large, "TIFF"))
    assert isinstance(result, Converted)
    assert (result.width, result.height) == large.size
    assert_close(pixels_of(result), large.reduce(3), 0.0)


def test_broken_exif_is_no_reason_to_refuse(converter: Converter) -> None:
    options = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))], "lossless": True}
    content = encoded(scene(), "WEBP", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", **options)
    assert_close(pixels_of(converter.convert(content)), scene(), 0.0)


# --- What is refused ------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """The most memory that a process ever had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def children() -> set[int]:
    """Processes that this one started and that are not waited for yet, ended ones included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def webp_canvas(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + sides


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff(b"", 100_000, 90_000, t258=8), "TIFF of 100000 x 90000 pixels, more than the 50000000 allowed"),
        (bmp(b"", 2**31 - 1, 2**31 - 1, 8, after=PALETTE), "BMP with a palette of 2147483647 x 2147483647"),
        (webp_canvas(16383, 16383), "animated WebP of 16383 x 16383 pixels"),
    ],
    ids=["TIFF", "BMP", "WebP"],
)
def test_a_bomb_is_refused_by_its_header(content: bytes, said: str) -> None:
    before = children()
    with Converter() as converter:
        detail = refused(converter.convert(content), Status.TOO_LARGE, permanent=True)
        [child] = children() - before
        assert resident(child) < 100
    assert said in detail


def test_a_file_with_too_many_bytes_is_refused() -> None:
    with Converter(ConversionLimits(max_bytes=100)) as converter:
        detail = refused(converter.convert(FOREIGN["TIFF"]()), Status.TOO_LARGE, permanent=False)
    assert "more than the 100 allowed" in detail


@pytest.mark.parametrize("name", FOREIGN)
def test_memory_is_capped_and_the_next_photo_is_not_harmed(name: str) -> None:
    kind = {"HEIC": "HEIF", "JPEG 2000": "JPEG2000", "animated WebP": "WEBP"}.get(name, name)
    many = {"save_all": True, "append_images": [Image.new("RGB", (5000, 5000), "red")]}
    options = {"WEBP": many, "AVIF": {"speed": 10}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    large = encoded(Image.new("RGB", (5000, 5000)), kind, **options)
    with Converter(ConversionLimits(memory_bytes=100 << 20)) as converter:
        detail = refused(converter.convert(large), Status.TOO_LARGE, permanent=False)
        assert detail == f"{name}; converting it takes more than 100 MiB of memory"
        assert_close(pixels_of(converter.convert(FOREIGN["TIFF"]())), scene())


def test_a_photo_that_takes_too_long_is_given_up_and_its_process_ended() -> None:
    before = children()
    large = encoded(scene(4000, 3000), "JPEG2000")
    with Converter(ConversionLimits(seconds=0.2)) as converter:
        begin = time.monotonic()
        detail = refused(converter.convert(large), Status.TOO_LARGE, permanent=False)
        assert time.monotonic() - begin < 5
        assert children() == before
    assert detail == "JPEG 2000; converting it takes more than 0.2 s"


def test_a_process_that_is_killed_at_work_costs_its_photo_alone() -> None:
    before = children()
    with Converter() as converter, ThreadPoolExecutor(1) as pool:
        assert isinstance(converter.convert(FOREIGN["TIFF"]()), Converted)
        [child] = children() - before
        at_work = pool.submit(converter.convert, encoded(scene(8000, 6000), "JPEG2000"))
        deadline = time.monotonic() + 30
        while resident(child) < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        detail = refused(at_work.result(30), Status.CORRUPT, permanent=False)
        assert detail == "JPEG 2000; its converter process ended with exit code -9"
        assert isinstance(converter.convert(FOREIGN["TIFF"]()), Converted)


def test_a_process_that_is_killed_while_it_waits_costs_nothing() -> None:
    before = children()
    with Converter() as converter:
        assert isinstance(converter.convert(FOREIGN["TIFF"]()), Converted)
        [child] = children() - before
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert isinstance(converter.convert(FOREIGN["TIFF"]()), Converted)


def test_a_photo_that_does_not_decode_says_what_the_decoder_says(converter: Converter) -> None:
    content = FOREIGN["TIFF"]()
    for broken in (content[:100], b"II*\0", FOREIGN["HEIC"]()[:600], iso(b"avif") + bytes(200)):
        detail = refused(converter.convert(broken), Status.CORRUPT, permanent=True)
        assert "cannot be decoded" in detail
        assert "0x" not in detail


@pytest.mark.parametrize(("missing", "name"), [("PIL", "TIFF"), ("PIL", "HEIC"), ("pi_heif", "HEIC")])
def test_without_the_extra_the_refusal_says_how_to_get_it(
    missing: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # what is None there cannot be imported
    with Converter() as converter:
        detail = refused(converter.convert(FOREIGN_BYTES[name]), Status.UNSUPPORTED_FORMAT, permanent=False)
    assert detail == f"{name}; install hubhead[formats] to convert it"


def test_without_pi_heif_the_other_formats_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with Converter() as converter:
        assert isinstance(converter.convert(FOREIGN_BYTES["TIFF"]), Converted)


def test_a_pillow_that_does_not_load_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('of another machine')")
    with Converter() as converter:
        monkeypatch.setattr(converter, "_packages", {"PIL": str(tmp_path)}, raising=False)
        detail = refused(converter.convert(FOREIGN_BYTES["TIFF"]), Status.UNSUPPORTED_FORMAT, permanent=False)
    assert detail == "TIFF; the installed Pillow cannot be imported"


FOREIGN_BYTES = {name: FOREIGN[name]() for name in ("TIFF", "HEIC")}

BEGINNINGS = [
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"BM",
    bmp(b"", 3, 3, 8),
    iso(b"heic", b"mif1"),
    iso(b"avif", b"mif1"),
    b"\0\0\0\x0cjP  \r\n\x87\n",
    webp_canvas(30, 30),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=300))
def test_no_bytes_behind_a_signature_do_harm(begin: bytes, rest: bytes) -> None:
    result = SHARED.convert(begin + rest)
    assert result is None or isinstance(result, Converted | PhotoRejection)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_cut_and_no_changed_byte_does_harm(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    result = SHARED.convert(bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert result is None or isinstance(result, Converted | PhotoRejection)


SHARED = Converter(ConversionLimits(processes=1, seconds=10))
WHOLE = [make() for make in (*FOREIGN.values(), *ODD_BMPS.values())]


# --- The processes --------------------------------------------------------------------------------------


def test_threads_share_as_many_processes_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    contents = [encoded(scene(50 + number, 40), "TIFF") for number in range(40)]
    with Converter(ConversionLimits(processes=2)) as converter, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(converter.convert, contents))
    assert [result.width for result in results if isinstance(result, Converted)] == list(range(50, 90))
    assert 1 <= len(started) <= 2
    assert all(process.returncode is not None for process in started)


def test_closing_leaves_no_process_behind_and_neither_does_forgetting() -> None:
    before = children()
    with Converter() as converter:
        converter.convert(FOREIGN_BYTES["TIFF"])
        assert len(children() - before) == 1
    assert children() == before
    forgotten = Converter()
    forgotten.convert(FOREIGN_BYTES["TIFF"])
    del forgotten
    gc.collect()
    assert children() == before


def test_closing_in_the_middle_of_a_photo_ends_its_process_after_it() -> None:
    before = children()
    converter = Converter()
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(converter.convert(encoded(scene(2000, 1500), "JPEG2000")))
    )
    thread.start()
    deadline = time.monotonic() + 30
    while children() == before and time.monotonic() < deadline:
        time.sleep(0.005)
    converter.close()
    thread.join(60)
    assert isinstance(results[0], Converted)
    assert children() == before


def test_a_process_ends_with_its_parent_and_inherits_nothing(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from serving.photos.converter import Converter, Converted
held = open({str(tmp_path / "held")!r}, "w")
os.set_inheritable(held.fileno(), True)
converter = Converter()
assert isinstance(converter.convert(Path(sys.argv[1]).read_bytes()), Converted)
[child] = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
links = [os.readlink(f"/proc/{{child}}/fd/{{number}}") for number in os.listdir(f"/proc/{{child}}/fd")]
assert not any("held" in link for link in links), links
assert b"SECRET" not in Path(f"/proc/{{child}}/environ").read_bytes()
assert not {{"PIL", "pi_heif", "numpy", "grpc", "tensorflow"}} & sys.modules.keys()
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    (tmp_path / "a.tiff").write_bytes(FOREIGN_BYTES["TIFF"])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.tiff"],
        cwd=REPO,
        env=os.environ | {"SECRET": "SECRET"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    child = Path("/proc", done.stdout.strip())
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(child)


def _alive(process: Path) -> bool:
    """Whether it runs; an ended one may stand in the table until its new parent looks."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_process_imports_nothing_heavy() -> None:
    child = REPO / "serving" / "photos" / "converter_process.py"
    packages = Path(Image.__file__).parents[1]
    code = (
        f"import runpy, sys; sys.path.append({str(packages)!r}); about = runpy.run_path({str(child)!r});"
        "assert about['_load_pillow'](); from PIL import Image; print(*sys.modules); print(*Image.OPEN)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    modules, readers = (line.split() for line in done.stdout.splitlines())
    assert {name.partition(".")[0] for name in modules}.isdisjoint({"numpy", "grpc", "serving", "site"})
    assert {"TIFF", "HEIF", "AVIF", "WEBP", "JPEG2000", "BMP"} <= set(readers)
    assert "EPS" not in readers
