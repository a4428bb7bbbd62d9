"""Live bundles for the tests of the comparison: metadata, head and training digests, without a graph."""

from __future__ import annotations

from pathlib import Path

from serving import bundle, contract
from serving.bundle import Bundle, BundleMetadata, training_digests
from trainer.export.head_file import save_head
from trainer.heads import Head

FINGERPRINT = "f" * 64


def sha(number: int) -> str:
    """Return the SHA-256, in hex, that stands for photo `number`."""
    return f"{number:016x}{'0' * 48}"


def write_live_bundle(
    base: Path, fitted: Head, labels: list[str], *, version: int = 1, seen: list[int] | None = None
) -> Bundle:
    """Write the parts of a bundle that a comparison by embeddings reads."""
    directory = base / str(version)
    directory.mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).write_bytes(b"")
    BundleMetadata(labels, {"fingerprint": FINGERPRINT, "dimension": len(fitted.kernel)}, {}).write(directory)
    save_head(directory / contract.HEAD_FILE, fitted)
    if seen is not None:
        training_digests.write(directory, training_digests.truncate_digests(map(sha, seen)))
    return bundle.read(directory)
