"""Selecting: the best and the worst response of each prompt under a length penalty solved per language (Eq. 10, 15).

Responses are read as columns, part by part, and only numbers are kept of them: a first pass finds out which are usable,
then the length penalty is solved over all of them, and a second pass fetches what makes the pairs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crosspref.data.records import (
    LATER,
    Dropped,
    Pair,
    Response,
    Score,
    as_messages,
    from_table,
    schema_of,
    to_table,
)
from crosspref.maths.length_penalty import LengthPenalty, best_and_worst, grid_length_penalty, solve_flat
from crosspref.recipe.sections import SelectSettings
from crosspref.stages.select.screen import REASONS, Floats, Identify, Indices, PairRules, Part, Screened, screen

__all__ = ["Identify", "PairRules", "Part", "Selection", "pair_faults", "select", "select_parts"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What one language gives: pairs, prompts without a pair, and the length penalty with its whole curve."""

    pairs: list[Pair]
    """Empty where ``select_parts`` handed them over as tables."""
    dropped: list[Dropped]
    penalty: LengthPenalty | None
    alpha: float
    length_differences: list[int]
    """len(chosen) - len(rejected) of each pair, in the unit of the penalty."""
    unidentified: bool = False
    """Whether responses in other languages should have been dropped, and could not be told."""

    @property
    def mean_length_difference(self) -> float:
        """Mean of len(chosen) - len(rejected) over the pairs that were kept; nan if there are none."""
        return float(np.mean(self.length_differences)) if self.length_differences else math.nan

    def reasons(self) -> dict[str, int]:
        """Return how many prompts were dropped for each kind of reason."""
        return dict(Counter(row.reason.partition(" (")[0] for row in self.dropped).most_common())

    def figures(self) -> dict[str, float | dict[str, int]]:
        """Return what the done-marker keeps."""
        return {"alpha": self.alpha, "mean_length_difference": self.mean_length_difference, "dropped": self.reasons()}

    def summary(self) -> str:
        """Return one line for the screen."""
        count = len(self.length_differences)
        dropped = "".join(f", {number} dropped: {reason}" for reason, number in self.reasons().items())
        penalty = f"; alpha {self.alpha:.3g}, mean length difference {self.mean_length_difference:+.1f}"
        unidentified = "; responses in other languages are kept: this one cannot be identified"
        return f"{count} pairs{dropped}{penalty if count else ''}{unidentified if self.unidentified else ''}"

    def curve(self) -> pa.Table:
        """Return the step curve of Eq. 15: from each ``alpha`` (-inf first) up to the next, the mean difference."""
        steps = self.penalty
        alphas = [-math.inf, *steps.breakpoints.tolist()] if steps else []
        differences = steps.differences.tolist() if steps else []
        return pa.table({"alpha": alphas, "mean_length_difference": differences})


def select(responses: Sequence[Response], scores: Sequence[Score], rules: PairRules) -> Selection:
    """Make the preference pairs of one language.

    Args:
        responses: the responses in this language.
        scores: their scores, in any order, joined by prompt_id and sample.
        rules: how pairs are made.

    Raises:
        DataError: a response has no score, a score no response, a key is duplicated, or a length is not known.
    """
    part = Part(to_table(list(responses), Response).select, to_table(list(scores), Score).select)
    pairs: list[Pair] = []
    selection = select_parts([part], rules, lambda table: pairs.extend(from_table(table, Pair)))
    return replace(selection, pairs=pairs)


