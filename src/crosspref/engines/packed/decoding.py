"""Decoding rows that come and go: when one ends, the next takes its place, so that finished rows cost nothing.

A step is one packed row of one token per response. Each prompt is computed once for all of its responses: its keys and
values are kept once, and those that each response adds lie in a cache. Attention is told by the ``packed`` argument
where a token's keys and values are to go and which of them it sees, so the model itself keeps no cache, and nothing is
padded.

What a row's numbers are depends, by rounding, on the rows beside it. So that work can go on after a kill and come to
the very same responses, a long run is cut into legs. The tokens alone say where a leg ends. The next one begins with
what the rows beside each other have written, and computes their keys and values once more, so nothing but token ids
needs to be kept.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from crosspref.engines.packed.rows import Group, RowAttention, cut_rows, pack, packed_attention
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
LEG = 1280
"""How many tokens a leg has for each row that may be written, and for ``LEG_ROWS`` at least. So a leg takes less than
eight minutes where 32 rows come to 89 tokens per second together, as those of SmolLM2-135M do on two slow cores."""
LEG_ROWS = 32
STEP_ROWS = 8
"""As how many rows a step counts at least in a leg: fewer hardly take less time."""
READ_FASTER = 4
"""How many tokens of prompts are read in the time of one that is written, at least."""
TAKEN_UP_TOKENS = 8192
"""Tokens of one prompt and of what its rows have written that are computed once more at a time, at most."""


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

    def forget(self) -> None:
        """Give back what its responses share, since nobody is writing any."""
        self.left, self.keys, self.values, self.logits = 0, [], [], None


class Reading(RowAttention):
    """The attention of a packed row's own pass, in which its keys and values are kept.

    ``keep`` takes them for each layer in turn, both (heads, tokens, width).
    """

    def __init__(self, function: str, groups: list[Group], keep: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__(function, groups)
        self.keep = keep

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        """Return (1, tokens, heads, width), as the model's own attention does it."""
        self.keep(key[0], value[0])
        return super().attend(module, query, key, value, **options)


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
        self._make_room(layer, key[0], value[0], longest)
        rows = torch.arange(len(key), device=key.device)
        self.keys[layer][rows, :, :, places] = key
        self.values[layer][rows, :, places] = value

    def restore(self, layer: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the keys and values (heads, tokens, width) of the first tokens of one row."""
        tokens = key.shape[1]
        self._make_room(layer, key[:, 0], value[:, 0], tokens)
        self.keys[layer][row, ..., :tokens] = key.transpose(1, 2)
        self.values[layer][row, :, :tokens] = value

    def _make_room(self, layer: int, key: torch.Tensor, value: torch.Tensor, tokens: int) -> None:
        """See to it that each row has room for so many tokens, each like a key and a value (heads, width)."""
        if layer == len(self.keys):
            self.keys.append(key.new_zeros(self.rows, *key.shape, 0))
            self.values.append(value.new_zeros(self.rows, value.shape[0], 0, value.shape[1]))
        have = self.keys[layer].shape[3]
        if tokens > have:
            more = min(max(tokens, have + BLOCK), self.tokens) - have
            self.keys[layer] = torch.nn.functional.pad(self.keys[layer], (0, more))
            self.values[layer] = torch.nn.functional.pad(self.values[layer], (0, 0, 0, more))


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

    def has_ended(self, stops: Collection[int]) -> bool:
        """Tell whether nothing is to be written any more."""
        return bool(self.ids) and (self.ids[-1] in stops or len(self.ids) >= self.limit)


Choose = Callable[[torch.Tensor, Sequence[Draft]], torch.Tensor]
"""Returns the next token (drafts,) of each draft from its logits (drafts, vocabulary)."""


class Decoder:
    """Writes responses with one model."""

    def __init__(self, model: Any, rows: int, tokens: int, stops: Collection[int]) -> None:
        """Take a causal language model that ``can_decode``.

        At most ``rows`` rows are written side by side, as far as ``tokens`` tokens of prompts and responses leave room;
        one draft is always written, however long it is. ``stops`` are the tokens that end a draft.
        """
        self.model, self.most_rows, self.most_tokens, self.stops = model, rows, tokens, stops
        self.leg = LEG * max(LEG_ROWS, rows)
        self.live: list[Draft] = []
        """In their order in the cache: those of a prompt are beside each other."""

    def run(
        self,
        drafts: Sequence[Draft],
        choose: Choose,
        ended: Callable[[Draft], None],
        after_leg: Callable[[], None] = lambda: None,
    ) -> None:
        """Write drafts to their ends; each is handed over when it has ended. Those of a prompt must be neighbours.

        ``after_leg`` is called when a leg is over. A run of the same drafts, with the ids that they have then, goes on
        as this one does.
        """
        while drafts := [draft for draft in drafts if not draft.has_ended(self.stops)]:
            self._run_leg(drafts, choose, ended)
            after_leg()

    @torch.inference_mode()
    def _run_leg(self, drafts: Sequence[Draft], choose: Choose, ended: Callable[[Draft], None]) -> None:
        waiting = deque(drafts)
        for draft in waiting:
            draft.prompt.left += 1
        longest = max(draft.limit for draft in drafts)
        self.cache = Cache(min(self.most_rows, len(drafts), max(1, self.most_tokens // longest)), longest)
        self.budget = float(self.leg)
        try:
            with packed_attention(self.model) as function:
                while (waiting or self.live) and self.budget > 0:
                    self._admit(waiting, function, choose, ended)
                    if self.live:
                        self.budget -= max(STEP_ROWS, len(self.live))
                        self._append(0, choose(self._step(), self.live), ended)
        finally:
            del self.cache
            self.live.clear()
            for draft in drafts:
                draft.prompt.forget()

    def _admit(self, waiting: deque[Draft], function: str, choose: Choose, ended: Callable[[Draft], None]) -> None:
        """Let drafts in while there is room, and choose the first tokens of new ones from their prompts' passes."""
        while waiting and self._has_room(waiting[0]):  # once more where some ended with their first token
            first, logits = len(self.live), []
            while waiting and waiting[0].ids and self._has_room(waiting[0]):
                self.live.append(waiting.popleft())
            self._take_up(first, function)
            first = len(self.live)
            while waiting and not waiting[0].ids and self._has_room(waiting[0]):
                draft = waiting.popleft()
                self.live.append(draft)
                logits.append(self._read(draft.prompt, function))
            if logits:
                self._append(first, choose(torch.cat(logits), self.live[first:]), ended)

    def _read(self, prompt: SharedPrompt, function: str) -> torch.Tensor:
        """Return the logits (1, vocabulary) of the token behind a prompt, which is read once for all its drafts."""
        if prompt.logits is not None:
            return prompt.logits

        def keep(key: torch.Tensor, value: torch.Tensor) -> None:
            prompt.keys.append(key.transpose(1, 2).contiguous())  # products are fastest in this order
            prompt.values.append(value.contiguous())

        reading = Reading(function, [Group(0, len(prompt.ids), [])], keep)
        ids = torch.tensor([prompt.ids], device=self.model.device)
        places = torch.arange(ids.shape[1], device=self.model.device)[None]
        output = self.model(input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=1, packed=reading)
        reading.require_all_layers(self.model)
        logits: torch.Tensor = output.logits[0, -1:].clone()
        prompt.logits = logits
        self.budget -= len(prompt.ids) / READ_FASTER
        return logits

    def _take_up(self, first: int, function: str) -> None:
        """Compute the keys and values of what the drafts from ``first`` on have written in an earlier leg."""
        places: dict[SharedPrompt, list[int]] = {}
        for place, draft in enumerate(self.live[first:], first):
            self._read(draft.prompt, function)
            if len(draft.ids) > 1:  # the last one's are computed by the next step
                places.setdefault(draft.prompt, []).append(place)
        for prompt, of_prompt in places.items():
            rows = iter(of_prompt)
            for part in cut_rows(len(prompt.ids), [self.live[place].ids for place in of_prompt], TAKEN_UP_TOKENS):
                self._restore(prompt, [next(rows) for _ in part], part, function)

    def _restore(self, prompt: SharedPrompt, places: list[int], responses: list[list[int]], function: str) -> None:
        row = pack([(prompt.ids, responses)], self.model.device)
        layers = itertools.count()

        def keep(key: torch.Tensor, value: torch.Tensor) -> None:
            layer = next(layers)
            for place, (start, size) in zip(places, row.groups[0].responses, strict=True):
                self.cache.restore(layer, place, key[:, start : start + size], value[:, start : start + size])

        reading = Reading(function, row.groups, keep)
        self.model.base_model(input_ids=row.ids, position_ids=row.positions, use_cache=False, packed=reading)
        reading.require_all_layers(self.model)

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
            if draft.has_ended(self.stops):
                self._leave(place)
                draft.prompt.left -= 1
                if not draft.prompt.left:  # nobody needs the memory any more
                    draft.prompt.forget()
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
        decoder = Decoder(model, rows=3, tokens=1 << 20, stops=())
        decoder.leg = 4 * STEP_ROWS  # so that rows are also taken up again
        decoder.run(drafts, choose, lambda _: None)
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
