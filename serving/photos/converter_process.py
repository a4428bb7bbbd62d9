"""Child process that decodes rare formats. serving/photos/converter.py runs it as a script.

It imports nothing of hubhead. Requests arrive on stdin: the name of the Pillow reader in 8 bytes, a side
in 8, a length in 8, and a photo of that length. Side 0 requests a PNG with (nearly) all pixels, another
side a JPEG whose shorter side is at most that long. Responses go to stdout: a kind, height, width, the
length of the body, and the body.

| kind | meaning | body |
|---|---|---|
| P | converted; height and width of the upright original | a PNG, or a JPEG if a side was given |
| L | more pixels than allowed, according to the header | |
| M | out of memory; the process ends after this response | |
| N | the installed packages have no decoder for the format | |
| U | the decoder does not know this variant of the format | message of the decoder |
| C | the photo cannot be decoded | message of the decoder |
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image as Images

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # its uses expect that

NO_PILLOW = 69
"""Exit code if Pillow cannot be imported."""

MIN_SIDE = 1024
"""Pixels that both sides keep when a PNG is downscaled: four times the input of common backbones."""

BYTES_PER_PIXEL = 26
"""Peak memory of the formats that need most of it: animated WebP and JPEG 2000."""

QUALITY = 90
"""Quality of the JPEGs."""

# The protocol of converter.py, which must have the same formats.
_REQUEST = struct.Struct(">8sQQ")
_RESPONSE = struct.Struct(">cQQQ")

_SOCKET_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 425)),
    "aarch64": (0xC00000B7, (198, 199, 425)),
}
"""Number of an architecture, and of its calls socket, socketpair and io_uring_setup (linux/audit.h)."""

_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Readers that a build of Pillow can lack, and the feature names that tell."""

_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,  # raised by Pillow for a damaged header
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,
    struct.error,
)
"""Errors that Pillow and its plugins are known to raise on damaged files; any other ends the process."""

_MAX_MESSAGE = 200
"""Characters of a decoder's message that are passed on."""


def convert(content: bytes, reader: str, max_pixels: int, side: int = 0) -> bytes:
    """Convert one photo, and return the response."""
    from PIL import Image, features

    if reader not in Image.OPEN or not features.check(_FEATURES.get(reader, "pil")):
        return _respond(b"N")
    pixels = 0
    try:
        # The plugin for WebP allocates the canvas as soon as a photo is opened, so check its size first.
        if reader == "WEBP" and content[12:16] == b"VP8X":
            width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
            pixels = width * height
            if pixels > max_pixels:
                return _respond(b"L", height, width)
        with Image.open(io.BytesIO(content), formats=[reader]) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                return _respond(b"L", image.height, image.width)
            size = image.height, image.width
            if side:  # JPEGs are then decoded at a half, a quarter or an eighth of their size
                image.draft("RGB", _downscaled_size(image.size, side))
            image.load()
            upright = _apply_orientation(_to_rgb(image))
            if side:
                # Orientations 5 to 8 exchange height and width.
                return _encode_jpeg(upright, side, size if _orientation(image) < 5 else size[::-1])
            return _encode_png(upright)
    except MemoryError:
        return _respond(b"M")
    except _ERRORS as error:
        message = " ".join(str(error).split())
    if any(word in message.lower() for word in ("memory", "alloc")) or _may_lack_memory(pixels):
        return _respond(b"M")
    kind = b"U" if "unsupported" in message.lower() else b"C"
    # Omit messages with an address in this process: they are of no use to a reader.
    return _respond(kind, body=("" if "0x" in message else message[:_MAX_MESSAGE]).encode())


def _encode_png(upright: Images.Image) -> bytes:
    """Return the response with the photo as a PNG, downscaled by an integer factor if it is large."""
    width, height = upright.size
    factor = min(width, height) // MIN_SIDE
    if factor > 1:
        upright = upright.reduce(factor)
    return _encode(upright, height, width, "PNG", compress_level=1)


def _encode_jpeg(upright: Images.Image, side: int, size: tuple[int, int]) -> bytes:
    """Return the response with the photo as a JPEG; `size` is (height, width) of the original."""
    from PIL import Image

    wanted = _downscaled_size(upright.size, side)
    if wanted != upright.size:
        upright = upright.resize(wanted, Image.Resampling.BICUBIC)  # like the graph, with antialiasing
    return _encode(upright, *size, "JPEG", quality=QUALITY)


def _encode(image: Images.Image, height: int, width: int, name: str, **options: int) -> bytes:
    image.info.clear()  # no colour profile and no transparency
    encoded = io.BytesIO()
    image.save(encoded, name, **options)
    return _respond(b"P", height, width, encoded.getvalue())


def _respond(kind: bytes, height: int = 0, width: int = 0, body: bytes = b"") -> bytes:
    return _RESPONSE.pack(kind, height, width, len(body)) + body


def _downscaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (width, height) with the same aspect ratio, the shorter of them at most `side`."""
    factor = min(1.0, side / min(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _may_lack_memory(pixels: int) -> bool:
    """Return whether a photo may have failed for lack of memory, which some decoders report differently."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (OSError, AttributeError):  # not on Linux, or no resource limits
        return False
    return most != resource.RLIM_INFINITY and used + pixels * BYTES_PER_PIXEL > most


