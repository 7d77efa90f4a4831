"""`atasks completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import FishComplete, get_completion_class

__all__ = ["COMMANDS"]

EPILOG = """\b
Examples:
  eval "$(atasks completion bash)"      in ~/.bashrc
  eval "$(atasks completion zsh)"       in ~/.zshrc
  atasks completion fish > ~/.config/fish/completions/atasks.fish
"""


class _Fish(FishComplete):
    """click's own, but that descriptions are not cut at their first comma."""

    source_template = FishComplete.source_template.replace('string split ","', 'string split --max 1 ","')


@click.command("completion", epilog=EPILOG)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> int:
    """Print the script by which SHELL (bash, zsh or fish) completes commands and options."""
    kind = _Fish if shell == "fish" else get_completion_class(shell)
    assert kind is not None, "click has one for each of the three"
    complete = kind(context.find_root().command, {}, "atasks", "_ATASKS_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
    return 0


COMMANDS = [completion_command]
