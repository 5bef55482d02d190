"""The places in a run directory. Every path of a run is built here, and nowhere else.

recipe.yaml  phases.jsonl  run.log  report.md
prompts/  heldout/                    {language}.parquet, dropped.parquet
iteration_0/                          pi_0: policy/ (if stage 0 trained it), referenced_pairs/, evaluation/
iteration_t/                          responses/  translations/  scores/{reward}/     {language}/{shard}.parquet
                                      pairs/  dropped/  length_penalty/  referenced_pairs/   {language}.parquet
                                      agreement/{reward}-{reward}.parquet  policy/  checkpoints/  audit.md
                                      evaluation/  responses/  scores/multilingual/  measures.parquet
evaluation/                           results of suites, under a lock of their own
"""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from crosspref.data.records import Agreement, Dropped, Measure, Pair, Prompt, Response, Score, Translation
from crosspref.data.rows import parse_json
from crosspref.errors import RecipeError, RunError
from crosspref.models.files import ADAPTER_CONFIG
from crosspref.paths import existing, require_named, writing
from crosspref.recipe.files import flatten, load_recipe, load_settings
from crosspref.recipe.schema import Recipe
from crosspref.run.log import kept_in
from crosspref.run.owned import is_ours, owned, require_closed
from crosspref.run.ranks import is_main
from crosspref.run.store import DIGEST, DONE, Fingerprint, Unit, digest_of, is_amount

DROPPED = "dropped"
"""The file beside the prompts, and the folder beside the pairs, that say what was dropped and why."""
LENGTH_PENALTY = "length_penalty"

RUNS_CODE = ("models.trust_remote_code", "resources.launch")
"""Settings that have other programs run: a run that came from somebody else may hold them, too."""


@dataclass(frozen=True, slots=True)
class TableFolder:
    """A table with a file per language, or per other name; each file is a unit.

    ``beside`` names folders with tables that belong to the units of this one.
    """

    folder: Path
    kind: type
    beside: tuple[str, ...] = ()

    def unit(self, name: str) -> Unit:
        """Return the unit of one language."""
        file = f"{name}.parquet"
        return Unit(self.folder / file, tuple(self.folder.with_name(other) / file for other in self.beside))

    def rows(self, name: str) -> list[Any]:
        """Read the rows of one language."""
        return self.unit(name).rows(self.kind)

    def stored(self) -> list[Unit]:
        """Return the units that are stored, in the order of their names."""
        return [self.unit(path.stem) for path in sorted(self.folder.glob("*.parquet"))]

    def finished(self) -> int:
        """Count the finished units."""
        return len(list(self.folder.glob(f"*{DONE}")))

    def total(self, names: Sequence[str], _: int) -> int:
        """Return how many units there will be."""
        return len(names)


@dataclass(frozen=True, slots=True)
class ShardedTable:
    """A table that is cut along prompts: a folder per language, and in it a file per shard; each file is a unit."""

    folder: Path
    kind: type
    prompts: TableFolder

    def unit(self, language: str, start: int) -> Unit:
        """Return the unit of the shard that begins with prompt number ``start``."""
        return Unit(self.folder / language / f"{start:08d}.parquet")

    def matching(self, unit: Unit) -> Unit:
        """Return the shard that is about the same prompts as a shard of another table."""
        return Unit(self.folder / unit.path.parent.name / unit.path.name)

    def units(self, language: str) -> list[Unit]:
        """Return the shards of one language that are stored, in order."""
        return [Unit(path) for path in sorted((self.folder / language).glob("*.parquet"))]

    def stored(self) -> list[Unit]:
        """Return the shards of all languages that are stored."""
        return [Unit(path) for path in sorted(self.folder.glob("*/*.parquet"))]

    def rows(self, language: str) -> list[Any]:
        """Read the rows of all shards of one language."""
        return [row for unit in self.units(language) for row in unit.rows(self.kind)]

    def digest(self, languages: Iterable[str]) -> str:
        """Return a hash of what determined the shards of these languages."""
        return digest_of([unit.digest for language in languages for unit in self.units(language)])

    def cut(self, languages: Iterable[str], size: int) -> Iterator[tuple[str, int, list[Prompt]]]:
        """Cut the prompts of each language into shards of ``size``; yield (language, start, prompts)."""
        for language in languages:
            rows = self.prompts.rows(language)
            for start in range(0, len(rows), size):
                yield language, start, rows[start : start + size]

    def finished(self) -> int:
        """Count the finished units."""
        return len(list(self.folder.glob(f"*/*{DONE}")))

    def total(self, languages: Sequence[str], size: int) -> int | None:
        """Return how many units there will be, or None while the prompts are not stored."""
        units = [self.prompts.unit(language) for language in languages]
        if not all(unit.marker.exists() for unit in units):
            return None
        return sum(math.ceil(int(unit.read_marker()["rows"]) / size) for unit in units)


