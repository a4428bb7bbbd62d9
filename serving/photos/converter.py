"""Photos that the graph does not decode, made into PNGs that it does. No TensorFlow, no Pillow here.

    with Converter() as converter:
        result = converter.convert(content)  # Converted, PhotoRejection, or None: the graph decodes it

Decoders of rare formats are where hostile files do harm. So they run in processes of their own
(serving/photos/converter_process.py), each with a cap on its memory and a time limit for every photo. Such a
process is told nothing but the photo: it inherits neither the environment nor open files, and
what it sees of installed packages is the directories of Pillow and pi-heif. It starts with the
first photo that needs it, stays for the next, and ends with its parent, however that ends.

Where a change here or there alters pixels, raise `VERSION` in trainer/preprocessing: stored embeddings
know the photo by its original bytes.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from serving import process
from serving.contract import PhotoRejection, Status

EXTRA = "hubhead[formats]"

_CHILD = Path(__file__).with_name("converter_process.py")
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""What the child needs of the environment where Python itself needs it."""

_HEAD_BYTES = 256
_HEAD = struct.Struct(">8sQQ")
_LENGTH = struct.Struct(">Q")
_ANSWER = struct.Struct(">cQQ")
_NO_PILLOW = 69
"""What the child ends with where Pillow does not load; the same number stands there."""

_DECODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_READERS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"RIFF", "WEBP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
"""What `reduced` makes smaller of that which the graph decodes."""

_SIGNATURES = (
    (b"II*\0", "TIFF", "TIFF"),
    (b"MM\0*", "TIFF", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", "JPEG2000"),
    (b"8BPS", "Photoshop", ""),
    (b"\0\0\0\x0cJXL ", "JPEG XL", ""),
    (b"\xff\x0a", "JPEG XL", ""),
)
"""How a file begins, the format's name, and the name of Pillow's reader; "" where there is none."""

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}
_ANY_CODEC = {b"mif1", b"msf1"}
"""Brands that say HEIF and leave the codec open; the compatible brands tell it (ISO/IEC 23008-12)."""


@dataclass(frozen=True)
class Limits:
    """What converting one photo may cost.

    Attributes:
        max_pixels: a photo with more, by its header, is refused before it is decoded.
        max_bytes: a longer file is refused.
        memory_bytes: address space of a child, on Linux; 50 million pixels take up to 1.2 GiB.
        seconds: from handing a photo to a child until its PNG is there.
        processes: children at a time; None: one a core.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 64 << 20
    memory_bytes: int = 1536 << 20
    seconds: float = 30.0
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A photo as the graph can decode it.

    Attributes:
        content: RGB, upright, on white, the first frame. By `convert` a PNG, reduced by a whole number
            where both sides stay at least 1024 pixels; by `reduced` a JPEG.
        height, width: pixels of the upright original.
    """

    content: bytes
    height: int
    width: int


def detect_unsupported_format(content: bytes) -> str | None:
    """The name of the format where it is one that the graph answers `unsupported_format`; else None.

    A few bytes of the header decide, the same ones as in trainer/preprocessing.
    """
    found = _identify(content)
    return found and found[0]


