"""Blocking functions that atasks runs in the benchmarks."""

from __future__ import annotations

from atasks import atask

__all__ = ["echo_in_process", "echo_in_thread"]


@atask(executor="thread")
def echo_in_thread(payload: bytes) -> bytes:
    return payload


@atask(executor="process")
def echo_in_process(payload: bytes) -> bytes:
    return payload
