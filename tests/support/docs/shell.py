r"""Commands in the code blocks of the documents.

A block without language or of the language `sh` has commands, one per line, which `\` continues. In a block
`console` the lines that begin with `$ ` are commands; what follows is their output, in which a line `...`
stands for lines that are left out. A comment of HTML that begins with `<!-- run` has commands that readers do
not see, since the page assumes that they have run.
"""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass

from tests.support.docs.markdown import Fence, fences, hidden_blocks

PROMPT = "$ "
LEFT_OUT = "..."

_OPERATORS = frozenset("();<>|&{}")
_NUMBER_OF_STREAM = re.compile(r"(?<=\s)\d(?=[<>])")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Recorded:
    """A command of a `console` block and the output below it.

    Attributes:
        fence: the block.
        lines: the lines of the command as written, with the prompt.
        output: the lines of the output.
    """

    fence: Fence
    lines: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command without its prompt."""
        return "\n".join(self.lines)[len(PROMPT) :]

    @property
    def hidden(self) -> bool:
        """True if the page does not show what the command prints."""
        return self.fence.language != "console"

    @property
    def background(self) -> bool:
        """True if the command goes on beside the next ones."""
        return self.command.endswith("&")


def list_recorded(document: str, *, whole: bool = False) -> list[Recorded]:
    """Return the commands whose outputs a page shows, and those between them that are run too, in order.

    Args:
        document: the page.
        whole: run the commands of the blocks `sh` too, and not only the hidden ones.
    """
    consoles = fences(document, "console")
    others = [*hidden_blocks(document), *(fences(document, "sh") if whole else ())]
    blocks = [*consoles, *others] if consoles else []
    return [
        recorded
        for block in sorted(blocks, key=lambda block: block.line)
        for recorded in (split_console(block) if block.language == "console" else split_plain(block))
    ]


def split_plain(block: Fence) -> list[Recorded]:
    """Return the commands of a block without outputs; servers run beside the others."""
    return [
        Recorded(block, (f"{PROMPT}{line}{' &' if line.startswith('hubhead serve ') else ''}",), ())
        for line in command_lines(block)
        if line.strip()
    ]


def split_console(fence: Fence) -> list[Recorded]:
    """Return the commands of a `console` block, each with its output."""
    found: list[Recorded] = []
    lines = fence.text.splitlines()
    while lines:
        if not lines[0].startswith(PROMPT):
            raise ValueError(
                f"{fence.place}: a block of the language console begins with a line `$ COMMAND`."
            )
        size = 1 + sum(1 for _ in itertools.takewhile(lambda line: line.endswith("\\"), lines))
        command, lines = lines[:size], lines[size:]
        output = list(itertools.takewhile(lambda line: not line.startswith(PROMPT), lines))
        lines = lines[len(output) :]
        found.append(Recorded(fence, tuple(command), tuple(output)))
    return found


def command_lines(fence: Fence) -> list[str]:
    r"""Return the command lines of a block, those that `\` continues in one."""
    if fence.language == "console":
        text = "\n".join(recorded.command for recorded in split_console(fence))
    else:
        text = fence.text
    return text.replace("\\\n", " ").splitlines()


def split_commands(line: str) -> list[list[str]]:
    """Return the simple commands of a pipe or list as words, without redirections and assignments."""
    lexer = shlex.shlex(_NUMBER_OF_STREAM.sub("", line), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word and set(word) <= _OPERATORS:
            redirected = set(word) <= set("<>&") and bool(set(word) & set("<>"))
            if not redirected:
                commands.append([])
        elif redirected:
            redirected = False
        elif commands[-1] or not _ASSIGNMENT.match(word):
            commands[-1].append(word)
    return [command for command in commands if command]


def find_commands(document: str, program: str) -> list[tuple[str, list[str]]]:
    """Return where the document shows a command of this program, and the words after the program's name."""
    return [
        (f"{fence.place} {line.strip()[:60]}", words[1:])
        for fence in [*fences(document, "", "sh", "console"), *hidden_blocks(document)]
        for line in command_lines(fence)
        if program in line
        for words in split_commands(line)
        if words[0].rpartition("/")[2] == program
    ]