Table = TableFolder | ShardedTable


class Evaluation:
    """The places of the evaluation of one policy on the held-out prompts."""

    def __init__(self, folder: Path, prompts: TableFolder) -> None:
        self.prompts = prompts
        self.responses = ShardedTable(folder / "responses", Response, prompts)
        # Their rewards by pi_0 and pi_I, each response given the prompt in its own language.
        self.scores = ShardedTable(folder / "scores" / "multilingual", Score, prompts)
        self.measures = Unit(folder / "measures.parquet")

    def measured(self) -> list[Measure]:
        """Read what was measured; nothing if that is not finished."""
        return self.measures.rows(Measure) if self.measures.marker.exists() else []


class Iteration:
    """The places of one iteration; iteration 0 holds pi_0 and its evaluation."""

    def __init__(self, number: int, folder: Path, prompts: TableFolder, heldout: TableFolder) -> None:
        self.number, self.folder, self.prompts = number, folder, prompts
        # Responses to the training prompts (Eq. 7), and the responses in English (Eq. 14); for language imbalance also
        # the English ones in other languages.
        self.responses = ShardedTable(folder / "responses", Response, prompts)
        self.translations = ShardedTable(folder / "translations", Translation, prompts)
        self.rewards = folder / "scores"  # by all rewards
        # Preference pairs (Eq. 10), whose markers count for the tables of dropped prompts and of Eq. 15, too.
        self.pairs = TableFolder(folder / "pairs", Pair, beside=(DROPPED, LENGTH_PENALTY))
        self.dropped = TableFolder(folder / DROPPED, Dropped)
        # How far two rewards agree; the files are named by ``{reward}-{reward}``.
        self.agreement = TableFolder(folder / "agreement", Agreement)
        # The pairs with the log-probabilities of the training reference.
        self.referenced_pairs = TableFolder(folder / "referenced_pairs", Pair)
        # The policy that the iteration ends with, and its evaluation.
        self.policy = Unit(folder / "policy")
        self.evaluation = Evaluation(folder / "evaluation", heldout)
        self.audit = folder / "audit.md"  # the report of ``crosspref audit``

    def scores(self, reward: str) -> ShardedTable:
        """Scores of the responses by one reward (Eq. 9, 12, 13)."""
        return ShardedTable(self.rewards / reward, Score, self.prompts)

    def length_penalty(self, language: str) -> Unit:
        """The curve of Eq. 15 in one language. Like the dropped prompts it has no marker."""
        return Unit(self.folder / LENGTH_PENALTY / f"{language}.parquet")

    def checkpoints(self, fingerprint: Fingerprint) -> Path:
        """Return the folder for training checkpoints; those of other settings or inputs are removed.

        Of processes that train together, only rank 0 makes and removes folders.
        """
        folder = self.folder / "checkpoints" / fingerprint.digest
        if is_main():
            self.remove_checkpoints(but=folder)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove_checkpoints(self, but: Path | None = None) -> None:
        """Remove the checkpoints of every training here, or ``but`` those in one folder; what else lies there stays."""
        checkpoints = self.folder / "checkpoints"
        for folder in checkpoints.glob("*"):
            if folder != but and re.fullmatch(DIGEST, folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not there, or is not empty
            checkpoints.rmdir()

    @property
    def places(self) -> list[Path]:
        """Where everything lies that is written as a whole; * stands for any language, shard or reward."""
        sharded = (self.responses, self.translations, self.scores("*"), self.evaluation.responses)
        by_language = (self.pairs, self.dropped, self.agreement, self.referenced_pairs)
        return [
            *(table.folder / "*" / "*.parquet" for table in (*sharded, self.evaluation.scores)),
            *(table.unit("*").path for table in by_language),
            self.length_penalty("*").path,
            self.evaluation.measures.path,
            self.policy.path,
            self.policy.path / ADAPTER_CONFIG,
            *(self.responses.folder, self.rewards),  # which the canary copies as a whole
            self.folder / f"{self.audit.name}*",  # and what is kept of it, by language
        ]


class RunDirectory:
    """The places in one run directory, and the lock that keeps other processes out."""

    def __init__(self, root: str | Path) -> None:
        self.root = require_named(root)
        self.prompts = TableFolder(self.root / "prompts", Prompt)
        self.heldout = TableFolder(self.root / "heldout", Prompt)
        self.recipe = self.root / "recipe.yaml"  # the resolved one
        self.report = self.root / "report.md"
        self.log = self.root / "run.log"  # what was done and said; nothing reads it
        self.phases = self.root / "phases.jsonl"  # what each phase took
        self.suites = self.root / "evaluation"  # results of suites, under a lock of their own

    def iteration(self, number: int) -> Iteration:
        """Return the places of one iteration."""
        return Iteration(number, self.root / f"iteration_{number}", self.prompts, self.heldout)

    def iterations(self) -> list[Iteration]:
        """Return the iterations that have a folder, in order."""
        names = [path.name.removeprefix("iteration_") for path in self.root.glob("iteration_*")]
        return [self.iteration(number) for number in sorted({int(name) for name in names if name.isdecimal()})]

    def log_phase(self, row: Mapping[str, Any]) -> None:
        """Append what a phase took to the log."""
        with writing(self.phases), self.phases.open("a+b") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 1))
            # A kill may have cut the last line off; it must not swallow this one.
            begin = b"" if log.read() in (b"", b"\n") else b"\n"
            log.write(begin + json.dumps(row).encode() + b"\n")

    def logged_phases(self) -> list[dict[str, Any]]:
        """Return what each phase that ran took, in the order of running."""
        rows = []
        for line in self.phases.read_bytes().splitlines() if self.phases.exists() else []:
            # A kill can leave half a line; the phase is run and logged again.
            with contextlib.suppress(ValueError):
                rows.append(parse_json(line))
        return [row for row in rows if _is_logged(row)]

    @contextlib.contextmanager
    def locked(self, *more: str) -> Iterator[None]:
        """Hold the run, so that a second process does not write into it, and remove what killed ones left half-written.

        What is said meanwhile goes into its log. ``more`` are places beside those of every run. Processes that the
        holder starts need no lock.

        Raises:
            RunError: another process holds it, the directory is not empty and no run, or a link leads out of it.
            FileError: it cannot be written.
        """
        with owned(self.root, [*_places(), *more]), kept_in(self.log):
            yield

    def read_recipe(self) -> Recipe:
        """Read the recipe that the run was begun with. It extends no file, as it was resolved before it was written.

        Raises:
            RecipeError: it cannot be read.
        """
        return load_settings(Recipe, self.recipe, [])


