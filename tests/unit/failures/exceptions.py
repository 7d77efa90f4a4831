"""Help for the tests of failures: exceptions with tracebacks, and the way to a caller and back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from atasks import CloudpickleCodec, Codec, MsgpackCodec, PickleCodec
from atasks.failures.failures import decode_failure, encode_failure

HOP = "atasks: task 'shop.add', call 3f-1, host web1, pid 42"


class Json(Codec):
    """A user's codec: asynchronous, and tuples become lists."""

    async def encode(self, obj: Any) -> bytes:
        await asyncio.sleep(0)
        return json.dumps(obj).encode()

    async def decode(self, content: bytes) -> Any:
        await asyncio.sleep(0)
        return json.loads(content)


CODECS: list[type[Codec]] = [PickleCodec, CloudpickleCodec, MsgpackCodec, Json]


def raised(error: BaseException) -> BaseException:
    """The exception, with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


async def through(error: BaseException, codec: Codec) -> BaseException:
    return await decode_failure(await encode_failure(error, codec, hop=HOP), codec)
