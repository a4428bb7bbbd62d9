"""Limit on the open connections of a server, which would take all file descriptors of its process otherwise.

Libraries end the process where they can open no file: C++'s std::random_device opens /dev/urandom, and its
exception ends a server of 1,024 descriptors at the 1,000th idle connection.
"""

from __future__ import annotations

from contextlib import suppress

_WANTED_DESCRIPTORS = 1 << 16
"""File descriptors that the process may have open, if the system's hard limit allows as many."""

_RESERVED = 256
"""File descriptors for models, libraries, child processes and logs."""

_PORTS = 2
"""Ports that share the others: gRPC and REST."""


def find_max_connections() -> int:
    """Raise the limit on file descriptors as far as needed; return the most connections of each port."""
    descriptors = _WANTED_DESCRIPTORS
    with suppress(ImportError):  # of Unix alone
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        wanted = _WANTED_DESCRIPTORS if hard == unlimited else min(_WANTED_DESCRIPTORS, hard)
        if soft != unlimited and soft < wanted:
            with suppress(ValueError, OSError):  # a system with another limit, as macOS
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        descriptors = _WANTED_DESCRIPTORS if soft == unlimited else min(soft, _WANTED_DESCRIPTORS)
    return max((descriptors - _RESERVED) // _PORTS, 1)
