"""Worker processes: started, watched, replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atasks import _on_demand

if TYPE_CHECKING:
    from atasks.supervisor.supervisor import Supervisor
    from atasks.supervisor.tether import Tether

__all__ = ["Supervisor", "Tether"]

_HOMES = {"atasks.supervisor.supervisor": "Supervisor", "atasks.supervisor.tether": "Tether"}
"""Module -> its public names: a worker needs `running_calls` of this package, and none of the processes."""

if not TYPE_CHECKING:  # a checker would take any name for one that is here
    __getattr__, __dir__ = _on_demand(__name__, _HOMES)
