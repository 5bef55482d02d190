"""Whether everything in a run is as it was written: done-markers, files, tables, and the rows that belong together.

Markers are compared with their seals, and files with the digests in the markers; of a judge's verdicts each line is
read. Then, phase by phase, each unit's marker and rows are compared with what the stage expects of them. A unit without
a marker is unfinished, not damaged.

A run may come from anybody: nothing is written, no link is followed out of it, no model is looked at, and whatever a
file holds can only be its damage.
"""

import contextlib
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from crosspref.data.records import Prompt, from_table, schema_of
from crosspref.data.rows import read_parquet
from crosspref.errors import CrossprefError, DataError, RunError
from crosspref.models.locate import ModelFiles
from crosspref.paths import read_text
from crosspref.protocols import Engines
from crosspref.recipe.schema import Recipe
from crosspref.run import kept
from crosspref.run.job import Job
from crosspref.run.layout import RunDirectory, TableFolder
from crosspref.run.owned import below, leads_out
from crosspref.run.phases import GIVEN, Expected, Output, Phase
from crosspref.run.progress import Reporter
from crosspref.run.store import DONE, PART, Unit, digest_of, file_record, fits_seal, is_whole
from crosspref.run.verdicts import VERDICTS, Verdict, is_logprob, read_verdicts

UNSEALED = ("digest", "parts", "rows", "figures")
"""What a marker held before there were seals."""

MOST_LINES = 20
"""How many damaged lines of a file are named."""

_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Damage:
    """A file or folder that is not as it was written.

    Args:
        path: where it lies.
        problem: what is wrong with it.
        phase: the phase that makes it again; None if no phase does.
        remove: what must be removed first, so that it is made again.
        lines: the numbers of its lines that must be deleted first, if its other lines are whole.
    """

    path: Path
    problem: str
    phase: Phase | None = None
    remove: tuple[Path, ...] = ()
    lines: tuple[int, ...] = ()


@dataclass
class Findings:
    """What verification found, and what it read.

    ``units`` counts finished units. ``files`` and ``size`` (bytes) count what was read, and ``unrecorded`` those files
    of which no digest was recorded. ``others`` are the files that are no finished results, such as logs; they are not
    read. If there was damage in the way, the rows of the phase ``uncompared`` and of later ones were not compared.
    """

    damages: list[Damage] = field(default_factory=list)
    units: int = 0
    files: int = 0
    size: int = 0
    unrecorded: int = 0
    others: list[Path] = field(default_factory=list)
    uncompared: Phase | None = None


def verify_run(
    root: str | Path, phases: Callable[[Recipe], Sequence[Phase]], engines: Callable[[Recipe], Engines]
) -> Findings:
    """Read everything of a run and return what is damaged.

    Args:
        root: the run directory.
        phases: returns the phases of a recipe.
        engines: returns the engines of a recipe, of which only what identifies languages is used.

    Raises:
        RunError: there is no run in the directory.
    """
    run, findings = RunDirectory(root), Findings()
    files = dict(_walk(run.root, findings))
    if run.recipe not in files:
        raise RunError(f"{run.root} holds no run: there is no file {run.recipe.name} in it.")
    recipe = _read_recipe(run, files[run.recipe], findings)
    steps = [] if recipe is None else list(phases(recipe))
    verification = _Verification(run, files, findings, steps)
    is_closed = not findings.damages
    verification.check_files()
    if recipe is not None and is_closed:
        verification.compare_rows(_Described(recipe, run, engines(recipe), Reporter()))
    elif steps:
        findings.uncompared = steps[0]
    return findings


def _walk(root: Path, findings: Findings) -> Iterator[tuple[Path, int]]:
    """Yield the files below a folder with their sizes. Links out of it, pipes and the like are damage."""

    def fail(error: OSError) -> None:
        findings.damages.append(Damage(Path(error.filename), f"it cannot be read: {error.strerror}"))

    for entry in below(root, fail):
        path = Path(entry.path)
        if entry.is_symlink() and leads_out(entry.path, root):
            findings.damages.append(Damage(path, "it is a link out of the run, and is not followed"))
            continue
        with contextlib.suppress(OSError):  # another process has removed it, or a link leads nowhere
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                findings.damages.append(Damage(path, "it is neither a file nor a folder"))


