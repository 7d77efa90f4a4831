"""The common base of the groups of cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from atasks.testing.site import Site
from atasks.transport.contract import Transport

__all__ = ["Cases"]


class Cases:
    """The fixtures of the cases. See `TransportConformance`."""

    pytestmark: ClassVar = [pytest.mark.asyncio]

    shared_transport: ClassVar[bool] = False
    """True if one transport is both the caller's and the worker's, as the loopback is."""

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        """A function that returns a new transport of the given namespace, not connected. Override it."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named new_transport")

    @pytest.fixture
    def site(self, new_transport: Callable[[str], Transport]) -> Iterator[Site]:
        """A caller and workers over transports of their own."""
        site = Site(new_transport, shared=self.shared_transport)
        yield site
        site.close()
