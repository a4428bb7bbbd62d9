"""Hypothesis strategies and helpers for tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serving import protos

DTYPES = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16"]


def numeric_arrays() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Return a strategy for arrays of all numeric dtypes, with 0 to 3 dimensions."""
    return st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )


def make_tensor_proto(dtype: str, shape: list[int], **values: Any) -> protos.Message:
    """Return a TensorProto with the given value fields."""
    proto = protos.TensorProto(dtype=protos.DataType.Value(dtype), **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto
