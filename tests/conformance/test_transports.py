"""Every transport, held to the same list of cases."""

from __future__ import annotations

from atasks.testing import TransportConformance
from atasks.testing.endings import EndingCases
from atasks.testing.events import EventCases, WaitingEventCases
from atasks.testing.limits import LimitCases
from atasks.testing.nesting import NestingCases
from atasks.testing.progress import HandleProgressCases
from atasks.testing.resume import ResumeCases
from atasks.testing.retries import RetryCases
from atasks.testing.schedules import ScheduleCases
from atasks.testing.stream_endings import StreamEndingCases
from atasks.testing.streams import StreamCases
from atasks.testing.submit_options import SubmitOptionCases
from atasks.testing.submitted import SubmittedCases
from atasks.testing.threads import HandleInThreadCases
from tests.conformance.transports import (
    OverAMQP,
    OverAMQPEncrypted,
    OverAMQPQuorum,
    OverAMQPSealed,
    OverAMQPWithPostgres,
    OverLocal,
    OverLocalHub,
    OverLoopback,
    OverMemory,
)


class TestLoopback(
    OverLoopback, TransportConformance, WaitingEventCases, ScheduleCases, HandleProgressCases, HandleInThreadCases
):
    pass


class TestMemory(OverMemory, TransportConformance):
    pass


class TestLocal(
    OverLocal, TransportConformance, WaitingEventCases, ScheduleCases, HandleProgressCases, HandleInThreadCases
):
    pass


class TestLocalHub(
    OverLocalHub, TransportConformance, EventCases, ScheduleCases, HandleProgressCases, HandleInThreadCases
):
    pass


class TestAMQP(
    OverAMQP, TransportConformance, WaitingEventCases, ScheduleCases, HandleProgressCases, HandleInThreadCases
):
    pass


class TestAMQPQuorum(
    OverAMQPQuorum,
    NestingCases,
    EndingCases,
    StreamCases,
    StreamEndingCases,
    RetryCases,
    ResumeCases,
    SubmittedCases,
    SubmitOptionCases,
    WaitingEventCases,
    ScheduleCases,
    LimitCases,
):
    pass


class TestAMQPSealed(
    OverAMQPSealed, TransportConformance, WaitingEventCases, HandleProgressCases, HandleInThreadCases
):
    pass


class TestAMQPEncrypted(
    OverAMQPEncrypted,
    NestingCases,
    ResumeCases,
    EndingCases,
    StreamCases,
    StreamEndingCases,
    SubmittedCases,
    SubmitOptionCases,
):
    pass


class TestAMQPWithPostgres(OverAMQPWithPostgres, SubmittedCases, SubmitOptionCases):
    pass