def select_parts(parts: Sequence[Part], rules: PairRules, write: Callable[[pa.Table], None]) -> Selection:
    """Make the pairs of one language from any number of responses: memory holds 30 bytes of each, and one part.

    It does what ``select`` does, but responses and scores come in parts, each of which has all responses to its
    prompts, and ``write`` gets the pairs, a table per part.
    """
    language, instructions, penalty, settings = rules.language, rules.instructions, rules.penalty, rules.settings
    least = 1 if settings.degenerate == "keep" else 2
    prompt_ids = list(instructions)
    index = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    screening = _Screening(len(prompt_ids), least)
    for part in parts:
        screening.add(screen(part, index, rules))
    rows, offsets, kept = screening.usable()
    dropped = [
        Dropped(prompt_ids[number], language, "select", screening.reason(number))
        for number in np.flatnonzero(screening.counts[:, 0] < least).tolist()
    ]
    if not len(kept):
        return Selection([], dropped, None, 0.0, [], rules.unidentified)
    solved = solve_flat(rows.reward, rows.length, offsets)
    alpha = solved.alpha if penalty.mode == "optimal" else penalty.alpha or 0.0
    if penalty.mode == "grid":
        alpha = grid_length_penalty(rows.reward, rows.length, offsets)
    best, worst = best_and_worst(rows.reward, rows.length, alpha, offsets, upper_bound=settings.upper_bound)
    penalised = rows.reward - alpha * rows.length  # Eq. 9
    min_gap = rules.noise if settings.min_gap is None else settings.min_gap
    if settings.degenerate == "drop":
        bound = math.inf if settings.upper_bound is None else settings.upper_bound
        is_bounded = penalised[best] < bound
        dropped += [
            Dropped(prompt_ids[number], language, "select", f"no reward below the upper bound {bound:g}")
            for number in kept[~is_bounded].tolist()
        ]
        best, worst, kept = best[is_bounded], worst[is_bounded], kept[is_bounded]
        is_pair = (best != worst) & (penalised[best] - penalised[worst] > min_gap)
        dropped += [
            Dropped(prompt_ids[number], language, "select", f"reward gap not above {min_gap:g}")
            for number in kept[~is_pair].tolist()
        ]
        best, worst, kept = best[is_pair], worst[is_pair], kept[is_pair]
    rules = replace(rules, always_ended=rules.always_ended or not any(_has_cut_texts(part, settings) for part in parts))
    differences = (rows.length[best] - rows.length[worst]).astype(np.int64).tolist()
    for number, part in enumerate(parts):
        low, high = screening.starts[number : number + 2]
        mine = np.flatnonzero((rows.position[best] >= low) & (rows.position[best] < high))
        if len(mine):
            chosen, rejected = best[mine], worst[mine]
            ids = [prompt_ids[prompt] for prompt in kept[mine].tolist()]
            best_side, worst_side = ((rows.position[end] - low, penalised[end]) for end in (chosen, rejected))
            write(_pair_table(rules, ids, part, best_side, worst_side, alpha))
    return Selection([], dropped, solved, alpha, differences, rules.unidentified)


def pair_faults(pairs: Sequence[Pair], again: Sequence[Pair]) -> Iterator[str]:
    """Yield what is wrong with stored pairs, if they are not those that were made again."""
    if all(pair.chosen_ended is None and pair.rejected_ended is None for pair in pairs):
        # Versions before this column trained an end of turn behind every answer that came as text.
        again = [replace(pair, chosen_ended=None, rejected_ended=None) for pair in again]
    if list(pairs) != list(again):
        first = next(row or other for row, other in zip_longest(pairs, again) if row != other)
        follow = f"the {len(again)} that follow from the responses"
        yield f"its {len(pairs)} pairs are not {follow}; the first other one is of prompt {first.prompt_id!r}"


@dataclass(frozen=True, slots=True)
class _Rows:
    """The usable responses of all parts, those to one prompt together: four arrays of one length."""

    prompt: Indices
    position: Indices
    reward: Floats
    length: Floats


