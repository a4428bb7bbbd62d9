"""Mutation tests of the checks: every mistake of mutations_*.py is made, and must be found."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.k8s.mutations import Mutation
from tests.k8s.mutations_jobs import JOBS
from tests.k8s.mutations_pods import PODS
from tests.k8s.mutations_serving import SERVING
from tests.k8s.reading import load_manifests, needs_builder
from tests.k8s.test_manifests import CHECK_ERRORS, CHECKS, run_all_checks

MUTATIONS = [*SERVING, *PODS, *JOBS]

MADE, CAUGHT = 40, 38
"""Number of MADE mistakes that must be found at least."""


@needs_builder
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_caught(mutation: Mutation) -> None:
    manifests = load_manifests(mutation.variant)
    mutation.change(manifests)
    assert manifests != load_manifests(mutation.variant), "the mutation changed nothing"
    assert bool(run_all_checks(manifests)) is mutation.caught


def test_mutations_are_many_and_nearly_all_are_caught() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= MADE
    assert sum(mutation.caught for mutation in MUTATIONS) >= CAUGHT * len(names) / MADE


@needs_builder
def test_every_check_catches_a_mutation() -> None:
    """Each check finds a mutation, so none is superfluous."""
    effective = set()
    for mutation in MUTATIONS:
        manifests = load_manifests(mutation.variant)
        mutation.change(manifests)
        for check in CHECKS:
            with suppress(*CHECK_ERRORS):  # an exception is not a finding of the check
                if check(manifests):
                    effective.add(check)
    assert effective == set(CHECKS)