def _identify(content: bytes) -> tuple[str, str] | None:
    """(the format's name, Pillow's reader or "") of a photo that the graph does not decode."""
    head = content[:_HEAD_BYTES].ljust(40, b"\0")
    if head.startswith(_DECODED):
        return None
    if head.startswith(b"BM"):
        return _bmp(head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ("animated WebP", "WEBP") if head[15:16] == b"X" and head[20] & 2 else None
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    return next(((name, reader) for begin, name, reader in _SIGNATURES if content.startswith(begin)), None)


def _bmp(head: bytes) -> tuple[str, str] | None:
    """The graph decodes 24 and 32 bits, uncompressed, under BITMAPINFOHEADER or a later header."""
    size, bits, compression = (
        int.from_bytes(head[at:end], "little") for at, end in ((14, 18), (28, 30), (30, 34))
    )
    if size < 40:
        return "BMP of OS/2", "BMP"
    if bits <= 8:
        return "BMP with a palette", "BMP"
    if bits in (24, 32) and compression == 0:
        return None
    return f"BMP with {bits} bits a pixel" if compression == 0 else "BMP with bit masks", "BMP"


def _iso_media(head: bytes) -> tuple[str, str]:
    """ISO/IEC 14496-12, 4.3: major brand at 8, compatible brands from 16 to the end of the box."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    compatible = {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major in _AVIF or (major in _ANY_CODEC and compatible & _AVIF):
        return "AVIF", "AVIF"
    if major in _HEIC:
        return "HEIC", "HEIF"
    brand = major.decode("latin-1").strip()
    return f"ISO media {brand if brand.isascii() and brand.isprintable() else major.hex()}", ""


class Converter:
    """Converts photos in child processes; safe to share between threads.

    As many photos are converted at once as threads ask, up to `limits.processes`. The children end
    with `close`, with the converter, or with this process.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._turn = threading.BoundedSemaphore(self.limits.processes or process.cores())
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _end, self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the children; one that is at work ends when its photo is done."""
        with self._lock:
            self._closed = True
            _end(self._idle)

    def convert(self, content: bytes) -> Converted | PhotoRejection | None:
        """The photo as a PNG, or why not; None where the graph decodes it as it is. Never fails."""
        found = _identify(content)
        if found is None:
            return None
        name, reader = found
        if len(content) > self.limits.max_bytes:
            return PhotoRejection(
                Status.TOO_LARGE, f"{len(content)} bytes, more than the {self.limits.max_bytes} allowed"
            )
        if not reader:
            return PhotoRejection(
                Status.UNSUPPORTED_FORMAT, f"{name}, which is not converted", permanent=True
            )
        if "PIL" not in self._packages or (reader == "HEIF" and "pi_heif" not in self._packages):
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, f"{name}; install {EXTRA} to convert it")
        with self._turn:
            return self._ask(name, reader, content)

    def downscale(self, content: bytes, side: int) -> Converted | None:
        """The photo as a JPEG whose shorter side is `side` pixels at most, upright. Never fails.

        None where it cannot be made: the photo is broken or too large, or Pillow is not installed.
        """
        name, reader = _identify(content) or (
            "a photo",
            next((found for begin, found in _READERS if content.startswith(begin)), ""),
        )
        if not reader or len(content) > self.limits.max_bytes or not self.can_downscale:
            return None
        if reader == "HEIF" and "pi_heif" not in self._packages:
            return None
        with self._turn:
            result = self._ask(name, reader, content, side)
        return result if isinstance(result, Converted) else None

    @property
    def can_downscale(self) -> bool:
        """Whether Pillow is installed."""
        return "PIL" in self._packages

    def convert_if_needed(self, content: bytes) -> bytes | PhotoRejection:
        """What to send in a photo's place: its own bytes, its PNG, or nothing and why."""
        result = self.convert(content)
        if result is None:
            return content
        return result.content if isinstance(result, Converted) else result

    @cached_property
    def _packages(self) -> dict[str, str]:
        """Pillow and pi-heif, as far as they are installed: the directory that each is in."""
        found = {}
        for name in ("PIL", "pi_heif"):
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                found[name] = str(Path(spec.submodule_search_locations[0]).parent)
        return found

    def _ask(self, name: str, reader: str, content: bytes, side: int = 0) -> Converted | PhotoRejection:
        try:
            child = self._take()
        except OSError as error:
            return PhotoRejection(
                Status.UNSUPPORTED_FORMAT, f"{name}; no process for it starts: {error.strerror}"
            )
        try:
            answer = child.ask(reader, content, self.limits.seconds, side)
        finally:
            self._give_back(child)
        if answer is not None:
            return self._read(name, answer)
        if child.late:
            return PhotoRejection(
                Status.TOO_LARGE, f"{name} that takes more than {self.limits.seconds:g} s to convert"
            )
        if child.exit_code == _NO_PILLOW:
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, f"{name}; Pillow is installed and does not load")
        return PhotoRejection(
            Status.CORRUPT, f"{name} whose conversion ended with exit code {child.exit_code}"
        )

    def _read(self, name: str, answer: bytes) -> Converted | PhotoRejection:
        kind, height, width = _ANSWER.unpack_from(answer)
        body = answer[_ANSWER.size :]
        limits = self.limits
        match kind:
            case b"P":
                return Converted(body, height, width)
            case b"L":
                return PhotoRejection(
                    Status.TOO_LARGE,
                    f"{name} of {width} x {height} pixels, more than the {limits.max_pixels} allowed",
                    permanent=True,
                )
            case b"M":
                return PhotoRejection(
                    Status.TOO_LARGE,
                    f"{name} that takes more than {limits.memory_bytes >> 20} MiB of memory to convert",
                )
            case b"N":
                return PhotoRejection(
                    Status.UNSUPPORTED_FORMAT, f"{name}, which this Pillow or pi-heif does not decode"
                )
            case _:
                words = body.decode(errors="replace")
                why = f"{name} that cannot be decoded: {words}" if words else f"{name} that cannot be decoded"
                return PhotoRejection(Status.CORRUPT, why, permanent=True)

    def _take(self) -> _Child:
        """An idle child that still lives, or a new one."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.ready:
                    return child
                child.end()
        limits = self.limits
        settings = (limits.max_pixels, limits.memory_bytes, limits.seconds)
        return _Child([*map(str, settings), *dict.fromkeys(self._packages.values())])

    def _give_back(self, child: _Child) -> None:
        """Keep a child for the next photo, unless something went wrong in it."""
        with self._lock:
            if child.ready and not self._closed:
                self._idle.append(child)
                return
        child.end()


class _Child:
    """One process that converts photo after photo.

    Attributes:
        late: it was killed, since a photo took too long.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.late = False
        self._between_photos = True
        # No fork of this process's memory and threads, and no code of ours between fork and exec.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One arena: every other one takes 64 MiB of the address space that is capped.
            env={name: os.environ[name] for name in _INHERITED if name in os.environ}
            | {"MALLOC_ARENA_MAX": "1"},
        )

    @property
    def ready(self) -> bool:
        """Whether it lives and waits for a photo."""
        return self._between_photos and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with; the number of a signal below zero."""
        return self._process.returncode

    def ask(self, reader: str, content: bytes, seconds: float, side: int) -> bytes | None:
        """The answer to one photo; None where the child died of it or took too long."""
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        self._between_photos = False
        timer = threading.Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            asked.write(_HEAD.pack(reader.ljust(8).encode(), side, len(content)))
            asked.write(content)
            asked.flush()
            size = answered.read(_LENGTH.size)
            answer = answered.read(_LENGTH.unpack(size)[0]) if len(size) == _LENGTH.size else b""
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()
            timer.join()
        if self.late or len(size) < _LENGTH.size or len(answer) < _LENGTH.unpack(size)[0]:
            return None
        # After it ran out of memory it ends by itself: there is nothing to keep.
        self._between_photos = not answer.startswith(b"M")
        return answer

    def end(self) -> None:
        """Kill it, which harms nothing: it holds nothing but the photo."""
        self._process.kill() if self._between_photos or self.late else self._reap()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                continue  # the rest of a photo that it never read
        self._process.wait()

    def _stop(self) -> None:
        self.late = True
        self._process.kill()

    def _reap(self) -> None:
        """Let a child that is ending by itself do so, for its exit code; kill it if it does not."""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _end(children: list[_Child]) -> None:
    while children:
        children.pop().end()
