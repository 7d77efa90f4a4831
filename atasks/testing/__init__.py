"""The conformance cases for transports, as tests that run against yours.

    from atasks.testing import TransportConformance

    class TestMyTransport(TransportConformance):
        @pytest.fixture
        def new_transport(self, unused_port):
            return lambda namespace: MyTransport(unused_port, namespace=namespace)

Each case opens transports of its own through the `new_transport` fixture, some for workers and one for the caller,
and they have to reach each other. What your transport's `supports` leaves out is not asked of it: there the cases
check that it is refused, and that nothing hangs.

Needs pytest and pytest-asyncio, which atasks itself does not.
"""

from __future__ import annotations

import pytest

# Before the cases are imported: their assertions are to say what they found, as those of test files do.
pytest.register_assert_rewrite(
    "atasks.testing.calls",
    "atasks.testing.endings",
    "atasks.testing.events",
    "atasks.testing.exceptions",
    "atasks.testing.limits",
    "atasks.testing.nesting",
    "atasks.testing.progress",
    "atasks.testing.resume",
    "atasks.testing.retries",
    "atasks.testing.schedules",
    "atasks.testing.site",
    "atasks.testing.stream_endings",
    "atasks.testing.streams",
    "atasks.testing.submit_options",
    "atasks.testing.submitted",
    "atasks.testing.threads",
    "atasks.testing.tracking",
    "atasks.testing.values",
)

from atasks.testing.cases import Cases  # noqa: E402
from atasks.testing.conformance import TransportConformance  # noqa: E402
from atasks.testing.site import PATIENCE, Site, soon, until  # noqa: E402

__all__ = ["PATIENCE", "Cases", "Site", "TransportConformance", "soon", "until"]
