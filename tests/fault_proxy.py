"""An HTTP proxy that stands in front of any server and injects faults; what passes is the server's own answer.

    with FaultProxy("http://127.0.0.1:8000", faults=FAULTS, share=0.4, seed=1) as proxy:
        ...  # ask proxy.url, which ends like the server's: http://127.0.0.1:PORT

Which request fails how is drawn from the seed, the request's body and how often it came, so neither threads nor time
have a part in it; ``most`` bounds how often one request fails.
"""

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

FAULTS = ("429", "500", "503", "drop before", "drop after", "drop amid", "half JSON", "no JSON", "no choices", "delay")
"""What a client should get over. ``drop before``: the connection ends before the server is asked; ``after``: when the
server has answered; ``amid``: in the middle of the body. ``half JSON`` is cut, with a length that fits."""

RETRY_AFTER = 0.2
"""Seconds that a 429 asks for."""


class FaultProxy:
    """A proxy on a port of its own. ``other model`` is a fault, too: the answer then bears another model's name."""

    def __init__(
        self,
        target: str,
        faults: tuple[str, ...] = FAULTS,
        share: float = 1.0,
        seed: int = 0,
        most: int = 2,
        delay: float = 0.5,
    ) -> None:
        parts = urlsplit(target)
        self.host, self.port, self.path = str(parts.hostname), parts.port or 80, parts.path
        self.faults, self.share, self.seed, self.most, self.delay = faults, share, seed, most, delay
        self.seen, self.injected = Counter[bytes](), Counter[str]()
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            proxy = owner

        self.http = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}{self.path}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def draw(self, request: bytes) -> str | None:
        """Return what goes wrong with a request this time, if anything."""
        with self.lock:
            attempt = self.seen[request]
            self.seen[request] += 1
            self.times.append(time.monotonic())
            stream = random.Random(f"{self.seed} {attempt} {request!r}")
            if attempt >= self.most or stream.random() >= self.share:
                return None
            fault = stream.choice(self.faults)
            self.injected[fault] += 1
            return fault


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away, since it waited long enough, is no fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes) -> None:
        with self.proxy.lock:
            self.proxy.at_once += 1
            self.proxy.most_at_once = max(self.proxy.most_at_once, self.proxy.at_once)
        try:
            self._answer(body)
        finally:
            with self.proxy.lock:
                self.proxy.at_once -= 1

    def _answer(self, body: bytes) -> None:
        fault = self.proxy.draw(self.command.encode() + self.path.encode() + body)
        if fault in ("429", "500", "503"):
            self._send(int(fault), b'{"error": {"message": "injected"}}', {"Retry-After": str(RETRY_AFTER)})
            return
        if fault == "drop before":
            self._drop()
            return
        if fault == "delay":
            time.sleep(self.proxy.delay)
        status, answer = self._ask(body)
        if fault == "drop after":
            self._drop()
        elif fault == "drop amid":
            self._send(status, answer, {}, keep=len(answer) // 2)
            self._drop()
        else:
            self._send(status, _changed(answer, fault), {})

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.proxy.host, self.proxy.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        headers["Accept-Encoding"] = "identity"
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, answer

    def _send(self, status: int, body: bytes, headers: dict[str, str], keep: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:keep])

    def _drop(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _changed(answer: bytes, fault: str | None) -> bytes:
    if fault == "half JSON":
        return answer[: len(answer) // 2]
    if fault == "no JSON":
        return b"<html>Bad gateway</html>"
    if fault in ("no choices", "other model"):
        content = json.loads(answer)
        content = {**content, "choices": []} if fault == "no choices" else {**content, "model": "another"}
        return json.dumps(content).encode()
    return answer
