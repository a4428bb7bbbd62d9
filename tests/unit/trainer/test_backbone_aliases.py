"""Aliases of backbones, names of retrain.py's --architecture, and `hubhead backbone`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.errors import InputError
from trainer.backbones import ALIASES, find_alias, resolve_architecture
from trainer.backbones.aliases import ARCHITECTURES, BUILT, NAMES, SHORT
from trainer.backbones.hub import resolve
from trainer.commands.backbone import backbone as command

pytestmark = pytest.mark.tf


# Aliases


def test_aliases_have_hub_handles_and_input_sizes() -> None:
    assert len({alias.handle for alias in NAMES.values()}) == len(NAMES) - len(BUILT) + 1
    for name, alias in NAMES.items():
        if name not in BUILT:
            assert re.fullmatch(r"https://tfhub\.dev/\S+/feature[_-]vector/\d", alias.handle), name
            assert find_alias(alias.handle) == alias
            assert find_alias(f"{alias.handle.rpartition('/')[0]}/1") == alias
        height, width = alias.image_size
        assert height == width
        stated = re.search(r"_(224|192|160|128|96)$", name)
        assert stated is None or int(stated[1]) == height
        assert alias.value_range == (0, 1)
        assert alias.parameters is None or 0.4 < alias.parameters < 120
    assert ALIASES.keys() == NAMES.keys() | SHORT.keys()


@pytest.mark.parametrize(
    ("address_", "name"),
    [
        (
            "https://www.kaggle.com/models/google/mobilenet-v1/TensorFlow2/025-128-feature-vector/2",
            "mobilenet_v1_025_128",
        ),
        (
            "https://www.kaggle.com/models/tensorflow/efficientnet/frameworks/TensorFlow2/variations/"
            "b4-feature-vector/versions/1",
            "efficientnet_b4",
        ),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector", "mobilenet_v2"),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/classification/5", None),
        ("https://www.kaggle.com/models/google/mobilenet-v2/TfJs/140-224-feature-vector/3", None),
        ("https://example.com/google/imagenet/mobilenet_v2_100_224/feature_vector/5", None),
        ("https://[tfhub.dev", None),
        ("https://tfhub.dev/tensorflow/efficientnet/lite4/feature-vector/2", "efficientnet_lite4"),
        ("no_such_name", None),
    ],
)
def test_an_address_is_mapped_to_the_alias_of_its_module(address_: str, name: str | None) -> None:
    assert find_alias(address_) == (ALIASES[name] if name else None)


@pytest.mark.parametrize(("kind", "size"), [("lite1", 240), ("lite2", 260)])
def test_an_alias_names_the_built_backbone_and_the_address_the_module(kind: str, size: int) -> None:
    built = ALIASES[f"efficientnet_{kind}"]
    assert (built.handle, built.image_size, built.licence) == ("", (size, size), "Apache-2.0")
    address = f"https://tfhub.dev/tensorflow/efficientnet/{kind}/feature-vector/2"
    module = find_alias(address)
    assert module is not None
    assert (module.handle, module.image_size) == (address, (size, size))


@pytest.mark.parametrize(
    ("handle", "hint"),
    [
        ("mobilenetv2", "Did you mean mobilenet_v2"),
        ("/no/such/directory", "hubhead backbone list"),
        (
            "google/imagenet/inception_v3/feature_vector/5",
            r"Did you mean https://tfhub\.dev/google/imagenet/inception_v3/feature_vector/5\?",
        ),
        (
            "tfhub.dev/google/imagenet/inception_v3/feature_vector/5",
            r"Did you mean https://tfhub\.dev/google/imagenet/inception_v3/feature_vector/5\?",
        ),
    ],
)
def test_an_unknown_handle_is_an_error_with_a_suggestion(handle: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=hint):
        resolve(handle, tmp_path)


# --architecture


@pytest.mark.parametrize("quantized", ["", "_quantized"])
@pytest.mark.parametrize(
    ("width", "depth"), [("1.0", 100), ("0.75", 75), ("0.50", 50), ("0.5", 50), ("0.25", 25)]
)
@pytest.mark.parametrize("size", [224, 192, 160, 128])
def test_every_mobilenet_of_the_architecture_flag_has_an_alias(
    width: str, depth: int, size: int, quantized: str
) -> None:
    found = resolve_architecture(f"MobileNet_{width}_{size}{quantized}")
    alias = ALIASES[found.alias]
    assert alias.handle.endswith(f"/mobilenet_v1_{depth:03}_{size}/feature_vector/5")
    assert alias.image_size == (size, size)
    assert ("float32" in found.note) == bool(quantized)


def test_the_architecture_flag_accepts_inception() -> None:
    assert resolve_architecture("inception_v3").alias == "inception_v3"
    assert len(ARCHITECTURES) == 17


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilenet_1.0_225", r"Did you mean mobilenet_1\.0_224\?"),
        ("mobilenet_2.0_224", "Did you mean mobilenet_"),
        ("inception_v4", "Did you mean inception_v3"),
        ("inception_v3_quantized", "Did you mean inception_v3"),
        ("mobilenet_1.0", r"Did you mean mobilenet_1\.0_"),
        ("resnet50", "Did you mean resnet_50"),
        ("efficientnet_b0", "Did you mean efficientnet_b0.*use --tfhub_module"),
        ("", r"mobilenet_<1\.0\|0\.75\|0\.50\|0\.25>_<224\|192\|160\|128>"),
    ],
)
def test_an_unknown_architecture_is_an_error_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"is not an architecture.*{hint}"):
        resolve_architecture(name)


# The command


def test_backbone_list_prints_the_aliases() -> None:
    result = CliRunner().invoke(command, ["list"], catch_exceptions=False)
    assert result.exit_code == 0
    for name, alias in NAMES.items():
        (line,) = (line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        height, width = alias.image_size
        shown = [f"{height} x {width}", alias.handle, alias.origin]
        shown += [str(alias.dimension)] if alias.dimension else []
        shown += [f"{alias.parameters:g} M"] if alias.parameters else []
        for expected in shown:
            assert expected in line
    for short, name in SHORT.items():
        assert f"{short} is short for {name}" in result.stdout


def test_backbone_list_has_a_filter_and_json_output() -> None:
    result = CliRunner().invoke(command, ["list", "v2", "100", "--json"], catch_exceptions=False)
    records = json.loads(result.stdout)
    assert [record["alias"] for record in records] == [
        f"mobilenet_v2_100_{size}" for size in (224, 192, 160, 128, 96)
    ]
    assert records[0] == {
        "alias": "mobilenet_v2_100_224",
        "handle": "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5",
        "image_size": [224, 224],
        "dimension": 1280,
        "origin": "TensorFlow Hub, google/imagenet",
        "parameters": 3.47,
        "value_range": [0, 1],
        "licence": "",
    }
    table = CliRunner().invoke(command, ["list", "lite"], catch_exceptions=False).stdout
    assert table.count("efficientnet_lite") == 6
    assert " is " not in table


@pytest.mark.parametrize("wrong", ["1", "a,b", "0,1,2", ""])
def test_a_value_range_must_be_two_numbers(wrong: str) -> None:
    result = CliRunner().invoke(command, ["show", "x", f"--value_range={wrong}"])
    assert result.exit_code == 2
    assert "Give two numbers, as in 0,255." in result.output
