"""Names of atasks 0.0.x, for programs that were written against it; each stands for one of today.

They are importable from where they were: `atasks.router` and `atasks.transport.base`.
"""

from __future__ import annotations

from atasks.errors import AtasksError, CallConnectionLost, CallTimeout, NotConnected, UnknownTask

__all__ = [
    "ConnectionLostError",
    "JobNotFound",
    "NoClientTransportRegistered",
    "NoCodecRegistered",
    "RequestTimeoutError",
]

RequestTimeoutError = CallTimeout
ConnectionLostError = CallConnectionLost
JobNotFound = UnknownTask
NoClientTransportRegistered = NotConnected


class NoCodecRegistered(AtasksError):
    """Never raised: a namespace without a codec of its own uses the default one."""
