"""Which version of a model serves: the newest one below its base path that loads.

A new version is loaded and warmed before the old one is let go, requests in flight finish on
the version they started with, and a version that fails to load changes nothing for callers.
Removing the newest directory is a rollback. A base path that is emptied keeps the last version
serving (TensorFlow Serving would unload it).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving import bundle, protos
from serving.errors import BundleError
from serving.server import servable as servables
from serving.server.refusal import Refusal, invalid
from serving.server.servable import Loader, Servable
from serving.server.warmup import warm_up

_MAX_VERSION = 2**63 - 1
"""A version travels as int64."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionState:
    """A row of GetModelStatus: a name of ModelVersionStatus.State, and why loading failed, or ""."""

    state: str
    error: str = ""


Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and modification time (ns) of every file in a directory."""


class Versions:
    """The versions of one model.

    `poll` is for one thread; the other methods are for any.
    """

    def __init__(self, name: str, base: Path, loader: Loader) -> None:
        self.name = name
        self.base = base
        self._loader = loader
        self._lock = threading.Lock()
        self._current: Servable | None = None
        self._retiring: list[Servable] = []
        self._states: dict[int, VersionState] = {}
        self._failed: dict[int, Stamp] = {}

    @property
    def current(self) -> int | None:
        """The version that serves."""
        servable = self._current
        return servable.version if servable else None

    def states(self) -> dict[int, VersionState]:
        """All versions that this process ever saw, newest first."""
        with self._lock:
            return dict(sorted(self._states.items(), reverse=True))

    @contextmanager
    def use(self, spec: protos.Message) -> Iterator[Servable]:
        """The version that a ModelSpec asks for; it stays loaded inside the block.

        Raises:
            Refusal: no name, another model, another version, or a label (there are none here).
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = spec.version.value if spec.HasField("version") else None
        with ExitStack() as stack:
            with self._lock:
                servable = self._current
                if servable is None or spec.name != self.name or version not in (None, servable.version):
                    asked = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
                    raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
                stack.enter_context(servable.in_use())
            yield servable

    def poll(self) -> None:
        """Look at the base path once; load what is new there, and finish off what is no longer used."""
        self._retire()
        try:
            found = bundle.versions(self.base)
        except OSError as error:  # removed while it was read, or a storage that is away: look again later
            _log.warning("%s cannot be read: %s", self.base, error)
            return
        for version in reversed(found):
            if version == self.current or (version <= _MAX_VERSION and self._load(version)):
                return

    def _load(self, version: int) -> bool:
        """Whether the version serves now."""
        try:
            directory = bundle.version_directory(self.base, version)
            stamp = _stamp(directory)
        except (BundleError, OSError):
            return False  # it went away since it was listed
        if self._failed.get(version) == stamp:
            return False
        self._note(version, VersionState("LOADING"))
        try:
            servable = servables.load(self.name, version, directory, self._loader)
            warm_up(servable, directory)
        # Whatever a model makes TensorFlow raise, the version that serves has to go on.
        except Exception as error:
            self._failed[version] = stamp
            reason = str(error) or type(error).__name__
            self._note(version, VersionState("END", reason))
            _log.warning("version %d of model %s does not load: %s", version, self.name, reason)
            return False
        self._failed.pop(version, None)
        with self._lock:
            if self._current is not None:
                self._retiring.append(self._current)
                self._states[self._current.version] = VersionState("UNLOADING")
            self._current = servable
            self._states[version] = VersionState("AVAILABLE")
        _log.info("version %d of model %s serves", version, self.name)
        self._retire()
        return True

    def _retire(self) -> None:
        """Let go of replaced versions that no request uses any more."""
        for servable in [old for old in self._retiring if old.idle]:
            self._retiring.remove(servable)
            if self.current != servable.version:  # it may be back already, loaded anew
                self._note(servable.version, VersionState("END"))

    def _note(self, version: int, state: VersionState) -> None:
        with self._lock:
            self._states[version] = state


def _stamp(directory: Path) -> Stamp:
    files = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)
