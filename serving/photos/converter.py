"""Conversion of photos that the graph cannot decode to PNG. Imports neither TensorFlow nor Pillow.

    with Converter() as converter:
        result = converter.convert(content)  # Converted, PhotoRejection, or None: the graph decodes it

Decoders of rare formats are a common target of malicious files. They run in separate processes
(serving/photos/converter_process.py), with a limit on memory and on the processor time for each photo. Such
a process gets nothing but the photo: it inherits neither the environment nor open files, has no network, and
of the installed packages it sees only the directories of Pillow and pi-heif. It is started for the first
photo that needs it, is reused for the next, and ends with its parent, however that ends.

If a change here or there alters pixels, increase `VERSION` in trainer/preprocessing: stored embeddings are
keyed by the original bytes of the photo.
"""

from __future__ import annotations

import importlib.util
import signal
import struct
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from serving import process
from serving.child_process import ChildProcess
from serving.contract import PhotoRejection, Status
from serving.photos.formats import find_decoded_reader, identify_unsupported

EXTRA = "hubhead[formats]"

_CHILD = Path(__file__).with_name("converter_process.py")

# The protocol of converter_process.py, which must have the same formats.
_REQUEST = struct.Struct(">8sQQ")
_RESPONSE = struct.Struct(">cQQQ")
_NO_PILLOW = 69
"""Exit code of a child that cannot import Pillow; converter_process.py has the same number."""

_END_OF_IMAGE = b"\xff\xd9"
"""Last marker of a JPEG."""

_OUT_OF_TIME = -getattr(signal, "SIGPROF", 0) or None
"""Exit code of a child whose timer of processor time ended it."""


