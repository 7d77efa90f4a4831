"""The policies of a RabbitMQ, as the HTTP API of its management plugin tells them, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.checks import Bound

__all__ = ["Unseen", "faults", "read_policies"]

SECONDS: Final = 3.0
KINDS: Final = ("policies", "operator-policies")
QUEUES: Final = ("all", "queues", "classic_queues", "quorum_queues")
DROPPING: Final = {
    "message-ttl": "what is in it expires: calls, replies, records, schedules, tokens of limits",
    "expires": "it is deleted while nobody uses it, with what is in it",
    "delivery-limit": "a call that is delivered so often is dropped, and atasks counts attempts itself",
}

LENGTHS: Final = ("max-length", "max-length-bytes")
LENGTH: Final = "without overflow=reject-publish: the oldest calls in it are dropped"
TOKENS: Final = "tokens of a limit get lost, and calls wait for them"


class Unseen(Exception):
    """The policies could not be looked at; the message says why."""


def read_policies(url: str, management: str | None, virtual_host: str) -> list[dict[str, Any]]:
    """The policies of a virtual host, those of operators with `"operator": true`. `management` is the address of
    the HTTP API; None: port 15672 of the broker's host, or by TLS 15671 where calls go by TLS. The user and the
    password are those of the broker's URL. Raises Unseen."""
    address = urlsplit(url)
    scheme, port = ("https", 15671) if address.scheme == "amqps" else ("http", 15672)
    base = (management or f"{scheme}://{address.hostname or 'localhost'}:{port}").rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise Unseen(f"--management {base}: an address reads http://host:15672")
    login = f"{unquote(address.username or 'guest')}:{unquote(address.password or 'guest')}"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        where = f"{base}/api/{kind}/{quote(virtual_host, safe='')}"
        try:
            with urlopen(Request(where, headers=headers), timeout=SECONDS) as answer:
                policies = json.load(answer)
        except HTTPError as error:
            error.close()
            tag = ": its user needs the tag policymaker or monitoring" if error.code in (401, 403) else ""
            raise Unseen(f"{base} answers {error.code}{tag}") from error
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unseen(f"{base} does not answer ({' '.join(str(reason).split())})") from error
        if not isinstance(policies, list) or not all(_is_policy(policy) for policy in policies):
            raise Unseen(f"{base} is no HTTP API of RabbitMQ")
        found += [policy | {"operator": kind == "operator-policies"} for policy in policies]
    return found


def _is_policy(policy: Any) -> bool:
    return (
        isinstance(policy, dict)
        and all(isinstance(policy.get(name), str) for name in ("name", "pattern", "apply-to"))
        and isinstance(policy.get("definition"), dict)
    )


def faults(policies: Sequence[dict[str, Any]], names: Mapping[str, Bound]) -> list[str]:
    """Return a line for each policy that takes something away from a queue of these names."""
    found: dict[str, str] = {}
    for name, bound in names.items():
        both = [_effective(policies, name, operator) for operator in (False, True)]
        applied = [policy for policy in both if policy is not None]
        overflow = [str(policy["definition"].get("overflow", "")) for policy in applied]
        rejects = any(value.startswith("reject-publish") for value in overflow)
        for policy in applied:
            rules = policy["definition"].items()
            harm = [f"{key}={value}: {DROPPING[key]}" for key, value in rules if key in DROPPING]
            if bound == "none":
                harm += [f"{key}={value}: {TOKENS}" for key, value in rules if key in LENGTHS]
            elif bound == "refusing" and not rejects:
                harm += [f"{key}={value} {LENGTH}" for key, value in rules if key in LENGTHS]
            if harm:
                kind = "operator policy" if policy["operator"] else "policy"
                told = f"{kind} {policy['name']!r} applies to queue {name!r}, {'; '.join(harm)}"
                found.setdefault(f"{kind} {policy['name']}", told)
    return list(found.values())


def _effective(policies: Sequence[dict[str, Any]], name: str, operator: bool) -> dict[str, Any] | None:
    """The policy that the broker applies to a queue: of those that match, the one of the highest priority."""
    matching = [
        policy
        for policy in policies
        if policy["operator"] == operator and policy["apply-to"] in QUEUES and _matches(policy["pattern"], name)
    ]
    return max(matching, key=lambda policy: int(policy.get("priority") or 0), default=None)


def _matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern matches; one that only the broker can read may."""
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return True
