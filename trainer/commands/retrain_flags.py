"""The flags of the tools that `hubhead train` takes over from, and what became of each.

`retrain.py` is hub/examples/image_retraining (tensorflow/hub) with what the tensorflow-for-poets-2
variant has more, `make_image_classifier` the tool of tensorflow-hub 0.13. A command line of theirs
works: what hubhead has is taken, the rest is accepted with one sentence each, and nothing is
ignored in silence as there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import click

from serving.errors import InputError
from trainer.backbones.aliases import architecture


class Here(StrEnum):
    """What a flag is to `hubhead train`."""

    SAME = "the same"
    TAKEN = "taken as another flag"
    REPLACED = "replaced"
    WITHOUT_EFFECT = "without effect"


class _Absent:
    def __repr__(self) -> str:
        return ""


ABSENT = _Absent()
"""The default of a flag that the tool does not have."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of an older tool.

    Attributes:
        name: without the dashes.
        here: what it is to `hubhead train`.
        kind: of its value.
        retrain: its default in retrain.py.
        classifier: its default in make_image_classifier.
        to: what it is taken as (a flag's name) or replaced by (as people write it).
        why: the rest of the sentence for people; what is different, for SAME.
        convert: its value -> that of the flag it is taken as.
        choices: the values it has there.
    """

    name: str
    here: Here
    kind: type = str
    retrain: Any = ABSENT
    classifier: Any = ABSENT
    to: str = ""
    why: str = ""
    convert: Callable[[Any], Any] | None = None
    choices: tuple[str, ...] = ()

    def meaning(self) -> str:
        """What it is here, in a few words."""
        what = {
            Here.SAME: "the same",
            Here.TAKEN: f"taken as --{self.to}",
            Here.REPLACED: f"replaced by {self.to}",
            Here.WITHOUT_EFFECT: "no effect",
        }[self.here]
        return f"{what}: {self.why}" if self.why else what

    def sentence(self, value: Any) -> str:
        """What to say where it is given."""
        if self.here is Here.TAKEN and self.convert:
            why = f" ({self.why})" if self.why else ""
            return f"--{self.name} {value} is taken as --{self.to} {self.convert(value)}{why}."
        if self.here is Here.REPLACED:
            return f"--{self.name} has no effect, it is replaced by {self.to}: {self.why}."
        return f"--{self.name} has no effect: {self.why}."


_SOLVED = "the head is solved for exactly, not approached in steps"
_AT_ONCE = "all training photos count at once"
_STRENGTH = "the strength of regularisation is chosen on held-out photos"
_VIEWS = "of --views random views of each photo, which are kept"
_EACH = "each asks for random views of the photos by itself"


def _flags() -> list[Flag]:
    same, taken, replaced, without = Here
    return [
        Flag("image_dir", same, retrain="", classifier=None),
        Flag(
            "output_labels",
            same,
            retrain="/tmp/output_labels.txt",
            why="labels are written as the directories are named; the bundle has them as assets/labels.txt",
        ),
        Flag("testing_percentage", same, float, retrain=10),
        Flag("validation_percentage", same, float, retrain=10),
        Flag("print_misclassified_test_images", same, bool, retrain=False),
        Flag(
            "tfhub_module",
            same,
            retrain="https://tfhub.dev/google/imagenet/inception_v3/feature_vector/3",
            classifier="https://tfhub.dev/google/tf2-preview/mobilenet_v2/feature_vector/4",
        ),
        Flag(
            "saved_model_dir",
            same,
            retrain="",
            classifier=None,
            why="each run adds a numbered version below it; the signatures take photo bytes",
        ),
        Flag(
            "architecture",
            taken,
            retrain="inception_v3",
            to="tfhub_module",
            convert=lambda name: architecture(name).alias,
            why="of MobileNets the features, not their class scores as there",
        ),
        Flag(
            "bottleneck_dir",
            taken,
            retrain="/tmp/bottleneck",
            to="embedding_store",
            convert=str,
            why="embeddings are kept by the photos' content; retrain.py's text files are not read",
        ),
        Flag(
            "model_dir",
            replaced,
            retrain="/tmp/imagenet",
            to="$TFHUB_CACHE_DIR",
            why="backbones are kept there, else below $HUBHEAD_CACHE_DIR",
        ),
        Flag(
            "output_graph",
            replaced,
            retrain="/tmp/output_graph.pb",
            to="--saved_model_dir",
            why="a SavedModel from photo bytes to labels comes in place of a frozen graph",
        ),
        Flag("how_many_training_steps", without, int, retrain=4000, why=_SOLVED),
        Flag("learning_rate", without, float, retrain=0.01, classifier=0.005, why=_SOLVED),
        Flag("eval_step_interval", without, int, retrain=10, why=_SOLVED),
        Flag("train_batch_size", without, int, retrain=100, why=_AT_ONCE),
        Flag("test_batch_size", without, int, retrain=-1, why="every test photo is tested, as with -1 there"),
        Flag(
            "validation_batch_size",
            without,
            int,
            retrain=100,
            why="every validation photo counts, as with -1 there",
        ),
        Flag("intermediate_store_frequency", without, int, retrain=0, why=_SOLVED),
        Flag("intermediate_output_graphs_dir", without, retrain="/tmp/intermediate_graph/", why=_SOLVED),
        Flag(
            "checkpoint_path",
            without,
            retrain="/tmp/_retrain_checkpoint",
            why="a run that was stopped goes on from the embedding store",
        ),
        Flag(
            "summaries_dir",
            same,
            retrain="/tmp/retrain_logs",
            classifier=None,
            why="a step is a candidate for C; what is there already stays",
        ),
        Flag(
            "final_tensor_name",
            without,
            retrain="final_result",
            why="the outputs are named label, classes, scores and status",
        ),
        Flag("flip_left_right", same, bool, retrain=False, why=_VIEWS),
        Flag("random_crop", same, int, retrain=0, why=_VIEWS),
        Flag("random_scale", same, int, retrain=0, why=_VIEWS),
        Flag("random_brightness", same, int, retrain=0, why=_VIEWS),
        Flag(
            "logging_verbosity",
            without,
            retrain="INFO",
            choices=("DEBUG", "INFO", "WARN", "ERROR", "FATAL"),
            why="what a user should know is said on stderr, results on stdout",
        ),
        Flag(
            "labels_output_file",
            taken,
            classifier=None,
            to="output_labels",
            convert=Path,
        ),
        Flag(
            "validation_split",
            taken,
            float,
            classifier=0.2,
            to="validation_percentage",
            convert=lambda share: round(100 * share, 9),
            why="beside them the test photos of --testing_percentage are held out",
        ),
        Flag("image_size", same, int, classifier=None),
        Flag(
            "tflite_output_file",
            same,
            classifier=None,
            why="pixels from 0 to 255 in place of 0 to 1, labels inside; the bundle has it too",
        ),
        Flag("assert_accuracy_at_least", same, float, classifier=None, why="on the test photos; exit code 4"),
        Flag("train_epochs", without, int, classifier=5, why=_SOLVED),
        Flag("batch_size", without, int, classifier=32, why=_AT_ONCE),
        Flag("momentum", without, float, classifier=0.9, why=_SOLVED),
        Flag("dropout_rate", without, float, classifier=0.2, why=_STRENGTH),
        Flag("l1_regularizer", without, float, classifier=0.0, why=_STRENGTH),
        Flag("l2_regularizer", without, float, classifier=0.0001, why=_STRENGTH),
        Flag(
            "label_smoothing",
            without,
            float,
            classifier=0.1,
            why="a temperature, chosen on held-out photos, calibrates the probabilities",
        ),
        Flag(
            "do_fine_tuning",
            replaced,
            bool,
            classifier=False,
            to="--fine_tune",
            why="the last layers are trained on, from a fitted head",
        ),
        Flag(
            "do_data_augmentation",
            replaced,
            bool,
            classifier=False,
            to="--flip_left_right, --random_crop, --random_scale",
            why=_EACH,
        ),
        Flag(
            "rotation_range",
            without,
            int,
            classifier=40,
            why="views are not turned; Exif turns photos",
        ),
        Flag("horizontal_flip", replaced, bool, classifier=True, to="--flip_left_right", why=_EACH),
        Flag("width_shift_range", replaced, float, classifier=0.2, to="--random_crop", why=_EACH),
        Flag("height_shift_range", replaced, float, classifier=0.2, to="--random_crop", why=_EACH),
        Flag("shear_range", without, float, classifier=0.0, why="views are not sheared, as by default there"),
        Flag("zoom_range", replaced, float, classifier=0.2, to="--random_scale", why=_EACH),
        Flag(
            "set_memory_growth",
            replaced,
            bool,
            classifier=False,
            to="TF_FORCE_GPU_ALLOW_GROWTH=true",
            why="TensorFlow reads that variable of the environment",
        ),
        Flag(
            "distribution_strategy",
            without,
            classifier=None,
            choices=("", "mirrored"),
            why="the photos are embedded on all cores of the machine",
        ),
        Flag("use_tf_data_input", without, bool, classifier=None, why="photos are read in one way alone"),
    ]


FLAGS = {flag.name: flag for flag in _flags()}


def explain(given: Mapping[str, object]) -> list[str]:
    """One sentence for each flag that is given and is not what it was, in the order of the table.

    Args:
        given: name -> value of flags on the command line; others than the table's are passed over,
            and so are switches that are turned off.

    Raises:
        InputError: a value means nothing.
    """
    sentences = []
    for flag in FLAGS.values():
        if flag.here is not Here.SAME and given.get(flag.name) not in (None, False):
            sentences.append(flag.sentence(given[flag.name]))
            if flag.name == "architecture":
                note = architecture(str(given[flag.name])).note
                sentences += [note] if note else []
    return sentences


def translate(given: Mapping[str, object]) -> dict[str, object]:
    """What the given flags mean in flags of `hubhead train`: name -> value.

    Raises:
        InputError: a value means nothing.
    """
    return {
        flag.to: flag.convert(given[flag.name])
        for flag in FLAGS.values()
        if flag.convert and given.get(flag.name) is not None
    }


class FlagOption(click.Option):
    """A hidden option that stands for a flag of the table."""


def retrain_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command accept all flags of the table, on top of the options that it declares itself.

    To be the first decorator below @click.command. The function is called without them: what they
    mean in its own options is put there, and a sentence for each goes to stderr.
    """
    declared = {parameter.name for parameter in getattr(command, "__click_params__", ())}
    added = [flag for flag in FLAGS.values() if flag.name not in declared and flag.here is not Here.SAME]

    @functools.wraps(command)
    def wrapped(*arguments: Any, **values: Any) -> Any:
        context = click.get_current_context()
        given = {}
        for flag in added:
            value, negated = values.pop(flag.name), values.pop(f"no{flag.name}", None)
            if negated:
                given[flag.name] = False
            elif _stated(context, flag.name):
                given[flag.name] = value
        try:
            sentences, meant = explain(given), translate(given)
        except InputError as error:
            raise click.UsageError(str(error)) from error
        for name, value in meant.items():
            if _stated(context, name):
                old = next(flag.name for flag in added if flag.name in given and flag.to == name)
                raise click.UsageError(f"--{old} is taken as --{name}, which is given too: leave one out.")
            values[name] = value
        for sentence in sentences:
            click.echo(sentence, err=True)
        return command(*arguments, **values)

    for flag in added:
        for option in _options(flag):
            option(wrapped)
    return click.option(
        "--help-retrain",
        "--help_retrain",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_table,
        help="What became of the flags of retrain.py and make_image_classifier, and exit.",
    )(wrapped)


class RetrainCommand(click.Command):
    """A command with `retrain_options`, whose --help names them all in one paragraph."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As any command's, then that paragraph."""
        super().format_options(ctx, formatter)
        added = {option.name for option in self.params if isinstance(option, FlagOption)}
        shown = ", ".join(f"--{name}" for name in FLAGS if name in added)
        with formatter.section("Flags of retrain.py and make_image_classifier"):
            formatter.write_text(f"Accepted too, and explained by --help-retrain: {shown}.")


def _options(flag: Flag) -> list[Callable[..., Any]]:
    """The click options of a flag; absl's switches take a value and can be negated, argparse's not."""
    attributes: dict[str, Any] = {"cls": FlagOption, "hidden": True, "default": None}
    if flag.kind is bool and flag.classifier is ABSENT:
        return [click.option(f"--{flag.name}", is_flag=True, **attributes)]
    if flag.kind is bool:
        switch: dict[str, Any] = {"type": bool, "is_flag": False, "flag_value": "true"}
        return [
            click.option(f"--{flag.name}", **switch, **attributes),
            click.option(f"--no{flag.name}", is_flag=True, **attributes),
        ]
    kind = click.Choice(flag.choices) if flag.choices else flag.kind
    return [click.option(f"--{flag.name}", type=kind, **attributes)]


def _stated(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _print_table(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("flag", no_wrap=True)
    for column in ("default in retrain.py", "in make_image_classifier", "hubhead train"):
        table.add_column(column, overflow="fold")
    for flag in FLAGS.values():
        table.add_row(f"--{flag.name}", _shown(flag.retrain), _shown(flag.classifier), flag.meaning())
    Console().print(table)
    context.exit()


def _shown(default: Any) -> str:
    return "none" if default in (None, "") else str(default)
