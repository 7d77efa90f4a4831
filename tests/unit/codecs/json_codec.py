"""A codec of the user's own."""

from __future__ import annotations

import json
from typing import Any

from atasks.codecs.base import Codec


class Json(Codec):
    """The least that a user writes: two methods, and no tuples on the other side."""

    async def encode(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()

    async def decode(self, content: bytes) -> Any:
        return json.loads(content)
