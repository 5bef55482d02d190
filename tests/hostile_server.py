"""A fake model server that misbehaves over a real socket, in one way per address.

    with HostileServer() as server:
        ...  # ask server.address("drip body"), which ends like a well-behaved server's: .../v1

``BEHAVIOURS`` has all ways by name. A behaviour is a function of the handler and of the request's body, which is None
for the list of models. Those in ``OF_THE_LIST`` misbehave there and answer well elsewhere, all others the other way
round. What is answered well needs no model: it is the same few tokens or the same label each time.
"""

import base64
import functools
import gzip
import json
import math
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from http_server import JsonHandler, LocalServer

TOKEN = 10
"""The token that is answered again and again."""

DRIP_SECONDS = 0.1
PIECE = b" " * (1 << 20)

NUMBERS: dict[str, Any] = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    "1e999": "@<1e999>@",
    "-1e308": -1e308,
    "5,000 digits": f"@<{'9' * 5000}>@",
    "above 0": 0.5,
    "text": "-0.5",
    "true": True,
    "null": None,
    "list": [-0.5],
}
"""What may stand where a log-probability is expected."""

VALUES: dict[str, Any] = {
    **{name: NUMBERS[name] for name in ("NaN", "1e999", "5,000 digits", "true", "null")},
    "7": 7,
    "-1": -1,
    "1.5": 1.5,
    "10^30": 10**30,
    "text": "odd",
    "list": [],
    "object": {},
    "nested": [[[{}]]],
}
"""What may stand anywhere."""


