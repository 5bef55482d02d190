"""Which responses can make a pair: responses and scores are joined by key, and what is not usable is told by reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crosspref.data.records import Instruction
from crosspref.data.rows import is_blank
from crosspref.errors import DataError
from crosspref.recipe.sections import LengthPenaltySettings, SelectSettings

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

Identify = Callable[[str], str]
"""Returns the language tag of a text."""

Columns = Callable[[list[str]], pa.Table]
"""Returns the columns of these names."""

REASONS = (
    "usable",
    "empty",
    "repeated",
    "truncated",
    "without a reward",
    "without a finite reward",
    "in another language",
)
"""What a response can be. Of several reasons the first counts."""


@dataclass(frozen=True, slots=True)
class PairRules:
    """How the pairs of one language are made.

    Args:
        language: the language's tag.
        instructions: the prompts in this language by prompt_id; every one of them ends as a pair or as dropped.
        penalty: how alpha is found (Eq. 15).
        settings: which responses and pairs are usable.
        identify: tells a text's language, where wrong languages are dropped; None for a language that it does not
            know, of which every response is kept.
        noise: the reward gap that a pair must exceed where ``settings.min_gap`` is None.
        always_ended: whether answers that came as text end their turn in training even if they were cut, as in the
            released scripts.
    """

    language: str
    instructions: Mapping[str, Instruction]
    penalty: LengthPenaltySettings
    settings: SelectSettings
    identify: Identify | None = None
    noise: float = 0.0
    always_ended: bool = False

    @property
    def unidentified(self) -> bool:
        """Tell whether responses in other languages should be dropped, and cannot be told."""
        return self.settings.wrong_language == "drop" and self.identify is None


@dataclass(frozen=True, slots=True)
class Part:
    """All responses to some prompts of one language, and their scores, as tables whose columns are read when needed."""

    responses: Columns
    scores: Columns


@dataclass(frozen=True, slots=True)
class Screened:
    """What is known of some responses, one value of each array per response.

    ``prompt`` numbers the prompts, ``reason`` is an index of REASONS, ``reward`` is unpenalised (nan where there is
    none), ``length`` is in the penalty's unit, and ``row`` is the response's row in its part.
    """

    prompt: Indices
    reason: Indices
    reward: Floats
    length: Floats
    row: Indices


def screen(part: Part, index: Mapping[str, int], rules: PairRules) -> Screened:
    """Join a part's responses with their scores, and tell which are usable.

    Args:
        part: the responses and their scores, in any order.
        index: the number of each prompt by prompt_id.
        rules: how the pairs are made.

    Raises:
        DataError: see ``select``.
    """
    language, unit, settings, identify = rules.language, rules.penalty.unit, rules.settings, rules.identify
    responses = part.responses(["prompt_id", "sample", "text", "finish_reason"])
    scores = part.scores(["prompt_id", "sample", "implicit_reward", unit])
    keys, prompts, codes = _keys(responses, scores)
    match = _match(responses, scores, *keys, language)
    scores = scores.select(["implicit_reward", unit]).take(match)
    prompt = np.array([index.get(prompt_id, -1) for prompt_id in prompts], dtype=np.int64)[codes]
    if (prompt < 0).any():
        where = _where(responses, int(np.argmax(prompt < 0)), language)
        raise DataError(f"There is no prompt in {language!r} for the response of {where}.")
    if scores.column(unit).null_count:
        where = _where(responses, scores.column(unit).is_null().index(True).as_py(), language)
        raise DataError(f"There is no number of tokens for {where}. Take length_penalty.unit: characters.")
    length = scores.column(unit).to_numpy().astype(np.float64)
    is_none = scores.column("implicit_reward").is_null().to_numpy()
    reward = np.where(is_none, np.nan, scores.column("implicit_reward").fill_null(np.nan).to_numpy())
    text = responses.column("text").combine_chunks()
    drops, reason = settings.degenerate == "drop", np.zeros(len(text), dtype=np.int64)
    # The other way round, so that the first reason stays.
    reason[~np.isfinite(reward)] = REASONS.index("without a finite reward")
    reason[is_none] = REASONS.index("without a reward")
    if settings.truncated == "drop":
        reason[pc.equal(responses.column("finish_reason"), "length").to_numpy()] = REASONS.index("truncated")
    empty = _is_empty(text)
    if drops:
        reason[empty] = REASONS.index("empty")
    if identify is not None and settings.wrong_language == "drop":
        rows = np.flatnonzero(reason == 0)
        different = text.take(rows).dictionary_encode()
        foreign = [identify(each) != language.partition("-")[0] for each in different.dictionary.to_pylist()]
        reason[rows[np.array(foreign, dtype=bool)[different.indices.to_numpy()]]] = REASONS.index("in another language")
    if drops:
        reason[_is_repeated(codes, text, reason == 0) & ~empty] = REASONS.index("repeated")
    return Screened(prompt, reason, reward, length, np.arange(len(text)))


def _is_empty(text: pa.StringArray) -> NDArray[np.bool_]:
    """Tell of which texts nothing can be seen. Whole ones are looked at only where the first character is blank."""
    head = pc.utf8_slice_codeunits(text, 0, 1).dictionary_encode()
    blank = np.array([is_blank(character) for character in head.dictionary.to_pylist()], dtype=bool)
    empty: NDArray[np.bool_] = blank[head.indices.to_numpy()]
    rows = np.flatnonzero(empty)
    empty[rows] = [is_blank(each) for each in text.take(rows).to_pylist()]
    return empty


def _is_repeated(prompt: Indices, text: pa.StringArray, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which responses have the text of an earlier usable response to the same prompt."""
    repeated = np.zeros(len(text), dtype=bool)
    sizes = pc.binary_length(text).to_numpy().astype(np.int64)
    rows = _shared(prompt * (sizes.max(initial=0) + 1) + sizes)  # texts need comparing only where their sizes are equal
    codes = text.take(rows).dictionary_encode().indices.to_numpy().astype(np.int64)
    together = prompt[rows] * len(text) + codes
    order = np.argsort(together, kind="stable")
    rows, starts = rows[order], np.flatnonzero(np.diff(together[order], prepend=-1))
    # The first usable row of each group, and after it all others.
    place = np.arange(len(rows))
    first = np.minimum.reduceat(np.where(usable[rows], place, len(rows)), starts) if len(rows) else place
    repeated[rows] = place > np.repeat(first, np.diff([*starts, len(rows)]))
    return repeated


