"""TensorFlow Serving's model.config: the version policy and the version labels of a model.

Only these two fields of one model are ever changed; the text around them, comments included, is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from serving import protos
from serving.errors import InputError
from serving.storage import files
from serving.storage.address import Address

_TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | [{}<>\[\]:,;] | [^\s{}<>\[\]:,;\#"']+""",
    re.VERBOSE,
)
_CLOSING_BRACKETS = {"{": "}", "<": ">", "[": "]"}
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
    if edited is not None:
        try:
            if text_format.Parse(edited, protos.ModelServerConfig()) == wanted:
                return edited
        except text_format.ParseError:
            pass
    return str(text_format.MessageToString(wanted, as_utf8=True))


def _edit_text(text: str, wanted: protos.Message, number: int) -> str | None:
    """Replace the managed fields of the model at index `number`; return None if the model is not found."""
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
    source = wanted.model_config_list.config[number]
    if source.HasField("model_version_policy"):
        own.model_version_policy.CopyFrom(source.model_version_policy)
    for label, version in sorted(source.version_labels.items()):
        own.version_labels[label] = version
    # Indent the new fields as the first field of the entry.
    line = text.rfind("\n", 0, fields[0].begin) + 1
    indent = text[line : fields[0].begin]
    lines = [f"{indent if not indent.strip() else '    '}{line}" for line in _format_fields(own)]
    kept = text[begin:end]
    # Cut from the end, so that the offsets of the fields before stay valid.
    for field in reversed([field for field in fields if field.name in _MANAGED_FIELDS]):
        left, right = kept[: field.begin - begin].rstrip(" \t"), kept[field.end - begin :]
        kept = left.removesuffix("\n") + right if left.endswith("\n") else left + right
    closing = text[text.rfind("\n", 0, end) + 1 : end]
    return "".join(
        [
            text[:begin],
            kept.rstrip(),
            "".join(f"\n{line}" for line in lines),
            "\n",
            closing if not closing.strip() else "",
            text[end:],
        ]
    )


def _format_fields(message: protos.Message) -> list[str]:
    from google.protobuf import text_format

    return [line for line in text_format.MessageToString(message, as_utf8=True).splitlines() if line.strip()]


@dataclass(frozen=True)
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
    """Return the fields between two offsets, without the fields nested in them."""
    tokens = [match for match in _TOKEN.finditer(text, begin, end) if match[0][0] != "#"]
    found: list[_Field] = []
    position = 0
    while position < len(tokens):
        first = tokens[position]
        position += 1
        if position < len(tokens) and tokens[position][0] == ":":
            position += 1
        if position >= len(tokens):
            break
        body = None
        if tokens[position][0] in _CLOSING_BRACKETS:
            opening = tokens[position]
            # Skip to the bracket that closes this value; `expected` holds the closing brackets still open.
            expected = [_CLOSING_BRACKETS[opening[0]]]
            while expected and (position := position + 1) < len(tokens):
                token = tokens[position][0]
                if token in _CLOSING_BRACKETS:
                    expected.append(_CLOSING_BRACKETS[token])
                elif token == expected[-1]:
                    expected.pop()
            if position >= len(tokens):
                break
            if opening[0] != "[":
                body = (opening.end(), tokens[position].start())
        else:
            while (
                position + 1 < len(tokens) and tokens[position + 1][0][0] in "\"'"
            ):  # adjacent strings are one
                position += 1
        last = tokens[position]
        position += 1
        if position < len(tokens) and tokens[position][0] in ",;":
            last = tokens[position]
            position += 1
        found.append(_Field(first[0], first.start(), last.end(), body))
    return found