class _Screening:
    """Gathers what the first pass finds."""

    def __init__(self, prompts: int, least: int) -> None:
        self.least = least
        self.counts = np.zeros((prompts, len(REASONS)), dtype=np.int32)
        self.starts = [0]
        self.parts: list[Screened] = []

    def add(self, part: Screened) -> None:
        np.add.at(self.counts, (part.prompt, part.reason), 1)
        kept = part.reason == 0
        self.parts.append(
            Screened(part.prompt[kept], part.reason[kept], part.reward[kept], part.length[kept], part.row[kept])
        )
        self.starts.append(self.starts[-1] + len(kept))

    def usable(self) -> tuple[_Rows, Indices, Indices]:
        """Return the rows of prompts that have enough of them, their offsets, and these prompts."""
        parts, self.parts = self.parts, []
        prompt = np.concatenate([np.zeros(0, np.int64), *(part.prompt for part in parts)])
        positions = (part.row + start for part, start in zip(parts, self.starts[:-1], strict=True))
        position = np.concatenate([np.zeros(0, np.int64), *positions])
        reward = np.concatenate([np.zeros(0), *(part.reward for part in parts)])
        length = np.concatenate([np.zeros(0), *(part.length for part in parts)])
        del parts
        enough = (self.counts[:, 0] >= self.least)[prompt]
        order = np.flatnonzero(enough)
        if (np.diff(prompt[order]) < 0).any():
            order = order[np.argsort(prompt[order], kind="stable")]
        rows = _Rows(*(values[order] for values in (prompt, position, reward, length)))
        kept = np.flatnonzero(self.counts[:, 0] >= self.least)
        return rows, np.concatenate([[0], np.cumsum(self.counts[kept, 0], dtype=np.int64)]), kept

    def reason(self, prompt: int) -> str:
        """Say why a prompt has no pair."""
        kept, *others = self.counts[prompt].tolist()
        reasons = {REASONS[number]: count for number, count in enumerate(others, start=1) if count}
        if not kept and not reasons:
            return "no responses: the prompt is too long for the model, or was not sampled"
        counted_reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        short = "no usable response" if self.least == 1 else "fewer than two usable responses"
        return f"{short} ({counted_reasons})" if counted_reasons else "only one response"


def _has_cut_texts(part: Part, settings: SelectSettings) -> bool:
    """Tell whether a pair may hold an answer that came as text and was cut."""
    if settings.truncated == "drop":
        return False
    return bool(_are_cut_texts(part.responses(["token_ids", "finish_reason"])).true_count)


def _are_cut_texts(answers: pa.Table) -> pa.Array:
    """Tell of which answers ``records.ended`` is False."""
    return _one(pc.and_(pc.is_null(answers.column("token_ids")), pc.equal(answers.column("finish_reason"), "length")))


def _pair_table(
    rules: PairRules, prompt_ids: list[str], part: Part, best: tuple[Indices, Floats], worst: tuple[Indices, Floats],
    alpha: float,
) -> pa.Table:  # fmt: skip
    """Return pairs as a table; ``best`` and ``worst`` are rows of the part with their penalised rewards."""
    instructions = [rules.instructions[prompt_id] for prompt_id in prompt_ids]
    answers = part.responses(["sample", "text", "token_ids", "finish_reason"])
    chosen, rejected = answers.take(best[0]), answers.take(worst[0])
    count, schema = len(prompt_ids), schema_of(Pair)
    if rules.always_ended:
        schema = pa.schema([field for field in schema if field.name not in LATER])

    def answer(text: pa.Array) -> pa.Array:
        messages = pa.StructArray.from_arrays([pa.repeat("assistant", count), _one(text)], ["role", "content"])
        return pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), messages)

    def ended(side: pa.Table) -> pa.Array:
        return pc.if_else(_are_cut_texts(side), pa.scalar(False), pa.scalar(None, pa.bool_()))

    columns = {
        "prompt_id": pa.array(prompt_ids, pa.string()),
        "language": pa.repeat(rules.language, count),
        "prompt": pa.array([as_messages(instruction) for instruction in instructions], schema.field("prompt").type),
        "chosen": answer(chosen.column("text")),
        "rejected": answer(rejected.column("text")),
        "chosen_sample": _one(chosen.column("sample")),
        "rejected_sample": _one(rejected.column("sample")),
        "chosen_token_ids": _one(chosen.column("token_ids")),
        "rejected_token_ids": _one(rejected.column("token_ids")),
        "chosen_reward": pa.array(best[1], pa.float64()),
        "rejected_reward": pa.array(worst[1], pa.float64()),
        "alpha": pa.repeat(alpha, count),
        "chosen_ended": ended(chosen),
        "rejected_ended": ended(rejected),
    }
    return pa.Table.from_arrays(
        # What training adds to pairs is not known yet.
        [columns.get(name, pa.nulls(count)).cast(schema.field(name).type) for name in schema.names],
        schema=schema,
    )


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
