"""The bundle: a versioned SavedModel directory, its metadata and the digests of its training photos."""

from serving.bundle.directory import (
    SCHEMA,
    WITHDRAWN,
    Bundle,
    BundleMetadata,
    next_version,
    publish,
    read,
    read_metadata,
    resolve,
    staging,
    version_directories,
    version_directory,
    versions,
)

__all__ = [
    "SCHEMA",
    "WITHDRAWN",
    "Bundle",
    "BundleMetadata",
    "next_version",
    "publish",
    "read",
    "read_metadata",
    "resolve",
    "staging",
    "version_directories",
    "version_directory",
    "versions",
]
