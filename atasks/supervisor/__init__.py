"""Worker processes: started, watched, replaced."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atasks.supervisor.supervisor import Supervisor
    from atasks.supervisor.tether import Tether

__all__ = ["Supervisor", "Tether"]

if not TYPE_CHECKING:  # a worker needs `running_calls` of this package, and none of the processes

    def __getattr__(name: str) -> object:
        """Import a public name when it is used first."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{name.lower()}"), name)
