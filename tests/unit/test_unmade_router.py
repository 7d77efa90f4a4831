"""A router that is not made yet."""

# Private attributes: none.

from __future__ import annotations

import copy

from atasks.unmade_router import UnmadeRouter


def test_a_copy_is_of_the_same_namespace() -> None:
    router = UnmadeRouter("copied")
    assert copy.copy(router).registry is router.registry
