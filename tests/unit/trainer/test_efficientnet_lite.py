"""Shapes of the EfficientNet-Lite networks, by their coefficients."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.backbones.efficientnet_lite import NETWORKS, check_weights, list_blocks


@pytest.mark.parametrize(
    ("network", "counts", "channels"),
    [
        ("lite0", [1, 2, 2, 3, 3, 4, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("lite1", [1, 3, 3, 4, 4, 5, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("lite2", [1, 3, 3, 4, 4, 5, 1], [16, 24, 48, 88, 120, 208, 352]),
    ],
)
def test_coefficients_scale_the_blocks_and_channels_of_lite0(
    network: str, counts: list[int], channels: list[int]
) -> None:
    blocks = list_blocks(NETWORKS[network])
    assert [block.channels for block in blocks] == [
        width for width, count in zip(channels, counts, strict=True) for _ in range(count)
    ]
    first = np.cumsum([0, *counts])[:-1]
    assert [index for index, block in enumerate(blocks) if not block.skips] == list(first)
    assert [blocks[index].stride for index in first] == [1, 2, 2, 2, 1, 2, 1]
    assert {block.stride for block in blocks if block.skips} == {1}
    assert [block.expands for block in blocks] == [False] + [True] * (len(blocks) - 1)


def test_weights_of_another_network_are_an_error() -> None:
    def weights(network: str) -> dict[str, np.ndarray]:
        return {
            f"_blocks.{index}._project_conv.weight": np.zeros([block.channels, 1, 1, 1])
            for index, block in enumerate(list_blocks(NETWORKS[network]))
        }

    for network, scaling in NETWORKS.items():
        check_weights(weights(network), scaling)
        for other in NETWORKS.keys() - {network}:
            with pytest.raises(ValueError, match="the blocks of the checkpoint have"):
                check_weights(weights(other), scaling)