def _read_recipe(run: RunDirectory, size: int, findings: Findings) -> Recipe | None:
    findings.files += 1
    findings.size += size
    try:
        recipe, fits = run.read_recipe(), fits_seal(read_text(run.recipe))
    except Exception as error:  # noqa: BLE001 - whatever the file holds is its damage
        findings.damages.append(Damage(run.recipe, f"it cannot be read: {_said(error)}"))
        return None
    if fits is False:
        findings.damages.append(Damage(run.recipe, "it does not fit its seal: it has changed since it was written"))
    findings.unrecorded += fits is None
    return recipe


def _said(error: Exception) -> str:
    """Return what an error says, on one line, and if it is nobody's on purpose, its type."""
    text = " ".join(str(error).split())[:_SHOWN]
    return text if isinstance(error, CrossprefError | OSError) else f"{type(error).__name__}: {text}"


class _Described(Job):
    """A job that knows its models by their identities alone, and those that no phase trained only by their names."""

    def policy(self, iteration: int) -> ModelFiles:
        if iteration == 0 and self.recipe.models.policy is not None:
            return self.model(self.recipe.models.policy)
        unit = self.run.iteration(iteration).policy
        return ModelFiles(f"pi_{iteration}", unit.path, None, unit.digest)

    def model(self, name: str | None) -> ModelFiles:
        return ModelFiles(str(name), Path(), None, f"{GIVEN}{name}")


