"""Decoding rows that come and go: when one ends, the next takes its place, so that finished rows cost nothing.

A step is one packed row of one token per response. Each prompt is computed once for all of its responses: its keys and
values are kept once, and those that each response adds lie in a cache. Attention is told by the ``packed`` argument
where a token's keys and values are to go and which of them it sees, so the model itself keeps no cache, and nothing is
padded.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from crosspref.engines.packed.rows import Group, RowAttention, packed_attention
from crosspref.engines.self_check import SelfCheck, made_up_ids, plain_logprobs
from crosspref.engines.transformers.models import free_bytes
from crosspref.maths.logprobs import token_logprobs

BLOCK = 64
"""By how many tokens per row the memory for what rows write grows."""
EVEN = 16
"""To a multiple of how many tokens a step rounds up what it looks at of each row."""
HARMLESS = {
    *("dropout", "position_ids", "use_cache", "cache_position", "is_causal"),
    *("output_attentions", "output_router_logits"),
}
"""Arguments that change nothing about the attention of single tokens outside training."""
WEIGHTS_SHARE = 0.25
"""Of the free memory, that weights may take once more when they are laid out for the processor."""
WEIGHTS_ROWS = 32
"""How many rows that layout is chosen for; it serves any number of them."""


@dataclass(slots=True, eq=False)
class SharedPrompt:
    """A prompt and, while responses to it are being written, what they share.

    ``keys`` and ``values`` are, for each layer, (heads, width, tokens) and (heads, tokens, width); ``logits`` is
    (1, vocabulary), for the first token of its responses. ``left`` counts those that have not ended.
    """

    ids: list[int]
    left: int = 0
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    logits: torch.Tensor | None = None


class Reading(RowAttention):
    """The attention of a prompt's own pass, in which its keys and values are kept."""

    def __init__(self, prompt: SharedPrompt, function: str) -> None:
        super().__init__(function, [Group(0, len(prompt.ids), [])])
        self.prompt = prompt

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        """Return (1, tokens, heads, width), as the model's own attention does it."""
        self.prompt.keys.append(key[0].transpose(1, 2).contiguous())  # products are fastest in this order
        self.prompt.values.append(value[0].contiguous())
        return super().attend(module, query, key, value, **options)


def read(model: Any, prompt: SharedPrompt, function: str) -> torch.Tensor:
    """Keep a prompt's keys and values, and return the logits (1, vocabulary) of the token behind it.

    The model is within ``packed_attention``; ``function`` is the name of its own attention function.

    Raises:
        NotImplementedError: not all layers attend in a way that is known here.
    """
    reading = Reading(prompt, function)
    ids = torch.tensor([prompt.ids], device=model.device)
    places = torch.arange(ids.shape[1], device=model.device)[None]
    output = model(input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=1, packed=reading)
    reading.require_all_layers(model)
    logits: torch.Tensor = output.logits[0, -1:].clone()
    return logits


