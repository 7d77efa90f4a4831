"""Answers of workers about themselves, over every transport that moves questions."""

from __future__ import annotations

from atasks.testing.tracking import TrackingCases
from tests.conformance.transports import OverAMQP, OverAMQPSealed, OverLocal, OverLocalHub, OverLoopback


class TestLoopback(OverLoopback, TrackingCases):
    pass


class TestLocal(OverLocal, TrackingCases):
    pass


class TestLocalHub(OverLocalHub, TrackingCases):
    pass


class TestAMQP(OverAMQP, TrackingCases):
    pass


class TestAMQPSealed(OverAMQPSealed, TrackingCases):
    pass