def _to_rgb(image: Images.Image) -> Images.Image:
    """Convert to 8 bits per channel, with transparency on white."""
    if image.mode.startswith(("I", "F")):
        return _to_grey(image).convert("RGB")
    if image.has_transparency_data:
        return _blend_on_white(image.convert("RGBA"))
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    return image.convert("RGB")


def _to_grey(image: Images.Image) -> Images.Image:
    """Scale to 8 bits: 16 bits by their range, 32 bits and floats by the darkest and the lightest pixel."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(258, (16,))  # BitsPerSample: Pillow delivers 12 bits as 16
        low, high = 0.0, float(2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1)
        image = image.convert("I")
    else:
        low, high = image.getextrema()  # type: ignore[assignment]  # a pair, as the image has one band
    scale = 255.0 / (high - low) if high > low else 0.0
    offset = -low * scale + (0.5 if image.mode == "I" else 0.0)  # integers are truncated, not rounded
    grey = image.point(lambda value: value * scale + offset).convert("L")
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero, which Pillow handles up to 8 bits
        return grey.point([255 - value for value in range(256)])
    return grey


def _blend_on_white(image: Images.Image) -> Images.Image:
    from PIL import Image

    if image.getchannel("A").getextrema() != (255, 255):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _apply_orientation(image: Images.Image) -> Images.Image:
    """Apply the EXIF orientation.

    The readers of HEIF and TIFF apply the orientation of these formats themselves and then clear the tag.
    """
    from PIL import Image

    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    method = methods.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Images.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if EXIF is missing or damaged, so that it rejects no photo."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except _ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _load_pillow() -> bool:
    """Import the readers; return whether Pillow can be imported.

    Pillow would otherwise import all its readers, including the one for PostScript.
    """
    try:
        from PIL import AvifImagePlugin, Image

        for name in ("Bmp", "Gif", "Jpeg2K", "Jpeg", "Png", "Tiff", "WebP"):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    except ImportError:
        return False
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is one child per core
    Image.MAX_IMAGE_PIXELS = None  # `convert` checks the limit, so that it can report the size
    try:
        import pi_heif
    except ImportError:
        return True  # the reader is not registered, and `convert` responds with N
    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    return True


def set_limits(memory_bytes: int) -> None:
    """Limit the address space, and forbid core dumps and writing files."""
    if resource is None:
        return
    for kind, wanted in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, most = resource.getrlimit(kind)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(ValueError, OSError):  # macOS has the limit but does not allow setting it
            resource.setrlimit(kind, (limit, limit))


def _forbid_network() -> None:
    """Forbid this process to open sockets: a decoder that a photo has taken over can reach no one.

    The kernel refuses it (seccomp, which needs no privilege) on the machines that hubhead is built for;
    elsewhere Python does, which the code of a decoder could evade.
    """
    sys.addaudithook(_refuse_sockets)
    machine = os.uname().machine if sys.platform == "linux" else ""
    if machine not in _SOCKET_CALLS:
        return
    try:
        import ctypes
    except ImportError:
        return
    architecture, calls = _SOCKET_CALLS[machine]
    # Classic BPF: (code, jump if true, jump if false, operand); the last line refuses, the one before allows.
    checks = [(0x15, len(calls) - at, 0, call) for at, call in enumerate(calls)]
    program = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, len(calls) + 3, architecture),  # another one has other numbers: refuse
        (0x20, 0, 0, 0),  # load the number of the call
        (0x35, len(calls) + 1, 0, 0x40000000),  # x32 has other numbers too
        *checks,
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        (0x06, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
    ]
    content = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(content)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if prctl(38, 1, None, 0, 0) == 0:  # PR_SET_NO_NEW_PRIVS
        prctl(22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _refuse_sockets(event: str, _arguments: object) -> None:
    if event.startswith("socket."):
        raise PermissionError(errno.EPERM, "no network")


def _set_alarm(seconds: float, wall_seconds: float) -> None:
    """End this process after some seconds of processor time, by SIGPROF, or of any time; 0 cancels that.

    Normally the parent kills a process that takes too long, but the parent may be gone.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def serve(
    requests: BinaryIO, responses: BinaryIO, max_pixels: int, seconds: float, wall_seconds: float
) -> None:
    """Convert one photo after another, until there are no more or memory has run out."""
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        _set_alarm(seconds, wall_seconds + 1)
        reader, side, length = _REQUEST.unpack(head)
        response = convert(requests.read(length), reader.decode().strip(), max_pixels, side)
        responses.write(response)
        responses.flush()
        _set_alarm(0, 0)
        if response.startswith(b"M"):
            return


def main(arguments: list[str]) -> int:
    """Serve stdin and stdout.

    Args:
        arguments: maximum pixels, bytes of memory, seconds of processor time and of any time per photo,
            directories of packages.
    """
    max_pixels, memory_bytes, seconds, wall_seconds, *directories = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output that a library prints out of the responses
    sys.path.extend(directories)
    if not _load_pillow():
        return NO_PILLOW
    _forbid_network()
    set_limits(int(memory_bytes))
    serve(sys.stdin.buffer, responses, int(max_pixels), float(seconds), float(wall_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
