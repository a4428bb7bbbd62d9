"""Canary routing: the fraction of the users and of the requests that gets the canary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import Client
from serving.client.canary import selects_canary
from serving.errors import InputError


@pytest.mark.parametrize("settings", [{"canary": 1.5}, {"canary": -0.1}, {"canary": 0.5, "version": 3}])
def test_invalid_canary_fraction_is_an_input_error(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Client("localhost:1", model="food", **settings)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_larger_canary_fraction_keeps_the_users_of_a_smaller_one(user: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert selects_canary(more, user) or not selects_canary(less, user)


def test_canary_users_are_spread_evenly() -> None:
    taken = sum(selects_canary(0.05, f"user-{number}") for number in range(20_000))
    assert 850 < taken < 1150  # 1000, and five standard deviations of 31
