"""Deployment target of a model: its versions, configuration and server; and the lock for changes to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from serving.errors import BundleError, DeadlineExceeded, ModelNotFound, ServerUnavailable
from serving.registry import model_config
from serving.registry.model_config import NEWEST, ModelConfig
from serving.registry.stores.download import open_store
from serving.registry.stores.store import LEASE_DIRECTORY, Say, Store, silent
from serving.storage.address import Address, base_name, parent, resolve
from serving.storage.lease import Lease, hold

if TYPE_CHECKING:
    from serving.client import Client

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class DeploymentTarget:
    """One model in production.

    Attributes:
        base: directory or address whose numbered children are the versions.
        model: name of the model on the server.
        config: model.config of the server; None if the server follows the newest version in `base`.
        client: client of the server; None if changes do not wait for a server.
        label_client: creates a client that requests a label; required with `client`.
        reload: True to send the configuration by HandleReloadConfigRequest; else the server polls the file.
        timeout: time limit for each step of the server, in seconds.
        say: called with one line of progress per step.
        lease, config_lease: leases of `base` and of the directory of `config`; see `lock_target`.
    """

    base: Address
    model: str
    config: Address | None = None
    client: Client | None = None
    label_client: Callable[[str], Client] | None = None
    reload: bool = False
    timeout: float = 300.0
    say: Say = silent
    lease: Lease | None = None
    config_lease: Lease | None = None

    @cached_property
    def store(self) -> Store:
        """Store of the versions."""
        return open_store(self.base, self.lease)

    @property
    def versions(self) -> list[int]:
        """Complete versions, ascending."""
        return self.store.versions()

    def read_config(self) -> ModelConfig:
        """Read the version policy and labels; the newest version if there is no configuration.

        Raises:
            InputError: the configuration cannot be read.
        """
        return model_config.read(self.config, self.model) if self.config else NEWEST

    def write_config(self, versions: set[int] | None, labels: Mapping[str, int]) -> None:
        """Write the configuration; with `reload`, send it to the server too.

        Args:
            versions: versions to serve; None keeps the policy.
            labels: all labels of the model.

        Raises:
            InputError: the file cannot be read.
            OutputError: the file cannot be written.
            ServerError: the server rejects the configuration.
        """
        assert self.config is not None
        text = model_config.edit(self.config, self.model, versions=versions, labels=labels)
        config = resolve(self.config)
        (self.config_lease or Lease(parent(config))).publish({base_name(config): text.encode()})
        if self.reload and self.client:
            self.client.reload(model_config.parse(self.config))

    def wait_available(self, version: int) -> None:
        """Wait until the server has loaded a version; return immediately if there is no client.

        Raises:
            BundleError: the version does not load; the message contains the server's error.
            DeadlineExceeded: the version is not available within `timeout`.
        """

        def check_loaded(client: Client) -> str:
            states = {status.version: status for status in client.status()}
            if version not in states:
                return f"the server does not know version {version}"
            state = states[version]
            if state.state == "END" and state.error:
                raise BundleError(f"Version {version} does not load in the server: {state.error}.")
            return "" if state.state == "AVAILABLE" else f"version {version} is {state.state}"

        self._wait(f"version {version} is available", check_loaded)

    def wait_label(self, label: str, version: int) -> None:
        """Wait until a label resolves to a version on the server; return immediately if there is no client.

        Raises:
            DeadlineExceeded: the label is not on the version within `timeout`.
        """
        if self.label_client is None:
            return
        with self.label_client(label) as labelled:

            def check_moved(_: Client) -> str:
                found = labelled.metadata().version
                return "" if found == version else f"label {label} is on version {found}"

            self._wait(f"label {label} is on version {version}", check_moved)

    def _wait(self, what: str, check: Callable[[Client], str]) -> None:
        """Poll until `check` returns "", else the state that it found.

        Args:
            what: the awaited condition, for messages.
            check: queries the server; "" if the condition holds.
        """
        if self.client is None:
            return
        self.say(f"waiting until {what} at {self.client.target}")
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                seen = check(self.client)
            except (ModelNotFound, ServerUnavailable) as error:  # the server may be starting or loading
                seen = error.details or error.what
            if not seen:
                return
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        remedy = "See the server's log."
        if self.config and not self.reload:
            remedy = (
                "Start the server with --model_config_file_poll_wait_seconds so that it reads that file "
                "again, or give --reload."
            )
        raise DeadlineExceeded(
            f"Timed out after {self.timeout:g} s at {self.client.target} waiting until {what}; "
            f"last state: {seen}.",
            remedy=remedy,
            code="DEADLINE_EXCEEDED",
        )


@contextmanager
def lock_target(target: DeploymentTarget) -> Iterator[DeploymentTarget]:
    """Provide the target with the leases on its versions and its configuration.

    Raises:
        OutputBusy: another process holds one of them.
        OutputError: the directory cannot be written.
    """
    activity = "Another promotion or rollback is in progress in"
    with ExitStack() as stack:
        lease = stack.enter_context(hold(str(target.base), LEASE_DIRECTORY, activity))
        config_lease = None
        if target.config:
            config = resolve(target.config)
            lease_name = f".{base_name(config)}.lease"
            config_lease = stack.enter_context(hold(parent(config), lease_name, activity))
        yield replace(target, lease=lease, config_lease=config_lease)