class _Verification:
    """The verification of one run, of which ``files`` are all files with their sizes."""

    def __init__(
        self, run: RunDirectory, files: Mapping[Path, int], findings: Findings, phases: Sequence[Phase]
    ) -> None:
        self.run, self.files, self.findings, self.phases = run, files, findings, phases
        self.inside: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in files:
            for folder in path.parents:
                self.inside[folder].append(path)
        self.places = {_folder(output, run): (phase, output) for phase in phases for output in phase.outputs}
        self.damaged: list[Phase] = []
        self.given: dict[str, Any] = {}
        self.records: dict[Path, dict[str, Any]] = {}

    def check_files(self) -> None:
        """Compare every marker with its seal and every file of a unit with its digest, and read every table."""
        checked = {self.run.recipe}
        for path in self.files:
            if any(part.startswith(".") for part in path.relative_to(self.run.root).parts):
                continue  # half-written, by a process that works or was killed
            if path.name.endswith(DONE):
                checked |= {path, *self._check_unit(self._unit(path))}
            elif path.name.endswith(PART):
                checked.add(path)
                self._check_part(path)
            elif path.name == VERDICTS:
                checked.add(path)
                self._check_verdicts(path)
        self.findings.others = [path for path in self.files if path not in checked]

    def compare_rows(self, job: Job) -> None:
        """Compare what finished units were made from, and their rows, with what their phases expect."""
        for phase in self.phases:
            if phase in self.damaged:
                self.findings.uncompared = phase
                return
            if not any(output.finished(self.run) for output in phase.outputs):
                continue
            try:
                for expected in phase.expect(job, phase.iteration):
                    if expected.unit.marker in self.files and not self._compare(expected, phase):
                        self.findings.uncompared = phase
                        return
            except Exception as error:  # noqa: BLE001 - an input is not finished, or a row makes no sense
                self._damage(_folder(phase.outputs[0], self.run), f"it does not fit its inputs: {_said(error)}", phase)

    def _phase(self, path: Path) -> tuple[Phase, Output] | tuple[None, None]:
        """Return which phase makes a file, and as which output."""
        return next((self.places[part] for part in [path, *path.parents] if part in self.places), (None, None))

    def _unit(self, marker: Path) -> Unit:
        """Return the unit of a marker, with the files beside it."""
        path = marker.with_name(marker.name.removesuffix(DONE))
        _, output = self._phase(path)
        table = output.place(self.run) if output else None
        if isinstance(table, TableFolder) and path.suffix == ".parquet":
            return table.unit(path.stem)
        return Unit(path)

    def _damage(self, path: Path, problem: str, phase: Phase | None, *remove: Path) -> None:
        self.findings.damages.append(Damage(path, problem, phase, remove))
        if phase is not None:
            self.damaged.append(phase)

    def _count(self, path: Path) -> None:
        self.findings.files += 1
        self.findings.size += self.files[path]

    def _check_part(self, path: Path) -> None:
        """Check what is kept of an unfinished unit. A damaged one is not used; so it is in no phase's way."""
        self._count(path)
        try:
            content = kept.read_part(path)
            fits = is_whole(content, kept.UNSEALED)
        except FileNotFoundError:  # its unit has been finished meanwhile
            return
        except Exception:  # noqa: BLE001 - whatever the file holds is its damage
            fits = False
        if not fits:
            problem = "what was kept of an unfinished unit is damaged, so that it will not be used"
            self.findings.damages.append(Damage(path, problem, self._phase(path)[0], (path,)))
        elif "seal" not in content:
            self.findings.unrecorded += 1

    def _check_verdicts(self, path: Path) -> None:
        """Check a judge's answers, line by line: no digest is recorded of a file that grows."""
        self._count(path)
        try:
            is_whole_by_line = {number: _is_whole_verdict(verdict) for number, verdict in read_verdicts(path)}
        except OSError as error:
            self._damage(path, f"it cannot be read: {_said(error)}", None, path)
            return
        lines = tuple(number for number, whole in is_whole_by_line.items() if not whole)
        if lines:
            more = f", and {len(lines) - MOST_LINES:,} more" if len(lines) > MOST_LINES else ""
            problem = f"no verdict stands in line {', '.join(map(str, lines[:MOST_LINES]))}{more}"
            self.findings.damages.append(Damage(path, problem, lines=lines))

    def _check_unit(self, unit: Unit) -> list[Path]:
        """Check the marker and the files of a finished unit, and return its files."""
        phase, _ = self._phase(unit.path)
        own = [unit.path] if unit.path in self.files else self.inside[unit.path]
        labels = {unit.label(path): path for path in [*own, *unit.beside] if path in self.files}
        remove = [path for path in (unit.path, unit.marker) if path in self.files or path in self.inside]
        self.findings.units += 1
        try:
            marker = self._marker(unit)
        except Exception as error:  # noqa: BLE001 - whatever the file holds is its damage
            self._damage(unit.marker, f"it is damaged: {_said(error)}", phase, *remove)
            return list(labels.values())
        if not own:
            self._damage(unit.path, "it is gone, though its marker says that it is finished", phase, *remove)
        recorded = marker.get("files", dict.fromkeys(labels))
        named = {label: _at(unit.path.parent, label) for label in recorded}
        labels |= {label: path for label, path in named.items() if path in self.files}
        for label in recorded if own else ():
            if label not in labels:
                self._damage(unit.path, f"{label}, which belongs to it, is gone", phase, *remove)
        for label, path in labels.items():
            problem = self._file_problem(path, recorded.get(label, {}))
            if problem:
                self._damage(path, problem, phase, *remove)
        return list(labels.values())

    def _marker(self, unit: Unit) -> dict[str, Any]:
        """Return a marker's content, or raise an error that says what is wrong with it."""
        self._count(unit.marker)
        try:
            marker = unit.read_marker()
        except RunError as error:
            raise DataError("it cannot be read as a marker") from error
        if not is_whole(marker, UNSEALED):
            raise DataError("it does not fit its seal")
        if digest_of(marker["parts"]) != marker["digest"]:
            raise DataError("its digest is not that of its parts")
        if not isinstance(marker.get("files", {}), dict):
            raise DataError("it names no files")
        return marker

    def _file_problem(self, path: Path, record: Any) -> str:
        """Return what is wrong with a file of a finished unit; ``record`` is its record, or None if none was made."""
        try:
            if record is None:
                self._count(path)
                self.findings.unrecorded += 1
            elif not record:
                return "it was not there when the unit was finished"
            elif not self._fits(path, record):  # then what it holds may be anything, and a library may crash over it
                return "its size or its SHA-256 is not that of what was written"
            if path.suffix == ".parquet":
                read_parquet(path, path.name)[0].validate(full=True)
        except Exception as error:  # noqa: BLE001 - whatever the file holds is its damage
            return f"it cannot be read: {_said(error)}"
        return ""

    def _fits(self, path: Path, record: Any) -> bool:
        """Tell whether a file is what its record says; one of another size is not read, for it may be a terabyte."""
        if not isinstance(record, dict) or path.stat().st_size != record.get("bytes"):
            return False
        if path not in self.records:
            self._count(path)
            self.records[path] = file_record(path)
        return bool(record == self.records[path])

    def _compare(self, expected: Expected, phase: Phase) -> bool:
        """Compare a unit with what its phase expects; return whether the recipe is that of the unit."""
        unit, kind = expected.unit, expected.kind
        parts, wanted = unit.read_marker()["parts"], expected.fingerprint.parts
        names = dict.fromkeys([*wanted, *parts])
        differing = [name for name in names if not self._same(wanted.get(name), parts.get(name))]
        settings = [name for name in differing if name not in expected.fingerprint.inputs]
        if settings:  # one file is more likely to be wrong than all markers
            where = unit.marker.relative_to(self.run.root)
            self._damage(self.run.recipe, f"it has another {', '.join(settings)} than {where}", phase)
            return False
        if differing:
            told = f"it was made with another {', '.join(differing)} than lies in the run"
            self._damage(unit.path, told, phase, unit.path, unit.marker)
        if differing or kind is None:
            return True
        table, _ = read_parquet(unit.path, unit.path.name)
        problem = _table_problem(table, kind)
        if not problem and len(table) != unit.read_marker()["rows"]:
            problem = f"it has {len(table)} rows, but its marker says {unit.read_marker()['rows']}"
        problem = problem or next(iter(expected.faults(from_table(table, kind))), "")
        if problem:
            self._damage(unit.path, problem, phase, unit.path, unit.marker)
        return True

    def _same(self, wanted: Any, found: Any) -> bool:
        if isinstance(wanted, str) and wanted.startswith(GIVEN):
            return isinstance(found, str) and self.given.setdefault(wanted, found) == found
        return digest_of(wanted) == digest_of(found)