@dataclass(frozen=True)
class ConversionLimits:
    """Limits on the resources for converting one photo.

    Attributes:
        max_pixels: a photo whose header states more pixels is rejected before it is decoded.
        max_bytes: a longer file is rejected.
        memory_bytes: limit on the address space of a child, on Linux; 50 million pixels take up to
            1.2 GiB.
        seconds: limit on the processor time of a child for the photo, so that other work on the machine
            does not count.
        wall_seconds: limit on the time from sending the photo until its PNG has arrived.
        processes: number of children at a time; None for one per core.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 64 << 20
    memory_bytes: int = 1536 << 20
    seconds: float = 30.0
    wall_seconds: float = 600.0
    processes: int | None = None

    @classmethod
    def from_preprocessing(cls, settings: Mapping[str, Any]) -> ConversionLimits:
        """Return the limits with which a bundle's graph decodes photos.

        Args:
            settings: preprocessing settings of the bundle metadata; limits that it does not have are those
                of this class.
        """
        return cls(
            max_bytes=int(settings.get("max_bytes", cls.max_bytes)),
            max_pixels=int(settings.get("max_whole_pixels", cls.max_pixels)),
        )


@dataclass(frozen=True, slots=True)
class Converted:
    """A photo in a format that the graph decodes.

    Attributes:
        content: first frame in RGB, upright (EXIF orientation applied), transparency on white. From
            `convert` it is a PNG, downscaled by an integer factor as long as both sides keep at least
            1024 pixels; from `downscale` it is a JPEG.
        height: height of the upright original, in pixels.
        width: width of the upright original, in pixels.
    """

    content: bytes
    height: int
    width: int


class Converter:
    """Converter of photos in child processes; can be shared between threads.

    Each calling thread uses one child, up to `limits.processes` at a time. The children end with
    `close`, with the converter, or with this process.
    """

    def __init__(self, limits: ConversionLimits | None = None) -> None:
        self.limits = limits or ConversionLimits()
        self._slots = threading.BoundedSemaphore(self.limits.processes or process.cores())
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_children, self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children; one that is converting a photo ends after it."""
        with self._lock:
            self._closed = True
            _end_children(self._idle)

    def convert(self, content: bytes) -> Converted | PhotoRejection | None:
        """Convert a photo to PNG.

        Returns:
            The converted photo, or why it was rejected; None if the graph decodes it as it is. Errors in
            the photo or the child are returned as rejections, never raised.
        """
        found = identify_unsupported(content)
        if found is None:
            return None
        name, reader = found
        if len(content) > self.limits.max_bytes:
            detail = f"{len(content)} bytes, more than the {self.limits.max_bytes} allowed"
            return PhotoRejection(Status.TOO_LARGE, detail)
        if not reader:
            detail = f"{name}, which is not converted"
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, detail, permanent=True)
        if not self._can_read(reader):
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, f"{name}; install {EXTRA} to convert it")
        with self._slots:
            return self._run_child(name, reader, content)

    def downscale(self, content: bytes, side: int) -> Converted | None:
        """Return the photo as `make_jpeg` does; None where it is rejected or truncated."""
        result = self._convert_to_jpeg(content, side)
        return result if isinstance(result, Converted) else None

    def make_jpeg(self, content: bytes, side: int) -> Converted | PhotoRejection:
        """Return the photo as an upright JPEG whose shorter side has at most `side` pixels, or a rejection.

        Photos that the graph decodes are converted too. A truncated JPEG is shown as the graph sees it, with
        the missing part in grey. Does not raise.
        """
        if find_decoded_reader(content) == "JPEG":
            content += _END_OF_IMAGE  # which decoders ignore behind the end of a complete one
        return self._convert_to_jpeg(content, side)

    def _convert_to_jpeg(self, content: bytes, side: int) -> Converted | PhotoRejection:
        name, reader = identify_unsupported(content) or ("a photo", find_decoded_reader(content))
        if len(content) > self.limits.max_bytes:
            detail = f"{len(content)} bytes, more than the {self.limits.max_bytes} allowed"
            return PhotoRejection(Status.TOO_LARGE, detail)
        if not reader and identify_unsupported(content) is None:
            status = Status.NOT_AN_IMAGE if content else Status.EMPTY
            return PhotoRejection(status, status.meaning)
        if not reader:
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, f"{name}, which is not converted")
        if not self._can_read(reader):
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, f"{name}; install {EXTRA} to convert it")
        with self._slots:
            return self._run_child(name, reader, content, side)

    @property
    def can_downscale(self) -> bool:
        """True if Pillow is installed, which `downscale` needs."""
        return "PIL" in self._packages

    def _can_read(self, reader: str) -> bool:
        return self.can_downscale and (reader != "HEIF" or "pi_heif" in self._packages)

    def convert_if_needed(self, content: bytes) -> bytes | PhotoRejection:
        """Return bytes that the graph decodes, converted if necessary, or why the photo was rejected."""
        result = self.convert(content)
        if result is None:
            return content
        return result.content if isinstance(result, Converted) else result

    @cached_property
    def _packages(self) -> dict[str, str]:
        """Directories that contain Pillow and pi-heif, as far as they are installed."""
        found = {}
        for name in ("PIL", "pi_heif"):
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                found[name] = str(Path(spec.submodule_search_locations[0]).parent)
        return found

    def _run_child(self, name: str, reader: str, content: bytes, side: int = 0) -> Converted | PhotoRejection:
        try:
            child = self._acquire_child()
        except OSError as error:
            detail = f"{name}; its converter process does not start: {error.strerror}"
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, detail)
        try:
            head = _REQUEST.pack(reader.ljust(8).encode(), side, len(content))
            response = child.ask((head, content), _RESPONSE, self.limits.wall_seconds)
            if response and response[0][0] == b"M":  # it ran out of memory, and ends by itself
                child.retire()
        finally:
            self._release_child(child)
        if response is not None:
            (kind, height, width, _), body = response
            return self._parse_response(name, kind, height, width, body)
        if child.timed_out or child.exit_code == _OUT_OF_TIME:
            limit = f"{self.limits.seconds:g} s of processor time"
            if child.timed_out:
                limit = f"{self.limits.wall_seconds:g} s"
            return PhotoRejection(Status.TOO_LARGE, f"{name}; converting it takes more than {limit}")
        if child.exit_code == _NO_PILLOW:
            detail = f"{name}; the installed Pillow cannot be imported"
            return PhotoRejection(Status.UNSUPPORTED_FORMAT, detail)
        detail = f"{name}; its converter process ended with exit code {child.exit_code}"
        return PhotoRejection(Status.CORRUPT, detail)

    def _parse_response(
        self, name: str, kind: bytes, height: int, width: int, body: bytes
    ) -> Converted | PhotoRejection:
        limits = self.limits
        match kind:
            case b"P":
                return Converted(body, height, width)
            case b"L":
                detail = f"{name} of {width} x {height} pixels, more than the {limits.max_pixels} allowed"
                return PhotoRejection(Status.TOO_LARGE, detail, permanent=True)
            case b"M":
                detail = f"{name}; converting it takes more than {limits.memory_bytes >> 20} MiB of memory"
                return PhotoRejection(Status.TOO_LARGE, detail)
            case b"N":
                detail = f"{name}, which the installed Pillow or pi-heif cannot decode"
                return PhotoRejection(Status.UNSUPPORTED_FORMAT, detail)
            case _:
                message = body.decode(errors="replace")
                detail = f"{name} that cannot be decoded" + (f": {message}" if message else "")
                status = Status.UNSUPPORTED_FORMAT if kind == b"U" else Status.CORRUPT
                return PhotoRejection(status, detail, permanent=True)

    def _acquire_child(self) -> ChildProcess:
        """Return an idle child that is still alive, or a new one."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.ready:
                    return child
                child.end()
        limits = self.limits
        settings = (limits.max_pixels, limits.memory_bytes, limits.seconds, limits.wall_seconds)
        return ChildProcess(_CHILD, [*map(str, settings), *dict.fromkeys(self._packages.values())])

    def _release_child(self, child: ChildProcess) -> None:
        """Keep a child for the next photo, or end it if it failed."""
        with self._lock:
            if child.ready and not self._closed:
                self._idle.append(child)
                return
        child.end()


def _end_children(children: list[ChildProcess]) -> None:
    while children:
        children.pop().end()
