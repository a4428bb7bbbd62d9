"""Download of modules by their address with tensorflow-hub, and its errors with a remedy.

Modules are cached by tensorflow-hub in $TFHUB_CACHE_DIR if it is set, else below hubhead's cache rather
than in the temporary directory that tensorflow-hub uses by default. $TFHUB_DOWNLOAD_PROGRESS and
$TFHUB_MODEL_LOAD_FORMAT work as documented (tensorflow.org/hub/caching).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import sys
import tarfile
import time
import warnings
import zlib
from collections.abc import Iterator
from http.client import HTTPException, responses
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from serving.errors import FetchError
from serving.runtime.tensorflow_import import import_tensorflow
from serving.text import first_line
from trainer.dataset.download import ProgressLogger

PROGRESS_SECONDS = 3.0
"""Seconds between two lines about a download."""

_PROGRESS_VARIABLE = "TFHUB_DOWNLOAD_PROGRESS"

TIMEOUT = 60.0
"""Socket timeout in seconds; tensorflow-hub itself would wait forever."""

ARCHIVE_ERRORS = (EOFError, tarfile.TarError, zlib.error)

DOWNLOAD_ERRORS = (OSError, ValueError, RuntimeError, HTTPException, *ARCHIVE_ERRORS)
"""Errors that the resolvers of tensorflow-hub raise, beside TensorFlow's: network errors, their own, and
those of a truncated archive."""

MANUAL_DOWNLOAD = "or download it elsewhere and give its directory"


def fetch_module(address: str, cache: Path, *, progress: ProgressLogger) -> str:
    """Download a module, unless it is cached, and return its directory.

    Args:
        address: address that tensorflow_hub.resolve supports: tfhub.dev, Kaggle, any tar archive over
            HTTP, gs://.
        cache: hubhead's cache directory.
        progress: called with one line before the download, every few seconds during it, and after it.

    Raises:
        FetchError: the download failed.
    """
    tf = import_tensorflow()
    tensorflow_hub = import_hub()
    with _default_cache(cache / "tfhub") as directory:
        progress(f"Resolving {address}")
        lock = Path(directory, f"{hashlib.sha1(address.encode()).hexdigest()}.lock")
        if lock.exists():
            progress(f"Waiting for another process that downloads it. If there is none, delete {lock}")
        try:
            with _report_download(progress), _socket_timeout(TIMEOUT):
                return str(tensorflow_hub.resolve(address))
        except (
            OSError,
            ValueError,
            RuntimeError,
            HTTPException,
            *ARCHIVE_ERRORS,
            tf.errors.OpError,
        ) as error:
            reason, remedy = _explain_error(error, address)
            raise FetchError(
                f"The backbone {address} cannot be downloaded: {reason}.", remedy=remedy
            ) from error


@contextlib.contextmanager
def _report_download(progress: ProgressLogger) -> Iterator[None]:
    """Report the downloaded bytes, which tensorflow-hub prints on stdout if a variable is set.

    If the user has set it, everything is printed on stderr, so as not to mix with results.
    """
    if os.environ.get(_PROGRESS_VARIABLE):
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    os.environ[_PROGRESS_VARIABLE] = "1"
    try:
        with contextlib.redirect_stdout(_ProgressLines(progress)):
            yield
    finally:
        del os.environ[_PROGRESS_VARIABLE]


class _ProgressLines(io.StringIO):
    """Stream that reports the last state of a download at intervals."""

    def __init__(self, progress: ProgressLogger) -> None:
        super().__init__()
        self._progress = progress
        self._next = time.monotonic() + PROGRESS_SECONDS

    def write(self, text: str) -> int:
        line, now = text.strip(), time.monotonic()
        if line and (now >= self._next or line.startswith("Downloaded")):
            self._next = now + PROGRESS_SECONDS
            self._progress(line)
        return len(text)


def import_hub() -> Any:
    """Import tensorflow_hub without its deprecation warning about pkg_resources, which users cannot fix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub
    return tensorflow_hub


@contextlib.contextmanager
def _default_cache(default: Path) -> Iterator[str]:
    """Make `default` the cache of tensorflow-hub unless its variable or flag is set; yield the cache."""
    from absl import flags
    from tensorflow_hub.resolver import tfhub_cache_dir

    flag = flags.FLAGS["tfhub_cache_dir"]
    before = flag.value
    flag.value = before or str(default)
    try:
        yield tfhub_cache_dir()  # $TFHUB_CACHE_DIR takes precedence over the flag
    finally:
        flag.value = before


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _explain_error(error: Exception, address: str) -> tuple[str, str]:
    """Return the reason of a failed download and the remedy."""
    import tensorflow as tf

    host = urlsplit(address).netloc.rpartition("@")[2]  # without a password
    if isinstance(error, HTTPError):
        return _explain_status(error.code, host)
    if isinstance(error, (TimeoutError, URLError)) or isinstance(error.__cause__, TimeoutError):
        cause = getattr(error, "reason", None) or first_line(error)
        return f"{host} does not respond ({cause})", f"Check the address and the network, {MANUAL_DOWNLOAD}."
    if isinstance(error, tf.errors.UnimplementedError):
        scheme = address.partition("://")[0]
        return (
            f"TensorFlow does not support {scheme}:// addresses on this machine",
            "Copy the module to a local directory, and give that.",
        )
    if isinstance(error, ARCHIVE_ERRORS) or "does not appear to be a valid module" in str(error):
        return (
            f"the response of {host} is not a tar archive of a module, or is truncated ({first_line(error)})",
            f"Check that the address is that of a module, not of a web page, and retry, {MANUAL_DOWNLOAD}.",
        )
    return first_line(error).rstrip("."), f"Check the address and the network, {MANUAL_DOWNLOAD}."


def _explain_status(code: int, host: str) -> tuple[str, str]:
    """Return the reason and the remedy for an HTTP status."""
    answer = f"{code} {responses.get(code, '')}".strip()
    if code in (404, 410):
        return (
            f"{host} has no module at this address ({answer})",
            "Copy the address with its version from the module's page, or see: hubhead backbone list.",
        )
    if code in (401, 403):
        return (
            f"{host} requires a login or consent for it ({answer})",
            "Download it with a browser, and give its directory.",
        )
    return f"{host} responds with {answer}", f"Retry later, {MANUAL_DOWNLOAD}."