class Cache:
    """What rows side by side have written: for each layer (rows, heads, width, tokens) keys, and values the other way.

    The rows of a prompt lie side by side, so that one product is enough for what they see of it.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        """Hold at most ``rows`` rows of at most ``tokens`` tokens."""
        self.rows, self.tokens = rows, tokens
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let one row take another's place; the first ``tokens`` tokens of it matter."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[target, ..., :tokens] = keys[source, ..., :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor, longest: int) -> None:
        """Store a key and a value (rows, heads, width) of each row at its own place; the last is ``longest`` - 1."""
        if layer == len(self.keys):
            self.keys.append(key.new_zeros(self.rows, *key.shape[1:], 0))
            self.values.append(value.new_zeros(self.rows, value.shape[1], 0, value.shape[2]))
        have = self.keys[layer].shape[3]
        if longest > have:
            more = min(max(longest, have + BLOCK), self.tokens) - have
            self.keys[layer] = torch.nn.functional.pad(self.keys[layer], (0, more))
            self.values[layer] = torch.nn.functional.pad(self.values[layer], (0, 0, 0, more))
        rows = torch.arange(len(key), device=key.device)
        self.keys[layer][rows, :, :, places] = key
        self.values[layer][rows, :, places] = value


class Step:
    """The attention of one more token of each row."""

    def __init__(self, cache: Cache, rows: Sequence[tuple[SharedPrompt, int]], device: torch.device) -> None:
        """Take the rows in their order in the cache: each one's prompt, and how many tokens of its own are stored."""
        self.cache, self.device, self.layer = cache, device, 0
        # A product of a new shape, and one whose shape is uneven, takes a processor about twice as long.
        longest = 1 + max(written for _, written in rows)
        self.longest = min(math.ceil(longest / EVEN) * EVEN, cache.tokens)
        self.places = torch.tensor([written for _, written in rows], device=device)
        self.lengths = torch.tensor([len(prompt.ids) for prompt, _ in rows], device=device)
        self.widest = max(len(prompt.ids) for prompt, _ in rows)
        self.groups: list[tuple[SharedPrompt, slice]] = []
        for index, (prompt, _) in enumerate(rows):
            if self.groups and self.groups[-1][0] is prompt:
                self.groups[-1] = (prompt, slice(self.groups[-1][1].start, index + 1))
            else:
                self.groups.append((prompt, slice(index, index + 1)))
        self.positions = (self.lengths + self.places)[None]
        """The position (1, rows) of each row's token."""
        self.masks: dict[int | None, torch.Tensor] = {}

    def attend(self, _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        """Return (1, rows, heads, width) of query, key and value (1, heads, rows, width)."""
        scaling, softcap, window = (options.pop(name, None) for name in ("scaling", "softcap", "sliding_window"))
        unknown = sorted(name for name, value in options.items() if value is not None and name not in HARMLESS)
        if unknown:
            raise NotImplementedError(f"its attention takes {', '.join(unknown)}")
        layer, self.layer = self.layer, self.layer + 1
        heads, count, width = key.shape[1:]
        self.cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.places, self.longest)
        # Of the query's heads, those that share a head of the keys count as queries of it beside each other.
        queries = query[0].view(heads, -1, count, width)
        scores = self._scores(layer, queries).mul_(width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        weights = scores.add_(self._mask(window)).softmax(-1).to(value.dtype)
        output = weights[..., self.widest :] @ self.cache.values[layer][:count, :, : self.longest]
        for prompt, rows in self.groups:
            seen = weights[rows, ..., : len(prompt.ids)].permute(1, 0, 2, 3)
            of_prompt = seen.reshape(heads, -1, seen.shape[-1]) @ prompt.values[layer]
            output[rows] += of_prompt.view(*seen.shape[:3], -1).transpose(0, 1)
        return output.reshape(1, count, query.shape[1], -1)

    def _scores(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """Return (rows, heads, queries, tokens), float32, of (heads, queries, rows, width): prompt, then own tokens."""
        heads, each, count, width = queries.shape
        scores = queries.new_zeros((count, heads, each, self.widest + self.longest), dtype=torch.float32)
        by_row = queries.permute(2, 0, 1, 3)
        scores[..., self.widest :] = by_row @ self.cache.keys[layer][:count, ..., : self.longest]
        for prompt, rows in self.groups:
            of_prompt = queries[:, :, rows].reshape(heads, -1, width) @ prompt.keys[layer]
            scores[rows, ..., : len(prompt.ids)] = of_prompt.view(heads, each, -1, len(prompt.ids)).permute(2, 0, 1, 3)
        return scores

    def _mask(self, window: int | None) -> torch.Tensor:
        """Return (rows, 1, 1, tokens): -inf for what a row does not see of the widest prompt and longest response."""
        if window not in self.masks:
            prompt = torch.arange(self.widest, device=self.device)
            response = torch.arange(self.longest, device=self.device)
            lengths, places = self.lengths[:, None], self.places[:, None]
            hidden = torch.cat([prompt >= lengths, response > places], 1)
            if window is not None:
                hidden |= torch.cat([lengths + places - prompt >= window, places - response >= window], 1)
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
            self.masks[window] = mask[:, None, None]
        return self.masks[window]


@dataclass(slots=True, eq=False)
class Draft:
    """A response being written: its prompt, how many tokens it may have, and those it has.

    ``tag`` is whatever its owner wants.
    """

    prompt: SharedPrompt
    limit: int
    tag: Any = None
    ids: list[int] = field(default_factory=list)


Choose = Callable[[torch.Tensor, Sequence[Draft]], torch.Tensor]
"""Returns the next token (drafts,) of each draft from its logits (drafts, vocabulary)."""


class Decoder:
    """Writes responses with one model."""

    def __init__(self, model: Any, rows: int, tokens: int, stops: Collection[int]) -> None:
        """Take a model that ``can_decode``.

        Args:
            model: a causal language model.
            rows: how many rows are written side by side, at most.
            tokens: for how many tokens of prompts and responses there is room beside each other; one draft is always
                written, however long it is.
            stops: the tokens that end a draft.
        """
        self.model, self.most_rows, self.most_tokens, self.stops = model, rows, tokens, stops
        self.live: list[Draft] = []
        """In their order in the cache: those of a prompt are beside each other."""

    @torch.inference_mode()
    def run(self, drafts: Sequence[Draft], choose: Choose, ended: Callable[[Draft], None]) -> None:
        """Write drafts to their ends; each is handed over when it has ended. Those of a prompt must be neighbours."""
        waiting = deque(drafts)
        for draft in waiting:
            draft.prompt.left += 1
        longest = max((draft.limit for draft in drafts), default=1)
        self.cache = Cache(min(self.most_rows, len(drafts), max(1, self.most_tokens // longest)), longest)
        try:
            with packed_attention(self.model) as function:
                while waiting or self.live:
                    self._admit(waiting, function, choose, ended)
                    if self.live:
                        self._append(0, choose(self._step(), self.live), ended)
        finally:
            del self.cache
            self.live.clear()

    def _admit(self, waiting: deque[Draft], function: str, choose: Choose, ended: Callable[[Draft], None]) -> None:
        """Let drafts in while there is room, and choose their first tokens, all from their prompts' passes."""
        while waiting and self._has_room(waiting[0]):  # once more where some ended with their first token
            first, logits = len(self.live), []
            while waiting and self._has_room(waiting[0]):
                draft = waiting.popleft()
                self.live.append(draft)
                if draft.prompt.logits is None:
                    draft.prompt.logits = read(self.model, draft.prompt, function)
                logits.append(draft.prompt.logits)
            self._append(first, choose(torch.cat(logits), self.live[first:]), ended)

    def _has_room(self, draft: Draft) -> bool:
        drafts = [*self.live, draft]
        tokens = sum(len(prompt.ids) for prompt in {draft.prompt for draft in drafts})
        tokens += sum(draft.limit for draft in drafts)
        return not self.live or (len(drafts) <= self.cache.rows and tokens <= self.most_tokens)

    def _step(self) -> torch.Tensor:
        """Return logits (rows, vocabulary) for the next token of each draft."""
        step = Step(self.cache, [(draft.prompt, len(draft.ids) - 1) for draft in self.live], self.model.device)
        ids = torch.tensor([[draft.ids[-1] for draft in self.live]], device=self.model.device)
        logits: torch.Tensor = self.model(
            input_ids=ids, position_ids=step.positions, use_cache=False, packed=step
        ).logits
        return logits[0]

    def _append(self, first: int, tokens: torch.Tensor, ended: Callable[[Draft], None]) -> None:
        """Append a token to each draft from ``first`` on, and hand over those that end with it."""
        for draft, token in zip(self.live[first:], tokens.tolist(), strict=True):
            draft.ids.append(token)
        for place in reversed(range(first, len(self.live))):  # from the back, so that places before it stay
            draft = self.live[place]
            if draft.ids[-1] in self.stops or len(draft.ids) >= draft.limit:
                self._leave(place)
                draft.prompt.left -= 1
                if not draft.prompt.left:  # nobody needs the memory any more
                    draft.prompt.keys, draft.prompt.values, draft.prompt.logits = [], [], None
                ended(draft)

    def _leave(self, place: int) -> None:
        """Close a draft's gap with the last one of its prompt, its with the last of the next prompt, and so on."""
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


@torch.inference_mode()
def can_decode(model: Any) -> bool:
    """Tell whether what a Decoder computes agrees with a model's own full forward passes, by a few made-up drafts."""
    ids = made_up_ids(model, 24)
    prompts = [SharedPrompt(ids[:6]), SharedPrompt(ids[3:12])]
    responses = [ids[12:20], ids[14:17], ids[10:15], ids[9:16]]
    drafts = [Draft(prompts[index // 2], len(response), (response, [])) for index, response in enumerate(responses)]

    def choose(logits: torch.Tensor, live: Sequence[Draft]) -> torch.Tensor:
        chosen = torch.tensor([draft.tag[0][len(draft.ids)] for draft in live], device=logits.device)
        for draft, value in zip(live, token_logprobs(logits, chosen).tolist(), strict=True):
            draft.tag[1].append(value)
        return chosen

    def decoded() -> list[float]:
        Decoder(model, rows=3, tokens=1 << 20, stops=()).run(drafts, choose, lambda _: None)
        return [sum(draft.tag[1]) for draft in drafts]

    return SelfCheck(model, "is sampled by its own generate, batch by batch").passes(
        "rows of different lengths beside each other come out differently",
        decoded,
        lambda: [float(plain_logprobs(model, draft.prompt.ids, draft.tag[0]).sum()) for draft in drafts],
        [len(response) for response in responses],
    )


def lay_out_weights(model: Any) -> bool:
    """Lay out a model's linear weights as the processor's bfloat16 kernels read them, and tell whether that was done.

    Otherwise torch does so in every call, which for the few rows of a decoding step takes about as long as the product
    itself. These are the functions that torch's own compiler calls, without what else it does. The weights are held
    twice then, so it is not done where memory is short; nor on other devices than a CPU, nor where that does not
    compute in bfloat16. The model must not be trained afterwards.
    """
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    if any(layer.weight.dtype != torch.bfloat16 or layer.weight.device.type != "cpu" for layer in layers):
        return False
    if not _has_bfloat16_kernels() or size > WEIGHTS_SHARE * free_bytes(torch.device("cpu")):
        return False
    with torch.inference_mode():
        for layer in layers:
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), WEIGHTS_ROWS)
            layer.forward = functools.partial(_linear, weight, layer.bias)  # type: ignore[method-assign]
    return True


def _has_bfloat16_kernels() -> bool:
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    known = known and all(hasattr(torch.ops.mkldnn, name) for name in names)
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return output
