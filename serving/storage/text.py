"""Small text files, local or in an object store, read and replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from serving.errors import InputError, OutputError
from serving.storage.address import Address, base_name, parent
from serving.storage.objects import Objects


def exists(address: Address) -> bool:
    """Return whether the file exists."""
    if isinstance(address, Path):
        return address.is_file()
    try:
        Objects.from_address(parent(address)).read(base_name(address))
    except FileNotFoundError:
        return False
    return True


def read_text(address: Address) -> str:
    """Return the content of a text file in UTF-8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if isinstance(address, Path):
            return address.read_text("utf-8")
        return Objects.from_address(parent(address)).read(base_name(address)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{address} cannot be read: {error}.") from error


def replace_text(address: Address, text: str) -> None:
    """Write a text file atomically; its permissions are kept.

    Raises:
        OutputError: it cannot be written.
    """
    if not isinstance(address, Path):
        Objects.from_address(parent(address)).write(base_name(address), text.encode())
        return
    target = address.resolve()  # keep symbolic links, such as those of a mounted ConfigMap
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise OutputError(
            f"{address} cannot be written: {error.strerror}.",
            remedy="Give yourself write permission on its directory.",
        ) from error
