"""Talking to servers that speak OpenAI's protocol: finding a model, and asking until there is a whole answer.

The ``openai`` client waits and asks again after 408, 409, 429, 5xx and lost connections. Answers that came whole but
make no sense are asked for again here, out of the same number of retries. ``transport`` has what may come in at all.
"""

import asyncio
import contextlib
import os
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import openai
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from crosspref.engines.server.transport import GuardedClient
from crosspref.errors import RefusedError, ServerError, UnusableError
from crosspref.escape import listed, one_line
from crosspref.keys import without_key
from crosspref.recipe.sections import ServerSettings

LOOK_UP = {"timeout": 5.0, "max_retries": 2}
"""How long to wait for the list of models (seconds), and how often to ask again: a server that is down shows soon."""

LOOPBACK = {"localhost", "127.0.0.1", "::1"}

KEPT = "Finished shards are kept: give the same command again when the server is well."

T = TypeVar("T")


class Answer(BaseModel):
    """What every answer of a server must hold."""

    model: str


class _Listed(BaseModel):
    id: str
    max_model_len: Annotated[int, Field(strict=True, ge=1)] | None = None  # vLLM's


class _Models(BaseModel):
    data: list[_Listed]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the run where it is served; ``context`` is how many tokens it takes there, if the server says so."""

    role: str
    url: str
    name: str
    context: int | None

    def __str__(self) -> str:  # noqa: D105 - how every message about it begins
        return f"The server at {self.url}, asked for {self.role} under the name {self.name!r},"


class ServerClient:
    """Asks the servers of a run, many requests at a time.

    It has an event loop in a thread of its own, so that it can also be used where a loop runs already, as in notebooks.

    Args:
        settings: where the servers are and how to ask them.
        section: under which name a person sets this, for messages.
        kept: what messages say about finished work and how to resume.

    Raises:
        ServerError: the key has characters that cannot be sent.
    """

    def __init__(self, settings: ServerSettings, section: str = "server", kept: str = KEPT) -> None:
        self.settings, self.section, self.kept = settings, section, kept
        self.key = _read_key(settings.key_variable)
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.next_turn = 0.0
        self.sent: set[asyncio.Task[Any] | None] = set()
        self.is_ending = False
        self.clients: dict[str, openai.AsyncOpenAI] = {}
        stack = contextlib.ExitStack()
        self.portal = stack.enter_context(start_blocking_portal())
        # Also for who forgets to close: a thread that waits for an event would keep the interpreter from ending.
        self.close_once = weakref.finalize(self, _close, self.portal, self.clients, stack)

    def find(self, role: str, directory: Path) -> ServedModel:
        """Return where a model is served.

        Raises:
            ServerError: the server does not answer, or does not serve it; ``directory`` is what it would have to serve.
        """
        model = self.unlisted(role)
        serve = f"vllm serve {directory} --served-model-name {model.name}"
        served = self._served(model, f"Serve it, for example with: {serve}")
        if model.name not in served:
            raise ServerError(
                f"The server at {model.url} does not serve {role}: no model is called {model.name!r} there, but "
                f"{listed(map(repr, served))}. Serve it, for example with\n  {serve}\n"
                f"or say what it is called (server.names: {{{role}: NAME}}) or which server has it (server.urls: "
                f"{{{role}: URL}}). Then give the same command again: what is finished is kept."
            )
        return replace(model, context=served[model.name])

    def require_answer(self, role: str) -> None:
        """Raise ServerError unless the server that a model will have to be served by answers."""
        self._served(self.unlisted(role), "Start it, or set server.url.")

    def unlisted(self, role: str, name: str | None = None) -> ServedModel:
        """Return a model without asking whether the server lists it, as hosted ones need not."""
        url = self.settings.urls.get(role, self.settings.url)
        return ServedModel(role, url, name or self.settings.names.get(role, role), None)

    def gather(self, jobs: Sequence[Coroutine[Any, Any, T]], patience: float = 0.0) -> list[T]:
        """Run jobs side by side and return their results; the first error stops them all.

        ``patience`` is for jobs that keep what they are answered: how many seconds after an error their answers, which
        are paid for, are awaited. No more requests are sent then.
        """

        async def run() -> list[T]:
            tasks = [asyncio.ensure_future(job) for job in jobs]
            try:
                return await asyncio.gather(*tasks)
            except Exception:
                await self._await_sent(tasks, patience)
                raise
            finally:
                for task in tasks:
                    task.cancel()

        future = self.portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:  # Ctrl-C comes here, and must not wait for answers that nobody wants any more
            future.cancel()
            raise

    async def _await_sent(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
        """Wait for the answers to what is sent, and stop all other tasks."""
        self.is_ending = True
        try:
            answering = [task for task in tasks if task in self.sent]
            for task in set(tasks).difference(answering):
                task.cancel()
            if answering:
                await asyncio.wait(answering, timeout=seconds)
        finally:
            self.is_ending = False

    async def complete(
        self, model: ServedModel, read: Callable[[bytes], T], *, any_name: bool = False, **request: Any
    ) -> T:
        """Ask for what follows a ``prompt`` of token ids, or the ``messages`` of a chat.

        ``read`` turns the body into what is wanted, or raises ValueError. With ``any_name`` the answer may come under
        another name than was asked for, as that of a dated version.
        """

        def send(client: openai.AsyncOpenAI) -> Any:
            completions = client.chat.completions if "messages" in request else client.completions
            return completions.with_raw_response.create(model=model.name, **request)

        def checked(content: bytes) -> T:
            name = model.name if any_name else Answer.model_validate_json(content).model
            if name != model.name:
                raise ServerError(
                    f"{model} answered as {name[:100]!r}. Nothing of it was stored. If that is the same model, name it "
                    f"so in server.names.{model.role}."
                )
            return read(content)

        return await self._ask(model, send, checked)

    def close(self) -> None:
        """Close the connections and end the thread."""
        self.close_once()

    def _served(self, model: ServedModel, advice: str) -> dict[str, int | None]:
        """Return the names of the models that a server holds, and how many tokens each takes if the server says so."""

        def read(content: bytes) -> dict[str, int | None]:
            return {listed.id: listed.max_model_len for listed in _Models.model_validate_json(content).data}

        async def send(client: openai.AsyncOpenAI) -> Any:
            return await client.with_options(**LOOK_UP).models.with_raw_response.list()

        [served] = self.gather([self._ask(model, send, read, advice)])
        return served

    async def _ask(
        self,
        model: ServedModel,
        send: Callable[[openai.AsyncOpenAI], Awaitable[Any]],
        read: Callable[[bytes], T],
        advice: str | None = None,
    ) -> T:
        """Send a request until its answer can be read, at most ``retries`` times more."""
        used, fault, advice = 0, "", advice or self.kept
        async with self.slots:
            while used <= self.settings.retries:
                client = self._client(model.url).with_options(max_retries=self.settings.retries - used)
                try:
                    response = await send(client)
                except openai.APIStatusError as error:
                    kind = RefusedError if error.status_code in (400, 413, 422) else ServerError
                    raise kind(self._refusal(model, error, advice)) from None
                except openai.APIConnectionError as error:
                    why = error.__cause__ or error
                    said = one_line(without_key(str(why), self.key))
                    raise ServerError(f"{model} does not answer: {said} ({type(why).__name__}). {advice}") from None
                used += response.retries_taken + 1
                try:
                    return read(response.content)
                except ValueError as error:
                    fault = _short(error)
                if used <= self.settings.retries:
                    await asyncio.sleep(min(8.0, 0.5 * 2 ** (used - 1)))  # as the client waits
        kind = UnusableError if _is_of_a_model(response.content) else ServerError
        raise kind(f"{model} gave no answer that can be used in {used} attempts; the last one: {fault}. {advice}")

    def _client(self, url: str) -> openai.AsyncOpenAI:
        if url not in self.clients:
            self.clients[url] = openai.AsyncOpenAI(
                base_url=url,
                api_key=self.key,
                timeout=openai.Timeout(self.settings.timeout, connect=10.0),
                http_client=GuardedClient(
                    self.key,
                    self._turn,
                    # A proxy that the environment names is not for this machine's own servers.
                    trust_env=urlsplit(url).hostname not in LOOPBACK,
                ),
            )
        return self.clients[url]

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold each request, retries among them, back until ``requests_per_minute`` allows it; inside it is sent."""
        if self.is_ending:
            raise asyncio.CancelledError
        if self.settings.requests_per_minute is not None:
            now = time.monotonic()
            turn = max(now, self.next_turn)
            self.next_turn = turn + 60 / self.settings.requests_per_minute
            await asyncio.sleep(turn - now)
        task = asyncio.current_task()
        self.sent.add(task)
        try:
            yield
        finally:
            self.sent.remove(task)

    def _refusal(self, model: ServedModel, error: openai.APIStatusError, advice: str) -> str:
        said = f"{error.status_code}: {one_line(error.message)}"
        if error.status_code in (401, 403):
            variable = self.settings.key_variable
            advice = (
                f"The key is taken from the environment variable {variable}, which is "
                + ("not set." if self.key == "none" else "set.")
                + f" {self.kept}"
            )
        elif error.status_code == 404:
            advice = f"Check {self.section}.url (the version belongs to it: http://localhost:8000/v1). {advice}"
        elif "location" in error.response.headers:
            place = one_line(without_key(error.response.headers["location"], self.key), 200)
            said = f"{error.status_code}: ask {place}."
            advice = f"Nothing is sent elsewhere: if that is the right address, set {self.section}.url. {advice}"
        return f"{model} answered {said} {advice}"


def _read_key(variable: str) -> str:
    """Return the key, or "none"; no message shows it, and a header takes only printable ASCII."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ServerError(
            f"The key in the environment variable {variable} has characters that no key has, such as a line's end or "
            "curly quotes. Set it anew, and give the same command again."
        )
    return key or "none"


def _close(portal: BlockingPortal, clients: dict[str, openai.AsyncOpenAI], stack: contextlib.ExitStack) -> None:
    for client in clients.values():
        portal.call(client.close)
    stack.close()


def _is_of_a_model(content: bytes) -> bool:
    """Tell whether an answer that cannot be used comes from a model, and not from what stands in front of it."""
    try:
        return "choices" in from_json(content)
    except (TypeError, ValueError):
        return False


def _short(error: ValueError) -> str:
    """Say what is wrong with an answer, without the answer."""
    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}"
