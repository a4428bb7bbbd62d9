"""The versions of one model: those below its base path that its policy wants and that load.

A new version is loaded and warmed up before an old one is unloaded, and requests in flight finish on the
version on which they started. A version that fails to load has no effect on requests: the failure is
reported, and loading is retried when the version's files change. Removing the newest directory rolls back.

Three differences from TensorFlow Serving: a base path that becomes empty keeps its last versions (there the
last one is unloaded); a directory that is still being copied is not loaded until two scans find it unchanged;
and a missing base path of one model does not delay other models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving import bundle
from serving.client.responses import State, VersionStatus
from serving.errors import BundleError
from serving.server.config.settings import ModelSettings
from serving.server.models.servable import SAVED_MODEL_FILES, Servable
from serving.server.status_error import StatusError, not_found

_MAX_VERSION = 2**63 - 1
"""Versions are int64 in the protocol."""

_log = logging.getLogger(__name__)

LoadVersion = Callable[[str, int, Path], Servable]
"""Loads and warms up a version: model name, version number and directory to servable."""


DirectorySnapshot = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and modification time (ns) of every file in a directory."""


class Versions:
    """The versions of one model.

    Call `poll` from one thread at a time; the other methods are safe to call from any thread.

    Attributes:
        settings: name, base path and version policy of the model.
        pending: versions to serve that were still being copied at the last scan.
    """

    def __init__(self, settings: ModelSettings, load: LoadVersion) -> None:
        self.settings = settings
        self._load_version = load
        self._lock = threading.Lock()
        self._serving: dict[int, Servable] = {}
        self._retiring: list[Servable] = []
        self._states: dict[int, VersionStatus] = {}
        # What each failed version's directory looked like: it is loaded again once that changes.
        self._failed: dict[int, DirectorySnapshot] = {}
        self._snapshots: dict[int, DirectorySnapshot] = {}
        self._closed = False
        self.pending: tuple[int, ...] = ()

    @property
    def current(self) -> int | None:
        """Newest version that is served; None if there is none."""
        with self._lock:
            return max(self._serving, default=None)

    def states(self) -> dict[int, VersionStatus]:
        """Return the state of every version that this process has ever seen, newest first."""
        with self._lock:
            return dict(sorted(self._states.items(), reverse=True))

    def is_available(self, version: int) -> bool:
        """Return whether a version is served."""
        return version in self._serving

    @contextmanager
    def use(self, version: int | None) -> Iterator[Servable]:
        """Yield a version, which stays loaded inside the block.

        Args:
            version: version number; None: the newest one.

        Raises:
            StatusError: the version is not served.
        """
        with self._lock:
            chosen = max(self._serving, default=0) if version is None else version
            servable = self._serving.get(chosen)
            if servable is None:
                raise make_not_found_error(self.settings.name, version)
            servable.users += 1  # inside the lock, or it could be unloaded before
        try:
            yield servable
        finally:
            with self._lock:
                servable.users -= 1

    def poll(self) -> None:
        """Scan the base path once: load the versions that the policy wants, unload the others."""
        self._free_retired()
        policy = self.settings.policy
        try:
            found = bundle.versions(self.settings.base_path)
        except OSError as error:
            # Removed during the scan, or on storage that is offline: retry at the next scan.
            _log.warning("%s cannot be read: %s", self.settings.base_path, error)
            return
        # Newest first. A version that fails does not count, so that an older one serves in its place.
        kept: list[int] = []
        pending: list[int] = []
        for version in sorted(found, reverse=True):
            if version > _MAX_VERSION or (policy.specific and version not in policy.specific):
                continue
            if not policy.specific and policy.latest and len(kept) == policy.latest:
                break
            if version in self._serving or self._try_load(version):
                kept.append(version)
            elif version not in self._failed:
                pending.append(version)
        self.pending = tuple(pending)
        if kept:  # never unload the last versions: an emptied base path keeps serving
            self._unload_except(kept)

    def close(self) -> None:
        """Unload all versions; the model is no longer configured."""
        self._closed = True
        self._unload_except([])

    def _try_load(self, version: int) -> bool:
        """Load a version unless it failed before or is still being copied; return whether it is served."""
        name, base = self.settings.name, self.settings.base_path
        try:
            directory = bundle.version_directory(base, version)
            snapshot = _take_snapshot(directory)
        except (BundleError, OSError):
            return False  # it was removed after the scan
        if self._failed.get(version) == snapshot or not self._is_stable(version, snapshot):
            return False
        others = [path.name for path in bundle.version_directories(base, version) if path != directory]
        if others:
            _log.warning("using %s for version %d and ignoring %s", directory, version, ", ".join(others))
        self._set_state(version, State.LOADING)
        try:
            servable = self._load_version(name, version, directory)
        except Exception as error:  # TensorFlow may raise anything; the served versions must stay available
            self._failed[version] = snapshot
            reason = str(error) or type(error).__name__
            self._set_state(version, State.END, reason)
            _log.warning("version %d of model %s failed to load: %s", version, name, reason)
            return False
        self._failed.pop(version, None)
        with self._lock:
            if self._closed:
                return False
            self._serving[version] = servable
            self._states[version] = VersionStatus(version, State.AVAILABLE, "")
        _log.info("version %d of model %s is available", version, name)
        return True

    def _is_stable(self, version: int, snapshot: DirectorySnapshot) -> bool:
        """Return whether a directory is unchanged since the last scan, or no version is served yet."""
        before, self._snapshots[version] = self._snapshots.get(version), snapshot
        if before == snapshot or not self._serving:
            return True
        self._states.setdefault(version, VersionStatus(version, State.START, ""))
        return False

    def _unload_except(self, kept: Sequence[int]) -> None:
        """Stop serving all versions but `kept`; free them once no request uses them."""
        with self._lock:
            for version in [version for version in self._serving if version not in kept]:
                self._retiring.append(self._serving.pop(version))
                self._states[version] = VersionStatus(version, State.UNLOADING, "")
        self._free_retired()

    def _free_retired(self) -> None:
        """Free retired versions that no request uses any more."""
        for servable in [old for old in self._retiring if not old.users]:
            self._retiring.remove(servable)
            servable.close()
            if servable.version not in self._serving:  # it may have been loaded again meanwhile
                self._set_state(servable.version, State.END)

    def _set_state(self, version: int, state: State, error: str = "") -> None:
        with self._lock:
            self._states[version] = VersionStatus(version, state, error)


def has_version(settings: ModelSettings) -> bool:
    """Return whether a version that a model's policy wants is in its base path, to be loaded."""
    wanted = settings.policy.specific
    try:
        return any(
            (directory / name).is_file()
            for name in SAVED_MODEL_FILES
            for version in bundle.versions(settings.base_path)
            if version <= _MAX_VERSION and (not wanted or version in wanted)
            for directory in bundle.version_directories(settings.base_path, version)
        )
    except (OSError, ValueError):  # it does not exist, or its name has a zero byte
        return False


def make_not_found_error(name: str, version: int | None) -> StatusError:
    """Return the NOT_FOUND error of TensorFlow Serving (core/basic_manager.cc).

    Args:
        name: model name.
        version: requested version; None: the newest one.
    """
    requested = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return not_found(f"Servable not found for request: {requested}")


def _take_snapshot(directory: Path) -> DirectorySnapshot:
    files = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)
