"""How every command ends: one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from serving.errors import HubheadError

FAILED = 1
TOO_MANY_REJECTED = 3
INTERRUPTED = 130


def run_group(commands: Sequence[click.Command], name: str, help_text: str) -> NoReturn:
    """Run a package's own commands as the process's main, such as `python -m serving`."""
    run(click.Group(commands=commands, help=help_text), name)


def run(command: click.Command, name: str) -> NoReturn:
    """Run a command as the process's main: parse, execute, turn errors into exit codes.

    0 done, 1 failed, 2 wrong usage (click's own), 3 done with more rejected photos than
    allowed, 4 not blessed, 5 another run is at work in the output, 130 interrupted.
    """
    # TensorFlow's C++ logs say nothing a user can act on; an explicit setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HubheadError as error:
        click.secho(f"{name}: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nStopped.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    finally:
        # What TensorFlow made is not worth looking for garbage in at the exit: a second of the command.
        gc.freeze()
    sys.exit(code if isinstance(code, int) else 0)