def _places() -> list[PurePath]:
    """Return where everything lies in a run that is written as a whole, relative to it; * stands for any name."""
    run = RunDirectory(".")
    iteration = Iteration(0, run.root / "iteration_*", run.prompts, run.heldout)
    tables = [place for table in (run.prompts, run.heldout) for place in (table.folder, table.unit("*").path)]
    return [run.recipe, run.report, *tables, *iteration.places]


def _is_logged(row: object) -> bool:
    """Tell whether a value is a row of the log: the log may be damaged, or somebody else's."""
    if not isinstance(row, dict):
        return False
    is_phase = isinstance(row.get("phase"), str) and isinstance(row.get("iteration"), int)
    return is_phase and is_amount(row["iteration"]) and is_amount(row.get("seconds"))


def open_run(root: str | Path) -> tuple[RunDirectory, Recipe]:
    """Return a run that was begun, and its recipe. Nothing is written.

    Raises:
        RunError: there is no run in the directory, or a link leads out of it.
    """
    run = RunDirectory(root)
    if existing(run.recipe) is None:
        raise RunError(f"{run.root} holds no run: there is no {run.recipe.name} in it.")
    require_closed(run.root)
    return run, run.read_recipe()


def given_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read the recipe that a person named, as ``load_recipe`` does.

    A run may have come from somebody else. So where the recipe is a run's, ``RUNS_CODE`` counts only in the overrides.

    Raises:
        RecipeError: one of these settings is in the run's recipe alone, a file cannot be read, or a setting is wrong.
    """
    recipe, run = load_recipe(path, overrides), RunDirectory(Path(path).parent)
    if Path(path).name != run.recipe.name or not is_ours(run.root, _places()):
        return recipe
    said, values = [change.partition("=")[0].strip() for change in overrides or []], flatten(recipe)
    unsaid = [key for key in RUNS_CODE if values[key] and key not in said]
    if unsaid:
        wanted = " ".join(f"--set {shlex.quote(f'{key}={json.dumps(values[key])}')}" for key in unsaid)
        raise RecipeError(
            f"{path} is the recipe of a run, which may have come from somebody else, and {' and '.join(unsaid)} in it "
            f"would run other programs. If that is what you want, say so: {wanted}",
            tuple(unsaid),
        )
    return recipe
