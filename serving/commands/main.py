"""Entry point of every command: turns errors into one line on stderr and an exit code."""

from __future__ import annotations

import gc
import importlib.util
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from serving.commands.common import completion_scripts, streams
from serving.commands.output import echo, warn
from serving.errors import ExitCode, HubheadError, InputError
from serving.process import set_main_program
from serving.text import ESCAPE, escape_controls, redact_logs, register_escape


def run_group(commands: Sequence[click.Command], name: str, help_text: str) -> NoReturn:
    """Run a group of commands as the main program of a process, such as `python -m serving`."""
    run(click.Group(commands=commands, help=help_text), name)


def run(command: click.Command, name: str) -> NoReturn:
    """Run a command as the main program of a process, and exit.

    The exit codes are those of `ExitCode`. An error of the operating system about a path is reported like
    every error, since any path can be too long, forbidden or broken at any time. Another unexpected exception
    keeps its traceback: it is a bug.
    """
    set_main_program()
    streams.open_missing_streams()
    # SIGTERM, as of a drained pod, unwinds the stack like Ctrl-C: leases are released, jobs cancelled.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    # TensorFlow's C++ logs are of no use to the user; an explicit setting takes precedence.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    redact_logs()
    register_escape()
    completion_scripts.register()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPE)  # labels are any Unicode, stdout may be Latin-1
    try:
        code = command.main(prog_name=name, standalone_mode=False, show_default=True, max_content_width=100)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue(), err=True, nl=False)  # it may quote an argument
        sys.exit(error.exit_code)
    except HubheadError as error:
        warn(f"{name}: {error}", "red")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        echo("\nInterrupted.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        streams.discard_stdout()  # the reader of the pipe has gone (`| head`)
        sys.exit(ExitCode.FAILED)
    except OSError as error:
        if streams.is_output_error(error):
            streams.discard_stdout()
            reason = error.strerror or type(error).__name__
            warn(f"{name}: Cannot write the output: {reason}. Free space, or write it elsewhere.", "red")
        elif error.filename is not None:
            warn(f"{name}: {_describe_path_error(error)}", "red")
        else:
            raise
        sys.exit(ExitCode.FAILED)
    finally:
        # Skip garbage collection at exit: with TensorFlow loaded it takes about a second.
        gc.freeze()
    sys.exit(code if isinstance(code, int) else 0)


def _describe_path_error(error: OSError) -> HubheadError:
    """Return the error to report for one of the operating system that names a file."""
    path = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
    return InputError(
        f"{path} cannot be used: {error.strerror or type(error).__name__}.",
        remedy="Check the path, and the permissions and the free space there.",
    )


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, before a command does any work.

    Raises:
        HubheadError: a module is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise HubheadError(
            f"This command needs {', '.join(missing)}, which is not installed.",
            remedy=f"Install it with: pip install 'hubhead[{extra}]'",
        )
