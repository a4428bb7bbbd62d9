"""The models of a server: their versions and version labels, and how both change at run time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import grpc

from serving import protos
from serving.server.config import files
from serving.server.config.settings import ModelSettings
from serving.server.models.servable import Servable
from serving.server.models.versions import LoadVersion, Versions, has_version, make_not_found_error
from serving.server.status_error import (
    StatusError,
    failed_precondition,
    invalid_argument,
    not_found,
    unavailable,
)

_TICK_SECONDS = 0.05
"""Time between scans while a configuration waits for its first versions."""


class Manager:
    """All models of a server.

    Call `poll` from one thread; the other methods are safe to call from any thread.
    """

    def __init__(self, load: LoadVersion, *, allow_labels_for_unavailable: bool = False) -> None:
        """Create a manager without models.

        Args:
            load: function that loads and warms up a version.
            allow_labels_for_unavailable: whether a new label may point to a version that is not loaded.
        """
        self._load = load
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._reloading = threading.Lock()
        self._polling = threading.Lock()
        self._models: dict[str, Versions] = {}
        self._labels: dict[str, dict[str, int]] | None = None  # None before the first configuration

    @property
    def settings(self) -> tuple[ModelSettings, ...]:
        """Settings of the configured models."""
        return tuple(model.settings for model in self.models.values())

    @property
    def models(self) -> dict[str, Versions]:
        """Versions of each model, by model name."""
        return dict(self._models)

    def has_model(self, name: str) -> bool:
        """Return whether a model of that name is configured."""
        return name in self._models

    def use(self, spec: protos.Message) -> AbstractContextManager[Servable]:
        """Return a context of the version that a ModelSpec names, which stays loaded inside it.

        Raises:
            StatusError: there is no name, or the model, version or version label is unknown.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        version = self._resolve_version(spec)
        model = self._models.get(spec.name)
        if model is None:
            raise make_not_found_error(spec.name, version)
        return model.use(version)

    def get_status(self, spec: protos.Message) -> protos.Message:
        """Answer a GetModelStatusRequest; a version label in it is ignored, as in TensorFlow Serving.

        Raises:
            StatusError: the model is not configured, or the version was never seen.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        states = model.states() if model else {}
        if spec.HasField("version"):
            version = spec.version.value
            if version not in states:
                raise not_found(f"Could not find version {version} of model {spec.name}")
            states = {version: states[version]}
        if not states:
            raise not_found(f"Could not find any versions of model {spec.name}")
        response = protos.GetModelStatusResponse()
        for version, state in states.items():
            code = grpc.StatusCode.UNKNOWN if state.error else grpc.StatusCode.OK
            status = {"error_code": code.value[0], "error_message": state.error}
            response.model_version_status.add(version=version, state=state.state, status=status)
        return response

    def poll(self) -> None:
        """Scan every base path once for new and removed versions."""
        self._poll(self.models.values())

    def _poll(self, models: Iterable[Versions]) -> None:
        with self._polling:
            for model in models:
                model.poll()

    def configure(self, wanted: Sequence[ModelSettings], is_cancelled: Callable[[], bool]) -> None:
        """Replace the configuration, and wait until every new model has a version or has failed.

        A model whose base path stays the same keeps its versions. While a base path has no version, the first
        configuration waits for one; a later one is rejected. If it is rejected, or a model does not load, all
        models are served as before.

        Args:
            wanted: settings of all models to serve.
            is_cancelled: function that returns True to stop waiting.

        Raises:
            StatusError: the change is not allowed, a new model has no version or none loads, a label points
                to a version that is not loaded, or the wait was cancelled.
        """
        with self._reloading:
            files.check_platforms(self.settings, wanted)
            if self._labels is not None:
                self._check_base_paths(wanted)
            # TensorFlow Serving checks the labels of the first configuration before it loads anything.
            if self._labels is None or self._allow_labels_for_unavailable:
                self._labels = self._check_labels(wanted)
            self._apply(wanted, is_cancelled)
            self._labels = self._check_labels(wanted)

    def close(self) -> None:
        """Unload all models; the server has stopped."""
        for model in self.models.values():
            model.close()

    def _check_base_paths(self, wanted: Sequence[ModelSettings]) -> None:
        """Check that every model with a new base path has a version there.

        Raises:
            StatusError: a model has none.
        """
        for settings in wanted:
            if not self._keeps_versions(settings) and not has_version(settings):
                raise failed_precondition(
                    f"Model {settings.name} has no version to serve in {settings.base_path}. "
                    "The configuration was not changed."
                )

    def _keeps_versions(self, settings: ModelSettings) -> bool:
        """Return whether a model is configured with the same base path."""
        old = self._models.get(settings.name)
        return old is not None and old.settings.base_path == settings.base_path

    def _apply(self, wanted: Sequence[ModelSettings], is_cancelled: Callable[[], bool]) -> None:
        """Load the versions of the wanted models, and then serve these models in place of the present ones.

        Raises:
            StatusError: no version of a model loads, or the wait was cancelled; nothing has changed.
        """
        before = self._models
        settings_before = {name: model.settings for name, model in before.items()}
        models = {
            new.name: before[new.name] if self._keeps_versions(new) else Versions(new, self._load)
            for new in wanted
        }
        for new in wanted:
            models[new.name].settings = new
        try:
            self._poll(models.values())
            self._wait_for_versions(models.values(), is_cancelled)
        except BaseException:
            for name, model in models.items():
                if before.get(name) is model:
                    model.settings = settings_before[name]
                else:
                    model.close()
            raise
        self._models = models
        for name, model in before.items():
            if models.get(name) is not model:
                model.close()

    def _wait_for_versions(self, models: Iterable[Versions], is_cancelled: Callable[[], bool]) -> None:
        """Scan until every model has a version and none is still being copied.

        Raises:
            StatusError: no version of a model loads, or the wait was cancelled.
        """
        waiting = list(models)
        while waiting := [model for model in waiting if model.current is None or model.pending]:
            for model in waiting:
                failed = {version: state.error for version, state in model.states().items() if state.error}
                if failed and model.current is None:
                    reasons = " ".join(f"Version {version}: {reason}" for version, reason in failed.items())
                    raise StatusError(
                        grpc.StatusCode.UNKNOWN,
                        f"No version of model {model.settings.name} in {model.settings.base_path} "
                        f"could be loaded. {reasons}",
                    )
            if is_cancelled():
                names = ", ".join(model.settings.name for model in waiting)
                raise StatusError(
                    grpc.StatusCode.CANCELLED, f"The wait for versions of {names} was cancelled."
                )
            time.sleep(_TICK_SECONDS)
            self._poll(waiting)

    def _resolve_version(self, spec: protos.Message) -> int | None:
        """Return the version number that a ModelSpec names, directly or by label; None: the newest one.

        Raises:
            StatusError: the version label is unknown.
        """
        if spec.WhichOneof("version_choice") != "version_label":
            return int(spec.version.value) if spec.HasField("version") else None
        if self._labels is None:
            raise unavailable(f"Model labels does not init yet.{spec.version_label}")
        version = self._labels.get(spec.name, {}).get(spec.version_label)
        if version is None:
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        return version

    def _check_labels(self, wanted: Sequence[ModelSettings]) -> dict[str, dict[str, int]]:
        """Return the labels of a configuration, by model and label (UpdateModelVersionLabelMap).

        Raises:
            StatusError: a label points to a version that is not loaded, and that is not allowed.
        """
        before = self._labels or {}
        for model in wanted:
            versions = self._models.get(model.name)
            for label, version in model.labels.items():
                known = before.get(model.name, {}).get(label)
                # Even with the flag, an existing label moves only to a loaded version.
                allowed = self._allow_labels_for_unavailable and known in (None, version)
                if not allowed and not (versions and versions.is_available(version)):
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return {model.name: dict(model.labels) for model in wanted}
