"""The server of `fieldmark teach`."""

import secrets
from collections.abc import Callable
from pathlib import Path

from fieldmark.core import runtime
from fieldmark.data.formats.limits import max_pixels_set_to
from fieldmark.pipeline.teach import open_session
from fieldmark.serve.limits import Limits
from fieldmark.serve.server import bind_socket, configure_json_logging, run_application
from fieldmark.serve.teach_app import create_teach_app


def teach(
    data: str | Path,
    more: str | Path | None,
    out: str | Path | None,
    *,
    ignore_labels: bool,
    host: str,
    port: int,
    token: str | None,
    language: str,
    on_ready: Callable[[str], None],
) -> None:
    """Open a session and serve its page until SIGTERM or Ctrl-C.

    Args:
        data, more, out, ignore_labels: as `open_session`.
        host: address to listen on.
        port: its port; 0 is any free one.
        token: what requests must carry; a new one by default.
        language: `en` or `zh`.
        on_ready: called with the page's URL, which holds the token.

    Raises:
        FieldmarkError: as `open_session`, or the address is invalid or in use.
    """
    runtime.tune_malloc()
    token = token or secrets.token_urlsafe(16)
    with (
        max_pixels_set_to(Limits().max_pixels),
        bind_socket(host, port) as listener,
        open_session(data, more, out=out, ignore_labels=ignore_labels) as session,
    ):
        configure_json_logging()
        session.learn_in_background()
        application, close = create_teach_app(session, token, language)
        try:
            run_application(
                application, listener, Limits().timeout_seconds, lambda url: on_ready(f"{url}/#token={token}")
            )
        finally:
            close()
