"""Paths of this machine, and addresses of object stores."""

from __future__ import annotations

from pathlib import Path

from serving.errors import InputError

Address = Path | str
"""A path of this machine, or the address of an object store, such as s3://bucket/models/food."""

EXTRAS = {"s3": "s3", "gs": "gs", "memory": ""}
"""The schemes that are taken, and the extra of each; `memory` lasts as long as its process."""


def parse_address(text: str) -> Address:
    """What a flag names.

    Raises:
        InputError: an address of a scheme that is not known here.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in EXTRAS:
        raise InputError(
            f"{text} is neither a path nor an address that versions can be kept at.",
            remedy="Give a path, s3://BUCKET/DIRECTORY or gs://BUCKET/DIRECTORY.",
        )
    if not rest.strip("/"):
        raise InputError(f"{text} names no bucket.", remedy=f"Give {scheme}://BUCKET/DIRECTORY.")
    return text.rstrip("/")


def parent(address: str) -> str:
    """The address above."""
    return address.rpartition("/")[0]


def base_name(address: str) -> str:
    """The last part of an address."""
    return address.rpartition("/")[2]
