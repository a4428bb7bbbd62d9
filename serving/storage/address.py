"""Local paths and addresses of object stores."""

from __future__ import annotations

from pathlib import Path

from serving.errors import InputError

Address = Path | str
"""A local path, or an address in an object store such as s3://bucket/models/food."""

EXTRAS = {"s3": "s3", "gs": "gs", "az": "az", "abfs": "az", "http": "http", "https": "http", "memory": ""}
"""Package extra that each scheme needs. `memory` lives as long as its process."""


def parse_address(text: str) -> Address:
    """Parse the value of a flag as a local path or an address.

    Raises:
        InputError: the address has an unsupported scheme or no bucket.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if EXTRAS.get(scheme, "http") == "http":
        raise InputError(
            f"{text} is neither a local path nor an address of a supported object store.",
            remedy="Give a path, s3://BUCKET/DIRECTORY, gs://BUCKET/DIRECTORY or az://CONTAINER/DIRECTORY.",
        )
    if not rest.strip("/"):
        raise InputError(f"{text} has no bucket.", remedy=f"Give {scheme}://BUCKET/DIRECTORY.")
    return text.rstrip("/")


def resolve(address: Address) -> str:
    """Return an address as it is, and a path without symbolic links, such as those of a mounted ConfigMap."""
    return str(address.resolve()) if isinstance(address, Path) else address


def parent(address: str) -> str:
    """Return the address without its last part."""
    return address.rpartition("/")[0]


def base_name(address: str) -> str:
    """Return the last part of an address."""
    return address.rpartition("/")[2]
