"""What may come in from a server: a whole answer, in time, of bounded size, from the address asked, without our key."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai

from crosspref.keys import without_key

MOST_BYTES = 32 << 20
"""What an answer may hold. The log-probabilities of a prompt of 256,000 tokens take about so much."""

HEADERS = (b"retry-after", b"retry-after-ms", b"location")
"""The headers of an answer that are read; with others, such as a charset, a server could have us compute things."""

http: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]
"""The library below ``openai``: httpx, or its successor."""


class GuardedClient(openai.DefaultAsyncHttpxClient):  # type: ignore[misc]
    """The HTTP client of one server.

    Its time limit is for the whole answer, where httpx's own is for the next few bytes. It follows no redirects.

    Args:
        key: what is taken out of all that comes in.
        turn: waits until a request may be sent, which does not count as time of the answer, and knows when it came.
        options: what httpx's client takes.
    """

    def __init__(self, key: str, turn: Callable[[], AbstractAsyncContextManager[None]], **options: Any) -> None:
        self.key, self.turn = key, turn
        # Uncompressed, a few kilobytes cannot become more than the memory.
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"}, **options)

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request and return its answer, read to the end.

        Raises:
            httpx.ReadTimeout: it took longer than the request's time limit.
            httpx.RemoteProtocolError: it is compressed or too large.
        """
        seconds = request.extensions["timeout"]["read"]
        try:
            async with self.turn(), asyncio.timeout(seconds):
                response = await super().send(request, **{**options, "stream": True})
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise http.ReadTimeout(f"there was no whole answer within {seconds:g} s", request=request) from None
        headers = [(name, value) for name, value in response.headers.raw if name.lower() in HEADERS]
        content = without_key(body, self.key)
        return http.Response(response.status_code, headers=headers, content=content, request=request)


async def _read(response: Any) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise http.RemoteProtocolError(f"the answer is compressed ({encoding[:20]!r}), though that was not asked for")
    body = bytearray()  # which bytes that come one by one make no larger than they are
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MOST_BYTES:
            raise http.RemoteProtocolError(f"the answer is larger than {MOST_BYTES >> 20} MiB")
    return bytes(body)
