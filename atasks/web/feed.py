"""The contract between the page and whatever watches a fleet for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from atasks.web.picture import Picture

__all__ = ["ACTIONS", "Feed"]

ACTIONS = ("cancel", "pause", "resume", "purge", "retry", "retry_run", "drop_run")
"""The changes that a page can ask for, if it allows any."""


class Feed(Protocol):
    """Keeps a picture true while somebody looks, and acts on the fleet."""

    async def run(self, picture: Picture) -> None:
        """Fill the picture until it is cancelled; a lost connection is restored, and said in the picture."""

    async def act(self, action: str, ids: Sequence[str]) -> str:
        """Do one of `ACTIONS`, and say in one sentence what was done: "cancel" to these calls, "pause", "resume"
        and "purge" to these queues, "retry" to the dead messages of these names, or to all ("all"), and
        "retry_run" and "drop_run" to these submitted calls and runs.

        Raises an `AtasksError` that says what to do if it cannot be done.
        """
        ...

    async def stack(self, call_id: str) -> dict[str, Any]:
        """The frames of a running call, as `atasks stack` shows them."""
        ...

    async def submitted(self, run_id: str) -> dict[str, Any]:
        """Describe a submitted call or run, as `atasks runs show` does. Raises an `AtasksError`."""
        ...
