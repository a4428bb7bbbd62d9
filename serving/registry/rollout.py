"""Labels move from one version to another while the server answers.

TensorFlow Serving gives a label only to a version that is AVAILABLE, and a reload does not wait for new
versions of a model that it serves. So: both versions in the policy, wait, move the label, and only then
let go of the version that nobody asks for any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from serving.errors import BundleError, HubheadError
from serving.registry.model_config import ModelConfig
from serving.registry.target import DeploymentTarget


def move_labels(place: DeploymentTarget, labels: Mapping[str, int]) -> ModelConfig:
    """Give each of these labels to a version, in a configuration that a server reads.

    Where no server is asked, the versions of before stay in the policy: the server moves a label
    only once its version is loaded, and nobody here can know when. The next change lets go of them.

    Args:
        place: with a `config`.
        labels: the version of each label that moves; the others stay.

    Returns:
        The configuration at the end.

    Raises:
        BundleError: a version does not load; the configuration is as before.
        ServerError: the server does not follow; what was written before the failed step stays.
    """
    before = place.read_config()
    there = place.versions
    after = {**before.labels, **labels}
    wanted = set(after.values())
    held = wanted | set(before.serves(there)) if not before.everything else None
    told = f"labels {', '.join(f'{label} = {version}' for label, version in labels.items())}"
    if place.client is None:
        place.say(f"writing {place.config}: {told}")
        place.write_config(held, after)
        return place.read_config()
    place.say(f"loading version {', '.join(map(str, sorted(set(labels.values()))))}")
    try:
        place.write_config(held, before.labels)
        for version in sorted(set(labels.values())):
            place.wait_available(version)
    except BundleError:
        restore(place, before)
        raise
    place.say(f"moving {told}")
    place.write_config(held, after)
    for label, version in labels.items():
        place.wait_label(label, version)
    if held is not None and held != wanted:
        place.write_config(wanted, after)
    return place.read_config()


def pin_current(place: DeploymentTarget) -> None:
    """State by number what a server of the newest version serves now, so that a newer one changes nothing.

    Raises:
        ServerError: the server does not follow.
    """
    before = place.read_config()
    if place.config is None or not before.latest:
        return
    serving = set(before.serves(place.versions))
    if serving:
        place.say(f"pinning version {', '.join(map(str, sorted(serving)))}, which serves now")
        place.write_config(serving, before.labels)


def restore(place: DeploymentTarget, before: ModelConfig) -> None:
    """Write the configuration of before again, whatever the server says to it."""
    with suppress(HubheadError):
        versions = None if before.everything else set(before.serves(place.versions))
        place.write_config(versions, before.labels)
