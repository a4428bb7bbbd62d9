"""Command lines of retrain.py and make_image_classifier keep working, and every changed flag is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from serving.errors import InputError
from trainer.commands.retrain_flag_table import ABSENT, LEGACY_FLAGS, LegacyFlag, Support
from trainer.commands.retrain_flags import RetrainCommand, explain_flags, translate_flags
from trainer.commands.train import train

RETRAIN = """
image_dir output_graph intermediate_output_graphs_dir intermediate_store_frequency output_labels
summaries_dir how_many_training_steps learning_rate testing_percentage validation_percentage
eval_step_interval train_batch_size test_batch_size validation_batch_size
print_misclassified_test_images bottleneck_dir final_tensor_name flip_left_right random_crop
random_scale random_brightness tfhub_module saved_model_dir logging_verbosity checkpoint_path
architecture model_dir
"""
"""tensorflow/hub's examples/image_retraining/retrain.py; the last two are tensorflow-for-poets-2's."""

CLASSIFIER = """
image_dir tfhub_module image_size saved_model_dir tflite_output_file labels_output_file summaries_dir
assert_accuracy_at_least train_epochs do_fine_tuning batch_size learning_rate momentum dropout_rate
set_memory_growth l1_regularizer l2_regularizer label_smoothing validation_split do_data_augmentation
rotation_range horizontal_flip width_shift_range height_shift_range shear_range zoom_range
distribution_strategy use_tf_data_input
"""
"""tensorflow_hub/tools/make_image_classifier, 0.13."""

OTHERS = [flag for flag in LEGACY_FLAGS.values() if flag.support is not Support.UNCHANGED]


@click.command(cls=RetrainCommand)
@click.option("--image_dir", required=True)
@click.option("--tfhub_module", default="efficientnet_lite0")
@click.option("--embedding_store", default="store")
@click.option("--output_labels", type=click.Path(path_type=Path))
@click.option("--validation_percentage", default=10.0)
@click.option("--random_crop", default=0)
@click.pass_context
def command(_context: click.Context, /, **values: Any) -> None:
    """Command that declares some of the flags itself."""
    click.echo(repr(dict(sorted(values.items()))))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["--image_dir", "photos", *arguments], catch_exceptions=False)


def parsed_options(*arguments: str) -> dict[str, Any]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = eval(result.stdout, {"PosixPath": Path})
    return found


def example(flag: LegacyFlag) -> list[str]:
    """Return arguments that give the flag in the syntax of its tool."""
    if flag.kind is bool:
        return [f"--{flag.name}"]
    if flag.choices:
        return [f"--{flag.name}={flag.choices[-1]}"]
    value = {int: "-1", float: "0.25", str: "/tmp/x"}[flag.kind]
    return [f"--{flag.name}", "mobilenet_0.50_160" if flag.name == "architecture" else value]


def declared_options() -> set[str | None]:
    """Return the names of the options that hubhead train declares itself."""
    return {option.name for option in train.params if isinstance(option, click.Option) and not option.hidden}


# The table


def test_the_table_lists_every_flag_of_both_tools_and_no_other() -> None:
    retrain, classifier = set(RETRAIN.split()), set(CLASSIFIER.split())
    assert {name for name, flag in LEGACY_FLAGS.items() if flag.retrain is not ABSENT} == retrain
    assert {name for name, flag in LEGACY_FLAGS.items() if flag.classifier is not ABSENT} == classifier
    assert LEGACY_FLAGS.keys() == retrain | classifier


def test_unchanged_flags_are_exactly_those_that_hubhead_train_declares() -> None:
    declared = declared_options()
    assert {
        flag.name for flag in LEGACY_FLAGS.values() if flag.support is Support.UNCHANGED
    } == LEGACY_FLAGS.keys() & declared
    assert {flag.to for flag in OTHERS if flag.support is Support.ALIAS} <= declared


def test_replacements_of_flags_exist() -> None:
    declared = declared_options()
    named = {name for flag in OTHERS for name in re.findall(r"--(\w+)", f"{flag.to} {flag.why}")}
    assert named <= declared
    assert {"flip_left_right", "random_crop", "random_scale", "fine_tune", "saved_model_dir"} <= named


@pytest.mark.parametrize("flag", OTHERS, ids=lambda flag: flag.name)
def test_every_changed_flag_is_explained_in_one_sentence(flag: LegacyFlag) -> None:
    assert (flag.convert is not None) == (flag.support is Support.ALIAS)
    assert bool(flag.to) == (flag.support in (Support.ALIAS, Support.REPLACED))
    assert flag.why or flag.support is Support.ALIAS
    value = "inception_v3" if flag.name == "architecture" else flag.kind(1)
    (sentence,) = explain_flags({flag.name: value})
    assert sentence.startswith(f"--{flag.name} ")
    assert sentence.endswith(".")
    assert not sentence.endswith("..")


# Explaining and translating


def test_changed_flags_are_explained_in_table_order_and_unchanged_ones_are_not() -> None:
    given = {"how_many_training_steps": 500, "image_dir": "x", "output_graph": "g.pb", "no_such_flag": 1}
    assert explain_flags(given) == [
        "--output_graph has no effect; use --saved_model_dir instead: the result is a SavedModel from photo "
        "bytes to labels, not a frozen graph.",
        "--how_many_training_steps has no effect: the head is fitted to convergence; there are no gradient "
        "steps to configure.",
    ]
    assert explain_flags({}) == explain_flags({"flip_left_right": None, "do_fine_tuning": False}) == []


def test_aliases_are_translated() -> None:
    given = {
        "architecture": "mobilenet_0.50_160",
        "bottleneck_dir": "/tmp/bottleneck",
        "labels_output_file": "labels.txt",
        "validation_split": 0.07,
        "learning_rate": 0.1,
        "image_dir": "photos",
    }
    assert translate_flags(given) == {
        "tfhub_module": "mobilenet_v1_050_160",
        "embedding_store": "/tmp/bottleneck",
        "output_labels": Path("labels.txt"),
        "validation_percentage": 7.0,
    }


def test_a_quantised_architecture_is_explained() -> None:
    first, second = explain_flags({"architecture": "mobilenet_1.0_224_quantized"})
    assert first.startswith(
        "--architecture mobilenet_1.0_224_quantized is taken as --tfhub_module mobilenet_v1_100_224"
    )
    assert "float32" in second


@pytest.mark.parametrize("function", [explain_flags, translate_flags])
def test_an_unknown_architecture_is_an_error(function: Any) -> None:
    with pytest.raises(InputError, match="is not an architecture"):
        function({"architecture": "mobilenet_3.0_224"})


# The options


@pytest.mark.parametrize("flag", OTHERS, ids=lambda flag: flag.name)
def test_every_flag_is_accepted_in_the_syntax_of_its_tool(flag: LegacyFlag) -> None:
    result = run(*example(flag))
    assert result.exit_code == 0, result.output
    if flag.name != "random_crop":
        assert f"--{flag.name} " in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_all_flags_at_once_are_accepted() -> None:
    every = [word for flag in OTHERS if flag.to != "output_labels" for word in example(flag)]
    assert run(*every).exit_code == 0


def test_without_legacy_flags_nothing_is_printed_or_passed_on() -> None:
    assert run().stderr == ""
    assert parsed_options().keys() == {
        "image_dir",
        "tfhub_module",
        "embedding_store",
        "output_labels",
        "validation_percentage",
        "random_crop",
    }


def test_translated_values_reach_the_command() -> None:
    found = parsed_options(
        "--architecture=mobilenet_0.25_128", "--validation_split", "0.2", "--bottleneck_dir=b"
    )
    assert found["tfhub_module"] == "mobilenet_v1_025_128"
    assert (found["validation_percentage"], found["embedding_store"]) == (20.0, "b")
    assert parsed_options("--labels_output_file", "l.txt")["output_labels"] == Path("l.txt")


def test_a_flag_that_the_command_declares_is_left_to_it() -> None:
    assert parsed_options("--random_crop", "5")["random_crop"] == 5
    assert run("--random_crop", "5").stderr == ""


def test_an_alias_and_its_flag_are_mutually_exclusive() -> None:
    result = run("--architecture", "inception_v3", "--tfhub_module", "mobilenet_v2")
    assert result.exit_code == 2
    assert "--architecture is taken as --tfhub_module, which is given too" in result.output


@pytest.mark.parametrize("spelled", ["--do_fine_tuning", "--do_fine_tuning=true", "--do_fine_tuning=1"])
def test_a_switch_of_make_image_classifier_is_on(spelled: str) -> None:
    assert "--do_fine_tuning has no effect" in run(spelled, "--batch_size", "8").stderr


@pytest.mark.parametrize(
    "spelled",
    ["--nodo_fine_tuning", "--do_fine_tuning=false", "--nouse_tf_data_input", "--nohorizontal_flip"],
)
def test_a_switch_of_make_image_classifier_that_is_off_prints_nothing(spelled: str) -> None:
    result = run(spelled)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--how_many_training_steps", "many"],
        ["--learning_rate=fast"],
        ["--logging_verbosity", "LOUD"],
        ["--distribution_strategy", "none"],
        ["--do_fine_tuning=perhaps"],
        ["--architecture", "mobilenet"],
        ["--no_such_flag", "3"],
    ],
)
def test_an_invalid_value_is_a_usage_error(wrong: list[str]) -> None:
    assert run(*wrong).exit_code == 2


def test_the_help_lists_all_accepted_flags_in_one_paragraph() -> None:
    text = run("--help").output
    assert "Flags of retrain.py and make_image_classifier:" in text
    named = " ".join(text.split("Flags of retrain.py and make_image_classifier:")[1].split())
    for flag in OTHERS:
        assert (f"--{flag.name}," in named or f"--{flag.name}." in named) == (flag.name != "random_crop")
    assert "--nodo_fine_tuning" not in text


def test_help_retrain_prints_the_table_without_required_options() -> None:
    result = CliRunner(env={"COLUMNS": "240"}).invoke(command, ["--help-retrain"], catch_exceptions=False)
    assert result.exit_code == 0
    for flag in LEGACY_FLAGS.values():
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"  --{flag.name} "))
        assert flag.describe().split(":")[0] in line
