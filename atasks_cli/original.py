"""The options of the start command of atasks 0.0.x, as those of `atasks run`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from atasks_cli.exits import Exit
from atasks_cli.messages import say

__all__ = ["translate"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        say(
            f"error: {message}; the start command of today is: atasks run FILE_OR_MODULE..., see atasks run --help"
        )
        raise SystemExit(int(Exit.USAGE))


def translate(argv: Sequence[str]) -> list[str]:
    """The arguments of `atasks` that do what these did. Raises SystemExit, after a line on stderr, for others."""
    parser = _Parser(prog="python -m atasks.run", add_help=False)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("-o", "--option", nargs="*", action="extend", default=[])
    parser.add_argument("-U", "--url")
    parser.add_argument("-v", "--verbosity", type=int, choices=range(5), default=1)
    parser.add_argument("-M", "--mode", choices=["client", "server", "loopback"], default="client")
    parser.add_argument("-T", "--transport", choices=["loopback", "amqp"], default="loopback")
    parser.add_argument("-H", "--hostname")
    parser.add_argument("-L", "--loggers", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(argv)
    if given.help:
        return ["run", "--help"]
    if given.hostname is not None or given.loggers is not None:
        gone = "--hostname" if given.hostname is not None else "--loggers"
        parser.error(f"{gone} has no counterpart")
    if not given.targets:
        parser.error("name a file or a module")
    alone = given.transport == "loopback"
    if alone and given.mode == "server":
        parser.error("--mode server needs --transport amqp: nobody else reaches a loopback")
    translated = ["run", *given.targets, "--mode", "loopback" if alone else given.mode]
    if given.transport == "amqp" and given.mode != "loopback":
        translated += ["--transport", "amqp"] if given.url is None else ["--url", given.url]
    for pair in given.option:
        translated += ["-o", pair]
    return translated + ["-v"] * max(0, given.verbosity - 2)
