"""The models of a server: their versions, their labels, and how both change while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from serving import protos
from serving.server.config import files
from serving.server.config.settings import ModelSettings
from serving.server.models.servable import Servable
from serving.server.models.versions import Load, Versions, not_found
from serving.server.status_error import Refusal, invalid

_TICK_SECONDS = 0.05


class Manager:
    """All models of a server.

    `poll` is for one thread; the other methods are for any.
    """

    def __init__(self, load: Load, *, labels_of_unavailable: bool = False) -> None:
        """Without a model.

        Args:
            load: loads and warms a version.
            labels_of_unavailable: whether a new label may name a version that is not loaded.
        """
        self._load = load
        self._labels_of_unavailable = labels_of_unavailable
        self._reloading = threading.Lock()
        self._polling = threading.Lock()
        self._models: dict[str, Versions] = {}
        self._settings: tuple[ModelSettings, ...] = ()
        self._labels: dict[str, dict[str, int]] | None = None

    @property
    def settings(self) -> tuple[ModelSettings, ...]:
        """The models that are configured."""
        return self._settings

    @property
    def models(self) -> dict[str, Versions]:
        """The versions of each model, by name."""
        return dict(self._models)

    @contextmanager
    def use(self, spec: protos.Message) -> Iterator[Servable]:
        """The version that a ModelSpec asks for; it stays loaded inside the block.

        Raises:
            Refusal: no name, or a model, a version or a label that is not there.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = self._version(spec)
        model = self._models.get(spec.name)
        if model is None:
            raise not_found(spec.name, version)
        with model.use(version) as servable:
            yield servable

    def status(self, spec: protos.Message) -> protos.Message:
        """Answer a GetModelStatusRequest; a version label in it is ignored, as in TensorFlow Serving.

        Raises:
            Refusal: another model, or a version that was never seen.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        states = model.states() if model else {}
        if spec.HasField("version"):
            version = spec.version.value
            if version not in states:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}"
                )
            states = {version: states[version]}
        if not states:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = protos.GetModelStatusResponse()
        for version, state in states.items():
            entry = response.model_version_status.add(version=version, state=state.state)
            code = grpc.StatusCode.UNKNOWN if state.error else grpc.StatusCode.OK
            entry.status.error_code, entry.status.error_message = code.value[0], state.error
        return response

    def poll(self) -> None:
        """Look at every base path once."""
        with self._polling:
            for model in self.models.values():
                model.poll()

    def configure(
        self,
        wanted: Sequence[ModelSettings],
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve these models alone, and wait until each that is new has a version or has failed.

        A model whose base path stays the same keeps its versions. While a base path holds no version,
        this waits for one.

        Args:
            wanted: the models.
            given_up: asked while waiting; True ends it.

        Raises:
            Refusal: the change is not allowed, a new model has no version that loads, or a label
                names a version that is not loaded.
        """
        with self._reloading:
            files.check_change(self._settings, wanted)
            # TensorFlow Serving looks at the first labels before anything is loaded.
            if self._labels is None or self._labels_of_unavailable:
                self._labels = self._checked_labels(wanted)
            self._wait(self._take_over(wanted), given_up)
            self._labels = self._checked_labels(wanted)

    def close(self) -> None:
        """Let go of all models: the server has stopped."""
        for model in self.models.values():
            model.close()

    def _take_over(self, wanted: Sequence[ModelSettings]) -> list[Versions]:
        """Change what is configured, and look at every base path once."""
        models: dict[str, Versions] = {}
        for settings in wanted:
            old = self._models.get(settings.name)
            if old is not None and old.base == settings.base_path:
                old.policy = settings.policy
                models[settings.name] = old
            else:
                models[settings.name] = Versions(
                    settings.name, settings.base_path, self._load, settings.policy
                )
        dropped = [old for name, old in self._models.items() if models.get(name) is not old]
        # A model that moves keeps answering from its old place until the new one has been looked at.
        with self._polling:
            for model in models.values():
                model.poll()
        self._models, self._settings = models, tuple(wanted)
        for model in dropped:
            model.close()
        return list(models.values())

    def _wait(self, models: Sequence[Versions], given_up: Callable[[], bool]) -> None:
        waiting = list(models)
        while waiting := [model for model in waiting if model.current is None or model.pending]:
            for model in waiting:
                failed = {version: state.error for version, state in model.states().items() if state.error}
                if failed and model.current is None:
                    reasons = " ".join(f"Version {version}: {reason}" for version, reason in failed.items())
                    raise Refusal(
                        grpc.StatusCode.UNKNOWN,
                        f"No version of model {model.name} in {model.base} loads. {reasons}",
                    )
            if given_up():
                names = ", ".join(model.name for model in waiting)
                raise Refusal(grpc.StatusCode.CANCELLED, f"Given up on waiting for versions of {names}.")
            time.sleep(_TICK_SECONDS)
            with self._polling:
                for model in waiting:
                    model.poll()

    def _version(self, spec: protos.Message) -> int | None:
        """The version that is asked for, by number or label; None: the newest."""
        if spec.WhichOneof("version_choice") != "version_label":
            return int(spec.version.value) if spec.HasField("version") else None
        if self._labels is None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"Model labels does not init yet.{spec.version_label}")
        version = self._labels.get(spec.name, {}).get(spec.version_label)
        if version is None:
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        return version

    def _checked_labels(self, wanted: Sequence[ModelSettings]) -> dict[str, dict[str, int]]:
        """The labels of a configuration, where they may be assigned (UpdateModelVersionLabelMap)."""
        before = self._labels or {}
        for model in wanted:
            versions = self._models.get(model.name)
            for label, version in model.labels.items():
                known = before.get(model.name, {}).get(label)
                allowed = self._labels_of_unavailable and known in (None, version)
                if not allowed and not (versions and versions.available(version)):
                    raise Refusal(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return {model.name: dict(model.labels) for model in wanted}
