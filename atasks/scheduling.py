"""Schedules that are made at run time: `atasks.schedule`, `unschedule` and `schedules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atasks.definitions import ATask
from atasks.router import get_router
from atasks.submitted.schedules import Clock, Schedule, list_schedules, remove_schedule, set_schedule
from atasks.timing import Timing

__all__ = ["schedule", "schedules", "unschedule"]


async def schedule(
    name: str,
    task: ATask[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    every: float | str,
    tz: str = "UTC",
    catch_up: bool = False,
    overlap: Literal["skip", "allow"] = "skip",
) -> None:
    """Have the atask called again and again, from now on, until `unschedule(name)`.

    The calls have the options of the atask, and are submitted: nobody awaits them.

    Args:
        name: The name of the schedule. One of that name is replaced, unless it is the same.
        task: The atask.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        every: Seconds, from 0.1 on, or a cron expression.
        tz: The time zone of a cron expression.
        catch_up: True: ticks that were missed are made later.
        overlap: "allow": a tick is made also while the call of the one before waits or runs.

    Raises:
        TypeError: The arguments do not fit, or a time is of another type.
        ValueError: A time makes no sense.
        EncodeError: The arguments cannot be encoded.
        NotConnected: There is no connection here.
        NotSupported: The transport keeps no schedules, or cronsim, which cron expressions need, is not installed.
        InvalidKeys: The key that seals here is none of a worker's.

    Guarantees:
        When this returns the schedule is safe; over a broker it outlives the processes that use it. Each tick is
        made once.

    Example:
        ```python
        import atasks
        from atasks import atask

        @atask
        async def remind(user: str) -> None: ...

        await atasks.schedule("remind ann", remind, ["ann"], every=3600.0)
        print([found.name for found in await atasks.schedules() if not found.defined])  # ['remind ann']
        await atasks.unschedule("remind ann")
        ```
    """
    if not isinstance(task, ATask):
        raise TypeError(f"a schedule calls an atask, not {task!r}")
    timing = Timing(every, tz, catch_up, overlap)
    task._check_arguments(*args, **dict(kwargs or {}))
    router = get_router(task.namespace)
    await set_schedule(router, name, task.name, task.task_options, args, dict(kwargs or {}), timing, Clock())


async def unschedule(name: str, *, namespace: str = "default") -> bool:
    """Make no more calls for the schedule of that name. Calls that were made go on, and that of a tick which was
    due just now may be made still.

    Args:
        name: The name that `schedule` was given.
        namespace: The namespace of its atask.

    Returns:
        True; False if there was none.

    Raises:
        NotConnected: There is no connection.
        NotSupported: The transport keeps no schedules.
        InvalidKeys: The key that seals here is none of a worker's.
    """
    return await remove_schedule(get_router(namespace), name)


async def schedules(*, namespace: str = "default") -> list[Schedule]:
    """The schedules of the namespace, those of `@atask(every=...)` included, by name.

    Args:
        namespace: The namespace of their atasks.

    Raises:
        NotConnected: There is no connection.
        NotSupported: The transport keeps no schedules.
        InvalidKeys: The key that seals here is none of a worker's.
    """
    return await list_schedules(get_router(namespace))
