"""Turning conversations into token ids, and answers into ids and back, by a model's tokenizer and chat template."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from crosspref.data.records import FinishReason, Instruction, Message, as_messages
from crosspref.engines.transformers.faults import reading
from crosspref.engines.transformers.templates import PROBES, ChatTemplate
from crosspref.engines.transformers.texts import ANCHORS, TextEncoder
from crosspref.errors import DataError, ModelError
from crosspref.models.tokenizers import require_no_difference
from crosspref.protocols import Sampled
from crosspref.recipe.sections import AskingSettings

SIGN = re.compile(r"\W+\w.*\W", re.DOTALL)
"""How a control token is written: between signs, as ``<|end|>``. Words and white space are text, even if added."""

AS_IT_IS = AskingSettings()
"""Nothing is set."""


def read_tokenizer(directory: Path, trust_remote_code: bool = False) -> Any:
    """Return a model's tokenizer, whether it has a chat template or not.

    Raises:
        ModelError: it cannot be read.
    """
    with reading("The tokenizer", directory):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def load_tokenizer(directory: Path, asking: AskingSettings = AS_IT_IS) -> "ChatTokenizer":
    """Load a model's tokenizer, with its chat template.

    Raises:
        ModelError: it cannot be read, has no chat template, or one that does not show what a user says.
    """
    tokenizer = read_tokenizer(directory, asking.trust_remote_code)
    with reading("The chat template", directory):
        return ChatTokenizer(tokenizer, asking, str(directory))


class ChatTokenizer:
    """Builds the ids of prompts and of responses apart, so that their boundary is the same everywhere.

    What people and models write is text: where it holds the name of a control token, that is encoded as its letters.
    Control tokens are those marked as special, and those that the chat template writes.
    """

    def __init__(self, tokenizer: Any, asking: AskingSettings, name: str) -> None:
        self.tokenizer, self.asking = tokenizer, asking
        self.template = ChatTemplate(tokenizer, asking, name)
        marked, self.controls = self._control_tokens()
        self.texts = TextEncoder(tokenizer, self.controls)
        self.end_of_turn = self._find_end_of_turn(marked)
        self.opening, self.lead = self._find_opening()
        self.thinking = self.template.thinking if asking.thinking == "cut" else None
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn
        self.size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
        """From this id on a model's embedding is padding: such ids are in no text, and must not be sampled."""

    def prompt_ids(self, instruction: Instruction, answered: bool = False) -> list[int]:
        """Return the ids of one user turn, or of a conversation, up to where the answer begins; see ``chat_ids``."""
        return self.chat_ids(as_messages(instruction), answered=answered)

    def chat_ids(self, messages: Sequence[Message], finished: bool = False, answered: bool = False) -> list[int]:
        """Return the ids of a conversation up to where the next answer begins; the template puts the one BOS.

        A finished one stops behind its last message. Behind an answered one comes an answer as it is scored and
        trained: where its thinking was cut, the thinking that the prompt begins is ended.

        Raises:
            DataError: the template refuses the conversation, or leaves out or changes a part of it.
        """
        cut = ""
        if any(self.texts.names_control(message["content"]) for message in messages):
            cut = _unused_character("".join(message["content"] for message in messages))
            messages = [{**message, "content": self._marked(message, cut)} for message in messages]
        text = self.template.render(messages, finished)
        if answered and self.thinking is not None:
            text += self.thinking.before_answer(text)
        return self.texts.joined(text.split(cut) if cut else [text])

    def _marked(self, message: Message, cut: str) -> str:
        """Return what a message says, with ``cut`` inside the names of control tokens.

        The marks around the thinking of an earlier answer stay whole: the template decides what is shown of it.
        """
        thinking, said, thought = self.template.thinking, message["content"], ""
        if thinking is not None and message["role"] == "assistant" and thinking.closes in said:
            thought, _, said = said.rpartition(thinking.closes)
            parts = thought.split(thinking.opens)
            thought = thinking.opens.join(cut.join(self.texts.pieces(part)) for part in parts) + thinking.closes
        return thought + cut.join(self.texts.pieces(said))

    def response_ids(self, text: str, ended: bool, alone: bool = False) -> list[int]:
        """Return the ids of an answer that came as text, as they stand behind a prompt; an end of turn if it ended.

        The thinking that it begins with keeps its marks as tokens, or is left out where thinking is cut. Decoded by
        ``text`` the ids are the same text, but for a space at its beginning that some tokenizers leave out. ``alone``
        encodes the text by itself instead, as the released scripts do.
        """
        thinking, pieces = self.template.thinking, self.texts.pieces(text)
        if thinking is not None and thinking.closes in text and text.lstrip().startswith(thinking.opens):
            if self.thinking is not None:
                pieces = self.texts.pieces(text[thinking.answer_begins(text) :])
            else:
                cut = _unused_character(text)
                pieces = self._marked({"role": "assistant", "content": text}, cut).split(cut)
        opening, lead = ("", "") if alone or pieces == [""] else (self.opening, self.lead)
        ids = self.texts.joined([lead + pieces[0], *pieces[1:]], opening)
        return [*ids, self.end_of_turn] if ended else ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without special tokens and the end of turn."""
        ids = [token for token in token_ids if token != self.end_of_turn]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def answer(self, ids: list[int], reason: FinishReason) -> Sampled:
        """Return what a model generated as an answer, without its thinking if that is to be cut.

        What ends inside its thinking is an empty answer that was cut at the token limit. With the reason ``stop``, the
        last id is the token that ended it.
        """
        count = self.thinking.thinking_tokens(ids, self.tokenizer.decode) if self.thinking else 0
        if count is None:
            return Sampled("", [], "length", len(ids))
        rest = ids[count:]
        return Sampled(self.text(rest[:-1] if reason == "stop" else rest), rest, reason, count or None)

    def text_answer(self, text: str, reason: FinishReason, tokens: int) -> Sampled:
        """Return the same for what came as text, of as many tokens in all.

        A space at its beginning that is not in the text of ids is removed.
        """
        text = text.removeprefix(self.lead)
        begin = self.thinking.answer_begins(text) if self.thinking else 0
        if begin is None:
            return Sampled("", None, "length", tokens)
        own = len(self.response_ids(text[begin:], ended=False)) if begin else tokens
        return Sampled(text[begin:], None, reason, max(1, tokens - own) if begin else None)

    def _control_tokens(self) -> tuple[set[int], dict[str, int]]:
        """Return the ids of the tokens marked as special, and all control tokens by name."""
        added = self.tokenizer.added_tokens_decoder.items()
        # Phi-3's <|end|> and the <|eot_id|> of Llama 3 are marked as special, but are none of the tokens with a name.
        marked = {int(token) for token, content in added if content.special} | set(self.tokenizer.all_special_ids)
        signs = {str(content): int(token) for token, content in added if SIGN.fullmatch(str(content).strip())}
        controls = {name: signs[name] for name in self.template.spelled(signs)}
        controls |= {str(content): int(token) for token, content in added if int(token) in marked}
        return marked, controls

    def _find_opening(self) -> tuple[str, str]:
        """Return what stands in front of an answer, and a space with which it begins that ``text`` does not show.

        Both are empty for a tokenizer that encodes a text alike wherever it stands. Those made from sentencepiece put a
        space in front of a text, but not of one that stands behind another.
        """
        word = PROBES[0]
        if self.texts.ids(word) == self.texts.ids(word, ANCHORS[0]):
            return "", ""
        opening, lead = self.template.before_answer()
        shown = [self.text(self.texts.ids(text, opening)) for text in (word, lead + word)]
        return opening, lead if shown[0] == shown[1] else ""

    def _find_end_of_turn(self, marked: set[int]) -> int:
        """Return the control token that the chat template puts behind an answer, else the end-of-sequence token."""
        behind = self.texts.encode(self.template.behind_answer())
        for kind in (marked, set(self.controls.values())):
            ends = [token for token in behind if token in kind]
            if ends:
                return ends[0]
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end-of-sequence token, so no response could ever end.")
        return int(self.tokenizer.eos_token_id)


def stop_ids(generation_config: Any, tokenizer: ChatTokenizer) -> list[int]:
    """Return all token ids that end a response: those of a model's generation configuration and its chat template's.

    Raises:
        ModelError: the configuration has something else there.
    """
    ids = generation_config.eos_token_id
    ids = [ids] if ids is None or isinstance(ids, int) else ids
    if not isinstance(ids, list) or not all(token is None or type(token) is int for token in ids):
        raise ModelError(
            f"The generation_config.json of {tokenizer.template.name} must have token ids in eos_token_id, but has "
            f"{ids!r:.80}. Correct it, or remove that entry."
        )
    return sorted({*ids, tokenizer.end_of_turn} - {None})


PROBE = "Hello, world!  ¿Qué tal?\n\n\tЗдравствуйте, 你好: 1234 (a_b)."
"""A text by which two tokenizers show whether they are one."""


def require_same_ids(one: ChatTokenizer, other: ChatTokenizer, names: tuple[str, str]) -> None:
    """Raise ModelError unless two tokenizers give the same ids, whatever their files say."""
    require_no_difference(_shown(one), _shown(other), names)


def _shown(tokenizer: ChatTokenizer) -> dict[str, Any]:
    return {
        "the tokens that they know": tokenizer.tokenizer.get_vocab(),
        "the ids of a prompt": tokenizer.prompt_ids(PROBE),
        "the ids of an answer": tokenizer.response_ids(PROBE, ended=True),
    }


def require_ids(ids: Sequence[int], size: int, what: str) -> None:
    """Raise DataError if what came as token ids has some that a model with ``size`` of them does not have."""
    strange = next((token for token in ids if not 0 <= token < size), None)
    if strange is not None:
        raise DataError(
            f"{what} has the token id {strange}, but the model's ids go from 0 to {size - 1}. Use the model that these "
            "ids were made with, or leave them out, so that the text is encoded."
        )


def _unused_character(text: str) -> str:
    """Return a character for private use that a text does not hold."""
    return next(character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in text)
