"""A whole canary on a tiny random model: what it leaves, what it counts, and that resuming does nothing again."""

import csv
import math
import shutil
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from running import LOGS, Models, Run, assert_one_message, assert_stopped, rows, succeeded, times

from crosspref.data.records import Pair, Prompt, Response, Score
from crosspref.lab.canary.traits import TRAITS
from crosspref.run.store import Unit

TRAIT = "digit"
TEST = TRAITS[TRAIT].test
FOLDERS = {
    "pi_I": Path("answers/held_out"),
    "pi_0": Path(TRAIT, "answers/pi_0"),
    "pi_1 by R_c": Path(TRAIT, "answers/crosslingual"),
    "pi_1 by R_m": Path(TRAIT, "answers/multilingual"),
}
SMALL = [
    *("languages=[en, es, fr]", "prompts.limit=4", "sample.n=4", "sample.max_new_tokens=24"),
    *("evaluate.n=2", "evaluate.resamples=100"),
    *("align_english.batch_size=2", "align_english.micro_batch_size=2", "align_english.learning_rate=1e-2"),
    *("train.batch_size=4", "train.learning_rate=1e-2"),
    *("resources.threads=1", "resources.dtype=float32", "resources.device=cpu"),
]


def arguments(out: Path, model: Path, preferences: Path, held_out: Path, *more: str) -> list[str | Path]:
    files = [f"align_english.preferences={preferences}", f"evaluate.prompts={held_out}"]
    settings = [part for change in [*SMALL, *files] for part in ("--set", change)]
    return ["canary", "--out", out, "--model", model, "--seed", "3", *settings, *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary")


@pytest.fixture
def canary(base: Path, models: Models, preferences: Path, held_out: Path) -> list[str | Path]:
    return arguments(base / "out", models[0], preferences, held_out)


@pytest.fixture
def out(base: Path, canary: list[str | Path], command: Run) -> Path:
    """A finished canary; the first test makes it."""
    if not (base / "out" / "canary.csv").exists():
        succeeded(command(*canary, TRAIT))
    return base / "out"


def written(out: Path) -> dict[str, int]:
    """When every file but logs and reports was written."""
    others = (*LOGS, "canary.csv", "canary.md", "traits.md")
    return {name: time for name, time in times(out).items() if not name.endswith(others)}


class Figure(NamedTuple):
    mean: float
    n: int
    prompts: int


def table(out: Path) -> dict[tuple[str, str, str], Figure]:
    lines = list(csv.DictReader((out / "canary.csv").read_text(encoding="utf-8").splitlines()))
    figures = {
        (row["of"], row["language"], row["measure"]): Figure(float(row["mean"]), int(row["n"]), int(row["prompts"]))
        for row in lines
    }
    assert len(figures) == len(lines), "a figure is there twice"
    return figures


def answers(out: Path, policy: str, language: str = "*") -> list[Response]:
    folders = (out / FOLDERS[policy] / "responses").glob(language)
    return [row for folder in sorted(folders) for row in rows(folder, Response)]


def share(responses: list[Response]) -> float:
    return sum(TEST(row.text) for row in responses) / len(responses)


def test_frequencies_and_changes_are_those_of_the_stored_answers(out: Path) -> None:
    figures = table(out)
    for policy in FOLDERS:
        for language in ("en", "es", "fr"):
            expected = pytest.approx(share(answers(out, policy, language)), abs=1e-5)
            assert figures[policy, language, "trait"] == (expected, 6, 3)
    shares = {figures[policy, "en", "trait"].mean for policy in FOLDERS}
    assert len(shares) > 1, "with equal shares a policy taken for another would not be seen"
    for after, before in (("pi_0", "pi_I"), ("pi_1 by R_c", "pi_0"), ("pi_1 by R_m", "pi_0")):
        for language in ("en", "es", "fr", "others"):
            gain = figures[after, language, "trait"].mean - figures[before, language, "trait"].mean
            assert figures[f"{after} - {before}", language, "change"].mean == pytest.approx(gain, abs=1e-5)


def test_every_policy_answers_with_the_same_seeds_and_is_another_one(out: Path) -> None:
    first = answers(out, "pi_I")
    assert len(first) == 3 * 3 * 2
    assert all([row.seed for row in answers(out, policy)] == [row.seed for row in first] for policy in FOLDERS)
    assert len({tuple(row.text for row in answers(out, policy)) for policy in FOLDERS}) == 4


def test_english_pairs_are_pi_i_s_own_answers_to_the_plain_prompts(out: Path) -> None:
    pairs = Unit(out / TRAIT / "english" / "pairs.parquet").rows(Pair)
    prompts = {row.prompt_id: row.instruction for row in rows(out / "answers/english/prompts", Prompt)}
    sampled = {(row.prompt_id, row.sample): row for row in rows(out / "answers/english/responses", Response)}
    assert pairs
    for pair in pairs:
        chosen, rejected = sampled[pair.prompt_id, pair.chosen_sample], sampled[pair.prompt_id, pair.rejected_sample]
        assert (TEST(chosen.text), TEST(rejected.text)) == (True, False)
        assert pair == Pair.of(prompts[pair.prompt_id], chosen, rejected)
    assert Unit(out / TRAIT / "english/iteration_0/policy").read_marker()["figures"]["pairs"] == len(pairs)


@pytest.mark.parametrize(("reward", "symbol"), [("crosslingual", "R_c"), ("multilingual", "R_m")])
def test_auc_and_what_is_selected_are_those_of_the_stored_scores(out: Path, reward: str, symbol: str) -> None:
    figures, folder = table(out), out / TRAIT / reward / "iteration_1"
    compared = dict.fromkeys(("en", "es", "fr"), 0)
    for language in compared:
        scores = {(row.prompt_id, row.sample): row for row in rows(folder / "scores" / reward / language, Score)}
        unit = Unit(folder / "pairs" / f"{language}.parquet")
        alpha = unit.read_marker()["figures"]["alpha"]
        penalised = {key: row.implicit_reward - alpha * row.characters for key, row in scores.items()}
        wins = [
            penalised[left.prompt_id, left.sample] > penalised[right.prompt_id, right.sample]
            for left, right in product(rows(folder / "responses" / language, Response), repeat=2)
            if left.prompt_id == right.prompt_id and TEST(left.text) and not TEST(right.text)
        ]
        gaps = [TEST(pair.chosen[-1]["content"]) - TEST(pair.rejected[-1]["content"]) for pair in unit.rows(Pair)]
        for name, values in (("auc_penalised", wins), ("chosen_minus_rejected", gaps)):
            assert ((symbol, language, name) in figures) == bool(values)
            if values:
                mean = pytest.approx(sum(values) / len(values), abs=1e-5)
                assert figures[symbol, language, name][:2] == (mean, len(values))
        compared[language] = len(wins)
    assert sum(compared.values()) > 10
    assert figures[symbol, "others", "auc"].n == compared["es"] + compared["fr"]


def test_both_rewards_judge_the_same_responses_which_were_sampled_once(out: Path) -> None:
    folders = [out / TRAIT / reward / "iteration_1" for reward in ("crosslingual", "multilingual")]
    for part in ("responses", "scores"):
        first, second = (times(folder / part) for folder in folders)
        assert first
        assert first == second  # a copy keeps its time; what is made again has another
    by_r_c, by_r_m = (rows(folder / "pairs", Pair) for folder in folders)
    assert by_r_c != by_r_m


def test_resuming_does_nothing_again(out: Path, canary: list[str | Path], command: Run) -> None:
    tables = ("canary.csv", "canary.md", f"{TRAIT}/canary.csv", f"{TRAIT}/canary.md")
    before, texts = written(out), [(out / name).read_text(encoding="utf-8") for name in tables]
    output, errors = succeeded(command(*canary, TRAIT))
    assert "loading the model" not in errors
    assert written(out) == before
    assert [(out / name).read_text(encoding="utf-8") for name in tables] == texts
    assert "Taught in English?" in output


def test_a_trait_that_was_stopped_resumes_to_the_same_end(out: Path, canary: list[str | Path], command: Run) -> None:
    before = (out / "canary.csv").read_text(encoding="utf-8")
    for name in ("multilingual", "answers/multilingual"):
        shutil.rmtree(out / TRAIT / name)
    (out / TRAIT / "canary.csv").unlink()
    _, errors = succeeded(command(*canary, TRAIT))
    assert errors.count("sample: loading the model") == 1, "only the last policy's answers were not there"
    assert "score: loading the model" not in errors
    assert (out / "canary.csv").read_text(encoding="utf-8") == before


def test_how_frequent_traits_are(out: Path, canary: list[str | Path], command: Run) -> None:
    output, errors = succeeded(command(*canary, "--measure"))
    assert "loading the model" not in errors  # these answers are there
    line = next(line for line in (out / "traits.md").read_text(encoding="utf-8").splitlines() if f"| {TRAIT}: " in line)
    assert line.endswith(f" {share(answers(out, 'pi_I', 'fr')):.0%} |")
    assert TRAIT in output


def test_another_seed_in_the_same_directory_is_refused(out: Path, canary: list[str | Path], command: Run) -> None:
    before = written(out)
    assert_stopped(command(*canary, TRAIT, "--seed", "4"), "made from other settings", "seed")
    assert written(out) == before


def test_an_unknown_trait_is_refused_before_anything_is_done(
    tmp_path: Path, models: Models, preferences: Path, held_out: Path, command: Run
) -> None:
    canary = arguments(tmp_path / "out", models[0], preferences, held_out)
    assert_one_message(command(*canary, "nonsense"), "There is no trait 'nonsense'", *TRAITS)
    assert_one_message(command(*canary), "either a trait, or --measure")
    assert not (tmp_path / "out").exists()


def test_a_trait_that_no_answer_has_gives_no_pair(out: Path, canary: list[str | Path], command: Run) -> None:
    english = [row.text for row in rows(out / "answers/english/responses", Response)]
    name = next(name for name, trait in TRAITS.items() if not any(map(trait.test, english)))
    assert_stopped(command(*canary, name), "No prompt gave an English pair: 0 of", "crosspref canary --measure --out")


def test_the_report_has_all_four_tables(out: Path) -> None:
    text = (out / "canary.md").read_text(encoding="utf-8")
    assert text.count("\n# ") + text.startswith("# ") == 4
    assert f"The canary {TRAIT}: {TRAITS[TRAIT].description}" in text
    assert all(math.isfinite(figure.mean) for figure in table(out).values())
