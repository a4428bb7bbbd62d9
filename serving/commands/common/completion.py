"""`hubhead completion`: scripts that complete commands, options and values in a shell."""

from __future__ import annotations

import click

from serving.commands.common.command import Command
from serving.commands.common.completion_scripts import SHELLS, make_script
from serving.commands.output import echo

VARIABLE = "_HUBHEAD_COMPLETE"
"""Environment variable by which the script of a shell asks for completions, as click names it."""


@click.command(
    cls=Command,
    short_help="Print a script for completion in a shell.",
    epilog="\b\nExamples:\n"
    '  eval "$(hubhead completion bash)"           # in ~/.bashrc\n'
    '  eval "$(hubhead completion zsh)"            # in ~/.zshrc\n'
    "  hubhead completion fish | source            # in ~/.config/fish/config.fish",
)
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for SHELL that completes commands, options, files, and values where they are known.

    Values are the choices of an option, aliases of backbones, version labels (those of --model_config_file,
    if it is given before), and the versions below --model_base_path.
    """
    program = context.find_root()
    echo(make_script(shell, program.command, program.info_name or "hubhead", VARIABLE))
