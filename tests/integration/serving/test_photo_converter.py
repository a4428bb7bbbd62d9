"""Conversion of photos that the graph cannot decode: pixels, rejections and child processes."""

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
from serving.errors import InputError
from serving.photos.converter import ConversionLimits, Converted, Converter
from serving.photos.formats import detect_unsupported_format
from tests.support.repository import REPO

HEIGHT, WIDTH = 40, 60


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return a smooth image whose corners differ, so that a wrong orientation is visible."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 4], axis=2).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image in the format `kind`, a name of Pillow or "HEIF"."""
    file = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(file, quality=95, chroma=444, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: bytes, width: int, height: int, order: str = "<", **tags: int) -> bytes:
    """Return a TIFF with one uncompressed strip and one sample per pixel; `t258=12` sets tag 258."""
    values = {256: width, 257: height, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(pixels)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    values[273] = 10 + 12 * len(values) + 4
    signature = b"II*\0" if order == "<" else b"MM\0*"
    entries = b""
    for tag, value in sorted(values.items()):
        # A SHORT is stored in the first two of the four bytes.
        short = tag in (258, 259, 262, 277, 339)
        entries += struct.pack(f"{order}HHI", tag, 3 if short else 4, 1)
        entries += struct.pack(f"{order}HH" if short else f"{order}I", *((value, 0) if short else (value,)))
    return signature + struct.pack(f"{order}IH", 8, len(values)) + entries + bytes(4) + pixels


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
    """Return a BMP; `after` are the bytes after the header: bit masks or a palette."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 0, 0, 0, 0)
    start = 14 + len(info) + len(after)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + after + rows


def ftyp_box(brand: bytes, *compatible: bytes) -> bytes:
    """Return the `ftyp` box of an ISO media file with a major brand and compatible brands."""
    body = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter(ConversionLimits(processes=2)) as shared:
        yield shared


def png_pixels(result: Converted | PhotoRejection | None) -> np.ndarray:
    """Return the pixels of a converted photo, after checking that it is an RGB PNG without metadata."""
    assert isinstance(result, Converted), result
    with Image.open(io.BytesIO(result.content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert not {"icc_profile", "transparency", "exif"} & image.info.keys()
        return np.asarray(image).astype(int)


def assert_close(found: np.ndarray, expected: Image.Image | np.ndarray, tolerance: float = 2.0) -> None:
    wanted = np.asarray(expected).astype(int)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() <= tolerance


def rejection_detail(result: Converted | PhotoRejection | None, status: Status, *, permanent: bool) -> str:
    """Return the detail of a rejection, after checking its status and whether it is permanent."""
    assert isinstance(result, PhotoRejection), result
    assert (result.status, result.permanent) == (status, permanent), result
    return result.detail


# --- Format detection -----------------------------------------------------------------------------------

UNSUPPORTED = {
    "HEIC": lambda: encode(scene(), "HEIF"),
    "AVIF": lambda: encode(scene(), "AVIF", quality=95),
    "TIFF": lambda: encode(scene(), "TIFF", compression="tiff_lzw"),
    "JPEG 2000": lambda: encode(scene(), "JPEG2000"),
    "animated WebP": lambda: encode(
        scene(), "WEBP", save_all=True, append_images=[scene().rotate(180)], lossless=True
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_every_unsupported_format_is_converted_to_the_same_pixels(name: str, converter: Converter) -> None:
    content = UNSUPPORTED[name]()
    result = converter.convert(content)
    assert detect_unsupported_format(content) == name
    assert_close(png_pixels(result), scene())
    assert isinstance(result, Converted)
    assert (result.height, result.width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"MM\0*", "TIFF"),
        (b"MM\0+", "big-endian BigTIFF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI", "PNG of iPhone apps (CgBI)"),
        (ftyp_box(b"mif1", b"mif1", b"avif"), "AVIF"),
        (ftyp_box(b"mif1", b"mif1", b"heic"), "HEIC"),
        (ftyp_box(b"isom", b"avc1"), "ISO media isom"),
        (ftyp_box(b"\0\1\2\3"), "ISO media 00010203"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xff\x0a\0", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"BM", "BMP of OS/2"),
        (encode(scene(), "JPEG"), None),
        (encode(scene(), "PNG"), None),
        (encode(scene(), "GIF"), None),
        (encode(scene(), "BMP"), None),
        (encode(scene(), "WEBP"), None),
        (encode(scene().convert("RGBA"), "WEBP"), None),
        (b"\xff\xd8\xff\xe0ftypheic", None),
        (b"GIF8ftypheic", None),
        (b"", None),
        (b"this is no photo", None),
        (b"II", None),
    ],
)
def test_unsupported_formats_are_detected_by_their_header(content: bytes, name: str | None) -> None:
    assert detect_unsupported_format(content) == name


def test_formats_the_graph_decodes_are_not_converted_and_start_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with Converter() as converter:
        for content in (encode(scene(), "JPEG"), b"", b"text"):
            assert converter.convert(content) is None
            assert converter.convert_if_needed(content) == content
        detail = rejection_detail(
            converter.convert(ftyp_box(b"isom")), Status.UNSUPPORTED_FORMAT, permanent=True
        )
        assert detail == "ISO media isom, which is not converted"


@pytest.mark.tf
def test_the_graph_reports_unsupported_format_for_exactly_the_detected_formats(converter: Converter) -> None:
    import tensorflow as tf

    from trainer import preprocessing

    photos = [make() for make in (*UNSUPPORTED.values(), *UNSUPPORTED_BMPS.values())]
    photos += [b"8BPS\0\1", b"\xff\x0a\0", b"\0\0\0\x0cJXL ", ftyp_box(b"isom"), b"MM\0*", b"BM"]
    photos += [encode(scene(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")]
    photos += [b"", b"text", b"\xff\xd8\xff\xe0ftypheic", b"GIF8ftypheic", b"BM" + bytes(60)]
    statuses = preprocessing.decode_photos(tf.constant(photos), preprocessing.Preprocessing())[1]
    unsupported = [preprocessing.STATUSES[number] is Status.UNSUPPORTED_FORMAT for number in statuses.numpy()]
    assert [detect_unsupported_format(photo) is not None for photo in photos] == unsupported


@pytest.mark.tf
def test_a_loaded_model_converts_photos_its_graph_cannot_decode(tmp_path: Path) -> None:
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
    photos = [b" one", UNSUPPORTED_BYTES["HEIC"], b"8BPS", b"II*\0", *[b" two"] * 5]
    converted = model.classify(photos)
    assert [p.label for p in converted] == ["one", "PNG", None, None, *["two"] * 5]
    assert [p.detail is None for p in converted] == [True, True, False, False, *[True] * 5]
    assert all(p.detail is None for p in model.classify(photos[2:], convert=False))
    with pytest.raises(InputError, match="not a list of photos"):
        model.classify(photos[0])  # type: ignore[arg-type]


# --- Converted pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "TIFF"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int, converter: Converter) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = scene()
    rotated.info["exif"] = exif.tobytes()
    expected = ImageOps.exif_transpose(rotated)
    result = converter.convert(encode(scene(), kind, exif=exif.tobytes()))
    assert_close(png_pixels(result), expected.convert("RGB"))
    assert isinstance(result, Converted)
    assert (result.width, result.height) == expected.size


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "TIFF", "JPEG2000", "WEBP"])
def test_transparency_is_blended_on_white(kind: str, converter: Converter) -> None:
    transparent = scene()
    transparent.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    options: dict[str, Any] = {}
    if kind == "WEBP":
        options = {"save_all": True, "append_images": [Image.new("RGBA", transparent.size)], "lossless": True}
    expected = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent).convert("RGB")
    assert_close(png_pixels(converter.convert(encode(transparent, kind, **options))), expected, 3.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "LAB"])
def test_tiffs_of_every_colour_mode_keep_their_colours(mode: str, converter: Converter) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(scene(), *profiles, outputMode="LAB")
        assert image is not None
        expected = scene()
    else:
        image = scene().convert(mode)
        expected = image.convert("RGB")
    assert_close(png_pixels(converter.convert(encode(image, "TIFF"))), expected, 3.0)


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
        encode(Image.fromarray((RAMP * 65535).astype(np.uint16)), "JPEG2000"),
    ],
    ids=["16 bit", "big-endian", "white is zero", "32 bit", "signed", "float", "JPEG 2000"],
)
def test_more_than_8_bits_are_scaled_without_clipping(content: bytes, converter: Converter) -> None:
    grey = np.repeat((RAMP * 255)[:, :, None], 3, axis=2)
    assert_close(png_pixels(converter.convert(content)), grey, 1.0)


def test_12_bits_are_scaled_by_their_own_range(converter: Converter) -> None:
    values = (RAMP * 4095).astype(int).reshape(-1, 2)
    packed = bytes(part for a, b in values.tolist() for part in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    grey = np.repeat((RAMP * 255)[:, :, None], 3, axis=2)
    assert_close(png_pixels(converter.convert(tiff(packed, 20, 10, t258=12))), grey, 1.0)


def test_a_constant_photo_does_not_divide_by_zero(converter: Converter) -> None:
    flat = tiff(np.full(200, 3.0, "<f4").tobytes(), 20, 10, t258=32, t339=3)
    assert len(np.unique(png_pixels(converter.convert(flat)))) == 1


PALETTE = bytes([0, 0, 255, 0, 255, 0, 0, 0])  # red and blue, as BGR0
STRIPES = np.array([[[255, 0, 0], [0, 0, 255]] * 4] * 2)

UNSUPPORTED_BMPS: dict[str, Callable[[], bytes]] = {
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


@pytest.mark.parametrize("kind", UNSUPPORTED_BMPS)
def test_bmps_the_graph_cannot_decode(kind: str, converter: Converter) -> None:
    content = UNSUPPORTED_BMPS[kind]()
    assert (detect_unsupported_format(content) or "").startswith("BMP ")
    assert_close(png_pixels(converter.convert(content)), STRIPES, 0.0)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "AVIF"])
def test_the_first_of_several_frames_is_converted(kind: str, converter: Converter) -> None:
    rest = [scene().rotate(180), Image.new("RGB", (WIDTH, HEIGHT))]
    assert_close(
        png_pixels(converter.convert(encode(scene(), kind, save_all=True, append_images=rest))), scene()
    )


def test_a_large_photo_is_downscaled_and_its_original_size_is_recorded(converter: Converter) -> None:
    large = scene(3 * 1024 + 5, 4000)
    result = converter.convert(encode(large, "TIFF"))
    assert isinstance(result, Converted)
    assert (result.width, result.height) == large.size
    assert_close(png_pixels(result), large.reduce(3), 0.0)


def test_damaged_exif_does_not_reject_a_photo(converter: Converter) -> None:
    options = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))], "lossless": True}
    content = encode(scene(), "WEBP", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", **options)
    assert_close(png_pixels(converter.convert(content)), scene(), 0.0)


# --- Rejected photos ------------------------------------------------------------------------------------


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def children() -> set[int]:
    """Return the process ids of the children of this process, including ended ones not yet waited for."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def webp_canvas(width: int, height: int) -> bytes:
    """Return the beginning of an animated WebP with a canvas of that size."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + sides


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(b"", 100_000, 90_000, t258=8), "TIFF of 100000 x 90000 pixels, more than the 50000000 allowed"),
        (bmp(b"", 2**31 - 1, 2**31 - 1, 8, after=PALETTE), "BMP with a palette of 2147483647 x 2147483647"),
        (webp_canvas(16383, 16383), "animated WebP of 16383 x 16383 pixels"),
    ],
    ids=["TIFF", "BMP", "WebP"],
)
def test_a_decompression_bomb_is_rejected_by_its_header(content: bytes, expected: str) -> None:
    before = children()
    with Converter() as converter:
        detail = rejection_detail(converter.convert(content), Status.TOO_LARGE, permanent=True)
        [child] = children() - before
        assert peak_memory(child) < 100
    assert expected in detail


def test_a_file_with_too_many_bytes_is_rejected() -> None:
    with Converter(ConversionLimits(max_bytes=100)) as converter:
        detail = rejection_detail(converter.convert(UNSUPPORTED["TIFF"]()), Status.TOO_LARGE, permanent=False)
    assert "more than the 100 allowed" in detail


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_memory_is_limited_and_the_next_photo_is_not_affected(name: str) -> None:
    kind = {"HEIC": "HEIF", "JPEG 2000": "JPEG2000", "animated WebP": "WEBP"}.get(name, name)
    animated = {"save_all": True, "append_images": [Image.new("RGB", (5000, 5000), "red")]}
    options = {"WEBP": animated, "AVIF": {"speed": 10}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    large = encode(Image.new("RGB", (5000, 5000)), kind, **options)
    with Converter(ConversionLimits(memory_bytes=100 << 20)) as converter:
        detail = rejection_detail(converter.convert(large), Status.TOO_LARGE, permanent=False)
        assert detail == f"{name}; converting it takes more than 100 MiB of memory"
        assert_close(png_pixels(converter.convert(UNSUPPORTED["TIFF"]())), scene())


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (ConversionLimits(seconds=0.2), "0.2 s of processor time"),
        (ConversionLimits(wall_seconds=0.2), "0.2 s"),
    ],
)
def test_a_conversion_timeout_rejects_the_photo_and_kills_its_process(
    limits: ConversionLimits, limit: str
) -> None:
    before = children()
    large = encode(scene(4000, 3000), "JPEG2000")
    with Converter(limits) as converter:
        detail = rejection_detail(converter.convert(large), Status.TOO_LARGE, permanent=False)
        assert children() == before
    assert detail == f"JPEG 2000; converting it takes more than {limit}"


def test_a_photo_whose_process_waits_for_a_busy_machine_is_converted() -> None:
    before = children()
    with Converter(ConversionLimits(seconds=1)) as converter, ThreadPoolExecutor(1) as pool:
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)
        [child] = children() - before
        os.kill(child, signal.SIGSTOP)
        conversion = pool.submit(converter.convert, UNSUPPORTED["HEIC"]())
        time.sleep(1.5)
        os.kill(child, signal.SIGCONT)
        assert isinstance(conversion.result(30), Converted)


@pytest.mark.parametrize("kernel", [True, False])
def test_the_process_has_no_network(kernel: bool) -> None:
    child = REPO / "serving" / "photos" / "converter_process.py"
    # _socket without its audit event is what the code of a decoder could do.
    code = f"""
import ctypes, errno, runpy, socket
module = runpy.run_path({str(child)!r})
if not {kernel}:
    module["_SOCKET_CALLS"].clear()
module["_forbid_network"]()
if {kernel}:
    libc = ctypes.CDLL(None, use_errno=True)
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
        assert libc.socket(family, socket.SOCK_STREAM, 0) == -1 and ctypes.get_errno() == errno.EPERM
    assert libc.syscall(425, 1, None) == -1 and ctypes.get_errno() == errno.EPERM
try:
    socket.socket()
except PermissionError as error:
    print(error.errno == errno.EPERM)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\n", done.stderr


def test_a_running_process_is_confined_by_the_kernel() -> None:
    before = children()
    with Converter() as converter:
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)
        [child] = children() - before
        status = Path(f"/proc/{child}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status


def test_a_process_killed_during_a_conversion_rejects_only_its_photo() -> None:
    before = children()
    with Converter() as converter, ThreadPoolExecutor(1) as pool:
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)
        [child] = children() - before
        conversion = pool.submit(converter.convert, encode(scene(8000, 6000), "JPEG2000"))
        deadline = time.monotonic() + 30
        while peak_memory(child) < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        detail = rejection_detail(conversion.result(30), Status.CORRUPT, permanent=False)
        assert detail == "JPEG 2000; its converter process ended with exit code -9"
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)


