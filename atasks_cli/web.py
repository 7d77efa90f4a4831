"""`atasks web`: the live page of a fleet."""

from __future__ import annotations

import os
from typing import Any, Final

import click

from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command
from atasks_cli.messages import shown_url
from atasks_cli.settings import check_records

__all__ = ["COMMANDS"]

TOKEN: Final = "ATASKS_WEB_TOKEN"


@click.command("web")
@fleet_command
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="Its port; 0: any.")
@click.option("--allow-changes", is_flag=True, help="Show buttons that change something: cancel, pause, retry.")
@click.option("--records", metavar="URL", help="The database of records. Default: $ATASKS_RECORDS, if it is set.")
@click.option("--token", envvar=TOKEN, help="Ask for this secret. Default: $ATASKS_WEB_TOKEN.")
def web_command(
    place: Place, host: str, port: int, allow_changes: bool, records: str | None, token: str | None
) -> int:
    """Show a live page of the fleet in browsers, until Ctrl-C. It watches while a browser looks."""
    try:
        import uvicorn

        from atasks.web import app
        from atasks.web.server import is_token
        from atasks_cli.page_server import PageServer
    except ImportError:
        raise CommandError(
            Exit.USAGE, "atasks web needs starlette and uvicorn: pip install starlette uvicorn"
        ) from None
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        raise CommandError(
            Exit.USAGE, f"--host {host} lets others look: add --token SECRET, or leave it at 127.0.0.1"
        )
    said = os.environ.get(TOKEN) if token is None else token  # click takes an empty variable for none
    if said is not None and not is_token(said):
        raise CommandError(
            Exit.USAGE,
            f"the token (--token, or ${TOKEN}) is {'no printable ASCII' if said else 'empty'}: give a secret, as "
            "that of openssl rand -hex 16, or leave it out",
        )
    given = {"prefix": place.prefix, "keys": place.keys, "records": check_records(records)}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    page = app(
        place.url,
        namespace=place.namespace,
        title=f"{shown_url(place.url)}, namespace {place.namespace}",
        allow_changes=allow_changes,
        token=token,
        local_only=token is None,
        **options,
    )

    config = uvicorn.Config(page, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    server = PageServer(config, "?token=..." if token is not None else "")
    try:
        server.run()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    if not server.started:
        raise CommandError(Exit.FAILED, f"cannot listen on {host}:{port}: another program may have it")
    return Exit.OK


COMMANDS = (web_command,)
