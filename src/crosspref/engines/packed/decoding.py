"""Decoding rows that come and go: when one ends, the next takes its place, so that finished rows cost nothing.

A step is one packed row of one token per response (see ``packed_attention`` and ``decoding_cache``). Each prompt is
computed once for all of its responses.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from crosspref.engines.packed.attention import packed_attention
from crosspref.engines.packed.cache import Cache, Prompt, Step, read
from crosspref.engines.packed.output_layer import SELF_CHECK_TOLERANCE, made_up_ids
from crosspref.maths.logprobs import token_logprobs

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Row:
    """A response: its prompt, how many tokens it may have, and those it has. ``tag`` is whatever its owner wants."""

    prompt: Prompt
    limit: int
    tag: Any = None
    ids: list[int] = field(default_factory=list)


Choose = Callable[[torch.Tensor, Sequence[Row]], torch.Tensor]
"""Returns the next token (rows,) of each row from its logits (rows, vocabulary)."""


class Decoder:
    """Writes responses with one model."""

    def __init__(self, model: Any, rows: int, tokens: int, stops: Collection[int]) -> None:
        """Take a model that ``can_decode``.

        Args:
            model: a causal language model.
            rows: how many rows are written side by side, at most.
            tokens: for how many tokens of prompts and responses there is room beside each other; one row is always
                written, however long it is.
            stops: the tokens that end a row.
        """
        self.model, self.most_rows, self.most_tokens, self.stops = model, rows, tokens, stops
        self.live: list[Row] = []
        """In their order in the cache: rows of a prompt are beside each other."""

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], choose: Choose, ended: Callable[[Row], None]) -> None:
        """Write rows to their ends; each is handed over when it has ended. Those of a prompt must follow each other."""
        waiting = deque(rows)
        for row in waiting:
            row.prompt.left += 1
        longest = max((row.limit for row in rows), default=1)
        self.cache = Cache(min(self.most_rows, len(rows), max(1, self.most_tokens // longest)), longest)
        try:
            with packed_attention(self.model) as own:
                while waiting or self.live:
                    self._admit(waiting, own, choose, ended)
                    if self.live:
                        self._append(0, choose(self._step(), self.live), ended)
        finally:
            del self.cache
            self.live.clear()

    def _admit(self, waiting: deque[Row], own: str, choose: Choose, ended: Callable[[Row], None]) -> None:
        """Let rows in while there is room, and choose their first tokens, all from their prompts' passes."""
        while waiting and self._has_room(waiting[0]):  # once more where some ended with their first token
            first, found = len(self.live), []
            while waiting and self._has_room(waiting[0]):
                row = waiting.popleft()
                self.live.append(row)
                if row.prompt.logits is None:
                    row.prompt.logits = read(self.model, row.prompt, own)
                found.append(row.prompt.logits)
            self._append(first, choose(torch.cat(found), self.live[first:]), ended)

    def _has_room(self, row: Row) -> bool:
        rows = [*self.live, row]
        tokens = sum(len(prompt.ids) for prompt in {row.prompt for row in rows}) + sum(row.limit for row in rows)
        return not self.live or (len(rows) <= self.cache.rows and tokens <= self.most_tokens)

    def _step(self) -> torch.Tensor:
        """Return logits (rows, vocabulary) for the next token of each row."""
        step = Step(self.cache, [(row.prompt, len(row.ids) - 1) for row in self.live], self.model.device)
        ids = torch.tensor([[row.ids[-1] for row in self.live]], device=self.model.device)
        logits: torch.Tensor = self.model(
            input_ids=ids, position_ids=step.positions, use_cache=False, packed=step
        ).logits
        return logits[0]

    def _append(self, first: int, tokens: torch.Tensor, ended: Callable[[Row], None]) -> None:
        """Append a token to each row from ``first`` on, and let go of those that end with it."""
        rows = self.live[first:]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.ids.append(token)
        for place in reversed(range(first, len(self.live))):  # from the back, so that places before it stay
            row = self.live[place]
            if row.ids[-1] in self.stops or len(row.ids) >= row.limit:
                self._leave(place)
                row.prompt.left -= 1
                if not row.prompt.left:
                    row.prompt.forget()
                ended(row)

    def _leave(self, place: int) -> None:
        """Close a row's gap with the last row of its prompt, that one's with the last of the next prompt, and so on."""
        live = self.live
        lasts = [
            index
            for index in range(place, len(live))
            if index + 1 == len(live) or live[index + 1].prompt is not live[index].prompt
        ]
        for last in lasts:
            if last != place:
                self.cache.move(last, place, len(live[last].ids) - 1)
                live[place] = live[last]
            place = last
        live.pop()


def can_decode(model: Any) -> bool:
    """Tell whether what a Decoder computes agrees with a model's own full forward passes, by a few made-up rows.

    Where it does not, a line in the log says why.
    """
    otherwise = "rows of different lengths beside each other come out differently"
    try:
        if all(_differences(model)):
            return True
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        otherwise = f"it cannot be decoded row by row ({error})"
    log.warning("%s is sampled by its own generate, batch by batch, since %s.", type(model).__name__, otherwise)
    return False


@torch.inference_mode()
def _differences(model: Any) -> Iterator[bool]:
    """Yield for each made-up row whether its log-probability is the one that the model's own forward pass gives."""
    tokens = made_up_ids(model, 24)
    prompts = [Prompt(tokens[:6]), Prompt(tokens[3:12])]
    forced = [tokens[12:20], tokens[14:17], tokens[10:15], tokens[9:16]]
    rows = [Row(prompts[index // 2], len(ids), (ids, [])) for index, ids in enumerate(forced)]

    def choose(logits: torch.Tensor, live: Sequence[Row]) -> torch.Tensor:
        chosen = torch.tensor([row.tag[0][len(row.ids)] for row in live], device=logits.device)
        for row, value in zip(live, token_logprobs(logits, chosen).tolist(), strict=True):
            row.tag[1].append(value)
        return chosen

    Decoder(model, rows=3, tokens=1 << 20, stops=()).run(rows, choose, lambda _: None)
    for row in rows:
        ids, found = row.tag
        whole = torch.tensor([[*row.prompt.ids, *ids]], device=model.device)
        own = model(input_ids=whole, use_cache=False).logits[0, len(row.prompt.ids) - 1 : -1]
        expected = float(token_logprobs(own, whole[0, len(row.prompt.ids) :]).sum())
        yield abs(sum(found) - expected) <= SELF_CHECK_TOLERANCE.get(model.dtype, 0.3) * len(ids)
