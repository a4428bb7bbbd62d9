"""Process that decodes rare formats. serving/photos/converter.py runs it as a script; it imports no hubhead.

On stdin come photos: the name of Pillow's reader in 8 bytes, a side in 8, a length in 8, that many
bytes. Side 0 asks for a PNG of (nearly) all pixels; another one for a JPEG whose shorter side is no
longer. On stdout go answers, each behind its length: a kind, height, width, and what the kind says.

| kind | what it means | body |
|---|---|---|
| P | converted; height and width of the upright original | a PNG; a JPEG where a side was given |
| L | more pixels than allowed, by the header | |
| M | out of memory; the process ends after it | |
| N | the installed packages have no decoder for it | |
| C | it does not decode | the decoder's words |
"""

from __future__ import annotations

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
    resource = None  # type: ignore[assignment]

NO_PILLOW = 69
MIN_SIDE = 1024
"""Reduced photos keep at least this: four times what common backbones take."""
BYTES_A_PIXEL = 26
"""What converting takes at its peak, in the formats that take most: animated WebP, JPEG 2000."""

QUALITY = 90
"""Of the JPEGs."""

_HEAD = struct.Struct(">8sQQ")
_LENGTH = struct.Struct(">Q")
_ANSWER = struct.Struct(">cQQ")
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Readers that Pillow may be built without."""

_ERRORS = (
    OSError,  # EOFError is none
    EOFError,
    SyntaxError,  # Pillow's word for a broken header
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,
    struct.error,
)
"""What Pillow and its plugins are known to raise on broken files; anything else ends the process."""

_MAX_WORDS = 200


def answer(content: bytes, reader: str, max_pixels: int, side: int = 0) -> bytes:
    """Convert one photo, whatever its bytes are."""
    from PIL import Image, features

    if reader not in Image.OPEN or not features.check(_FEATURES.get(reader, "pil")):
        return _ANSWER.pack(b"N", 0, 0)
    pixels = 0
    try:
        if (
            reader == "WEBP" and content[12:16] == b"VP8X"
        ):  # whose plugin takes memory for the canvas as soon as it is opened
            width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
            pixels = width * height
            if pixels > max_pixels:
                return _ANSWER.pack(b"L", height, width)
        with Image.open(io.BytesIO(content), formats=[reader]) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                return _ANSWER.pack(b"L", image.height, image.width)
            size = image.height, image.width
            if side:  # JPEGs are then decoded at a half, a quarter or an eighth
                image.draft("RGB", _reduced(image.size, side))
            image.load()
            upright = _upright(_rgb(image))
            if side:
                return _as_jpeg(upright, side, size if _orientation(image) < 5 else size[::-1])
            return _as_png(upright)
    except MemoryError:
        return _ANSWER.pack(b"M", 0, 0)
    except _ERRORS as error:
        words = " ".join(str(error).split())
    if any(word in words.lower() for word in ("memory", "alloc")) or _short_of_memory(pixels):
        return _ANSWER.pack(b"M", 0, 0)
    # An address in this process tells nobody anything.
    return _ANSWER.pack(b"C", 0, 0) + ("" if "0x" in words else words[:_MAX_WORDS]).encode()


def _as_png(upright: Images.Image) -> bytes:
    width, height = upright.size
    factor = min(width, height) // MIN_SIDE
    if factor > 1:
        upright = upright.reduce(factor)
    upright.info.clear()  # no profile and no transparency goes into the PNG
    png = io.BytesIO()
    upright.save(png, "PNG", compress_level=1)
    return _ANSWER.pack(b"P", height, width) + png.getbuffer()


def _as_jpeg(upright: Images.Image, side: int, size: tuple[int, int]) -> bytes:
    from PIL import Image

    wanted = _reduced(upright.size, side)
    if wanted != upright.size:
        upright = upright.resize(wanted, Image.Resampling.BICUBIC)  # as the graph does, with antialiasing
    upright.info.clear()
    jpeg = io.BytesIO()
    upright.save(jpeg, "JPEG", quality=QUALITY)
    return _ANSWER.pack(b"P", *size) + jpeg.getbuffer()


def _reduced(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of the same shape, the shorter of them `side` pixels at most."""
    factor = min(1.0, side / min(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _short_of_memory(pixels: int) -> bool:
    """Whether a photo may have failed for want of memory, which some decoders call by another name."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (OSError, AttributeError):  # neither Linux nor limits
        return False
    return most != resource.RLIM_INFINITY and used + pixels * BYTES_A_PIXEL > most


def _rgb(image: Images.Image) -> Images.Image:
    """8 bits a channel, on white where the photo is not opaque."""
    if image.mode.startswith(("I", "F")):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    return image.convert("RGB")


def _grey(image: Images.Image) -> Images.Image:
    """Scaled to 8 bits: 16 bits by their range; 32 bits and floats by the darkest and lightest pixel."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(258, (16,))  # BitsPerSample: 12 come as 16
        low, high = 0.0, float(2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1)
        image = image.convert("I")
    else:
        low, high = image.getextrema()  # type: ignore[assignment] # one band
    scale = 255.0 / (high - low) if high > low else 0.0
    offset = -low * scale + (0.5 if image.mode == "I" else 0.0)  # integers are cut off, not rounded
    grey = image.point(lambda value: value * scale + offset).convert("L")
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero, which Pillow heeds up to 8 bits
        return grey.point([255 - value for value in range(256)])
    return grey


def _on_white(image: Images.Image) -> Images.Image:
    from PIL import Image

    if image.getchannel("A").getextrema() != (255, 255):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Images.Image) -> Images.Image:
    """Turned as Exif says. HEIF's and TIFF's own turns are done by their readers, who then clear the tag."""
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    method = turns.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Images.Image) -> int:
    """1 where Exif is missing or broken: that is no reason to refuse a photo."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except _ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _load_pillow() -> bool:
    """Import the readers, and no others: Pillow would go through all it has, PostScript's among them."""
    try:
        from PIL import (  # noqa: F401
            AvifImagePlugin,
            BmpImagePlugin,
            GifImagePlugin,
            Image,
            Jpeg2KImagePlugin,
            JpegImagePlugin,
            PngImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )
    except ImportError:
        return False
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a child a core
    Image.MAX_IMAGE_PIXELS = None  # the limit is held in `_convert`, with the size for the answer
    try:
        import pi_heif
    except ImportError:
        return True  # the reader is not registered, and the answer says so
    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    return True


