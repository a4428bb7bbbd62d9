"""Completion in bash, zsh and fish: the scripts of the shells, and what they exchange with this process.

They replace those of click, which complete nothing after `--option=`, cut a description at its first comma in
fish, and need `compinit` to have run in zsh. A script calls the program with the words of the command line in
the environment variables COMP_WORDS and COMP_CWORD. The answer is a line per completion: its kind (`plain`,
`dir` or `file`), its value and its description, separated by tabs. The value of an option that is written as
`--option=value` is answered without `--option=`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

# $1 is the program as it was typed. With =, bash starts a new word, so that COMPREPLY has no `--option=`.
_BASH = r"""
%(complete_func)s() {
    local IFS=$'\n' kind value description
    COMPREPLY=()
    while IFS=$'\t' read -r kind value description; do
        case "$kind" in
            plain) COMPREPLY+=("$value") ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \
        %(complete_var)s=bash_complete "${1/#\~/$HOME}" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

# compset moves `--option=` out of the word that is completed.
_ZSH = r"""
#compdef %(prog_name)s

%(complete_func)s() {
    local program=${~${(Q)words[1]}} line kind value description
    local -a lines plain described
    lines=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
        %(complete_var)s=zsh_complete $program 2>/dev/null)}")
    [[ $PREFIX == -* ]] && compset -P 1 '*='
    for line in $lines; do
        IFS=$'\t' read -r kind value description <<< $line
        case $kind in
            dir) _files -/ ;;
            file) _files ;;
            plain)
                if [[ -n $description ]]; then
                    described+=("${value//:/\\:}:$description")
                else
                    plain+=("$value")
                fi ;;
        esac
    done
    if (( $#described )); then _describe -V %(prog_name)s described; fi
    if (( $#plain )); then compadd -V %(prog_name)s -a plain; fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then  # the script is a file in $fpath
    %(complete_func)s "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = r"""
function %(complete_func)s
    set -l token (commandline -ct | string collect)
    set -l option (string match -r -- '^--[^=]+=' "$token")
    set -l value (string sub -s (math 1 + (string length -- "$option")) -- "$token")
    set -l program (string replace -r -- '^~(?=/)' "$HOME" (commandline -opc)[1])
    set -l lines (env COMP_WORDS=(commandline -cp | string collect) COMP_CWORD="$token" \
        %(complete_var)s=fish_complete $program 2>/dev/null)
    for line in $lines
        set -l parts (string split \t -- $line)
        switch $parts[1]
            case dir
                string replace -r -- '^' "$option" (__fish_complete_directories "$value")
            case file
                string replace -r -- '^' "$option" (__fish_complete_path "$value")
            case plain
                echo "$option$parts[2]"\t"$parts[3]"
        end
    end
end

complete --command %(prog_name)s --no-files --keep-order --arguments "(%(complete_func)s)"
"""

_WORD_BREAKS = frozenset("=:")
"""Characters that bash makes words of their own of, and that are within a word for the program."""


class _Tabbed(ShellComplete):
    """Answers of a line per completion, of values separated by tabs."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return the line of a completion."""
        return "\t".join((item.type, str(item.value), " ".join((item.help or "").split())))


class _Bash(_Tabbed, BashComplete):
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, as the program would get them, and the incomplete one."""
        words, incomplete = super().get_completion_args()
        *words, incomplete = join_word_breaks((*words, incomplete))
        return words, incomplete


class _Zsh(_Tabbed, ZshComplete):
    source_template = _ZSH


class _Fish(_Tabbed, FishComplete):
    source_template = _FISH


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
"""Completion of each shell, by its name."""


def register() -> None:
    """Let commands answer the scripts of this module."""
    for shell in SHELLS.values():
        add_completion_class(shell)


def make_script(shell: str, command: click.Command, program: str, variable: str) -> str:
    """Return the script of a shell.

    Args:
        shell: name of the shell.
        command: command of the program.
        program: name of the program.
        variable: environment variable by which the script asks for completions.
    """
    return SHELLS[shell](command, {}, program, variable).source().strip()


def join_word_breaks(words: Iterable[str]) -> list[str]:
    """Return words in which `--option`, `=` and `value` are one word again, after bash split them."""
    joined: list[str] = []
    is_open = False
    for word in words:
        is_break = bool(word) and set(word) <= _WORD_BREAKS
        if joined and (is_break or is_open):
            joined[-1] += word
        else:
            joined.append(word)
        is_open = is_break
    return joined
