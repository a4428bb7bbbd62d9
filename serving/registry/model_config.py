"""TensorFlow Serving's model.config: which versions of a model serve, and their labels.

Only these two are ever changed, of one model; the text around them, comments included, stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from serving import protos
from serving.errors import InputError
from serving.storage.address import Address
from serving.storage.text import read_text, replace_text

_TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | [{}<>\[\]:,;] | [^\s{}<>\[\]:,;\#"']+""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">", "[": "]"}
_OWN = ("model_version_policy", "version_labels")


@dataclass(frozen=True)
class ModelConfig:
    """What a model.config says of one model.

    Attributes:
        labels: version labels.
        latest: the newest so many versions serve; 0 where `specific` or `everything` says which.
        specific: these versions serve.
        everything: all versions serve.
    """

    labels: Mapping[str, int]
    latest: int = 0
    specific: tuple[int, ...] = ()
    everything: bool = False

    def serves(self, versions: Collection[int]) -> tuple[int, ...]:
        """Which of these versions it serves, ascending."""
        if self.everything:
            return tuple(sorted(versions))
        if self.latest:
            return tuple(sorted(versions)[-self.latest :])
        return tuple(sorted(set(self.specific) & set(versions)))


NEWEST = ModelConfig({}, latest=1)
"""How a server without a model.config serves a base path."""


def parse(path: Address) -> protos.Message:
    """The whole file.

    Raises:
        InputError: it cannot be read, or is no ModelServerConfig.
    """
    from serving.server.config.files import parse_text

    return parse_text(read_text(path), protos.ModelServerConfig(), path)


def read(path: Address, model: str) -> ModelConfig:
    """What the file says of one model.

    Raises:
        InputError: the file cannot be used, or does not name the model.
    """
    entry = _entry(path, parse(path), model)
    policy = entry.model_version_policy
    labels = dict(sorted(entry.version_labels.items()))
    match policy.WhichOneof("policy_choice"):
        case "all":
            return ModelConfig(labels, everything=True)
        case "specific":
            return ModelConfig(labels, specific=tuple(sorted(policy.specific.versions)))
        case _:
            return ModelConfig(labels, latest=policy.latest.num_versions or 1)


def write(path: Address, model: str, *, versions: Collection[int] | None, labels: Mapping[str, int]) -> None:
    """State the versions that serve and their labels.

    Args:
        path: the file, replaced as a whole.
        model: the model's name; of all others nothing changes.
        versions: those that serve; None leaves the policy as it is.
        labels: all of the model's labels.

    Raises:
        InputError: as `read`.
        OutputError: it cannot be written.
    """
    changed = parse(path)
    entry = _entry(path, changed, model)
    number = next(n for n, other in enumerate(changed.model_config_list.config) if other.name == model)
    if versions is not None:
        entry.model_version_policy.Clear()
        entry.model_version_policy.specific.versions.extend(sorted(versions))
    entry.version_labels.clear()
    entry.version_labels.update(labels)
    replace_text(path, _text(read_text(path), changed, number))


def _entry(path: Address, config: protos.Message, model: str) -> protos.Message:
    names = [entry.name for entry in config.model_config_list.config]
    if model not in names:
        raise InputError(
            f"{path} has no model {model!r}; it has {', '.join(map(repr, names)) or 'none'}.",
            remedy="Give --model_name, or add it: model_config_list { config { "
            f'name: "{model}" base_path: "/models/{model}" model_platform: "tensorflow" }} }}',
        )
    return config.model_config_list.config[names.index(model)]


def _text(text: str, wanted: protos.Message, number: int) -> str:
    """The text, changed to say what is wanted; written anew where its form is too unusual to change."""
    from google.protobuf import text_format

    edited = _edited(text, wanted, number)
    if edited is not None:
        try:
            if text_format.Parse(edited, protos.ModelServerConfig()) == wanted:
                return edited
        except text_format.ParseError:
            pass
    return str(text_format.MessageToString(wanted, as_utf8=True))


def _edited(text: str, wanted: protos.Message, number: int) -> str | None:
    """With the two fields of the model that is `number`-th replaced; None where it is not found."""
    blocks = [
        block
        for models in _fields(text, 0, len(text))
        if models.name == "model_config_list" and models.inside
        for block in _fields(text, *models.inside)
        if block.name == "config"
    ]
    if len(blocks) != len(wanted.model_config_list.config) or blocks[number].inside is None:
        return None
    begin, end = blocks[number].inside or (0, 0)
    fields = _fields(text, begin, end)
    if not fields:
        return None
    own = protos.ModelConfig()
    source = wanted.model_config_list.config[number]
    if source.HasField("model_version_policy"):
        own.model_version_policy.CopyFrom(source.model_version_policy)
    for label, version in sorted(source.version_labels.items()):
        own.version_labels[label] = version
    line = text.rfind("\n", 0, fields[0].begin) + 1
    indent = text[line : fields[0].begin]
    lines = [f"{indent if not indent.strip() else '    '}{line}" for line in _lines(own)]
    kept = text[begin:end]
    for field in reversed([field for field in fields if field.name in _OWN]):
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


def _lines(message: protos.Message) -> list[str]:
    from google.protobuf import text_format

    return [line for line in text_format.MessageToString(message, as_utf8=True).splitlines() if line.strip()]


@dataclass(frozen=True)
class _Field:
    """A field in the text: from `begin` to `end`, the contents of a message value at `inside`."""

    name: str
    begin: int
    end: int
    inside: tuple[int, int] | None = None


def _fields(text: str, begin: int, end: int) -> list[_Field]:
    """The fields between two places, those inside of them left out."""
    tokens = [match for match in _TOKEN.finditer(text, begin, end) if match[0][0] != "#"]
    found: list[_Field] = []
    place = 0
    while place < len(tokens):
        first = tokens[place]
        place += 1
        if place < len(tokens) and tokens[place][0] == ":":
            place += 1
        if place >= len(tokens):
            break
        inside = None
        if tokens[place][0] in _CLOSING:
            opening = tokens[place]
            open_ones = [_CLOSING[opening[0]]]
            while open_ones and (place := place + 1) < len(tokens):
                token = tokens[place][0]
                if token in _CLOSING:
                    open_ones.append(_CLOSING[token])
                elif token == open_ones[-1]:
                    open_ones.pop()
            if place >= len(tokens):
                break
            if opening[0] != "[":
                inside = (opening.end(), tokens[place].start())
        else:
            while place + 1 < len(tokens) and tokens[place + 1][0][0] in "\"'":  # adjacent strings are one
                place += 1
        last = tokens[place]
        place += 1
        if place < len(tokens) and tokens[place][0] in ",;":
            last = tokens[place]
            place += 1
        found.append(_Field(first[0], first.start(), last.end(), inside))
    return found
