"""Answers of workers about themselves, over every transport that moves questions."""

from __future__ import annotations

from atasks.testing.steering import SteeringCases
from tests.conformance.transports import OverAMQP, OverAMQPSealed, OverLocal, OverLocalHub, OverLoopback


class TestLoopback(OverLoopback, SteeringCases):
    pass


class TestLocal(OverLocal, SteeringCases):
    pass


class TestLocalHub(OverLocalHub, SteeringCases):
    pass


class TestAMQP(OverAMQP, SteeringCases):
    pass


class TestAMQPSealed(OverAMQPSealed, SteeringCases):
    pass
