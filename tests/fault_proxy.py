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
import time
from collections import Counter
from urllib.parse import urlsplit

from http_server import JsonHandler, LocalServer

FAULTS = ("429", "500", "503", "drop before", "drop after", "drop amid", "half JSON", "no JSON", "no choices", "delay")
"""What a client should get over. ``drop before``: the connection ends before the server is asked; ``after``: when the
server has answered; ``amid``: in the middle of the body. ``half JSON`` is cut, with a length that fits."""

RETRY_AFTER = 0.2
"""Seconds that a 429 asks for."""


class FaultProxy(LocalServer):
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
        self.host, self.port = str(parts.hostname), parts.port or 80
        self.faults, self.share, self.seed, self.most, self.delay = faults, share, seed, most, delay
        self.seen, self.injected = Counter[bytes](), Counter[str]()
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        super().__init__(_Handler, parts.path)

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


class _Handler(JsonHandler):
    owner: FaultProxy

    def get(self) -> None:
        self.post(b"")

    def post(self, body: bytes) -> None:
        with self.owner.lock:
            self.owner.at_once += 1
            self.owner.most_at_once = max(self.owner.most_at_once, self.owner.at_once)
        try:
            self._answer(body)
        finally:
            with self.owner.lock:
                self.owner.at_once -= 1

    def _answer(self, body: bytes) -> None:
        fault = self.owner.draw(self.command.encode() + self.path.encode() + body)
        if fault in ("429", "500", "503"):
            self.send(int(fault), b'{"error": {"message": "injected"}}', {"Retry-After": str(RETRY_AFTER)})
            return
        if fault == "drop before":
            self._drop()
            return
        if fault == "delay":
            time.sleep(self.owner.delay)
        status, answer = self._ask(body)
        if fault == "drop after":
            self._drop()
        elif fault == "drop amid":
            self.send(status, answer, keep=len(answer) // 2)
            self._drop()
        else:
            self.send(status, _changed(answer, fault))

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.owner.host, self.owner.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        headers["Accept-Encoding"] = "identity"
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, answer

    def _drop(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


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
