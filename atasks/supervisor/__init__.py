"""Worker processes: started, watched, replaced."""

from atasks.supervisor.supervisor import Supervisor
from atasks.supervisor.tether import Tether

__all__ = ["Supervisor", "Tether"]