def _limit(memory_bytes: int) -> None:
    """Cap the address space; no core dumps and no files."""
    if resource is None:
        return
    for kind, wanted in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, most = resource.getrlimit(kind)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue  # macOS knows the limit and does not set it


def _alarm(seconds: float) -> None:
    """End this process in a while, whatever it does then: the parent that would do so may be gone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(photos: BinaryIO, answers: BinaryIO, max_pixels: int, seconds: float) -> None:
    """Answer photo after photo, until there is none or no memory is left."""
    while len(head := photos.read(_HEAD.size)) == _HEAD.size:
        _alarm(2 * seconds + 1)
        reader, side, length = _HEAD.unpack(head)
        said = answer(photos.read(length), reader.decode().strip(), max_pixels, side)
        answers.write(_LENGTH.pack(len(said)))
        answers.write(said)
        answers.flush()
        _alarm(0)
        if said.startswith(b"M"):
            return


def main(arguments: list[str]) -> int:
    """Arguments: pixels, bytes of memory, seconds a photo, directories of packages."""
    max_pixels, memory_bytes, seconds, *directories = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    sys.path.extend(directories)
    if not _load_pillow():
        return NO_PILLOW
    _limit(int(memory_bytes))
    serve(sys.stdin.buffer, answers, int(max_pixels), float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
