"""Chat templates: conversations as text, the same on every day, or an error that says what the template did."""

import re
from collections.abc import Iterable, Sequence
from datetime import date
from itertools import takewhile
from typing import Any

import jinja2

from crosspref.data.records import Message
from crosspref.engines.transformers.thinking import find_thinking
from crosspref.errors import DataError, ModelError
from crosspref.escape import one_line
from crosspref.recipe.sections import AskingSettings

PROBES = ("violet harbour", "quiet lantern")
"""Two texts that have neither their first nor their last letters in common."""

DIRECTIVES = tuple(f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcdDeFgGhHIjklmMnpPrRsSTuUVwWxXyYzZ")
"""What strftime replaces; the flag ``-`` leaves leading zeros out."""

THINKING_ENDS = "</think>"
"""Behind it is the answer. Many templates leave out what earlier answers have before it."""

SWITCHES = re.compile(r"/(no_)?think\b")
"""What a system message may say to a model that can think aloud. SmolLM3's template shows it in another place."""


class _RefusalError(Exception):
    """A template cannot be read, fails, or refuses a conversation; says why."""


class ChatTemplate:
    """A model's chat template, filled in as the settings say.

    Args:
        tokenizer: the model's tokenizer, of transformers.
        settings: values for the template's switches, and the date that it is told.
        name: what messages call the model.

    Raises:
        ModelError: there is no template, it fails, or it does not show what a user says.
    """

    def __init__(self, tokenizer: Any, settings: AskingSettings, name: str) -> None:
        self.tokenizer, self.name, self.values = tokenizer, name, settings.chat_template_kwargs
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:  # also where there are several by name, and none is the default
            raise ModelError(
                f"The tokenizer of {name} has no chat template, so it is not known how the model was asked. "
                "Add the model's chat_template.jinja to its directory."
            ) from error
        self.tells_date = "strftime_now" in self.source
        self.dated = _dated(self.source, settings.date) if self.tells_date else self.source
        self.in_parts: set[str] = set()
        self._find_parts()
        known = "\n".join((self.source, *map(str, tokenizer.added_tokens_decoder.values())))
        self.thinking = find_thinking(known, self._apply([{"role": "user", "content": PROBES[0]}], False))

    def render(self, messages: Sequence[Message], finished: bool = False) -> str:
        """Return a conversation as text up to where the next answer begins, or if finished up to its end.

        Raises:
            DataError: the template refuses the conversation, or leaves out or changes a part of it.
        """
        try:
            text = self._apply(messages, finished)
        except _RefusalError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"The chat template of {self.name} refuses a conversation ({roles}; it ends with "
                f"{messages[-1]['content'][-80:]!r}): {error}"
            ) from error
        for message in messages:
            if not _shows(text, message):
                raise DataError(
                    f"The chat template of {self.name} leaves out or changes what the {message['role']} says: "
                    f"{message['content'][:80]!r} is not in the text that it makes. Different conversations would be "
                    "the same to the model. Remove that message, or use another template."
                )
        return text

    def spelled(self, tokens: Iterable[str]) -> set[str]:
        """Return those tokens that the template writes or looks for, in any turn that it takes."""
        shown = "\n".join((self.source, *self._conversations()))
        return {token for token in tokens if token in shown}

    def before_answer(self) -> tuple[str, str]:
        """Return the text from a user's last words to where an answer begins, and what stands in front of an answer.

        The latter is a space in the templates of Llama 2 and Mistral, and nothing in most others.
        """
        question, answer = PROBES
        asked = [{"role": "user", "content": question}]
        prompt = self._apply(asked, False)
        try:
            whole = self._apply([*asked, {"role": "assistant", "content": answer}], True)
        except _RefusalError:
            whole = prompt
        lead = whole.removeprefix(prompt).partition(answer)[0] if whole.startswith(prompt) else ""
        return prompt[prompt.rfind(question) :], lead

    def behind_answer(self) -> str:
        """Return the text that the template puts behind an answer; empty if it takes no answers."""
        question = {"role": "user", "content": PROBES[0]}
        try:
            texts = [self._apply([question, {"role": "assistant", "content": probe}], True) for probe in PROBES]
        except _RefusalError:
            return ""
        return "" if texts[0] == texts[1] else _common_end(*texts)

    def default_system(self, controls: Iterable[str]) -> str:
        """Return the text that the template puts in front of a conversation without a system message.

        Control tokens are no part of it, nor what the template writes in front of later turns, too.
        """
        first, second = ({"role": "user", "content": probe} for probe in PROBES)
        try:
            text = self._apply([first, {"role": "assistant", "content": "1"}, second], False)
        except _RefusalError:
            text = self._apply([first], False)
        for name in controls:
            text = text.replace(name, "")
        head, _, rest = text.partition(first["content"])
        between = rest.partition(second["content"])[0]
        return head.removesuffix(_common_end(head, between)).strip().removeprefix("system").strip()

    def _apply(self, messages: Sequence[Message], finished: bool, in_parts: set[str] | None = None) -> str:
        in_parts = self.in_parts if in_parts is None else in_parts
        given = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if message["role"] in in_parts
            else message
            for message in messages
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    given, chat_template=self.dated, tokenize=False, add_generation_prompt=not finished, **self.values
                )
            )
        except Exception as error:  # a template is a program of the model's authors
            raise _RefusalError(_reason(error)) from error

    def _find_parts(self) -> None:
        """Find the roles whose content the template takes as a list of parts, as templates for images do.

        Raises:
            ModelError: it shows what a user says in neither form.
        """
        for role in ("user", "system", "assistant"):
            fault = self._fault(role, set(self.in_parts))
            if fault and not self._fault(role, {*self.in_parts, role}):
                self.in_parts.add(role)
            elif fault and role == "user":
                raise ModelError(
                    f"The chat template of {self.name} does not show what a user says: {fault}. Use the template that "
                    "the model was trained with."
                )

    def _fault(self, role: str, in_parts: set[str]) -> str | None:
        """Say what the template does to messages of a role, or return None if it shows them as they are."""
        for probe in PROBES:
            try:
                text = self._apply(_conversation(role, probe), False, in_parts)
            except _RefusalError as error:
                return str(error)
            if probe not in text or (role in in_parts and any(f"{mark}type{mark}" in text for mark in "\"'")):
                return f"{probe!r} becomes {text[-300:]!r}"
        return None

    def _conversations(self) -> Iterable[str]:
        """Yield texts in which everything stands that the template writes by itself."""
        for role in ("user", "system", "assistant"):
            for finished in (False, True):
                try:
                    yield self._apply(_conversation(role, PROBES[0]), finished)
                except _RefusalError:
                    continue


def _conversation(role: str, text: str) -> list[Message]:
    """Return a conversation in which a role says a text."""
    user = {"role": "user", "content": "Hello."}
    said = {"role": role, "content": text}
    return {"user": [said], "system": [said, user], "assistant": [user, said, user]}[role]


def _dated(source: str, day: str) -> str:
    """Return a template that tells a given date (ISO) wherever it asks for the time, which then is midnight."""
    told = date.fromisoformat(day)
    replaced = "".join(f".replace({name!r}, {told.strftime(name)!r})" for name in DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{source}"


def _shows(text: str, message: Message) -> bool:
    """Tell whether a message is in a text, but for white space, thinking in front of an answer, and switches."""
    said = message["content"]
    if message["role"] == "assistant":
        said = said.rpartition(THINKING_ENDS)[2]
    elif message["role"] == "system" and all(switch[0] in text for switch in SWITCHES.finditer(said)):
        said, text = SWITCHES.sub("", said), SWITCHES.sub("", text)
    return said.strip() in text or "".join(said.split()) in "".join(text.split())


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - length :]


def _reason(error: Exception) -> str:
    said = one_line(error)
    return said if type(error) is jinja2.TemplateError else f"{type(error).__name__}: {said}"
