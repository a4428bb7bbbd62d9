"""TensorFlow Serving's model.config: the version policy and the version labels of a model.

Only these two fields of one model are ever changed; the text around them, comments included, is kept.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from serving import protos
from serving.errors import InputError
from serving.storage import files
from serving.storage.address import Address

_TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | [{}<>\[\]:,;] | [^\s{}<>\[\]:,;\#"']+""",
    re.VERBOSE,
)
_OPENING_BRACKETS, _CLOSING_BRACKETS = "{<[", "}>]"
_NO_NAME = "{}<>[]:,;\"'"
"""First characters of the tokens that do not begin a field; a name after a colon is a value."""

_MANAGED_FIELDS = ("model_version_policy", "version_labels")


@dataclass(frozen=True)
class ModelConfig:
    """Version policy and labels of one model.

    Attributes:
        labels: version of each label.
        latest: number of newest versions served; 0 if `specific` or `everything` selects them.
        specific: versions served by number.
        everything: True if all versions are served.
    """

    labels: Mapping[str, int]
    latest: int = 0
    specific: tuple[int, ...] = ()
    everything: bool = False

    def served_versions(self, versions: Collection[int]) -> tuple[int, ...]:
        """Return those of the given versions that the policy serves, ascending."""
        if self.everything:
            return tuple(sorted(versions))
        if self.latest:
            return tuple(sorted(versions)[-self.latest :])
        return tuple(sorted(set(self.specific) & set(versions)))


NEWEST = ModelConfig({}, latest=1)
"""Policy of a server that is given a base path and no model.config: the newest version is served."""


def parse(path: Address) -> protos.Message:
    """Parse the whole file as a ModelServerConfig.

    Raises:
        InputError: the file cannot be read or is not a ModelServerConfig.
    """
    from serving.server.config.files import parse_text_proto

    return parse_text_proto(files.read_text(path), protos.ModelServerConfig(), path)


def read(path: Address, model: str) -> ModelConfig:
    """Read the version policy and labels of one model.

    Raises:
        InputError: the file cannot be parsed, or does not contain the model.
    """
    entry = _find_entry(path, parse(path), model)
    policy = entry.model_version_policy
    labels = dict(sorted(entry.version_labels.items()))
    match policy.WhichOneof("policy_choice"):
        case "all":
            return ModelConfig(labels, everything=True)
        case "specific":
            return ModelConfig(labels, specific=tuple(sorted(policy.specific.versions)))
        case _:
            return ModelConfig(labels, latest=policy.latest.num_versions or 1)


def edit(path: Address, model: str, *, versions: Collection[int] | None, labels: Mapping[str, int]) -> str:
    """Return the text of a configuration with other versions and labels of one model.

    Args:
        path: the present configuration.
        model: name of the model; the entries of other models stay as they are.
        versions: versions to serve; None keeps the policy.
        labels: all labels of the model.

    Raises:
        InputError: see `read`.
    """
    changed = parse(path)
    entry = _find_entry(path, changed, model)
    number = next(n for n, other in enumerate(changed.model_config_list.config) if other.name == model)
    if versions is not None:
        entry.model_version_policy.Clear()
        entry.model_version_policy.specific.versions.extend(sorted(versions))
    entry.version_labels.clear()
    entry.version_labels.update(labels)
    return _render(files.read_text(path), changed, number)


def _find_entry(path: Address, config: protos.Message, model: str) -> protos.Message:
    names = [entry.name for entry in config.model_config_list.config]
    if model not in names:
        raise InputError(
            f"{path} has no model {model!r}; it has {', '.join(map(repr, names)) or 'none'}.",
            remedy="Give --model_name, or add it: model_config_list { config { "
            f'name: "{model}" base_path: "/models/{model}" model_platform: "tensorflow" }} }}',
        )
    return config.model_config_list.config[names.index(model)]


def _render(text: str, wanted: protos.Message, number: int) -> str:
    """Return the text edited to match the wanted message; if it cannot be edited, format the message anew."""
    from google.protobuf import text_format

    edited = _edit_text(text, wanted, number)
    with suppress(text_format.ParseError):
        if edited and text_format.Parse(edited, protos.ModelServerConfig()) == wanted:
            return edited
    return str(text_format.MessageToString(wanted, as_utf8=True))


def _edit_text(text: str, wanted: protos.Message, number: int) -> str | None:
    """Replace the managed fields of the model at index `number`; return None if the model is not found."""
    from google.protobuf import text_format

    blocks = [
        block
        for models in _scan_fields(text, 0, len(text))
        if models.name == "model_config_list" and models.body
        for block in _scan_fields(text, *models.body)
        if block.name == "config"
    ]
    if len(blocks) != len(wanted.model_config_list.config) or blocks[number].body is None:
        return None
    begin, end = blocks[number].body or (0, 0)
    fields = _scan_fields(text, begin, end)
    if not fields:
        return None
    own = protos.ModelConfig()
    own.CopyFrom(wanted.model_config_list.config[number])
    for descriptor, _ in own.ListFields():
        if descriptor.name not in _MANAGED_FIELDS:
            own.ClearField(descriptor.name)
    # Indent the new fields as the first field of the entry.
    indent = text[text.rfind("\n", 0, fields[0].begin) + 1 : fields[0].begin]
    new = textwrap.indent(
        text_format.MessageToString(own, as_utf8=True), "    " if indent.strip() else indent
    )
    kept = text[begin:end]
    # Cut from the end, so that the offsets of the fields before stay valid.
    for field in reversed([field for field in fields if field.name in _MANAGED_FIELDS]):
        left, right = kept[: field.begin - begin].rstrip(" \t"), kept[field.end - begin :]
        kept = left.removesuffix("\n") + right
    closing = text[text.rfind("\n", 0, end) + 1 : end]
    return f"{text[:begin]}{kept.rstrip()}\n{new}{'' if closing.strip() else closing}{text[end:]}"


@dataclass
class _Field:
    """A field of the text format.

    Attributes:
        name: field name.
        begin: offset of its first character.
        end: offset behind its value and separator.
        body: (begin, end) of the text between the brackets of a message value; None for other values.
    """

    name: str
    begin: int
    end: int
    body: tuple[int, int] | None = None


def _scan_fields(text: str, begin: int, end: int) -> list[_Field]:
    """Return the fields between two offsets of valid text, without the fields nested in them."""
    found: list[_Field] = []
    depth, previous = 0, ""
    for match in _TOKEN.finditer(text, begin, end):
        token = match[0]
        if token[0] == "#":
            continue
        depth -= token in _CLOSING_BRACKETS
        if depth == 0 and previous != ":" and token[0] not in _NO_NAME:
            found.append(_Field(token, match.start(), match.end()))
        elif depth == 0 and found:
            # Offsets between the brackets of a message: a list of messages has none of its own.
            if token in ("{", "<"):
                found[-1].body = (match.end(), match.end())
            elif token in ("}", ">") and found[-1].body:
                found[-1].body = (found[-1].body[0], match.start())
            found[-1].end = match.end()
        depth += token in _OPENING_BRACKETS
        previous = token
    return found
