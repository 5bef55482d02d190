"""`crosspref verify` on a finished run: whatever is damaged is found, whether or not digests were recorded."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Run, assert_same_run, assert_stopped, files, times

from crosspref import api
from crosspref.data.records import Measure, Pair, Prompt, Response, Score
from crosspref.maths.reward import implicit_reward
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit
from crosspref.run.verify import Findings

NO_RESULTS = {
    ".lock": "it is empty, and only locked",
    "phases.jsonl": "a log of what phases took",
    "report.md": "made from the measures each time it is shown",
    "run.log": "a log of what was said",
}
"""Files of a run that no result depends on, and why."""


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(done, tmp_path / "run")


def damaged(run: Path) -> list[str]:
    return [damage.path.relative_to(run).as_posix() for damage in api.verify(run).damages]


def phases_of(findings: Findings) -> list[tuple[str, int] | None]:
    return [(found.phase.name, found.phase.iteration) if found.phase else None for found in findings.damages]


def without_digests(run: Path) -> Path:
    """Make a run as versions wrote it that recorded no digests."""
    for path in run.rglob("*.done.json"):
        marker = json.loads(path.read_text(encoding="utf-8"))
        old = {name: marker[name] for name in ("digest", "parts", "rows", "figures")}
        path.write_text(json.dumps(old, indent=1, ensure_ascii=False), encoding="utf-8")
    recipe = run / "recipe.yaml"
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    recipe.write_text("".join(lines[:-1]), encoding="utf-8")
    return run


def rewrite(unit: Unit, rows: Sequence[Any], kind: type) -> None:
    """Store other rows as if they were the right ones: digests, seal and the number of rows fit them."""
    marker = unit.read_marker()
    unit.write_rows(list(rows), kind)
    parts = {name: value for name, value in marker["parts"].items() if name != "schema"}
    unit.finish(Fingerprint(parts), len(rows), **marker["figures"])


def test_a_finished_run_is_whole_and_stays_untouched(command: Run, run: Path) -> None:
    before = {name: (path.read_bytes(), times(run)[name]) for name, path in files(run).items()}
    findings = api.verify(run)
    assert (findings.damages, findings.unrecorded, findings.uncompared) == ([], 0, None)
    assert {path.name for path in findings.others} == set(NO_RESULTS)
    assert findings.units == len(list(run.rglob("*.done.json")))
    read = [path for path in run.rglob("*") if path.is_file() and path not in findings.others]
    assert (findings.files, findings.size) == (len(read), sum(path.stat().st_size for path in read))
    code, output, errors = command("verify", run)
    assert (code, errors) == (0, "")
    assert f"{findings.files} files" in output
    assert {name: (path.read_bytes(), times(run)[name]) for name, path in files(run).items()} == before


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file, or cut it off, and say what was done."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.25:
        path.write_bytes(content[:place])
        return f"cut to {place} bytes"
    bit = chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def says_the_same(path: Path, before: bytes) -> bool:
    """Tell whether a marker has the same content in other letters, such as 1E-05 for 1e-05."""
    try:
        return path.name.endswith(".json") and json.loads(path.read_bytes()) == json.loads(before)
    except ValueError:
        return False


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 600, marks=pytest.mark.nightly)])
def test_random_damages_are_found(run: Path, seed: int, count: int) -> None:
    chance, names = random.Random(seed), sorted(name for name in files(run) if name not in NO_RESULTS)
    missed = []
    for number in range(count):
        name = names[number % len(names)] if number < len(names) else chance.choice(names)
        path = run / name
        before = path.read_bytes()
        if not before:
            continue
        told = damage(path, chance)
        if name not in damaged(run) and path.parent.relative_to(run).as_posix() not in damaged(run):
            missed += [] if says_the_same(path, before) else [f"{name}: {told}"]
        path.write_bytes(before)
    assert missed == []
    assert damaged(run) == []


def test_a_flipped_bit_in_a_policy_is_found_and_mended(command: Run, recipe_file: Path, done: Path, run: Path) -> None:
    weights = run / "iteration_1" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    findings = api.verify(run)
    assert [found.path for found in findings.damages] == [weights]
    assert phases_of(findings) == [("train", 1)]
    answer = command("verify", run)
    assert_stopped(answer, str(run))
    policy = run / "iteration_1" / "policy"
    assert f"rm -r {policy} {policy}.done.json" in answer[1]
    shutil.rmtree(policy)
    policy.with_name("policy.done.json").unlink()
    assert command("run", recipe_file, "--out", run)[0] == 0
    assert_same_run(run, done)
    assert api.verify(run).damages == []


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_policy_lacks_a_file_or_has_another(run: Path, name: str) -> None:
    policy = run / "iteration_1" / "policy"
    (policy / name).rename(policy / "another.json")
    assert sorted(damaged(run)) == ["iteration_1/policy", "iteration_1/policy/another.json"]


def test_a_run_without_digests_is_whole(run: Path) -> None:
    findings = api.verify(without_digests(run))
    assert findings.damages == []
    of_markers = len(list(run.rglob("*.done.json")))
    assert findings.unrecorded == findings.files - of_markers > 0


TABLES: dict[str, tuple[Callable[[RunDirectory], Unit], type]] = {
    "prompts": (lambda run: run.prompts.unit("es"), Prompt),
    "responses": (lambda run: run.iteration(1).responses.unit("es", 0), Response),
    "scores": (lambda run: run.iteration(1).scores("crosslingual").unit("es", 0), Score),
    "pairs": (lambda run: run.iteration(1).pairs.unit("es"), Pair),
    "held-out responses": (lambda run: run.iteration(1).evaluation.responses.unit("en", 0), Response),
    "measures": (lambda run: run.iteration(1).evaluation.measures, Measure),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_is_missing_is_found_though_all_digests_fit(run: Path, table: str) -> None:
    unit_in, kind = TABLES[table]
    unit = unit_in(RunDirectory(run))
    rewrite(unit, unit.rows(kind)[1:], kind)
    assert unit.path.relative_to(run).as_posix() in damaged(run)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("prompts", {"instruction": "¿Otra?"}),
        ("responses", {"prompt_id": "nobody's"}),
        ("responses", {"sample": 7}),
        ("scores", {"implicit_reward": 1.0}),
        ("scores", {"characters": 1}),
        ("pairs", {"chosen_reward": 9.0}),
        ("held-out responses", {"seed": 1}),
        ("measures", {"mean": 0.75}),
    ],
)
def test_a_row_that_does_not_fit_is_found_though_all_digests_do(run: Path, table: str, values: dict[str, Any]) -> None:
    unit_in, kind = TABLES[table]
    unit = unit_in(RunDirectory(run))
    first, *others = unit.rows(kind)
    rewrite(unit, [replace(first, **values), *others], kind)
    assert unit.path.relative_to(run).as_posix() in damaged(run)


def test_pairs_must_follow_from_the_scores(run: Path) -> None:
    """The scores are whole in themselves, but the pairs were made of others."""
    unit = RunDirectory(run).iteration(1).scores("crosslingual").unit("es", 0)
    first, *others = unit.rows(Score)
    logprob = first.policy_logprob + 100
    reward = implicit_reward("dpo", logprob, first.reference_logprob, first.tokens, 0.1)
    rewrite(unit, [replace(first, policy_logprob=logprob, implicit_reward=reward), *others], Score)
    findings = api.verify(run)
    assert phases_of(findings) == [("select", 1)]
    assert findings.damages[0].path == run / "iteration_1" / "pairs" / "es.parquet"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("folder", ["iteration_1/responses/{}/00000000", "iteration_1/pairs/{}", "prompts/{}"])
def test_tables_that_changed_places_are_found(run: Path, folder: str, old: bool) -> None:
    if old:
        without_digests(run)
    english, spanish = (run / f"{folder.format(language)}.parquet" for language in ("en", "es"))
    english.rename(run / "kept")
    spanish.rename(english)
    (run / "kept").rename(spanish)
    assert set(damaged(run)) & {path.relative_to(run).as_posix() for path in (english, spanish)}


def test_a_policy_of_other_pairs_is_found(run: Path) -> None:
    """Its own marker is whole, but it is not that of the pairs that lie there."""
    unit = RunDirectory(run).iteration(1).policy
    marker = unit.read_marker()
    parts = {name: value for name, value in marker["parts"].items() if name != "schema"}
    unit.finish(Fingerprint({**parts, "pairs": "0" * 64}), marker["rows"], **marker["figures"])
    assert "iteration_1/policy" in damaged(run)


def test_of_a_recipe_that_was_changed_nothing_else_is_said(command: Run, run: Path) -> None:
    """Nobody may be told to remove what is whole."""
    recipe = without_digests(run) / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("seed: 42", "seed: 43"), encoding="utf-8")
    assert damaged(run) == ["recipe.yaml"]
    assert "rm -r" not in command("verify", run)[1]


def test_an_unfinished_run_is_not_damaged(run: Path) -> None:
    for name in ("iteration_1/policy", "iteration_1/evaluation", "iteration_1/pairs"):
        shutil.rmtree(run / name)
    (run / "iteration_1" / "policy.done.json").unlink()
    marker = sorted((run / "iteration_1" / "scores").rglob("*.done.json"))[0]
    marker.unlink()
    findings = api.verify(run)
    assert findings.damages == []
    assert marker.with_name(marker.name.removesuffix(".done.json")) in findings.others


def test_scores_without_their_responses_are_damage(run: Path) -> None:
    unit = RunDirectory(run).iteration(1).responses.unit("es", 0)
    unit.path.unlink()
    unit.marker.unlink()
    assert ("score", 1) in phases_of(api.verify(run))
