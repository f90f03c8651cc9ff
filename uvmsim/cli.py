"""The `uvmsim` command: collects sub-commands from entry points, reports errors in one line."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.metadata import EntryPoint, entry_points

import click

from traces.errors import InputError

GROUP = "uvmsim.commands"
NO_ARGUMENTS: type[click.ClickException] | tuple[()] = getattr(
    click.exceptions, "NoArgsIsHelpError", ()
)
"""A group called with nothing. Click before 8.2 shows the help itself and exits with 0."""


class Commands(click.Group):
    """A group whose commands are entry points, each module loaded when it is asked for."""

    def _found(self) -> dict[str, EntryPoint]:
        return {ep.name: ep for ep in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._found())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        ep = self._found().get(cmd_name)
        return ep.load() if ep else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uvmsim")
def cli() -> None:
    """Design memory policies for Mixture-of-Experts models larger than the GPU.

    \b
    Start here:
      uvmsim compare                      policies on the bundled trace, as a table
      uvmsim capture llama-cpp M.gguf ... record a trace of your own model
      uvmsim trace import DUMP -o T.arrow bring in a routing dump
      uvmsim compare T.arrow --vram 16GiB what would each policy give me?
    """


def main() -> None:
    """Entry point: exit code 2 and one line for what the user can mend."""
    try:
        cli.main(standalone_mode=False)
        sys.stdout.flush()
    except InputError as err:
        _fail(str(err))
    except NO_ARGUMENTS as err:
        click.echo(err.format_message(), err=True)  # the help, which is no line
        sys.exit(2)
    except click.UsageError as err:
        where = f" (see `{err.ctx.command_path} --help`)" if err.ctx else ""
        _fail(err.format_message().rstrip(".") + where)
    except click.ClickException as err:
        _fail(err.format_message())
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) left: nothing to report, and nothing more to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as err:
        if err.errno is None and "Errno" not in str(err):
            raise  # a library's own, with more to say than a line
        _silence()
        where = f"{err.filename}: " if err.filename else "writing: "
        _fail(f"{where}{err.strerror or err}; free some space, or name another place")


def _silence() -> None:
    """What is left in standard output's buffer cannot be written either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
