"""Serves the live page on the loopback address: three answers, each to a GET under an address that has a key.

Other programs and other users of this machine can reach a port, and so can a page of another site that has its name
point here. They do not know the key; and a request under another host's name, or sent by another site, is refused.
"""

from __future__ import annotations

import re
import secrets
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl

from covrl.errors import UserError
from covrl.reporting.live import answers
from covrl.reporting.live.index import ORDERS, TraceIndex, Wanted
from covrl.reporting.live.page import live_page
from covrl.reporting.live.run import LiveRun, poll
from covrl.reporting.text import visible
from covrl.secrets import redacted

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?")
"""Names under which this machine is asked; through a tunnel the port may be another one."""

PATIENCE_S = 30

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PAGE_POLICY = "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
"""Beside the policy that is in the page: nobody frames it, and its script makes no markup out of text."""

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


class RequestError(Exception):
    """A request that asks for nothing that there could be; the message, in ASCII, says what is wrong with it."""


class Site:
    """The runs that are looked at, and the index of their traces. One request at a time reads and answers."""

    def __init__(self, runs: Sequence[LiveRun]) -> None:
        self.runs = tuple(runs)
        self.key = secrets.token_urlsafe(12)
        self._index = TraceIndex()
        self._turn = Lock()
        self._drawn: tuple[Any, bytes] = None, b""

    def page(self) -> bytes:
        """The page, drawn again if there is something new on it."""
        with self._turn:
            self._poll()
            versions = [run.version for run in self.runs]
            if self._drawn[0] != versions:
                self._drawn = versions, live_page(self.runs).encode()
            return self._drawn[1]

    def state(self, wanted: Wanted, after: int) -> bytes:
        with self._turn:
            self._poll()
            return answers.encode(answers.state(self.runs, self._index, wanted, after))

    def traces(self, wanted: Wanted, page: int, upto: int | None) -> bytes:
        with self._turn:
            return answers.encode(answers.found(self.runs, self._index, wanted, page, upto))

    def _poll(self) -> None:
        for run in self.runs:
            poll(run, self._index)


class Server(socketserver.ThreadingTCPServer):
    """A server for one site; it is reached from this machine only."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        super().__init__((ADDRESS, port), partial(Handler, site))

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        """The address of the page, with its key."""
        return f"http://{ADDRESS}:{self.port}/{self.site.key}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A browser that has gone is no matter; any other error is a fault of ours, and is shown."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            text = "".join(traceback.format_exception(error))
            print(visible(redacted(text)), end="", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One request; whatever is no GET of one of the three addresses is an error in plain text."""

    timeout = PATIENCE_S
    server_version, sys_version = "covrl", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"

    def __init__(self, site: Site, *given: Any) -> None:
        self._site = site
        super().__init__(*given)

    def do_GET(self) -> None:
        """Answer, if the request may ask and asks for something that there is."""
        if not self._is_of_here():
            self.send_error(HTTPStatus.FORBIDDEN, "not from here")
            return
        site = self._site
        path, _, query = self.path.partition("?")
        try:
            if path == f"/{site.key}/":
                self._answer(site.page(), "text/html", PAGE_POLICY)
            elif path == f"/{site.key}/state":
                self._answer(_state(site, query), "application/json", DATA_POLICY)
            elif path == f"/{site.key}/traces":
                self._answer(_traces(site, query), "application/json", DATA_POLICY)
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "nothing is here: open the address that the terminal shows")
        except RequestError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))

    def end_headers(self) -> None:
        """Errors have the same headers as answers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: every open page makes one every two seconds."""

    def _is_of_here(self) -> bool:
        named = self.headers.get_all("Host", [])
        # Other sites may link to the page, and their links may be followed; nothing else of theirs is answered.
        sent_by_us = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        is_ours = sent_by_us or self.headers.get("Sec-Fetch-Dest") == "document"
        return len(named) == 1 and HOST.fullmatch(named[0]) is not None and is_ours

    def _answer(self, content: bytes, kind: str, policy: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)


def open_server(site: Site, port: int) -> Server:
    """The server at a port, or at a free one where that is 0; it does not answer yet.

    Raises:
        UserError: the port cannot be had.
    """
    try:
        return Server(site, port)
    except OSError as error:
        raise UserError(
            f"port {port} of {ADDRESS} cannot be had ({error.strerror}): give another --port, or none for a free one"
        ) from None


def wanted_of(asked: Mapping[str, str]) -> Wanted:
    """What a request asks for.

    Raises:
        RequestError: a value is of no use; the message says which.
    """
    kinds: dict[str, Callable[[str, str], Any]] = {"low": _real, "high": _real, "first": _whole, "last": _whole}
    given = {f.name: asked[f.name].strip() for f in fields(Wanted) if asked.get(f.name, "").strip()}
    wanted = Wanted(**{name: kinds.get(name, _text)(name, value) for name, value in given.items()})
    if wanted.order not in ORDERS:
        raise RequestError(f"order is one of {', '.join(ORDERS)}")
    return wanted


def _state(site: Site, query: str) -> bytes:
    asked = _fields(query)
    return site.state(wanted_of(asked), _whole("after", asked.get("after") or "0"))


def _traces(site: Site, query: str) -> bytes:
    asked = _fields(query)
    upto = _whole("upto", asked["upto"]) if asked.get("upto") else None
    return site.traces(wanted_of(asked), max(_whole("page", asked.get("page") or "1"), 1), upto)


def _fields(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True, errors="replace"))


def _text(_: str, value: str) -> str:
    return value


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise RequestError(f"{name} is a whole number")
    return int(value)


def _real(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise RequestError(f"{name} is a number") from None
