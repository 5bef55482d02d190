"""What a phase is, how far each phase of a run is, and what a changed recipe would invalidate.

The list of phases itself is ``algorithm.phases``; ``stages`` say what each phase does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from crosspref.errors import RunError
from crosspref.paths import read_text
from crosspref.recipe.files import dump_recipe, flatten
from crosspref.recipe.schema import Recipe
from crosspref.run.job import SPEED, Job
from crosspref.run.layout import RunDirectory, Table
from crosspref.run.moved import holds_the_same
from crosspref.run.store import Fingerprint, Unit, fits_seal, seal_text, write_text

GIVEN = "given: "
"""How an input begins, in what is expected, whose digest nothing in a run says but the markers: a model, say."""


@dataclass(frozen=True, slots=True)
class Output:
    """One table that a phase fills, and what it depends on.

    Args:
        name: the table's name, by which later outputs call it their input.
        place: where it lies in a run: a table, or a unit.
        settings: the settings, or whole sections, on which it depends.
        inputs: names of earlier outputs from which it is computed.
        without: settings inside ``settings`` on which it does not depend.
        names: names of the units of a table, such as languages.
        label: what messages call it, if that is not the name of its phase.
    """

    name: str
    place: Callable[[RunDirectory], Table | Unit]
    settings: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    names: Sequence[str] = ()
    label: str | None = None

    def depends_on(self, setting: str) -> bool:
        """Tell whether another value of a setting, or a section that comes or goes, makes another table."""

        def covers(names: Iterable[str]) -> bool:
            return any(setting == name or setting.startswith(f"{name}.") for name in names)

        return covers(self.settings) and not covers(self.without) and setting not in SPEED

    def finished(self, run: RunDirectory) -> int:
        """Count the finished units."""
        place = self.place(run)
        return int(place.marker.exists()) if isinstance(place, Unit) else place.finished()

    def units(self, run: RunDirectory) -> list[Unit]:
        """Return the units that are stored, finished or not."""
        place = self.place(run)
        return [place] if isinstance(place, Unit) else place.stored()

    def total(self, run: RunDirectory, shard_prompts: int) -> int | None:
        """Return how many units there will be, or None while that is not known."""
        place = self.place(run)
        return 1 if isinstance(place, Unit) else place.total(self.names, shard_prompts)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a unit must be once it is finished; verification compares it with what lies in the run.

    Args:
        unit: the unit.
        fingerprint: what it must be made from; what begins with ``GIVEN`` may be any digest, but always the same.
        kind: the kind of its rows; None if it holds no rows.
        faults: says what is wrong with its rows, given the tables that they were made from.
    """

    unit: Unit
    fingerprint: Fingerprint
    kind: type | None = None
    faults: Callable[[list[Any]], Iterable[str]] = field(default=lambda _: ())


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of the algorithm in one iteration. Its input and output lie in the run directory.

    ``perform`` does only the units that are not done yet, so running a phase again resumes it. ``expect`` says what its
    units must be, those first that are made first. ``trains`` tells whether several processes may do it together.
    """

    name: str
    iteration: int
    perform: Callable[[Job, int], None]
    expect: Callable[[Job, int], Iterable[Expected]]
    outputs: Sequence[Output]
    trains: bool = False

    @property
    def title(self) -> str:
        """The name, or for the evaluation of pi_0 what tells it from those of later policies."""
        return "evaluation of pi_0" if (self.name, self.iteration) == ("evaluate", 0) else self.name


@dataclass(frozen=True, slots=True)
class PhaseStatus:
    """How many units of a phase are done; ``total`` is None while it is not known how many there are."""

    phase: Phase
    done: int
    total: int | None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.total is not None and self.done >= self.total


def phase_status(run: RunDirectory, phases: Iterable[Phase], shard_prompts: int) -> Iterator[PhaseStatus]:
    """Yield the status of every phase of a run."""
    for phase in phases:
        totals = [output.total(run, shard_prompts) for output in phase.outputs]
        known = [total for total in totals if total is not None]
        done = sum(output.finished(run) for output in phase.outputs)
        yield PhaseStatus(phase, done, sum(known) if len(known) == len(totals) else None)


def affected_by(phases: Iterable[Phase], setting: str) -> list[tuple[Phase, Output]]:
    """Return the outputs that depend on a setting, directly or through an input; none if it may change at any time."""
    affected: list[tuple[Phase, Output]] = []
    for phase in phases:
        for output in phase.outputs:
            names = {earlier.name for _, earlier in affected}
            if output.depends_on(setting) or names.intersection(output.inputs):
                affected.append((phase, output))
    return affected


def changed_settings(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of every setting that differs."""
    before, after = flatten(old), flatten(new)
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def settle_recipe(
    run: RunDirectory, recipe: Recipe, phases: Callable[[Recipe], Sequence[Phase]], say: Callable[[str], None]
) -> None:
    """Write the resolved recipe into the run, if it fits what was done there already.

    A model or a file that lies elsewhere, but holds the same, fits; ``say`` is told.

    Raises:
        RunError: finished work depends on a setting that has changed since.
    """
    if run.recipe.exists():
        begun_with = run.read_recipe()
        changed = changed_settings(begun_with, recipe)
        if not changed and fits_seal(read_text(run.recipe)) is not False:
            return
        before, after = phases(begun_with), phases(recipe)
        lost = {key: _finished(run, [*affected_by(before, key), *affected_by(after, key)]) for key in changed}
        for key, (old, new) in changed.items():
            if lost[key] and holds_the_same(run, recipe, key, _units_made_from(run, before, key)):
                lost[key] = []
                say(f"{key}: {new} holds the same as {old} did; the run goes on with it")
        lines = [
            f"  - {key}: {old!r} -> {new!r} would invalidate {', '.join(lost[key])}"
            for key, (old, new) in changed.items()
            if lost[key]
        ]
        if lines:
            raise RunError(
                f"The recipe has changed since the run in {run.root} was begun:\n" + "\n".join(lines) + "\n"
                "Nothing was touched. Use a new run directory, or set these back (the run's recipe is "
                f"{run.recipe}). To throw the old results away and begin again: rm -r {run.root}"
            )
    write_text(run.recipe, seal_text(dump_recipe(recipe)))


def _units_made_from(run: RunDirectory, phases: Iterable[Phase], setting: str) -> list[Unit]:
    """Return the stored units of the tables that depend on a setting directly."""
    outputs = [output for phase in phases for output in phase.outputs if output.depends_on(setting)]
    return [unit for output in outputs for unit in output.units(run)]


def _finished(run: RunDirectory, affected: Iterable[tuple[Phase, Output]]) -> list[str]:
    """Name the finished units of these outputs, as counts."""
    counts: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for phase, output in affected:
        if (output.name, phase.iteration) not in seen:
            seen.add((output.name, phase.iteration))
            label = output.label or phase.title
            counts[label] = counts.get(label, 0) + output.finished(run)
    return [f"{label} ({count} finished)" for label, count in counts.items() if count]