def test_a_process_killed_while_idle_is_replaced() -> None:
    before = children()
    with Converter() as converter:
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)
        [child] = children() - before
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert isinstance(converter.convert(UNSUPPORTED["TIFF"]()), Converted)


def test_a_damaged_photo_is_rejected_with_the_message_of_the_decoder(converter: Converter) -> None:
    content = UNSUPPORTED["TIFF"]()
    for damaged in (content[:100], b"II*\0", UNSUPPORTED["HEIC"]()[:600], ftyp_box(b"avif") + bytes(200)):
        detail = rejection_detail(converter.convert(damaged), Status.CORRUPT, permanent=True)
        assert "cannot be decoded" in detail
        assert "0x" not in detail


@pytest.mark.parametrize(("missing", "name"), [("PIL", "TIFF"), ("PIL", "HEIC"), ("pi_heif", "HEIC")])
def test_without_the_extra_the_rejection_says_how_to_install_it(
    missing: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # makes its import fail
    with Converter() as converter:
        detail = rejection_detail(
            converter.convert(UNSUPPORTED_BYTES[name]), Status.UNSUPPORTED_FORMAT, permanent=False
        )
    assert detail == f"{name}; install hubhead[formats] to convert it"


def test_without_pi_heif_the_other_formats_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with Converter() as converter:
        assert isinstance(converter.convert(UNSUPPORTED_BYTES["TIFF"]), Converted)


def test_a_pillow_that_cannot_be_imported_is_distinguished_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('of another machine')")
    with Converter() as converter:
        monkeypatch.setattr(converter, "_packages", {"PIL": str(tmp_path)}, raising=False)
        detail = rejection_detail(
            converter.convert(UNSUPPORTED_BYTES["TIFF"]), Status.UNSUPPORTED_FORMAT, permanent=False
        )
    assert detail == "TIFF; the installed Pillow cannot be imported"


UNSUPPORTED_BYTES = {name: UNSUPPORTED[name]() for name in ("TIFF", "HEIC")}

SIGNATURES = [
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"BM",
    bmp(b"", 3, 3, 8),
    ftyp_box(b"heic", b"mif1"),
    ftyp_box(b"avif", b"mif1"),
    b"\0\0\0\x0cjP  \r\n\x87\n",
    webp_canvas(30, 30),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
def test_arbitrary_bytes_after_a_signature_never_raise(signature: bytes, rest: bytes) -> None:
    result = SHARED.convert(signature + rest)
    assert result is None or isinstance(result, Converted | PhotoRejection)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_truncated_and_modified_photos_never_raise(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(VALID_PHOTOS)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    result = SHARED.convert(bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert result is None or isinstance(result, Converted | PhotoRejection)


SHARED = Converter(ConversionLimits(processes=1, seconds=10))
VALID_PHOTOS = [make() for make in (*UNSUPPORTED.values(), *UNSUPPORTED_BMPS.values())]


# --- Child processes ------------------------------------------------------------------------------------


def test_threads_share_at_most_the_configured_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    contents = [encode(scene(50 + number, 40), "TIFF") for number in range(40)]
    with Converter(ConversionLimits(processes=2)) as converter, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(converter.convert, contents))
    assert [result.width for result in results if isinstance(result, Converted)] == list(range(50, 90))
    assert 1 <= len(started) <= 2
    assert all(process.returncode is not None for process in started)


def test_close_and_garbage_collection_end_the_processes() -> None:
    before = children()
    with Converter() as converter:
        converter.convert(UNSUPPORTED_BYTES["TIFF"])
        assert len(children() - before) == 1
    assert children() == before
    unclosed = Converter()
    unclosed.convert(UNSUPPORTED_BYTES["TIFF"])
    del unclosed
    gc.collect()
    assert children() == before


def test_close_during_a_conversion_ends_its_process_after_the_photo() -> None:
    before = children()
    converter = Converter()
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(converter.convert(encode(scene(2000, 1500), "JPEG2000")))
    )
    thread.start()
    deadline = time.monotonic() + 30
    while children() == before and time.monotonic() < deadline:
        time.sleep(0.005)
    converter.close()
    thread.join(60)
    assert isinstance(results[0], Converted)
    assert children() == before


def test_a_process_ends_with_its_parent_and_inherits_no_files_or_environment(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from serving.photos.converter import Converter, Converted
opened = open({str(tmp_path / "opened")!r}, "w")
os.set_inheritable(opened.fileno(), True)
converter = Converter()
assert isinstance(converter.convert(Path(sys.argv[1]).read_bytes()), Converted)
[child] = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
links = [os.readlink(f"/proc/{{child}}/fd/{{number}}") for number in os.listdir(f"/proc/{{child}}/fd")]
assert not any("opened" in link for link in links), links
assert b"SECRET" not in Path(f"/proc/{{child}}/environ").read_bytes()
assert not {{"PIL", "pi_heif", "numpy", "grpc", "tensorflow"}} & sys.modules.keys()
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    (tmp_path / "a.tiff").write_bytes(UNSUPPORTED_BYTES["TIFF"])
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
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(process: Path) -> bool:
    """Return whether a process runs; an ended one can stay a zombie until its new parent waits for it."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_process_imports_no_large_packages() -> None:
    child = REPO / "serving" / "photos" / "converter_process.py"
    packages = Path(Image.__file__).parents[1]
    code = (
        f"import runpy, sys; sys.path.append({str(packages)!r}); module = runpy.run_path({str(child)!r});"
        "assert module['_load_pillow'](); from PIL import Image; print(*sys.modules); print(*Image.OPEN)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    modules, readers = (line.split() for line in done.stdout.splitlines())
    assert {name.partition(".")[0] for name in modules}.isdisjoint({"numpy", "grpc", "serving", "site"})
    assert {"TIFF", "HEIF", "AVIF", "WEBP", "JPEG2000", "BMP"} <= set(readers)
    assert "EPS" not in readers
