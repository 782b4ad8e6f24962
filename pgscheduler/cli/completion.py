"""`pgscheduler completion`: the script that makes a shell complete commands, options and the names of jobs."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from ._group import cli
from ._options import debug_option, json_option
from ._output import say_json

__all__ = ["completion"]

VARIABLE = "_PGSCHEDULER_COMPLETE"  # how the script asks; click derives it from the program's name


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
@json_option
@debug_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for a SHELL: bash, zsh or fish.

    For bash: pgscheduler completion bash > ~/.local/share/bash-completion/completions/pgscheduler
    """
    kind: Any = get_completion_class(shell)
    script = kind(cli, {}, "pgscheduler", VARIABLE).source().rstrip()
    say_json({"shell": shell, "script": script}) if as_json else print(script)
