"""Stand-ins for what scores steps: a function of the texts alone, and servers of both protocols that can be broken."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from covrl.rewards.steps import StepsToScore


def score_of(question: str, step: str) -> float:
    """Between 0 and 1, the same in every process."""
    digest = blake2b(f"{question}\0{step}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def fake_scorer(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
    """A scorer for tests: each step's score is a function of the question and of its text."""
    return [tuple(score_of(each.question, step) for step in each.steps) for each in asked]


def plain_answer(body: Any) -> Any:
    """What a server of the plain protocol sends back."""
    return {"scores": [[score_of(item["question"], step) for step in item["steps"]] for item in body["items"]]}


def pooled_answer(body: Any, mark: str = "<extra_0>") -> Any:
    """What vLLM sends back for a model with step pooling: probabilities of two classes at each mark."""
    _, question, turn = body["messages"]
    steps = turn["content"].split(mark)[:-1]
    scores = [score_of(question["content"], step) for step in steps]
    return {"object": "list", "data": [{"index": 0, "object": "pooling", "data": [[1 - s, s] for s in scores]}]}


Reply = Callable[[Any], Any]


class FakeServer:
    """Answers requests by ``reply``; ``bodies``, ``paths`` and ``headers`` are what came, ``most`` how many at once.

    A reply may be a status with a body, raw bytes, ``"hang"``, ``"dribble"``, or ``"close"`` to end the connection.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.bodies: list[Any] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.address = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.paths.append(handler.path)
            self.headers.append(dict(handler.headers))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            given = self.reply(body)
        finally:
            with self.lock:  # before the reply is sent: the next request may come as soon as it is read
                self.now -= 1
        self._send(handler, given)

    def _send(self, handler: BaseHTTPRequestHandler, given: Any) -> None:
        if given == "close":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if given == "hang":
            self.ending.wait(30.0)
            return
        if given == "dribble":
            handler.send_response(200)
            handler.end_headers()
            while not self.ending.wait(0.05):
                handler.wfile.write(b" ")
                handler.wfile.flush()
            return
        status, content = given if isinstance(given, tuple) else (200, given)
        said = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        if 300 <= status < 400:
            handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
        handler.send_header("Content-Length", str(len(said)))
        handler.end_headers()
        handler.wfile.write(said)


@contextmanager
def serving(reply: Reply) -> Iterator[FakeServer]:
    """A fake server on this machine while entered."""
    fake = FakeServer(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                fake.handle(self)
            except (BrokenPipeError, ConnectionResetError):  # the client has given up
                return

        def log_message(self, *_given: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_given: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        fake.ending.set()
        server.shutdown()
        server.server_close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def slowly(reply: Reply, seconds: float) -> Reply:
    """The same answer, later."""

    def later(body: Any) -> Any:
        time.sleep(seconds)
        return reply(body)

    return later
