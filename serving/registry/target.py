"""Where a model's versions, its configuration and its server are; one change at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import BundleError, DeadlineExceeded, ModelNotFound, ServerUnavailable
from serving.registry import model_config
from serving.registry.model_config import NEWEST, ModelConfig
from serving.registry.stores.download import open_store
from serving.registry.stores.store import Say, Store, silent
from serving.storage.address import Address, base_name, parent
from serving.storage.lease import hold_file_lock, hold_lease
from serving.storage.objects import Objects

if TYPE_CHECKING:
    from serving.client import Client

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class DeploymentTarget:
    """One model in production.

    Attributes:
        base: the directory or address whose numbered children are the versions.
        model: the model's name for the server.
        config: the server's model.config; None where the server follows the newest version of `base`.
        client: asks the server; None where nobody waits for it.
        label_client: makes a client that asks for a label; with `client`.
        reload: whether the server is told of the configuration by the RPC; else it reads the file itself.
        timeout: seconds that the server may take for each step.
        say: told of each step.
    """

    base: Address
    model: str
    config: Address | None = None
    client: Client | None = None
    label_client: Callable[[str], Client] | None = None
    reload: bool = False
    timeout: float = 300.0
    say: Say = silent

    @cached_property
    def store(self) -> Store:
        """What the versions are kept in."""
        return open_store(self.base)

    @property
    def versions(self) -> list[int]:
        """The versions that are there as a whole, ascending."""
        return self.store.versions()

    def read_config(self) -> ModelConfig:
        """What the server is told to serve.

        Raises:
            InputError: the configuration cannot be used.
        """
        return model_config.read(self.config, self.model) if self.config else NEWEST

    def write_config(self, versions: set[int] | None, labels: Mapping[str, int]) -> None:
        """Write the configuration, and tell the server where it does not read it itself.

        Raises:
            InputError, OutputError: the file cannot be used, or not be written.
            ServerError: the server does not take it.
        """
        assert self.config is not None
        model_config.write(self.config, self.model, versions=versions, labels=labels)
        if self.reload and self.client:
            self.client.reload(model_config.parse(self.config))

    def wait_available(self, version: int) -> None:
        """Return once the server has loaded a version; at once where there is no server to ask.

        Raises:
            BundleError: it does not load; with the server's words.
            DeadlineExceeded: not in time.
        """

        def loaded(client: Client) -> str:
            states = {status.version: status for status in client.status()}
            if version not in states:
                return f"the server does not know version {version}"
            state = states[version]
            if state.state == "END" and state.error:
                raise BundleError(f"Version {version} does not load in the server: {state.error}.")
            return "" if state.state == "AVAILABLE" else f"version {version} is {state.state}"

        self._wait(f"version {version} is available", loaded)

    def wait_label(self, label: str, version: int) -> None:
        """Return once the server answers a label with a version; at once where there is no server to ask.

        Raises:
            DeadlineExceeded: not in time.
        """
        if self.label_client is None:
            return
        with self.label_client(label) as labelled:

            def moved(_: Client) -> str:
                found = labelled.metadata().version
                return "" if found == version else f"label {label} is on version {found}"

            self._wait(f"label {label} is on version {version}", moved)

    def _wait(self, what: str, missing: Callable[[Client], str]) -> None:
        """Until `missing` says nothing."""
        if self.client is None:
            return
        self.say(f"waiting until {what} at {self.client.target}")
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                seen = missing(self.client)
            except (ModelNotFound, ServerUnavailable) as error:
                seen = error.details or error.what
            if not seen:
                return
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        remedy = "See the server's log."
        if self.config and not self.reload:
            remedy = (
                "Does the server read that file again (--model_config_file_poll_wait_seconds)? "
                "If not, give --reload."
            )
        raise DeadlineExceeded(
            f"Not within {self.timeout:g} s at {self.client.target}: {what}; last seen: {seen}.",
            remedy=remedy,
            code="DEADLINE_EXCEEDED",
        )


@contextmanager
def lock_target(place: DeploymentTarget) -> Iterator[None]:
    """Keep others from changing the same versions or the same configuration meanwhile.

    Raises:
        OutputBusy: somebody else is at it.
        OutputError: the directory cannot be written.
    """
    with place.store.lock(), _configuring(place.config):
        yield


def _configuring(config: Address | None) -> AbstractContextManager[None]:
    if config is None:
        return nullcontext()
    if isinstance(config, Path):
        config = config.resolve()
        return hold_file_lock(config.with_name(f".{config.name}.lock"))
    return hold_lease(Objects.from_address(parent(config)), f".{base_name(config)}.lease")