def _is_whole_verdict(verdict: Verdict | None) -> bool:
    """Tell whether a line holds a verdict with log-probabilities that can be: impossible ones are never stored."""
    return verdict is not None and all(map(is_logprob, (verdict.logprobs or {}).values()))


def _folder(output: Output, run: RunDirectory) -> Path:
    """Return the folder that an output fills, or the unit that it is."""
    place = output.place(run)
    return place.path if isinstance(place, Unit) else place.folder


def _at(folder: Path, label: str) -> Path:
    """Return the path that a marker in a folder calls by a label; it need not exist, nor lie in the run."""
    for part in Path(label).parts:
        folder = folder.parent if part == ".." else folder / part
    return folder


def _table_problem(table: pa.Table, kind: type) -> str:
    """Return what keeps a table from being one of a kind of rows."""
    schema = schema_of(kind)
    for column in fields(kind):
        name, wanted = column.name, schema.field(column.name).type
        if name not in table.column_names:
            if column.default is MISSING:
                return f"it has no column {name!r}"
            continue
        values = table.column(name)
        is_conversation = (kind, name) == (Prompt, "instruction") and pa.types.is_list(values.type)
        if values.type != wanted and not is_conversation:
            return f"its column {name!r} is of type {values.type}, and must be {wanted}"
        may_be_null = type(None) in get_args(column.type)
        if (values.null_count and not may_be_null) or _inner_nulls(values):
            return f"its column {name!r} has empty values"
    return ""


def _inner_nulls(column: pa.ChunkedArray) -> int:
    """Count the nulls inside lists and structs."""
    if pa.types.is_list(column.type):
        inner = pc.list_flatten(column)
        return int(inner.null_count) + _inner_nulls(inner)
    if pa.types.is_struct(column.type):
        return sum(child.null_count + _inner_nulls(child) for child in column.flatten())
    return 0
