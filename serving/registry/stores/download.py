"""Open the store of a base path; fetch a bundle to a directory of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving import bundle, contract
from serving.errors import BundleError
from serving.registry.stores.local import LocalStore
from serving.registry.stores.object_store import RECORDS_PREFIX, ObjectStore
from serving.registry.stores.store import Say, Store, silent
from serving.storage import files, remote
from serving.storage.address import Address, base_name, parent
from serving.storage.lease import Lease


def open_store(base: Address, lease: Lease | None = None) -> Store:
    """Return the store of the versions below a base path, to be changed by the holder of a lease."""
    return LocalStore(base, lease) if isinstance(base, Path) else ObjectStore(base, lease)


@dataclass(frozen=True)
class FetchedBundle:
    """Bundle in a local directory.

    Attributes:
        path: local directory of the bundle.
        origin: path or address that the bundle came from.
    """

    path: Path
    origin: Address

    def write_back(self, file: str) -> None:
        """Upload a file of the bundle to its origin; do nothing if the bundle is local.

        Raises:
            OutputError: the file cannot be written.
        """
        if isinstance(self.origin, str):
            remote.upload(str(self.path / file), files.join(self.origin, file))


@contextmanager
def fetch_bundle(address: Address, say: Say = silent) -> Iterator[FetchedBundle]:
    """Yield a bundle as a local directory; one on an object store is downloaded for the time of the block.

    Args:
        address: the bundle, or the base path above its versions for the newest one.
        say: called with one line of progress per step.

    Raises:
        BundleError: there is no bundle, or it is incomplete.
        OutputError: the store does not answer.
    """
    if isinstance(address, Path):
        path = bundle.resolve(address)
        yield FetchedBundle(path, path)
        return
    origin = _resolve_address(address)
    with tempfile.TemporaryDirectory(prefix="hubhead-fetch-") as top:
        path = Path(top, *origin.split("/")[-2:])  # a bundle has the name of its parent
        say(f"fetching {origin}")
        for file, _ in files.walk_files(origin):
            target = path / file
            if ".." in target.parts:
                raise BundleError(f"{origin} is not a valid bundle: {file} leads out of it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            remote.download(files.join(origin, file), str(target))
        yield FetchedBundle(path, origin)


def has_no_version(base: Address) -> bool:
    """Return whether a base path has no version yet; true for an address with nothing below it.

    Raises:
        OutputError: the store does not answer.
    """
    if isinstance(base, Path):
        return base.is_dir() and not (base / contract.SAVED_MODEL_FILE).exists() and not bundle.versions(base)
    store = ObjectStore(base)
    has_versions = store.versions() or "foreign" in store.list_unfinished().values()
    return not has_versions and contract.SAVED_MODEL_FILE not in files.list_names(base)


def _resolve_address(address: str) -> str:
    """Return the address of the bundle itself, given its address or its base path.

    A version that hubhead published has a record and counts once the record says that it is complete. A
    version that others put there has none, and counts if it contains saved_model.pb.

    Raises:
        BundleError: there is no bundle at the address.
    """
    above, name = parent(address), base_name(address)
    if name.isdecimal() and files.exists(files.join(above, RECORDS_PREFIX, name)):
        ObjectStore(above).require(int(name))
        return address
    if contract.SAVED_MODEL_FILE in files.list_names(address):
        return address
    below = ObjectStore(address)
    if complete := below.versions():
        return str(below.path(complete[-1]))
    for number, why in sorted(below.list_unfinished().items(), reverse=True):
        if why == "foreign" and contract.SAVED_MODEL_FILE in below.sizes(number):
            return str(below.path(number))
    raise BundleError(
        f"{address} is not a bundle: there is no {contract.SAVED_MODEL_FILE} in it or in a version below it.",
        remedy="Give an address such as s3://bucket/models/food or s3://bucket/models/food/1.",
    )
