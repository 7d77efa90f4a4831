"""Slots: whoever resumes goes first, and none is ever lost."""

# Private attributes: `Slots._resuming`: who waits for a slot is seen nowhere else.

from __future__ import annotations

import asyncio
import random

import pytest

from atasks.worker.slots import Slots


def nobody() -> None:
    """Nobody waits to start a new call."""


async def test_take_and_give() -> None:
    freed: list[int] = []
    slots = Slots(2, lambda: freed.append(slots.free))
    assert (slots.size, slots.free) == (2, 2)
    assert slots.take() == 1
    assert slots.take() == 1
    assert slots.free == 0
    slots.give()
    slots.give()
    assert (slots.free, freed) == (2, [1, 2])


async def test_take_many_takes_what_there_is() -> None:
    slots = Slots(3, nobody)
    slots.take()
    assert slots.take(3) == 2
    slots.give(2)
    assert slots.free == 2


async def test_none_is_taken_that_is_not_free() -> None:
    slots = Slots(1, nobody)
    slots.take()
    with pytest.raises(AssertionError):
        slots.take()


async def test_retake_takes_a_free_slot_without_waiting() -> None:
    slots = Slots(1, nobody)
    step = slots.retake()
    with pytest.raises(StopIteration):
        step.send(None)
    assert slots.free == 0


async def test_calls_that_resume_go_ahead_of_new_ones_in_order() -> None:
    order: list[object] = []
    slots = Slots(1, lambda: order.append("new"))
    slots.take()

    async def resume(who: int) -> None:
        await slots.retake()
        order.append(who)
        slots.give()

    async with asyncio.TaskGroup() as group:
        for who in range(3):
            group.create_task(resume(who))
        await asyncio.sleep(0)
        slots.give()
    assert order == [0, 1, 2, "new"]
    assert slots.free == 1


async def test_many_given_at_once_wake_many() -> None:
    slots = Slots(3, nobody)
    slots.take(3)
    waiting = [asyncio.create_task(slots.retake()) for _ in range(2)]
    await asyncio.sleep(0)
    slots.give(3)
    await asyncio.gather(*waiting)
    assert slots.free == 1


async def test_cancelled_while_it_waits_takes_none() -> None:
    slots = Slots(1, nobody)
    slots.take()
    first, second = (asyncio.create_task(slots.retake()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    slots.give()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert slots.free == 0


async def test_cancelled_when_it_was_just_given_one_passes_it_on() -> None:
    slots = Slots(1, nobody)
    slots.take()
    first, second = (asyncio.create_task(slots.retake()) for _ in range(2))
    await asyncio.sleep(0)
    slots.give()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    slots.give()
    assert slots.free == 1


@pytest.mark.parametrize("seed", range(20))
async def test_random_interleavings_lose_none(seed: int) -> None:
    """Against a model of who holds one: never too many, nobody waits while one is free, all come back."""
    chance = random.Random(seed)
    size = chance.randint(1, 4)
    holding = waiting = 0

    def check() -> None:
        assert 0 <= holding <= size
        assert slots.free <= size - holding
        waiters = [waiter for waiter in slots._resuming if not waiter.done()]
        assert len(waiters) <= waiting
        assert not (waiters and slots.free), "one waits while a slot is free"

    def turns() -> list[None]:
        return [None] * chance.randint(0, 3)

    slots = Slots(size, lambda: None)

    async def call() -> None:
        nonlocal holding, waiting
        for _ in range(4):
            for _turn in turns():
                await asyncio.sleep(0)
            waiting += 1
            try:
                await slots.retake()
            finally:
                waiting -= 1
            holding += 1
            check()
            try:
                for _turn in turns():
                    await asyncio.sleep(0)
            finally:
                holding -= 1
                slots.give()

    tasks = [asyncio.create_task(call()) for _ in range(12)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        if chance.random() < 0.15:
            chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (slots.free, holding, waiting) == (size, 0, 0)
    assert not slots._resuming or all(waiter.done() for waiter in slots._resuming)
