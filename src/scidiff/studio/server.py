"""Who may see the page: this machine, with the token that this run printed.

The server listens on 127.0.0.1 alone, and every address of it begins with a token drawn anew for each run; requests
without it, from another page (Origin) or under another name of this machine (Host, as DNS rebinding needs) are refused.
The browser is told to load from here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import tempfile
import threading
import warnings
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.errors import InputError
from scidiff.studio.session import Session

if TYPE_CHECKING:
    from fastapi import FastAPI

HOME = "127.0.0.1"
#: the browser keeps to this: nothing is loaded from, or sent to, anywhere else
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",  # the token is in the address
    "x-content-type-options": "nosniff",
}
#: seconds for which the page of a browser that went away is kept
KEPT = 20.0


def check_installed() -> None:
    """Raise InputError where the libraries of the page are not installed."""
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise InputError(
            "the studio needs NiceGUI, which is not installed: pip install 'scidiff-tools[studio]'"
        ) from None


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine alone; port 0 takes any that is free.

    Raises
    ------
    InputError
        The port is in use, or not allowed.
    """
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOME, port))
        place.listen()
    except (OSError, OverflowError) as error:
        place.close()
        used = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is in use" if used else f"cannot be used ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"port {port} {why}; name another with --port, or leave it out") from None
    return place


def address(place: socket.socket, token: str) -> str:
    """Return what to type into a browser."""
    return f"http://{HOME}:{place.getsockname()[1]}/{token}/"


def serve(session: Session, place: socket.socket, *, announce: Callable[[str], None], browser: bool = True) -> None:
    """Show the page of a session until the process is interrupted; ``announce`` is called with its address."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    where = address(place, token)
    with tempfile.TemporaryDirectory(prefix="scidiff-studio-", ignore_cleanup_errors=True) as folder:
        app = studio_app(session, token, port=place.getsockname()[1], folder=Path(folder))
        announce(where)
        if browser:  # the socket listens already: a browser that is faster than the server waits
            threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NiceGUI looks at every object there is, deprecated ones among them
            uvicorn.Server(config).run(sockets=[place])


def studio_app(session: Session, token: str, *, port: int, folder: Path) -> FastAPI:
    """Return the application: the page and the files in ``folder`` below the token, and nothing else."""
    from fastapi import FastAPI
    from fastapi.staticfiles import StaticFiles
    from nicegui import ui

    from scidiff.studio.page import Visit
    from scidiff.studio.work import Desk, Job

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, port=port)
    app.mount(f"/{token}/files", StaticFiles(directory=folder))
    desk = Desk()
    landscape = desk.do(Job("laying out the real cells"), lambda job: session.map())
    ui.run_with(
        app,
        root=lambda: Visit(session, desk, landscape, folder).show(),
        mount_path=f"/{token}",
        title=f"{session.name} · scIDiff studio",
        favicon="🧬",
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=KEPT,
        show_welcome_message=False,
    )
    return app


class Guard:
    """ASGI middleware that refuses whoever does not come with the token, from this machine, from this page."""

    def __init__(self, app: Any, *, token: str, port: int) -> None:
        self.app, self.token = app, token.encode()
        self.hosts = {f"{name}:{port}".encode() for name in (HOME, "localhost")}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if not self.welcome(scope):
            return await self._refuse(scope, receive, send)

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def welcome(self, scope: dict[str, Any]) -> bool:
        """Whether a request may pass."""
        headers = dict(scope["headers"])
        first = scope["path"].split("/")[1].encode()
        origin = headers.get(b"origin")
        return (
            secrets.compare_digest(first, self.token)
            and headers.get(b"host") in self.hosts
            and (origin is None or origin.removeprefix(b"http://") in self.hosts)
        )

    async def _refuse(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        text = b"Open the address that `scidiff studio` printed: it holds the token of this run.\n"
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": text})
