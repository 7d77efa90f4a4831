"""The public names of transports: the contract, its caller's half, and the loopback transport."""

from atasks.original import ConnectionLostError, RequestTimeoutError
from atasks.transport.call_transport import CallTransport
from atasks.transport.contract import RequestCallback, Transport, get_transport
from atasks.transport.loopback import LoopbackTransport
from atasks.transport.pending import Pending

__all__ = [
    "CallTransport",
    "ConnectionLostError",
    "LoopbackTransport",
    "Pending",
    "RequestCallback",
    "RequestTimeoutError",
    "Transport",
    "get_transport",
]
