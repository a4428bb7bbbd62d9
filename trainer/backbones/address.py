"""Modules by their address, fetched and kept by tensorflow-hub, with errors that say what to do.

The cache is tensorflow-hub's own: $TFHUB_CACHE_DIR where it is set, else below hubhead's cache, not
in the temporary directory that tensorflow-hub takes by itself. $TFHUB_DOWNLOAD_PROGRESS and
$TFHUB_MODEL_LOAD_FORMAT hold as documented (tensorflow.org/hub/caching).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from http.client import HTTPException, responses
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from serving.errors import FetchError
from trainer.backbones.interface import first_line
from trainer.dataset.download import ProgressLogger

TIMEOUT = 60.0
"""Seconds without a byte after which a server counts as silent; tensorflow-hub would wait for ever."""

ELSEWHERE = "or download it elsewhere and give its directory"


def fetch(address: str, cache: Path, *, progress: ProgressLogger) -> str:
    """The directory of the module at an address.

    Args:
        address: what tensorflow_hub.resolve takes: tfhub.dev, Kaggle, any tar archive by HTTP, gs://.
        cache: hubhead's cache directory.
        progress: called with one line before it is fetched.

    Raises:
        FetchError: it cannot be had.
    """
    import tensorflow as tf

    tensorflow_hub = import_hub()
    with _cached_below(cache / "tfhub") as directory:
        progress(f"Resolving {address}")
        lock = Path(directory, f"{hashlib.sha1(address.encode()).hexdigest()}.lock")
        if lock.exists():
            progress(f"Another process is fetching it: waiting. If none is, delete {lock}")
        try:
            # The progress that $TFHUB_DOWNLOAD_PROGRESS asks for is no part of a command's result.
            with contextlib.redirect_stdout(sys.stderr), _patience(TIMEOUT):
                return str(tensorflow_hub.resolve(address))
        # What Hub's resolvers let through: the network's errors, its own, and those of a cut-off archive.
        except (
            OSError,
            ValueError,
            RuntimeError,
            EOFError,
            HTTPException,
            tarfile.TarError,
            zlib.error,
            tf.errors.OpError,
        ) as error:
            reason, remedy = _explained(error, address)
            raise FetchError(f"The backbone {address} cannot be fetched: {reason}.", remedy=remedy) from error


def import_hub() -> Any:
    """Import tensorflow_hub, without the warning that it uses pkg_resources, which no user can help."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub
    return tensorflow_hub


@contextlib.contextmanager
def _cached_below(default: Path) -> Iterator[str]:
    """Let tensorflow-hub keep modules in `default` where neither variable nor flag names its cache."""
    from absl import flags
    from tensorflow_hub.resolver import tfhub_cache_dir

    flag = flags.FLAGS["tfhub_cache_dir"]
    before = flag.value
    flag.value = before or str(default)
    try:
        yield tfhub_cache_dir()  # the environment's, before the flag's
    finally:
        flag.value = before


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _explained(error: Exception, address: str) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    import tensorflow as tf

    host = urlsplit(address).netloc
    if isinstance(error, HTTPError):
        return _status(error.code, host)
    if isinstance(error, (TimeoutError, URLError)) or isinstance(error.__cause__, TimeoutError):
        cause = getattr(error, "reason", None) or first_line(error)
        return f"{host} does not answer ({cause})", f"Check the address and the network, {ELSEWHERE}."
    if isinstance(error, tf.errors.UnimplementedError):
        scheme = address.partition("://")[0]
        return (
            f"TensorFlow reads no {scheme}:// addresses on this machine",
            "Copy the module to a directory, and give that.",
        )
    if _is_no_archive(error):
        return (
            f"what {host} sends is no tar archive of a module, or is cut off ({first_line(error)})",
            f"Check that the address is a module's, not a web page's, and try again, {ELSEWHERE}.",
        )
    return first_line(error).rstrip("."), f"Check the address and the network, {ELSEWHERE}."


def _is_no_archive(error: Exception) -> bool:
    return isinstance(error, (tarfile.TarError, EOFError, zlib.error)) or (
        "does not appear to be a valid module" in str(error)
    )


def _status(code: int, host: str) -> tuple[str, str]:
    answer = f"{code} {responses.get(code, '')}".strip()
    if code in (404, 410):
        return (
            f"{host} has no module there ({answer})",
            "Spell it as on the module's page, with its version, or take one of: hubhead backbone list.",
        )
    if code in (401, 403):
        return (
            f"{host} does not give it to everyone ({answer})",
            "Download it with a browser, where you can log in and consent, and give its directory.",
        )
    return f"{host} answers {answer}", f"Try again later, {ELSEWHERE}."
