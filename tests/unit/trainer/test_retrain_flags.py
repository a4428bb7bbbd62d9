"""Command lines of retrain.py and make_image_classifier work, and every flag says what became of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from serving.errors import InputError
from trainer.commands.retrain_flags import (
    ABSENT,
    FLAGS,
    Flag,
    FlagOption,
    Here,
    RetrainCommand,
    explain,
    retrain_options,
    translate,
)
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

OTHERS = [flag for flag in FLAGS.values() if flag.here is not Here.SAME]


@click.command(cls=RetrainCommand)
@retrain_options
@click.option("--image_dir", required=True)
@click.option("--tfhub_module", default="efficientnet_lite0")
@click.option("--embedding_store", default="store")
@click.option("--output_labels", type=click.Path(path_type=Path))
@click.option("--validation_percentage", default=10.0)
@click.option("--random_crop", default=0)
@click.pass_context
def command(_context: click.Context, **values: Any) -> None:
    """A command that has some of the flags itself."""
    click.echo(repr(dict(sorted(values.items()))))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["--image_dir", "photos", *arguments], catch_exceptions=False)


def called(*arguments: str) -> dict[str, Any]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = eval(result.stdout, {"PosixPath": Path})
    return found


def example(flag: Flag) -> list[str]:
    """A way to write the flag as its tool took it."""
    if flag.kind is bool:
        return [f"--{flag.name}"]
    if flag.choices:
        return [f"--{flag.name}={flag.choices[-1]}"]
    value = {int: "-1", float: "0.25", str: "/tmp/x"}[flag.kind]
    return [f"--{flag.name}", "mobilenet_0.50_160" if flag.name == "architecture" else value]


# The table


def test_the_table_has_every_flag_of_both_tools_and_no_other() -> None:
    retrain, classifier = set(RETRAIN.split()), set(CLASSIFIER.split())
    assert {name for name, flag in FLAGS.items() if flag.retrain is not ABSENT} == retrain
    assert {name for name, flag in FLAGS.items() if flag.classifier is not ABSENT} == classifier
    assert FLAGS.keys() == retrain | classifier


def test_a_flag_is_called_the_same_where_hubhead_train_has_it_and_only_there() -> None:
    declared = {parameter.name for parameter in train.params if not isinstance(parameter, FlagOption)}
    assert {flag.name for flag in FLAGS.values() if flag.here is Here.SAME} == FLAGS.keys() & declared
    assert {flag.to for flag in OTHERS if flag.here is Here.TAKEN} <= declared


def test_what_a_flag_is_replaced_by_exists() -> None:
    declared = {parameter.name for parameter in train.params if not isinstance(parameter, FlagOption)}
    named = {name for flag in OTHERS for name in re.findall(r"--(\w+)", f"{flag.to} {flag.why}")}
    assert named <= declared
    assert {"flip_left_right", "random_crop", "random_scale", "fine_tune", "saved_model_dir"} <= named


@pytest.mark.parametrize("flag", OTHERS, ids=lambda flag: flag.name)
def test_every_flag_that_is_not_the_same_says_why_in_one_sentence(flag: Flag) -> None:
    assert (flag.convert is not None) == (flag.here is Here.TAKEN)
    assert bool(flag.to) == (flag.here in (Here.TAKEN, Here.REPLACED))
    assert flag.why or flag.here is Here.TAKEN
    value = "inception_v3" if flag.name == "architecture" else flag.kind(1)
    (sentence,) = explain({flag.name: value})
    assert sentence.startswith(f"--{flag.name} ")
    assert sentence.endswith(".")
    assert not sentence.endswith("..")


# Explaining and translating


def test_flags_are_explained_in_the_order_of_the_table_and_the_same_ones_are_not() -> None:
    given = {"how_many_training_steps": 500, "image_dir": "x", "output_graph": "g.pb", "no_such_flag": 1}
    assert explain(given) == [
        "--output_graph has no effect, it is replaced by --saved_model_dir: a SavedModel from photo bytes to "
        "labels comes in place of a frozen graph.",
        "--how_many_training_steps has no effect: the head is solved for exactly, not approached in steps.",
    ]
    assert explain({}) == explain({"flip_left_right": None, "do_fine_tuning": False}) == []


def test_flags_are_translated() -> None:
    given = {
        "architecture": "mobilenet_0.50_160",
        "bottleneck_dir": "/tmp/bottleneck",
        "labels_output_file": "labels.txt",
        "validation_split": 0.07,
        "learning_rate": 0.1,
        "image_dir": "photos",
    }
    assert translate(given) == {
        "tfhub_module": "mobilenet_v1_050_160",
        "embedding_store": "/tmp/bottleneck",
        "output_labels": Path("labels.txt"),
        "validation_percentage": 7.0,
    }


def test_a_quantised_architecture_says_what_it_is_now() -> None:
    first, second = explain({"architecture": "mobilenet_1.0_224_quantized"})
    assert first.startswith(
        "--architecture mobilenet_1.0_224_quantized is taken as --tfhub_module mobilenet_v1_100_224"
    )
    assert "float32" in second


@pytest.mark.parametrize("function", [explain, translate])
def test_an_unknown_architecture_is_an_error(function: Any) -> None:
    with pytest.raises(InputError, match="no architecture"):
        function({"architecture": "mobilenet_3.0_224"})


# The options


@pytest.mark.parametrize("flag", OTHERS, ids=lambda flag: flag.name)
def test_every_flag_is_accepted_as_its_tool_took_it(flag: Flag) -> None:
    result = run(*example(flag))
    assert result.exit_code == 0, result.output
    if flag.name != "random_crop":
        assert f"--{flag.name} " in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_all_flags_at_once_are_accepted() -> None:
    every = [word for flag in OTHERS if flag.to != "output_labels" for word in example(flag)]
    assert run(*every).exit_code == 0


def test_without_such_flags_nothing_is_said_and_nothing_is_passed_on() -> None:
    assert run().stderr == ""
    assert called().keys() == {
        "image_dir",
        "tfhub_module",
        "embedding_store",
        "output_labels",
        "validation_percentage",
        "random_crop",
    }


def test_what_a_flag_means_reaches_the_command() -> None:
    found = called("--architecture=mobilenet_0.25_128", "--validation_split", "0.2", "--bottleneck_dir=b")
    assert found["tfhub_module"] == "mobilenet_v1_025_128"
    assert (found["validation_percentage"], found["embedding_store"]) == (20.0, "b")
    assert called("--labels_output_file", "l.txt")["output_labels"] == Path("l.txt")


def test_a_flag_that_the_command_declares_itself_is_its_own() -> None:
    assert called("--random_crop", "5")["random_crop"] == 5
    assert run("--random_crop", "5").stderr == ""


def test_a_flag_and_what_it_is_taken_as_exclude_each_other() -> None:
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
def test_a_switch_of_make_image_classifier_that_is_off_needs_no_word(spelled: str) -> None:
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
def test_a_value_that_means_nothing_is_wrong_usage(wrong: list[str]) -> None:
    assert run(*wrong).exit_code == 2


def test_the_help_names_them_in_one_paragraph() -> None:
    text = run("--help").output
    assert "Flags of retrain.py and make_image_classifier:" in text
    named = " ".join(text.split("Flags of retrain.py and make_image_classifier:")[1].split())
    for flag in OTHERS:
        assert (f"--{flag.name}," in named or f"--{flag.name}." in named) == (flag.name != "random_crop")
    assert "--nodo_fine_tuning" not in text


def test_the_table_is_printed_without_the_required_options() -> None:
    result = CliRunner(env={"COLUMNS": "240"}).invoke(command, ["--help-retrain"], catch_exceptions=False)
    assert result.exit_code == 0
    for flag in FLAGS.values():
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"  --{flag.name} "))
        assert flag.meaning().split(":")[0] in line
