"""A whole canary on a tiny random model: what it leaves, what it counts, and that going on does nothing again."""

import csv
import math
import shutil
from itertools import product
from pathlib import Path

import pytest
from running import Run, assert_one_message, rows, times

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
def asked(base: Path, models: tuple[Path, Path], preferences: Path, held_out: Path) -> list[str | Path]:
    return arguments(base / "out", models[0], preferences, held_out)


@pytest.fixture
def out(base: Path, asked: list[str | Path], command: Run) -> Path:
    """A finished canary; the first test makes it."""
    if not (base / "out" / "canary.csv").exists():
        code, _, errors = command(*asked, TRAIT)
        assert code == 0, errors
    return base / "out"


def made(out: Path) -> dict[str, int]:
    """When every file but logs and reports was written."""
    written = ("phases.jsonl", ".lock", "canary.csv", "canary.md", "traits.md")
    return {name: time for name, time in times(out).items() if not name.endswith(written)}


def last_error(errors: str) -> str:
    """The error without the progress before it."""
    return errors[errors.index("crosspref: ") :]


def table(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    lines = list(csv.DictReader((out / "canary.csv").read_text(encoding="utf-8").splitlines()))
    found = {(row["of"], row["language"], row["measure"]): row for row in lines}
    assert len(found) == len(lines), "a figure is there twice"
    return found


def answers(out: Path, policy: str, language: str = "*") -> list[Response]:
    folders = (out / FOLDERS[policy] / "responses").glob(language)
    return [row for folder in sorted(folders) for row in rows(folder, Response)]


def test_frequencies_and_changes_are_those_of_the_stored_answers(out: Path) -> None:
    found = table(out)
    for policy in FOLDERS:
        for language in ("en", "es", "fr"):
            own = answers(out, policy, language)
            line = found[policy, language, "trait"]
            assert float(line["mean"]) == pytest.approx(sum(TEST(row.text) for row in own) / len(own), abs=1e-5)
            assert (line["n"], line["prompts"]) == ("6", "3")
    shares = {float(found[policy, "en", "trait"]["mean"]) for policy in FOLDERS}
    assert len(shares) > 1, "with equal shares a policy taken for another would not be seen"
    for after, before in (("pi_0", "pi_I"), ("pi_1 by R_c", "pi_0"), ("pi_1 by R_m", "pi_0")):
        for language in ("en", "es", "fr", "others"):
            gain = float(found[f"{after} - {before}", language, "change"]["mean"])
            both = [float(found[policy, language, "trait"]["mean"]) for policy in (after, before)]
            assert gain == pytest.approx(both[0] - both[1], abs=1e-5)


def test_every_policy_answers_with_the_same_seeds_and_is_another_one(out: Path) -> None:
    first = answers(out, "pi_I")
    assert len(first) == 3 * 3 * 2
    assert all([row.seed for row in answers(out, policy)] == [row.seed for row in first] for policy in FOLDERS)
    assert len({tuple(row.text for row in answers(out, policy)) for policy in FOLDERS}) == 4


def test_english_pairs_are_pi_i_s_own_answers_to_the_plain_prompts(out: Path) -> None:
    pairs = Unit(out / TRAIT / "english" / "pairs.parquet").rows(Pair)
    asked = {row.prompt_id: row.instruction for row in rows(out / "answers/english/prompts", Prompt)}
    own = {(row.prompt_id, row.sample): row for row in rows(out / "answers/english/responses", Response)}
    assert pairs
    for pair in pairs:
        assert pair.prompt == [{"role": "user", "content": asked[pair.prompt_id]}]
        chosen, rejected = own[pair.prompt_id, pair.chosen_sample], own[pair.prompt_id, pair.rejected_sample]
        assert (TEST(chosen.text), TEST(rejected.text)) == (True, False)
        assert (pair.chosen_token_ids, pair.rejected_token_ids) == (chosen.token_ids, rejected.token_ids)
    assert Unit(out / TRAIT / "english/iteration_0/policy").read_marker()["figures"]["pairs"] == len(pairs)


@pytest.mark.parametrize(("reward", "symbol"), [("crosslingual", "R_c"), ("multilingual", "R_m")])
def test_auc_and_what_is_selected_are_those_of_the_stored_scores(out: Path, reward: str, symbol: str) -> None:
    found, folder = table(out), out / TRAIT / reward / "iteration_1"
    compared = 0
    for language in ("en", "es", "fr"):
        marks = {(row.prompt_id, row.sample): row for row in rows(folder / "scores" / reward / language, Score)}
        alpha = Unit(folder / "pairs" / f"{language}.parquet").read_marker()["figures"]["alpha"]
        responses = rows(folder / "responses" / language, Response)
        outcomes: dict[str, list[float]] = {"auc": [], "auc_per_token": [], "auc_penalised": []}
        for left, right in product(responses, responses):
            if left.prompt_id == right.prompt_id and TEST(left.text) and not TEST(right.text):
                one, other = marks[left.prompt_id, left.sample], marks[right.prompt_id, right.sample]
                outcomes["auc"].append(float(one.implicit_reward > other.implicit_reward))
                per_token = one.implicit_reward / one.tokens > other.implicit_reward / other.tokens
                outcomes["auc_per_token"].append(float(per_token))
                penalised = [row.implicit_reward - alpha * row.characters for row in (one, other)]
                outcomes["auc_penalised"].append(float(penalised[0] > penalised[1]))
        for name, own in outcomes.items():
            assert ((symbol, language, name) in found) == bool(own)
            if own:
                assert float(found[symbol, language, name]["mean"]) == pytest.approx(sum(own) / len(own), abs=1e-5)
                assert found[symbol, language, name]["n"] == str(len(own))
        compared += len(outcomes["auc"])
        pairs = Unit(folder / "pairs" / f"{language}.parquet").rows(Pair)
        gaps = [TEST(pair.chosen[-1]["content"]) - TEST(pair.rejected[-1]["content"]) for pair in pairs]
        line = found.get((symbol, language, "chosen_minus_rejected"))
        assert (float(line["mean"]) if line else None) == (pytest.approx(sum(gaps) / len(gaps)) if gaps else None)
    assert compared > 10
    assert found[symbol, "others", "auc"]["n"] == str(compared - int(found.get((symbol, "en", "auc"), {"n": 0})["n"]))


def test_rewards_are_compared_over_the_same_comparisons(out: Path) -> None:
    found = table(out)
    for language in ("es", "fr", "others"):
        both = [float(found[symbol, language, "auc"]["mean"]) for symbol in ("R_c", "R_m")]
        line = found["R_c - R_m", language, "auc"]
        assert float(line["mean"]) == pytest.approx(both[0] - both[1], abs=1e-5)
        assert line["n"] == found["R_c", language, "auc"]["n"]


def test_both_rewards_judge_the_same_responses_which_were_sampled_once(out: Path) -> None:
    for part in ("responses", "scores"):
        folders = [out / TRAIT / reward / "iteration_1" / part for reward in ("crosslingual", "multilingual")]
        first, second = (times(folder) for folder in folders)
        assert first
        assert first == second  # a copy keeps its time; what is made again has another
    pairs = {
        reward: rows(out / TRAIT / reward / "iteration_1/pairs", Pair) for reward in ("crosslingual", "multilingual")
    }
    assert pairs["crosslingual"] != pairs["multilingual"]


def test_going_on_does_nothing_again(out: Path, asked: list[str | Path], command: Run) -> None:
    tables = ("canary.csv", "canary.md", f"{TRAIT}/canary.csv", f"{TRAIT}/canary.md")
    before = made(out)
    texts = [(out / name).read_text(encoding="utf-8") for name in tables]
    code, output, errors = command(*asked, TRAIT)
    assert code == 0, errors
    assert "loading the model" not in errors
    assert made(out) == before
    assert [(out / name).read_text(encoding="utf-8") for name in tables] == texts
    assert "Taught in English?" in output


def test_a_trait_that_was_stopped_goes_on_to_the_same_end(out: Path, asked: list[str | Path], command: Run) -> None:
    before = (out / "canary.csv").read_text(encoding="utf-8")
    for name in ("multilingual", "answers/multilingual"):
        shutil.rmtree(out / TRAIT / name)
    (out / TRAIT / "canary.csv").unlink()
    code, _, errors = command(*asked, TRAIT)
    assert code == 0, errors
    assert errors.count("sample: loading the model") == 1, "only the last policy's answers were not there"
    assert "score: loading the model" not in errors
    assert (out / "canary.csv").read_text(encoding="utf-8") == before


def test_how_frequent_traits_are(out: Path, asked: list[str | Path], command: Run) -> None:
    code, output, errors = command(*asked, "--measure")
    assert code == 0, errors
    assert "loading the model" not in errors  # these answers are there
    own = answers(out, "pi_I", "fr")
    share = sum(TEST(row.text) for row in own) / len(own)
    line = next(line for line in (out / "traits.md").read_text(encoding="utf-8").splitlines() if f"| {TRAIT}: " in line)
    assert line.endswith(f" {share:.0%} |")
    assert TRAIT in output


def test_another_seed_in_the_same_directory_is_refused(out: Path, asked: list[str | Path], command: Run) -> None:
    before = made(out)
    code, _, errors = command(*asked, TRAIT, "--seed", "4")
    assert_one_message(code, last_error(errors), "made from other settings", "seed")
    assert made(out) == before


def test_an_unknown_trait_is_refused_before_anything_is_done(
    tmp_path: Path, models: tuple[Path, Path], preferences: Path, held_out: Path, command: Run
) -> None:
    asked = arguments(tmp_path / "out", models[0], preferences, held_out)
    code, _, errors = command(*asked, "nonsense")
    assert_one_message(code, errors, "There is no trait 'nonsense'", *TRAITS)
    code, _, errors = command(*asked)
    assert_one_message(code, errors, "either a trait, or --measure")
    assert not (tmp_path / "out").exists()


def test_a_trait_that_no_answer_has_gives_no_pair(out: Path, asked: list[str | Path], command: Run) -> None:
    name = next(name for name, trait in TRAITS.items() if not any(trait.test(text) for text in english(out)))
    code, _, errors = command(*asked, name)
    assert_one_message(
        code, last_error(errors), "No prompt gave an English pair: 0 of", "crosspref canary --measure --out"
    )


def english(out: Path) -> list[str]:
    return [row.text for row in rows(out / "answers/english/responses", Response)]


def test_the_report_has_all_four_tables(out: Path) -> None:
    text = (out / "canary.md").read_text(encoding="utf-8")
    assert text.count("\n# ") + text.startswith("# ") == 4
    assert f"The canary {TRAIT}: {TRAITS[TRAIT].description}" in text
    assert all(math.isfinite(float(row["mean"])) for row in table(out).values())
