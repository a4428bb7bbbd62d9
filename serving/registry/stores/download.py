"""A bundle, wherever it is, as a directory of this machine."""

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
from serving.storage.address import Address, base_name, parent
from serving.storage.objects import Objects


def open_store(base: Address) -> Store:
    """The versions below a base path.

    Raises:
        InputError: the package for such an address is not installed.
    """
    return LocalStore(base) if isinstance(base, Path) else ObjectStore(Objects.from_address(base))


@dataclass(frozen=True)
class FetchedBundle:
    """A bundle of this machine.

    Attributes:
        path: its directory.
        origin: where it is kept, to be told and written to.
    """

    path: Path
    origin: Address

    def write_back(self, file: str) -> None:
        """Have a file of the bundle where it is kept, too.

        Raises:
            OutputError: it cannot be written.
        """
        if isinstance(self.origin, str):
            Objects.from_address(self.origin).upload(self.path / file, file)


@contextmanager
def fetch_bundle(address: Address, say: Say = silent) -> Iterator[FetchedBundle]:
    """A bundle, given its own directory or the base path above; from an object store as a copy for now.

    Raises:
        BundleError: there is none, or it is not there as a whole.
        OutputError: the store does not answer.
    """
    if isinstance(address, Path):
        path = bundle.resolve(address)
        yield FetchedBundle(path, path)
        return
    origin = _resolved(address)
    objects = Objects.from_address(origin)
    with tempfile.TemporaryDirectory(prefix="hubhead-fetch-") as top:
        path = (
            Path(top) / base_name(parent(origin)) / base_name(origin)
        )  # a bundle's name is that of its parent
        say(f"fetching {origin}")
        for file in objects.list_sizes(""):
            target = path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            objects.download(file, target)
        yield FetchedBundle(path, origin)


def has_no_version(base: Address) -> bool:
    """Whether it holds no bundle yet; an address with nothing below it does so too.

    Raises:
        OutputError: the store does not answer.
    """
    if isinstance(base, Path):
        return base.is_dir() and not (base / contract.SAVED_MODEL_FILE).exists() and not bundle.versions(base)
    store = ObjectStore(Objects.from_address(base))
    whole = store.versions() or "foreign" in store.list_unfinished().values()
    return not whole and contract.SAVED_MODEL_FILE not in store.objects.list_children()


def _resolved(address: str) -> str:
    """The address of a bundle itself.

    What hubhead put there has a record, and counts once that says that it is whole; of what others put
    there only saved_model.pb can be asked for.
    """
    above = Objects.from_address(parent(address))
    if base_name(address).isdecimal() and base_name(address) in above.list_children(RECORDS_PREFIX):
        ObjectStore(above).require(int(base_name(address)))
        return address
    if contract.SAVED_MODEL_FILE in Objects.from_address(address).list_children():
        return address
    below = ObjectStore(Objects.from_address(address))
    if whole := below.versions():
        return str(below.path(whole[-1]))
    for number, why in sorted(below.list_unfinished().items(), reverse=True):
        if why == "foreign" and contract.SAVED_MODEL_FILE in below.sizes(number):
            return str(below.path(number))
    raise BundleError(
        f"{address} is no bundle: no {contract.SAVED_MODEL_FILE} in it, nor in a version below it.",
        remedy="Give an address such as s3://bucket/models/food or s3://bucket/models/food/1.",
    )
