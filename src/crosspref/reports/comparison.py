"""``crosspref compare``: one row per policy of several runs, and what to know before trusting a comparison."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref import algorithm
from crosspref.data.records import Measure, Pair
from crosspref.errors import RunError
from crosspref.maths.estimate import UNKNOWN, Estimate
from crosspref.recipe.files import flatten
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings
from crosspref.reports.report import SYMBOLS, estimate_of
from crosspref.reports.table import Report, csv_text
from crosspref.run.layout import RunDirectory, open_run
from crosspref.run.phases import affected_by
from crosspref.stages.evaluate import MEASURES, WIN_RATE

TITLE = "Comparison of runs"
METHODS = {"dpo": "DPO", "kto": "KTO", "ipo": "IPO", "simpo": "SimPO", "orpo": "ORPO"}
HEADER = ["run", "policy", "pairs by", "penalty", "training"]
NUMBERS = {
    "pairs": "pairs",
    "win_rate": "win\nrate*",
    "right_language": "right\nlang.",
    "characters": "length",
    "length_difference": "chosen\nlonger",
    "minutes": "min.",
}
"""The numbers of a row, by their columns in CSV."""

SAMPLING = ("temperature", "top_p", "max_new_tokens", "max_prompt_tokens")
"""Settings of sampling that held-out responses share with the training ones."""

ASKING = ("date", "chat_template_kwargs", "thinking")
"""Settings of how models are asked."""

JUDGES = {
    "policy": "pi_0",
    "reference": "pi_I",
    **{name: name for name in ("reward.algorithm", "reward.counting", "reward.end_of_turn")},
}
"""Parts of the fingerprint of held-out scores that decide a win rate; beta scales both of its sides alike."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run, by the name that the comparison gives it, and what was measured in it so far."""

    name: str
    run: RunDirectory
    recipe: Recipe
    measures: list[Measure]

    def judged_by(self) -> dict[str, Any]:
        """Return what the held-out scores were made from; empty if there are none."""
        shards = (unit for iteration in self.run.iterations() for unit in iteration.evaluation.scores.stored())
        finished = next((unit for unit in shards if unit.marker.exists()), None)
        return dict(finished.read_marker()["parts"]) if finished else {}

    def held_out(self, language: str) -> str | None:
        """Return a digest of the held-out prompts in one language."""
        unit = self.run.heldout.unit(language)
        return unit.read_marker()["parts"].get("rows") if unit.marker.exists() else None

    def by_language(self, iteration: int, measure: str) -> dict[str, Estimate]:
        """Return one measure of a policy in each language."""
        rows = [row for row in self.measures if (row.iteration, row.measure) == (iteration, measure)]
        return {row.language: estimate_of(row) for row in rows}

    def mean(self, iteration: int, measure: str) -> float | None:
        """Return one measure of a policy, averaged over languages; None where it was not measured."""
        return _mean([estimate.value for estimate in self.by_language(iteration, measure).values()])


