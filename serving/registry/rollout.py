"""Move version labels while the server keeps answering.

TensorFlow Serving accepts a label only for a version that is AVAILABLE, and a configuration reload does not
wait until new versions of an already served model are loaded. A label is therefore moved in four steps: add
the new version to the policy, wait until it is AVAILABLE, move the label, remove the versions without a label
from the policy so that the server unloads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from serving.errors import BundleError, HubheadError
from serving.registry.target import DeploymentTarget


def move_labels(target: DeploymentTarget, labels: Mapping[str, int]) -> None:
    """Point each of these labels to a version, in the configuration that the server reads.

    Without a client to wait with, the previous versions stay in the policy: the server moves a label only
    once its version is loaded, and that moment is unknown here. The next change removes them.

    Args:
        target: deployment target with a `config`.
        labels: version of each label that moves; other labels stay.

    Raises:
        BundleError: a version does not load; the configuration is restored.
        ServerError: the server did not reach the expected state; what was written before the failed step
            stays.
    """
    before = target.read_config()
    existing = target.versions
    after = {**before.labels, **labels}
    labelled = set(after.values())
    # The old and the new versions together; None keeps a policy that serves all versions.
    kept = labelled | set(before.served_versions(existing)) if not before.everything else None
    described = f"labels {', '.join(f'{label} = {version}' for label, version in labels.items())}"
    if target.client is None:
        target.say(f"writing {target.config}: {described}")
        target.write_config(kept, after)
        return
    target.say(f"loading version {', '.join(map(str, sorted(set(labels.values()))))}")
    try:
        target.write_config(kept, before.labels)
        for version in sorted(set(labels.values())):
            target.wait_available(version)
    except BundleError:
        with suppress(HubheadError):
            served = None if before.everything else set(before.served_versions(existing))
            target.write_config(served, before.labels)
        raise
    target.say(f"moving {described}")
    target.write_config(kept, after)
    for label, version in labels.items():
        target.wait_label(label, version)
    if kept is not None and kept != labelled:
        target.write_config(labelled, after)


def pin_current(target: DeploymentTarget) -> None:
    """Pin a policy of the newest version to the versions now served, so that a new one changes nothing.

    There is a configuration, and there are versions.

    Raises:
        ServerError: the server does not accept the configuration.
    """
    before = target.read_config()
    serving = before.served_versions(target.versions)
    target.say(f"pinning version {', '.join(map(str, serving))}, which is served now")
    target.write_config(set(serving), before.labels)
