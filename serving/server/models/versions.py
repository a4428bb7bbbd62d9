"""Which versions of one model serve: those below its base path that its policy wants, and that load.

A new version is loaded and warmed before an old one is let go, requests in flight finish on
the version they started with, and a version that fails to load changes nothing for callers: it is
reported, and tried again when its files change. Removing the newest directory is a rollback. Three
things differ from TensorFlow Serving: a base path that is emptied keeps its last versions (there
the last one is unloaded), a directory that is still being copied is left alone until its files stay
as they are from one look to the next, and one model's missing base path does not hold up another's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving import bundle
from serving.errors import BundleError
from serving.server.config.settings import Policy
from serving.server.models.servable import Servable
from serving.server.status_error import Refusal

_MAX_VERSION = 2**63 - 1
"""A version travels as int64."""

_log = logging.getLogger(__name__)

Load = Callable[[str, int, Path], Servable]
"""Loads and warms the version of a model in a directory."""


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

    Attributes:
        name: the model's.
        base: the directory whose numbered children are the versions.
        policy: which of them are wanted.
        pending: versions that are wanted, and at the last look were still being copied.
    """

    def __init__(self, name: str, base: Path, load: Load, policy: Policy | None = None) -> None:
        self.name = name
        self.base = base
        self.policy = policy or Policy()
        self._load_version = load
        self._lock = threading.Lock()
        self._serving: dict[int, Servable] = {}
        self._retiring: list[Servable] = []
        self._states: dict[int, VersionState] = {}
        self._failed: dict[int, Stamp] = {}
        self._seen: dict[int, Stamp] = {}
        self._closed = False
        self.pending: tuple[int, ...] = ()

    @property
    def current(self) -> int | None:
        """The newest version that serves."""
        with self._lock:
            return max(self._serving, default=None)

    def states(self) -> dict[int, VersionState]:
        """All versions that this process ever saw, newest first."""
        with self._lock:
            return dict(sorted(self._states.items(), reverse=True))

    def available(self, version: int) -> bool:
        """Whether a version serves."""
        return version in self._serving

    @contextmanager
    def use(self, version: int | None) -> Iterator[Servable]:
        """A version, or the newest; it stays loaded inside the block.

        Raises:
            Refusal: it does not serve.
        """
        with ExitStack() as stack:
            with self._lock:
                chosen = max(self._serving, default=None) if version is None else version
                servable = None if chosen is None else self._serving.get(chosen)
                if servable is None:
                    raise not_found(self.name, version)
                stack.enter_context(servable.in_use())
            yield servable

    def poll(self) -> None:
        """Look at the base path once; load what is wanted there, and let go of what is not."""
        self._retire()
        try:
            found = bundle.versions(self.base)
        except OSError as error:  # removed while it was read, or a storage that is away: look again later
            _log.warning("%s cannot be read: %s", self.base, error)
            return
        candidates = [version for version in self._candidates(found) if version <= _MAX_VERSION]
        kept: list[int] = []
        pending: list[int] = []
        for version in candidates:
            if not self.policy.specific and self.policy.latest and len(kept) == self.policy.latest:
                break
            if version in self._serving or self._load(version):
                kept.append(version)
            elif version not in self._failed:
                pending.append(version)
        self.pending = tuple(pending)
        if kept:
            self._let_go(kept)

    def close(self) -> None:
        """Let go of all versions: the model is no longer configured."""
        self._closed = True
        self._let_go([])

    def _candidates(self, found: Sequence[int]) -> list[int]:
        """The versions that the policy may want, newest first."""
        wanted = found
        if self.policy.specific:
            wanted = [version for version in found if version in self.policy.specific]
        return sorted(wanted, reverse=True)

    def _load(self, version: int) -> bool:
        """Whether the version serves now."""
        try:
            directory = bundle.version_directory(self.base, version)
            stamp = _stamp(directory)
        except (BundleError, OSError):
            return False  # it went away since it was listed
        if self._failed.get(version) == stamp or not self._settled(version, stamp):
            return False
        others = [path.name for path in bundle.version_directories(self.base, version) if path != directory]
        if others:
            _log.warning("%s is taken for version %d, and not %s", directory, version, ", ".join(others))
        self._note(version, VersionState("LOADING"))
        try:
            servable = self._load_version(self.name, version, directory)
        # Whatever a model makes TensorFlow raise, the versions that serve have to go on.
        except Exception as error:
            self._failed[version] = stamp
            reason = str(error) or type(error).__name__
            self._note(version, VersionState("END", reason))
            _log.warning("version %d of model %s does not load: %s", version, self.name, reason)
            return False
        self._failed.pop(version, None)
        with self._lock:
            if self._closed:
                return False
            self._serving[version] = servable
            self._states[version] = VersionState("AVAILABLE")
        _log.info("version %d of model %s serves", version, self.name)
        return True

    def _settled(self, version: int, stamp: Stamp) -> bool:
        """Whether a directory looks as at the last look; the first version of all does not wait."""
        before, self._seen[version] = self._seen.get(version), stamp
        if before == stamp or not self._serving:
            return True
        self._states.setdefault(version, VersionState("START"))
        return False

    def _let_go(self, kept: Sequence[int]) -> None:
        with self._lock:
            for version in [version for version in self._serving if version not in kept]:
                self._retiring.append(self._serving.pop(version))
                self._states[version] = VersionState("UNLOADING")
        self._retire()

    def _retire(self) -> None:
        """Free replaced versions that no request uses any more."""
        for servable in [old for old in self._retiring if old.idle]:
            self._retiring.remove(servable)
            servable.close()
            if servable.version not in self._serving:  # it may be back already, loaded anew
                self._note(servable.version, VersionState("END"))

    def _note(self, version: int, state: VersionState) -> None:
        with self._lock:
            self._states[version] = state


def not_found(name: str, version: int | None) -> Refusal:
    """In TensorFlow Serving's words (core/basic_manager.cc)."""
    asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")


def _stamp(directory: Path) -> Stamp:
    files = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)