def _shared(keys: Indices) -> Indices:
    """Return the positions of keys that are there more than once, in rising order."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[order[1:][same]] = repeated[order[:-1][same]] = True
    return np.flatnonzero(repeated)


def _keys(responses: pa.Table, scores: pa.Table) -> tuple[tuple[Any, Any], list[str], Indices]:
    """Return a number per (prompt_id, sample) of both tables, the prompt_ids, and each response's position in them."""
    both = pa.chunked_array([*responses.column("prompt_id").chunks, *scores.column("prompt_id").chunks], pa.string())
    encoded = both.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    samples = [table.column("sample").to_numpy().astype(np.int64) for table in (responses, scores)]
    count = len(responses)
    keys = tuple(
        part * (1 << 32) + sample for part, sample in zip((codes[:count], codes[count:]), samples, strict=True)
    )
    return (keys[0], keys[1]), encoded.dictionary.to_pylist(), codes[:count]


def _match(responses: pa.Table, scores: pa.Table, ours: Any, theirs: Any, language: str) -> Indices:
    """Return the row of each response's score, or raise DataError."""
    if np.array_equal(ours, theirs) and (np.diff(np.sort(ours)) > 0).all():
        return np.arange(len(ours))
    order = np.argsort(theirs, kind="stable")
    ordered = theirs[order]
    repeated = ordered[1:] == ordered[:-1]
    if repeated.any():
        row = int(order[1:][repeated].min())
        raise DataError(f"{_where(scores, row, language, capital=True)} has two scores.")
    place = np.minimum(np.searchsorted(ordered, ours), max(0, len(ordered) - 1))
    missing = ordered[place] != ours if len(ordered) else np.ones(len(ours), dtype=bool)
    _, first = np.unique(ours, return_index=True)
    missing[np.setdiff1d(np.arange(len(ours)), first)] = True  # the response is there twice
    if missing.any():
        where = _where(responses, int(np.argmax(missing)), language)
        raise DataError(f"There is no score for {where}, or the response is there twice.")
    matched: Indices = order[place] if len(ordered) else np.zeros(0, np.int64)
    if len(theirs) > len(ours):
        left = np.setdiff1d(np.arange(len(theirs)), matched)
        first_left = {name: scores.column(name)[int(left[0])].as_py() for name in ("prompt_id", "sample")}
        raise DataError(
            f"{len(left)} scores have no response, the first: prompt {first_left['prompt_id']!r}, sample "
            f"{first_left['sample']}."
        )
    return matched


def _where(table: pa.Table, row: int, language: str, *, capital: bool = False) -> str:
    prompt_id, sample = (table.column(name)[row].as_py() for name in ("prompt_id", "sample"))
    return f"{'Prompt' if capital else 'prompt'} {prompt_id!r}, sample {sample} ({language})"
