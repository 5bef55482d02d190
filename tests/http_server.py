"""What fake servers and proxies share: a port and threads of their own, and JSON over HTTP/1.1."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class JsonHandler(BaseHTTPRequestHandler):
    """Reads and sends JSON; ``owner`` is the server it answers for."""

    protocol_version = "HTTP/1.1"
    owner: Any

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post(self.rfile.read(int(self.headers["Content-Length"])))

    def get(self) -> None:
        self.refuse(404, "there is nothing here")

    def post(self, body: bytes) -> None:
        self.refuse(404, "there is nothing here")

    def refuse(self, status: int, message: str) -> None:
        self.send_json(status, {"error": {"message": message}})

    def send_json(self, status: int, content: dict[str, Any] | list[Any]) -> None:
        self.send(status, json.dumps(content).encode())

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, keep: int | None = None) -> None:
        """Send a body, or only its first ``keep`` bytes, with the length of all of it."""
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:keep])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that was killed or went away is no fault."""


class LocalServer:
    """Answers at ``url``, by a handler, from when it is made until it is closed."""

    def __init__(self, handler: type[JsonHandler], path: str = "/v1") -> None:
        self.lock = threading.Lock()
        self.http = _QuietServer(("127.0.0.1", 0), type("Handler", (handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}{path}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
