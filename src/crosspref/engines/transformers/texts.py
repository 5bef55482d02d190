"""Encoding what people and models write: text, even where it holds the name of a control token."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

ANCHORS = ("\n", "|")
"""Texts behind which others are encoded that do not begin what is encoded."""


class TextEncoder:
    """Encodes texts so that the name of a control token becomes letters, and everything else what it always was.

    Args:
        tokenizer: a tokenizer of transformers.
        controls: names of tokens that no text may become. A name of one character cannot be told from a text, as where
            a sign of a language is used for padding, and is left alone.
    """

    def __init__(self, tokenizer: Any, controls: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        names = sorted({name for name in controls if len(name) > 1 and name.strip()}, key=len)
        anything = "|".join(map(re.escape, names)) or "(?!)"
        self._first, self._each = re.compile(anything), re.compile(f"(?=({anything}))")

    def names_control(self, text: str) -> bool:
        """Tell whether a text holds the name of a control token."""
        return self._first.search(text) is not None

    def ids(self, text: str, opening: str = "") -> list[int]:
        """Return the ids of a text, none of which is a control token; behind an ``opening``, which may hold some."""
        return self.joined(self.pieces(text), opening)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text whose names of control tokens mean these tokens."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def pieces(self, text: str) -> list[str]:
        """Cut a text inside every name of a control token, where letters and signs meet, as tokenizers cut, too."""
        cuts = [0]
        for match in self._each.finditer(text):
            name = match[1]
            first = re.match(r"\W+|\w+", name)
            inside = len(first[0]) if first and len(first[0]) < len(name) else 1
            cuts.append(match.start() + inside)
        return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]

    def joined(self, pieces: Sequence[str], opening: str = "") -> list[int]:
        """Return the ids of a text in pieces, each of which is encoded by itself; the first behind an opening."""
        ids = self._continued(pieces[0], (opening, *ANCHORS)) if opening else self.encode(pieces[0])
        for piece in pieces[1:]:
            ids += self._continued(piece)
        return ids

    def _continued(self, piece: str, anchors: Sequence[str] = ANCHORS) -> list[int]:
        """Return the ids of a piece that does not begin a text, so that no space is put in front of it."""
        for anchor in anchors:
            before, both = self.encode(anchor), self.encode(anchor + piece)
            if before and both[: len(before)] == before:
                return both[len(before) :]
        return self.encode(piece)
