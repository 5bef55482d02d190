"""Flips: in which prompts the pairs of the paper's released scripts differ from those of the correct mathematics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from crosspref.data.records import Pair, Response, Score
from crosspref.recipe.files import PRESETS
from crosspref.recipe.sections import LengthPenaltySettings, SelectSettings
from crosspref.stages.select.select import PairRules, select

ZNLP_PENALTY = LengthPenaltySettings.model_validate(PRESETS["znlp"]["length_penalty"])
ZNLP_SELECT = SelectSettings.model_validate(PRESETS["znlp"]["select"])
"""How the released scripts make pairs of their scores: a grid of alphas per character, and no filter."""

COLUMNS = {
    "language": "tag",
    "prompts": "prompts",
    "both": "in\nboth",
    "same": "same",
    "chosen_differs": "chosen\ndiffers",
    "rejected_differs": "rejected\ndiffers",
    "swapped": "swapped",
    "only_exact": "only\nexact",
    "only_znlp": "only\nznlp",
    "exact_alpha": "alpha\nexact",
    "znlp_alpha": "alpha\nznlp",
}


@dataclass(frozen=True, slots=True)
class Flips:
    """The pairs of one language made both ways; all but the alphas are numbers of prompts.

    Responses are compared by their text, since repeated answers are one answer to whoever trains on them. ``swapped``
    pairs also count in ``chosen_differs`` and ``rejected_differs``.
    """

    language: str
    prompts: int
    both: int
    """Prompts with a pair in both; the next four are out of these."""
    same: int
    chosen_differs: int
    rejected_differs: int
    swapped: int
    """One's chosen is the other's rejected, and the other way round."""
    only_exact: int
    only_znlp: int
    exact_alpha: float
    """In reward per unit of length: beta is in it, and in ``znlp_alpha`` it is not."""
    znlp_alpha: float


def flips(
    responses: Sequence[Response], exact_scores: Sequence[Score], znlp_scores: Sequence[Score], rules: PairRules
) -> Flips:
    """Make the pairs of one language both ways and count where they differ.

    Args:
        responses: the responses in this language.
        exact_scores: their scores with ``reward.counting`` exact.
        znlp_scores: their scores with ``reward.counting`` znlp.
        rules: how pairs are made of the exact scores; their length penalty is optimal, whatever the rules say.

    Raises:
        DataError: responses and scores do not join.
    """
    optimal = LengthPenaltySettings.model_validate({"mode": "optimal", "unit": rules.penalty.unit})
    released = PairRules(rules.language, rules.instructions, ZNLP_PENALTY, ZNLP_SELECT)
    exact = select(responses, exact_scores, replace(rules, penalty=optimal))
    znlp = select(responses, znlp_scores, released)
    ours, theirs = ({pair.prompt_id: _texts(pair) for pair in selection.pairs} for selection in (exact, znlp))
    both = [(ours[prompt_id], theirs[prompt_id]) for prompt_id in ours if prompt_id in theirs]
    return Flips(
        rules.language,
        len(rules.instructions),
        len(both),
        same=sum(one == other for one, other in both),
        chosen_differs=sum(one[0] != other[0] for one, other in both),
        rejected_differs=sum(one[1] != other[1] for one, other in both),
        swapped=sum(one != other and one == other[::-1] for one, other in both),
        only_exact=len(ours) - len(both),
        only_znlp=len(theirs) - len(both),
        exact_alpha=exact.alpha,
        znlp_alpha=znlp.alpha,
    )


def flips_table(rows: Sequence[Flips]) -> Table:
    """Return a table for the screen with one line per language."""
    title = "Pairs by exact counting and by the paper's released scripts (znlp)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, name in enumerate(COLUMNS.values()):  # fits 80 columns
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        values = [getattr(row, name) for name in COLUMNS]
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    return table


def _texts(pair: Pair) -> tuple[str, str]:
    return pair.chosen[0]["content"], pair.rejected[0]["content"]
