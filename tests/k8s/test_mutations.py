"""The checks see what is wrong: manifests are broken on purpose, in every way of mutations_*.py."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.k8s.mutations import Mutation
from tests.k8s.mutations_jobs import JOBS
from tests.k8s.mutations_pods import PODS
from tests.k8s.mutations_serving import SERVING
from tests.k8s.reading import manifests_of, needs_builder
from tests.k8s.test_manifests import CHECKS, STUMBLES, findings_of

MUTATIONS = [*SERVING, *PODS, *JOBS]

MADE, CAUGHT = 40, 38
"""Of so many mistakes at least so many have to be seen."""


@needs_builder
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mistake_is_caught(mutation: Mutation) -> None:
    manifests = manifests_of(mutation.variant)
    mutation.change(manifests)
    assert manifests != manifests_of(mutation.variant), "nothing was broken"
    assert bool(findings_of(manifests)) is mutation.caught


def test_mistakes_are_many_and_nearly_all_are_seen() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= MADE
    assert sum(mutation.caught for mutation in MUTATIONS) >= CAUGHT * len(names) / MADE


@needs_builder
def test_every_check_sees_some_mistake() -> None:
    """And no check is there that none of them needs."""
    speaking = set()
    for mutation in MUTATIONS:
        manifests = manifests_of(mutation.variant)
        mutation.change(manifests)
        for check in CHECKS:
            with suppress(*STUMBLES):  # which is no word of its own
                if check(manifests):
                    speaking.add(check)
    assert speaking == set(CHECKS)
