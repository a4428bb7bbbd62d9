"""Conversion of float16 numbers by moving their bits."""

from __future__ import annotations

import numpy as np

from batch.embeddings.half_floats import BIAS, to_float32, widen

NUMBERS = np.arange(1 << 16).astype(np.uint16).view(np.float16)
FINITE = NUMBERS[np.isfinite(NUMBERS)]


def test_every_finite_number_is_converted_exactly() -> None:
    found = to_float32(FINITE)
    assert found.dtype == np.float32
    assert np.array_equal(found, FINITE.astype(np.float32))
    assert np.array_equal(np.signbit(found), np.signbit(FINITE))  # of zero too


def test_widened_numbers_are_written_to_the_array_that_is_given() -> None:
    out = np.empty(FINITE.shape, np.int32)
    found = widen(FINITE.view(np.int16), out)
    assert np.shares_memory(found, out)
    assert np.array_equal(found * BIAS, FINITE.astype(np.float32))
