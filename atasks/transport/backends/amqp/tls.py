"""TLS to a broker: its options in the URL, and where to look when a certificate is refused."""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from yarl import URL

from atasks.errors import InvalidURL

__all__ = ["advice", "with_options"]

logger = logging.getLogger("atasks.amqp")

FILES: Final = ("cafile", "capath", "certfile", "keyfile")
OPTIONS: Final = (*FILES, "cadata", "no_verify_ssl")
"""Options for the client library that the query of an `amqps://` URL may hold."""

_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})

_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
_WRONG_NAME: Final = frozenset({62, 64})
_OUT_OF_TIME: Final = frozenset({9, 10})


def with_options(address: URL) -> URL:
    """The URL with its options of TLS as the client library reads them.

    Raises InvalidURL for an option without TLS, a file that does not exist or has not what it is given for, and a
    switch that is neither on nor off: the library takes all but "0" for "do not verify". It is a warning in the
    log that nothing is verified.
    """
    given = [name for name in OPTIONS if name in address.query]
    if given and address.scheme != "amqps":
        raise InvalidURL(f"{given[0]} in the URL is for TLS: begin it with amqps://")
    for name in FILES:
        if name in given and not (address.query[name] and Path(address.query[name]).exists()):
            raise InvalidURL(f"{name} in the URL names no file that exists here: {address.query[name]}")
    if "keyfile" in given and "certfile" not in given:
        raise InvalidURL("keyfile in the URL needs a certfile beside it")
    _check_certificates(address.query)
    if "no_verify_ssl" not in given:
        return address
    switch = address.query["no_verify_ssl"].lower()
    if switch in _NO:
        return address.update_query(no_verify_ssl="0")
    if switch not in _YES:
        raise InvalidURL("no_verify_ssl in the URL is 1 (the broker's certificate is not verified) or 0")
    logger.warning(
        "the certificate of %s is not verified (no_verify_ssl): anybody between this host and the broker can read "
        "and change all messages",
        address.host,
    )
    return address.update_query(no_verify_ssl="1")


def _check_certificates(options: Mapping[str, str]) -> None:
    """Raise InvalidURL if the files or the data with certificates have none, or a key that does not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "cadata" in options:
        try:
            context.load_verify_locations(cadata=base64.b64decode(options["cadata"]))
        except (ValueError, OSError):  # an SSLError is an OSError
            raise InvalidURL("cadata in the URL is no certificate: give it in DER, and that in Base64") from None
    if file := options.get("cafile"):
        try:
            context.load_verify_locations(cafile=file)
        except (ValueError, OSError):
            raise InvalidURL(f"cafile in the URL has no certificates that can be read here: {file}") from None
    if file := options.get("certfile"):
        try:
            # An encrypted key would have OpenSSL ask the terminal for its password, while everything waits.
            context.load_cert_chain(file, options.get("keyfile"), password="")
        except (ValueError, OSError):
            raise InvalidURL(
                f"certfile in the URL has no certificate and key that fit and can be read here (a key may have no "
                f"password): {file}"
            ) from None


def advice(error: ssl.SSLError, host: str) -> str:
    """Return the advice for an error of TLS."""
    if error.reason == "WRONG_VERSION_NUMBER":
        return "this port speaks no TLS: give an amqp:// URL, or the port for TLS (5671)"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return "nobody who is trusted here has signed the broker's certificate: give the CA's, ?cafile=ca.pem"
        if error.verify_code in _WRONG_NAME:
            return f"the broker's certificate is for another host: give a host that it names in place of {host}"
        if error.verify_code in _OUT_OF_TIME:
            return "the broker's certificate is out of date, or the clock here is wrong: renew it"
        return "the broker's certificate is refused: see docs/tls.md"
    if "CERTIFICATE" in (error.reason or "") or "UNKNOWN_CA" in (error.reason or ""):
        return "the broker wants another certificate of the client: ?certfile=client.pem&keyfile=client.key"
    return "TLS could not be agreed on: see docs/tls.md"
