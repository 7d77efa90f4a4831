"""The command that starts a worker, as errors and warnings name it."""

from __future__ import annotations

__all__ = ["started_by", "worker_command"]

_own: str | None = None


def started_by(command: str) -> None:
    """Have errors and warnings name a command of the project from now on."""
    global _own
    _own = command


def worker_command(options: str = "") -> str:
    """The command of the project, if it has one, else that of atasks, with these options."""
    return f"{_own or 'atasks run MODULE --mode server'}{options}"