class Handler(JsonHandler):
    """Answers well, unless the address names a behaviour."""

    owner: "HostileServer"

    def get(self) -> None:
        self.act(None)

    def post(self, body: bytes) -> None:
        self.act(json.loads(body))

    @property
    def key(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def act(self, body: dict[str, Any] | None) -> None:
        name = unquote(urlsplit(self.path).path.split("/")[1])
        with self.owner.lock:
            self.owner.asked[name] += 1
        if name in BEHAVIOURS and (body is None) == (name in OF_THE_LIST):
            BEHAVIOURS[name](self, body or {})
        else:
            self.send_odd(answer(self, body))

    def send_odd(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send JSON that may hold what JSON does not allow."""
        self.send(status, odd_json(content), headers)

    def write(self, *pieces: bytes) -> None:
        """Write bytes as they are, and end the connection."""
        self.close_connection = True
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def drip(self, first: bytes, piece: bytes) -> None:
        """Write a piece now and then, without an end."""
        self.write(first)
        while not self.owner.closed.wait(DRIP_SECONDS):
            self.write(piece)

    def reset(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class HostileServer(LocalServer):
    """Misbehaves until it is closed; ``asked`` counts the requests by behaviour, and "landed" those redirected."""

    def __init__(self, models: tuple[str, ...] = ("pi_0", "pi_I")) -> None:
        self.models, self.asked, self.closed = models, Counter[str](), threading.Event()
        super().__init__(Handler)
        self.elsewhere = self.address("landed").replace("127.0.0.1", "localhost")

    def address(self, behaviour: str) -> str:
        """Where the server misbehaves in that way."""
        return self.url.replace("/v1", f"/{quote(behaviour, safe='')}/v1")

    def close(self) -> None:
        self.closed.set()
        super().close()


Behaviour = Callable[[Handler, dict[str, Any]], None]


def odd_json(content: Any) -> bytes:
    """Return JSON, in which a text in @< >@ is written without its quotes, and @u is the start of an escape."""
    text = json.dumps(content).replace('"@<', "").replace('>@"', "").replace("@u", "\\u")
    return text.encode("utf-8", "surrogatepass")


def answer(handler: Handler, body: dict[str, Any] | None) -> dict[str, Any]:
    """What a server that behaves well answers."""
    if body is None:
        return {"data": [{"id": name, "max_model_len": 1024} for name in handler.owner.models]}
    reply = {"id": "1", "model": body.get("model", "m"), "usage": {"prompt_tokens": 100, "completion_tokens": 1}}
    if "messages" in body:
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "m"}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = logprobs(-0.1, -2.3)
    else:
        ids = [TOKEN] * body.get("max_tokens", 1)
        choice = {"index": 0, "text": "x", "token_ids": ids, "finish_reason": "length"}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [None, *({str(token): {"logprob": -1.0}} for token in body["prompt"][1:])]
    return {**reply, "choices": [choice]}


def logprobs(first: Any, second: Any) -> dict[str, Any]:
    """Log-probabilities of the two labels of a judge."""
    places = [{"token": "m", "logprob": first}, {"token": "M", "logprob": second}]
    return {"content": [{**places[0], "top_logprobs": places}]}


# What is wrong with an answer


def around(**changes: Any) -> Behaviour:
    return lambda handler, body: handler.send_odd(answer(handler, body) | changes)


def choice(**changes: Any) -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        reply = answer(handler, body)
        handler.send_odd(reply | {"choices": [reply["choices"][0] | changes]})

    return behave


def scored(change: Callable[[list[Any], list[int]], Any]) -> Behaviour:
    """Change the log-probabilities of a prompt; ``change`` gets them and the prompt's ids."""

    def behave(handler: Handler, body: dict[str, Any]) -> None:
        reply = answer(handler, body)
        if body.get("prompt_logprobs") is not None:
            [only] = reply["choices"]
            only["prompt_logprobs"] = change(only["prompt_logprobs"], body["prompt"])
        handler.send_odd(reply)

    return behave


def drawn(change: Callable[[list[int]], Any], **changes: Any) -> Behaviour:
    """Change the ids of a sampled answer."""

    def behave(handler: Handler, body: dict[str, Any]) -> None:
        reply = answer(handler, body)
        [only] = reply["choices"]
        if "token_ids" in only and body.get("prompt_logprobs") is None:
            only |= {"token_ids": change(only["token_ids"]), **changes}
        handler.send_odd(reply)

    return behave


def body(content: bytes | str, status: int = 200, **headers: str) -> Behaviour:
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.send(status, encoded, named)


def edited(edit: Callable[[bytes], bytes], **headers: str) -> Behaviour:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, body: handler.send(200, edit(odd_json(answer(handler, body))), named)


def raw(*pieces: bytes) -> Behaviour:
    return lambda handler, _: handler.write(*pieces)


def drip(first: bytes, piece: bytes) -> Behaviour:
    return lambda handler, _: handler.drip(first, piece)


def refusal(status: int, **headers: str) -> Behaviour:
    return body(json.dumps({"error": {"message": "injected"}}), status, **headers)


def redirect(status: int, to: Callable[[Handler], str]) -> Behaviour:
    return lambda handler, _: handler.send(status, b"", {"Location": to(handler)})


def endless(first: bytes, piece: bytes) -> Behaviour:
    def behave(handler: Handler, _: dict[str, Any]) -> None:
        handler.write(first)
        while not handler.owner.closed.is_set():
            handler.write(piece)

    return behave


def bomb(layers: int) -> Behaviour:
    return lambda handler, _: handler.send(200, packed(layers), {"Content-Encoding": ", ".join(["gzip"] * layers)})


@functools.cache
def packed(layers: int) -> bytes:
    """Return 200 MiB of blanks, packed so many times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    once = b"".join(packer.compress(piece) for piece in repeat(PIECE, 200)) + packer.flush()
    return once if layers == 1 else gzip.compress(packed(layers - 1))


def repeated(form: Callable[[str], str], place: str) -> Behaviour:
    """Repeat the key, in some form, in a place of an answer."""

    def behave(handler: Handler, body: dict[str, Any]) -> None:
        said, reply = form(handler.key), answer(handler, body)
        [only] = reply["choices"]
        if place in ("content", "refusal"):
            only["message"] = {"role": "assistant", "content": None, place: f"m {said}"}
        elif place == "finish_reason":
            only["finish_reason"] = said
        elif place == "model":
            reply["model"] = f"model-{said}"
        elif place == "token" and "logprobs" in only:
            only["logprobs"]["content"][0]["token"] = said
        handler.send_odd(reply, headers={"X-Key": said} if place == "header" else None)

    return behave


def refused(form: Callable[[str], str], status: int) -> Behaviour:
    """Repeat the key in an error."""
    return lambda handler, _: handler.send_odd({"error": {"message": f"wrong key {form(handler.key)}"}}, status)


def repetitions(name: str, form: Callable[[str], str]) -> dict[str, Behaviour]:
    """All ways to repeat a key in one form."""
    return {
        **{
            f"key {name} in {place}": repeated(form, place)
            for place in ("content", "refusal", "finish_reason", "model", "token", "header")
        },
        f"key {name} in 400": refused(form, 400),
        f"key {name} in 401": refused(form, 401),
        f"key {name} in 500": refused(form, 500),
        f"key {name} in page": lambda handler, _: handler.send(401, f"<p>{form(handler.key)}</p>".encode()),
        f"key {name} in redirect": redirect(307, lambda handler: f"http://localhost:9/v1?key={form(handler.key)}"),
        f"key {name} in status line": lambda handler, _: handler.write(f"HTTP/1.1 {form(handler.key)}\r\n".encode()),
    }


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "Bearer": lambda key: f"Bearer {key}",
    "URL-encoded": lambda key: "".join(f"%{ord(sign):02X}" for sign in key),
    "partly URL-encoded": lambda key: key.replace("-", "%2d"),
    "escaped": lambda key: "".join(f"@u{ord(sign):04x}" for sign in key),
    "HTML": lambda key: "".join(f"&#{ord(sign)};" for sign in key),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of user and key": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
}
"""How a key may be repeated."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = HEAD + b"Content-Length: 1000000000\r\n\r\n"
PAGE = "<html><h1>Bad gateway</h1></html>"

OF_THE_WIRE: dict[str, Behaviour] = {
    "hang": lambda handler, _: handler.drip(b"", b""),
    "drip body": drip(LONG, b" "),
    "drip chunks": drip(CHUNKED, b"1\r\n \r\n"),
    "drip headers": drip(HEAD, b"X: 1\r\n"),
    "drip status line": drip(b"HTTP/1.1 200 ", b"O"),
    "drip 100": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless body": endless(HEAD + b"Connection: close\r\n\r\n", PIECE),
    "endless chunks": endless(CHUNKED, b"100000\r\n" + PIECE + b"\r\n"),
    "endless headers": endless(HEAD, b"X: " + b"y" * 1000 + b"\r\n"),
    "endless length": endless(LONG, PIECE),
    "endless 100": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "large header": raw(HEAD + b"X: " + b"y" * (1 << 20) + b"\r\nContent-Length: 2\r\n\r\n{}"),
    "closed before": lambda handler, _: handler.reset(),
    "closed amid": raw(LONG, b'{"model'),
    "closed in headers": raw(HEAD),
    "length too small": raw(HEAD + b"Content-Length: 3\r\n\r\n" + b'{"model": "m"}'),
    "length negative": raw(HEAD + b"Content-Length: -1\r\n\r\n{}"),
    "length no number": raw(HEAD + b"Content-Length: lots\r\n\r\n{}"),
    "two lengths": raw(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "bad chunk": raw(CHUNKED + b"zzz\r\nfoo\r\n"),
    "chunk of 16 exabytes": raw(CHUNKED + b"ffffffffffffffff\r\n{}"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "binary": raw(bytes(range(256)) * 40),
    "status of letters": raw(b"HTTP/1.1 abc OK\r\n\r\n"),
    "status 999": raw(b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\n{}"),
    "switching protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
    "gzip bomb": bomb(1),
    "gzip bomb in gzip": bomb(2),
    "no gzip": body(b"no gzip", Content_Encoding="gzip"),
    "unknown encoding": body(b"{}", Content_Encoding="zip, br, zstd"),
    "redirect to another host": redirect(307, lambda handler: handler.owner.elsewhere),
    "redirect here": redirect(307, lambda handler: "/landed/v1/chat/completions"),
    "redirect moved": redirect(301, lambda handler: "/landed/v1/models"),
    "redirect loop": redirect(308, lambda handler: handler.path),
    "redirect to a file": redirect(307, lambda _: "file:///etc/passwd"),
    "redirect to nowhere": redirect(307, lambda _: "http://[::1"),
    "redirect to text": redirect(302, lambda _: "\N{LATIN SMALL LETTER E WITH ACUTE}" * 200),
    "not modified": body(b"", 304),
    "multiple choices": body(b"", 300),
}
"""What goes wrong below the answer, whatever was asked."""

OF_STATUS: dict[str, Behaviour] = {
    **{f"status {status}": refusal(status) for status in (400, 402, 404, 408, 409, 413, 418, 422, 451, 500, 503, 511)},
    **{
        f"429 after {after}": refusal(429, Retry_After=after)
        for after in ("0", "-1", "nan", "1e999", "1000000000", "soon", "Fri, 31 Dec 9999 23:59:59 GMT")
    },
    "429 after milliseconds": refusal(429, Retry_After_Ms="inf"),
    "retry though wrong": refusal(400, X_Should_Retry="true"),
    "status 500 page": body(PAGE, 500, Content_Type="text/html"),
    "status 403 nothing": body(b"", 403),
    "status 400 deep": body("[" * 100_000, 400),
    **{
        f"status 500 in {charset}": body(PAGE, 500, Content_Type=f"text/html; charset={charset}")
        for charset in ("zip", "undefined", "punycode", "hex", "utf-7", "none-such")
    },
    "no content": body(b"", 204),
}
"""Statuses."""

OF_THE_BODY: dict[str, Behaviour] = {
    "empty": body(b""),
    "null": body("null"),
    "number": body("7"),
    "list": body("[]"),
    "page": body(PAGE, Content_Type="text/html"),
    "half": edited(lambda content: content[: len(content) // 2]),
    "partial content": lambda handler, request: handler.send(206, odd_json(answer(handler, request))[:20]),
    "two answers": edited(lambda content: content * 2),
    "another type": edited(lambda content: content, Content_Type="image/png"),
    "UTF-16": edited(lambda content: content.decode().encode("utf-16")),
    "not UTF-8": edited(lambda content: content.replace(b'"model"', b'"mod\xff"')),
    "zero bytes": edited(lambda content: b"\0" * 1000 + content),
    "half a surrogate pair": edited(lambda content: content.replace(b'"index"', b'"\\ud800"')),
    "deep list": body("[" * 200_000),
    "deep object": body('{"a":' * 200_000),
    "large": edited(lambda content: PIECE * 40 + content),
    "stream": body("data: {}\n\ndata: [DONE]\n\n", Content_Type="text/event-stream"),
}
"""What is no answer at all."""


def _fields() -> Iterator[tuple[str, Behaviour]]:
    for name, value in VALUES.items():
        yield f"choices are {name}", around(choices=value)
        yield f"choice is {name}", around(choices=[value])
        yield f"model is {name}", around(model=value)
        yield f"usage is {name}", around(usage=value)
        yield f"tokens read are {name}", around(usage={"prompt_tokens": value, "completion_tokens": 1})
        yield f"tokens written are {name}", around(usage={"prompt_tokens": 100, "completion_tokens": value})
        yield f"index is {name}", choice(index=value)
        yield f"finish_reason is {name}", choice(finish_reason=value)
        yield f"message is {name}", choice(message=value)
        yield f"content is {name}", choice(message={"role": "assistant", "content": value})
        yield f"logprobs are {name}", choice(logprobs=value)
        yield f"token_ids are {name}", drawn(lambda _, value=value: value)  # type: ignore[misc]
        yield f"a token is {name}", drawn(lambda ids, value=value: [*ids[:-1], value])  # type: ignore[misc]
        yield f"prompt_logprobs are {name}", scored(lambda *_, value=value: value)  # type: ignore[misc]
    for name, value in NUMBERS.items():
        yield f"a logprob is {name}", choice(logprobs=logprobs(value, -0.1))
        yield f"the other logprob is {name}", choice(logprobs=logprobs(-0.1, value))
        yield f"both logprobs are {name}", choice(logprobs=logprobs(value, value))
        yield (
            f"a scored logprob is {name}",
            scored(lambda given, ids, value=value: [*given[:-1], {str(ids[-1]): {"logprob": value}}]),  # type: ignore[misc]
        )


OF_THE_ANSWER: dict[str, Behaviour] = {
    **dict(_fields()),
    "no choices": around(choices=[]),
    "two choices": lambda handler, body: handler.send_odd(
        (reply := answer(handler, body)) | {"choices": reply["choices"] * 2}
    ),
    "only an error": body(json.dumps({"error": {"message": "injected", "code": 500}})),
    "too few tokens": drawn(lambda ids: ids[:-1]),
    "too many tokens": drawn(lambda ids: [*ids, TOKEN]),
    "a million tokens": drawn(lambda ids: ids * 100_000),
    "ended in the middle": drawn(lambda ids: [ids[0], 2, *ids[2:]]),
    "stopped without an end": drawn(lambda ids: ids, finish_reason="stop"),
    "another prompt": drawn(lambda ids: ids, prompt_token_ids=[TOKEN]),
    "too few scored": scored(lambda given, _: given[:-1]),
    "too many scored": scored(lambda given, _: [*given, given[-1]]),
    "scored another prompt": scored(lambda given, ids: [None, *({"9999": {"logprob": -1.0}} for _ in ids[1:])]),
    "scored another beginning": scored(lambda given, _: [None, {"9999": {"logprob": -1.0}}, *given[2:]]),
    "scored nothing": scored(lambda given, _: [None] * len(given)),
    "text of brackets": choice(message={"content": "[" * 1000}),
    "text of digits": choice(message={"content": f"[[{'9' * 200_000}"}),
    "text of many megabytes": choice(message={"content": "m" * (16 << 20)}),
    "parts of unknown kinds": choice(message={"content": [{"type": "audio"}]}),
    "tool calls": choice(message={"content": None, "tool_calls": []}, finish_reason="tool_calls"),
    **{key: value for form, write in FORMS.items() for key, value in repetitions(form, write).items()},
}
"""What is wrong within an answer."""


def _list(*entries: Any) -> Behaviour:
    def behave(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_odd({"data": [*entries, *answer(handler, None)["data"]]})

    return behave


OF_THE_LIST: dict[str, Behaviour] = {
    **{f"list with {name}": _list(value) for name, value in VALUES.items()},
    "list is null": body("null"),
    "list is a page": body(PAGE),
    "list without data": body("{}"),
    "list that drips": OF_THE_WIRE["drip body"],
    "list that redirects": OF_THE_WIRE["redirect here"],
    "list without end": OF_THE_WIRE["endless body"],
    "list of 20,000 models": lambda handler, _: handler.send_odd({"data": [{"id": f"m{n}"} for n in range(20_000)]}),
    "list of odd names": lambda handler, _: handler.send_odd(
        {"data": [{"id": name} for name in ("\x1b[31m\x1b]0;x\x07", "<img src=x>", "x" * 100_000, "\u202e", "")]}
    ),
    "list of the key": lambda handler, _: handler.send_odd({"data": [{"id": handler.key}]}),
    **{
        f"context is {name}": lambda handler, _, value=value: handler.send_odd(  # type: ignore[misc]
            {"data": [{"id": model, "max_model_len": value} for model in handler.owner.models]}
        )
        for name, value in {**VALUES, "0": 0}.items()
    },
}
"""What is wrong with the list of models."""

BEHAVIOURS: dict[str, Behaviour] = {**OF_THE_WIRE, **OF_STATUS, **OF_THE_BODY, **OF_THE_ANSWER, **OF_THE_LIST}