@dataclass(frozen=True, slots=True)
class ComparedPolicy:
    """What one policy was made from and what was measured of it; None where that is not known.

    ``win_rate``, ``right_language`` and ``characters`` are means over languages. ``length_difference`` is the mean of
    len(chosen) - len(rejected), in characters. ``minutes`` is the wall time of all phases of the run up to this
    policy's evaluation.
    """

    run: str
    iteration: int
    pairs_by: str
    penalty: str
    training: str
    win_rates: dict[str, Estimate]
    pairs: int | None = None
    win_rate: float | None = None
    right_language: float | None = None
    characters: float | None = None
    length_difference: float | None = None
    minutes: float | None = None

    def texts(self, above: "ComparedPolicy | None") -> list[str]:
        """Return the cells on the left, without what the row above already says of the same run."""
        made = [self.pairs_by.replace(" (", "\n("), self.penalty.replace(" ", "\n"), self.training.replace(" (", "\n(")]
        if above is None or above.run != self.run:
            return [self.run, f"pi_{self.iteration}", *made]
        same = (self.pairs_by, self.penalty, self.training) == (above.pairs_by, above.penalty, above.training)
        return ["", f"pi_{self.iteration}", *([""] * len(made) if same else made)]

    def numbers(self) -> list[str]:
        """Return the cells on the right, as ``NUMBERS`` names them."""
        forms = ("d", ".0%", ".0%", ".0f", "+.1f", ".1f" if (self.minutes or 0) < 100 else ".0f")
        values = [getattr(self, name) for name in NUMBERS]
        return ["-" if value is None else format(value, form) for value, form in zip(values, forms, strict=True)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The policies of all runs, the languages of their win rates, and what is said below the table."""

    policies: list[ComparedPolicy]
    languages: list[str]
    notes: list[str]

    def report(self, *, by_language: bool) -> Report:
        """Return the table; it is too wide for a screen if it has the win rate in every language."""
        languages = self.languages if by_language else []
        rows = []
        for above, policy in zip([None, *self.policies], self.policies, strict=False):
            won = [policy.win_rates.get(tag, UNKNOWN).text(".0%") or "-" for tag in languages]
            rows.append([*policy.texts(above), *policy.numbers(), *won])
        header = [*HEADER, *NUMBERS.values(), *(f"win rate in {tag}" for tag in languages)]
        return Report(TITLE, header, rows, self.notes, left=len(HEADER))

    def csv(self) -> str:
        """Return all numbers, unrounded, as CSV; a cell is empty where something is not known."""
        names = ["run", "iteration", "pairs_by", "penalty", "training", *NUMBERS]
        rows = []
        for policy in self.policies:
            won = [policy.win_rates.get(tag, UNKNOWN) for tag in self.languages]
            values = [
                *(getattr(policy, name) for name in names),
                *(n for one in won for n in (one.value, one.low, one.high)),
            ]
            rows.append([None if value != value else value for value in values])
        by_language = [f"win_rate_{tag}{end}" for tag in self.languages for end in ("", "_low", "_high")]
        return csv_text([*names, *by_language], rows, quoted=False)


def compare_runs(directories: Sequence[str | Path]) -> Comparison:
    """Return what runs made and measured, side by side; the notes say what a run does not have yet.

    Raises:
        RunError: a directory holds no run, or is given twice.
    """
    opened = [open_run(directory) for directory in directories]
    roots = [Path(os.path.abspath(directory)) for directory in directories]  # noqa: PTH100 - keeps a link's name
    for number, root in enumerate(roots):
        if root.resolve() in [earlier.resolve() for earlier in roots[:number]]:
            raise RunError(f"{directories[number]} is given twice. Name each run once.")
    runs = []
    for (run, recipe), name in zip(opened, run_names(roots), strict=True):
        measures = [row for iteration in run.iterations() for row in iteration.evaluation.measured()]
        runs.append(ComparedRun(name, run, recipe, measures))
    policies = [*_measured_pi_0(runs), *(_policy(run, iteration) for run in runs for iteration in _iterations(run))]
    languages = list(dict.fromkeys(language for policy in policies for language in policy.win_rates))
    notes = [*_differences([run for run in runs if run.measures]), *_unfinished(runs), *_explanations(runs)]
    return Comparison(policies, languages, notes)


def run_names(roots: Sequence[Path]) -> list[str]:
    """Return each run's directory name, with as many parent directories as make it unique."""

    def shortest(root: Path) -> str:
        for depth in range(1, len(root.parts) + 1):
            if sum(path.parts[-depth:] == root.parts[-depth:] for path in roots) == 1:
                return str(Path(*root.parts[-depth:]))
        return str(root)

    return [shortest(root) for root in roots]


def _iterations(run: ComparedRun) -> list[int]:
    """Return the iterations that were begun; the first one of a run that has not begun any."""
    begun = [iteration.number for iteration in run.run.iterations() if iteration.number]
    return begun or [1] * min(1, run.recipe.iterations)


def _measured_pi_0(runs: Sequence[ComparedRun]) -> list[ComparedPolicy]:
    """Return one row for each pi_0 that was measured; runs share one if they measured it with equal results."""
    shared: dict[Any, list[ComparedRun]] = {}
    for run in runs:
        measured = tuple(sorted((row.language, row.measure, row.mean) for row in run.measures if row.iteration == 0))
        if measured:
            shared.setdefault((str(run.judged_by().get("policy", run.name)), measured), []).append(run)
    policies = []
    for group in shared.values():
        name = "all runs" if len(group) == len(runs) > 1 else ", ".join(run.name for run in group)
        settings = group[0].recipe.align_english
        training = f"{_training(settings)} (English)" if settings else "given"
        means = {measure: group[0].mean(0, measure) for measure in ("right_language", "characters")}
        policies.append(ComparedPolicy(name, 0, "-", "-", training, {}, None, None, **means))
    return policies


def _policy(run: ComparedRun, iteration: int) -> ComparedPolicy:
    recipe, table = run.recipe, run.run.iteration(iteration).pairs
    units = [table.unit(language) for language in recipe.languages]
    is_whole = all(unit.marker.exists() for unit in units)
    pairs = [row for unit in units for row in unit.rows(Pair)] if is_whole else None
    differences = [len(pair.chosen[-1]["content"]) - len(pair.rejected[-1]["content"]) for pair in pairs or []]
    log = run.run.logged_phases()
    begun = any(row["iteration"] == iteration for row in log)
    seconds = [row["seconds"] for row in log if row["iteration"] <= iteration]
    return ComparedPolicy(
        run.name,
        iteration,
        _pairs_by(recipe),
        _penalty(recipe),
        _training(recipe.train),
        run.by_language(iteration, WIN_RATE),
        pairs=None if pairs is None else len(pairs),
        win_rate=run.mean(iteration, WIN_RATE),
        right_language=run.mean(iteration, "right_language"),
        characters=run.mean(iteration, "characters"),
        length_difference=_mean(differences),
        minutes=sum(seconds) / 60 if begun else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pairs_by(recipe: Recipe) -> str:
    reward = recipe.reward
    if recipe.language_imbalance is not None:
        return "LIDR"
    if reward.name == "reward_model":
        return SYMBOLS[reward.name]
    more = [METHODS[reward.algorithm]] if reward.algorithm != "dpo" else []
    more += ["znlp"] if reward.counting == "znlp" else []
    more += ["prev."] if reward.reference == "previous" else []
    return SYMBOLS[reward.name] + (f" ({', '.join(more)})" if more else "")


def _penalty(recipe: Recipe) -> str:
    if recipe.language_imbalance is not None:
        return "-"
    penalty = recipe.length_penalty
    fixed = f" {penalty.alpha:g}" if penalty.alpha is not None else ""
    return f"{penalty.mode}{fixed}{' (tokens)' if penalty.unit == 'tokens' else ''}"


def _training(train: TrainSettings) -> str:
    weight = "" if train.nll_weight == 1 else f"{train.nll_weight:g}"
    nll = f"+{weight}NLL" if train.nll_weight else ""
    return f"{METHODS[train.method]}{nll}{' (ref. pi_I)' if train.reference == 'initial' else ''}"


def _differences(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what makes the measures of these runs not comparable with each other."""
    by_groups: dict[str, list[str]] = {}
    for language in dict.fromkeys(language for run in runs for language in run.recipe.languages):
        having = [run for run in runs if language in run.recipe.languages]
        groups = _groups(having, [run.held_out(language) for run in having], shown=False)
        by_groups.setdefault(groups, []).append(language)
    differing = [(f"the held-out prompts in {', '.join(tags)}", groups) for groups, tags in by_groups.items()]
    differing.append(("the languages", _groups(runs, [", ".join(sorted(run.recipe.languages)) for run in runs])))
    judged_by = [run.judged_by() for run in runs]
    for key, name in JUDGES.items():
        groups = _groups(runs, [parts.get(key) for parts in judged_by], shown=name == key)
        differing.append((f"{name} behind the win rate", groups))
    differing += [
        (f"sample.{key}", _groups(runs, [getattr(run.recipe.sample, key) for run in runs])) for key in SAMPLING
    ]
    differing += [
        (f"models.{key}", _groups(runs, [str(getattr(run.recipe.models, key)) for run in runs])) for key in ASKING
    ]
    return [f"Not comparable: the runs differ in {what}: {groups}." for what, groups in differing if groups]


def _groups(runs: Sequence[ComparedRun], values: Sequence[Any], *, shown: bool = True) -> str:
    """Say which runs have which value, or nothing if all have the same; ``shown`` is False for digests."""
    groups: dict[str, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        groups.setdefault(str(value), []).append(run.name)
    if len(groups) < 2:
        return ""
    if shown:
        return "; ".join(f"{value} in {', '.join(names)}" for value, names in groups.items())
    return " against ".join(", ".join(names) for names in groups.values())


def _unfinished(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what runs do not have yet, or will not have."""
    notes = []
    for run in runs:
        total, measuring = run.recipe.iterations, run.recipe.evaluate.prompts is not None
        trained = sum(run.run.iteration(iteration).policy.marker.exists() for iteration in range(1, total + 1))
        measured = len({row.iteration for row in run.measures if row.iteration <= total})
        if trained < total or (measuring and measured < total + 1):
            progress = f"{trained} of {total} policies are trained"
            progress += f", and {measured} of {total + 1} are measured" if measuring else ""
            notes.append(f"{run.name} is not finished: {progress}.")
        if not measuring:
            notes.append(f"{run.name} has no measures: its recipe names no evaluate.prompts.")
    return notes


def _explanations(runs: Sequence[ComparedRun]) -> list[str]:
    recipes = [flatten(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    phases = [phase for run in runs for phase in algorithm.phases(run.recipe)]
    differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
    changed = [key for key in differing if affected_by(phases, key)]
    # A section that not all of them have is named as one.
    shared = {key: all(key in recipe for recipe in recipes) for key in changed}
    differ = dict.fromkeys(key if shared[key] else key.partition(".")[0] for key in changed)
    return [
        *([f"Settings in which the recipes differ: {', '.join(differ)}."] if differ else []),
        f"* {MEASURES[WIN_RATE]}. 50% is no difference. Here it is the mean over languages; each language's, with its "
        "95% bootstrap interval, is in the files. The intervals cover the choice of held-out prompts only, not that of "
        "training prompts or of the seed.",
        "right lang., length: means over languages; length is in characters. chosen longer: by how many characters the "
        "chosen responses are longer than the rejected ones, on average over all pairs. min.: minutes of wall time of "
        "the run's phases up to there, measuring included; they depend on the machine.",
        "pairs by: the reward (prev.: its reference is the previous policy; KTO and so on: the policy's alignment, "
        "if not by DPO), or LIDR, language imbalance driven rewarding. ref. pi_I: training's reference is pi_I.",
    ]
