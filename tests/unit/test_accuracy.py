"""Reward accuracy: which pairs are drawn, what both orders, reward models and people say of them, and the rates."""

import csv
import io
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge, make_judge
from made_runs import begin, store
from rich.console import Console

from crosspref.data.records import Pair
from crosspref.data.rows import read_file
from crosspref.engines import EngineSettings
from crosspref.errors import DataError
from crosspref.maths.statistics import newcombe_interval, nominal_alpha, wilson_interval
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.verdicts import messages_digest
from crosspref.suites.judge.questions import UnreadableError
from crosspref.suites.reward_accuracy.evaluate import sheet_report
from crosspref.suites.reward_accuracy.judges import (
    TEMPLATE,
    Judged,
    Outcome,
    Votes,
    ask_about,
    ask_judge,
    read_choice,
    write_sheet,
)
from crosspref.suites.reward_accuracy.pairs import Comparison, Sample, Sampled, compare, draw_samples, stratified_sample
from crosspref.suites.reward_accuracy.rates import ALL, accuracies_of, changes_of, outcomes_of
from crosspref.suites.settings import EvaluationSettings, RewardAccuracySettings
from crosspref.suites.work import Candidate, Evaluation, Target


def pair(number: int, gap: float | None = 0.0, language: str = "es") -> Sampled:
    comparison, is_a = compare(language, f"prompt {number}", f"chosen {number}", f"rejected {number}")
    return Sampled(comparison, str(number), is_a, gap)


# The sample


def test_one_pair_of_each_stratum_whatever_the_order() -> None:
    pairs = [pair(number, gap=float(number)) for number in range(100)]
    found = stratified_sample(pairs, 10, seed=1)
    assert [int((row.gap or 0) // 10) for row in found] == list(range(10))
    assert len({row.prompt_id for row in stratified_sample(pairs[:97], 30, seed=1)}) == 30
    shuffled = pairs.copy()
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert stratified_sample(shuffled, 10, seed=1) == found
    assert stratified_sample(pairs, 10, seed=2) != found
    assert stratified_sample(pairs, 200, seed=1) == sorted(pairs, key=lambda row: row.gap or 0)
    assert stratified_sample([], 10, seed=1) == []


@pytest.mark.parametrize("gaps", [[1.0] * 12, [None] * 12, [0.1 * number**2 for number in range(12)]])
def test_every_pair_is_as_likely_as_any_other(gaps: list[float | None]) -> None:
    pairs = [pair(number, gap) for number, gap in enumerate(gaps)]
    drawn = Counter(row.prompt_id for seed in range(600) for row in stratified_sample(pairs, 4, seed))
    assert sum(drawn.values()) == 4 * 600
    # Of 600 samples each has a pair with chance 1/3: 200, with a standard deviation of 11.5.
    assert all(150 <= drawn[row.prompt_id] <= 250 for row in pairs)


def test_what_was_chosen_does_not_show() -> None:
    one, is_a = compare("es", "¿Qué?", "Sí.", "No.")
    other, other_is_a = compare("es", "¿Qué?", "No.", "Sí.")
    assert one == other
    assert is_a != other_is_a
    assert (one.answer_a == "Sí.") == is_a
    assert compare("en", "¿Qué?", "Sí.", "No.")[0].pair_id != one.pair_id
    pairs = [pair(number) for number in range(400)]
    assert 160 <= sum(row.chosen_is_a for row in pairs) <= 240
    # An id of digits, or 12e4, would become a number.
    assert all(row.comparison.pair_id.isalnum() and row.comparison.pair_id.startswith("p") for row in pairs)


# The judge


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Comparison: the first is right.\nPreferred: answer1", 1.0),
        ("Comparison: answer1 is wrong.\n\nPreferred: answer2\n", 0.0),
        ("Comparison: alike.\npreferred:  Tie.", 0.5),
        ("**Preferred:** <answer1>", 1.0),
        ("Answer 1", 1.0),
    ],
)
def test_choices(text: str, value: float) -> None:
    assert read_choice(text) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("answer1 is better", "no label"),
        ("Preferred: answer3", "no label"),
        ("Preferred: answer1\nI hope this helps.", "no label"),
        ("Preferred: t\u0131e", "no label"),  # letters that are an i and an s to whoever ignores case in all alphabets
        ("Preferred: an\u017fwer1", "no label"),
    ],
)
def test_what_is_no_choice_is_not_guessed_at(text: str, kind: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{kind}$"):
        read_choice(text)


def test_the_question_shows_both_answers_as_they_are() -> None:
    one = Comparison("p1", "es", "Di {output_1}", "{language} {x}", "dos")
    straight, turned = ask_about(one), ask_about(one, turned=True)
    text = straight.messages[-1]["content"]
    assert "instruction in Spanish is better" in text
    assert "<instruction>\nDi {output_1}\n</instruction>" in text
    assert "<answer1>\n{language} {x}\n</answer1>\n\n<answer2>\ndos\n</answer2>" in text
    assert "<answer1>\ndos\n</answer1>\n\n<answer2>\n{language} {x}\n</answer2>" in turned.messages[-1]["content"]
    assert "Spanish" in straight.messages[0]["content"]


SAID = {  # what is said with a shown first, with b shown first; and the outcome for a
    "both a": ("answer1", "answer2", 1.0, None),
    "both b": ("answer2", "answer1", 0.0, None),
    "both tie": ("tie", "tie", 0.5, None),
    "always the first": ("answer1", "answer1", 0.5, None),
    "a and tie": ("answer1", "tie", 0.5, None),
    "tie and b": ("tie", "answer1", 0.5, None),
    "one prose": ("answer1", "I cannot say.", None, "no label"),
    "two empty": ("", "", None, "empty"),
}


def test_both_orders(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    pairs = [Comparison(name, "es", name, "a", "b") for name in SAID]

    def says(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        first, second, *_ = SAID[text.split("<instruction>\n")[1].split("\n")[0]]
        return first if "<answer1>\na\n" in text else second

    path = tmp_path / "verdicts.jsonl"
    with FakeJudge(says=says) as server:
        found = ask_judge(make_judge(path, server.url), pairs, TEMPLATE)
    assert {name: one.value for name, one in found.outcomes.items()} == {name: row[2] for name, row in SAID.items()}
    assert {name: one.failure for name, one in found.outcomes.items()} == {name: row[3] for name, row in SAID.items()}
    assert [name for name, one in found.outcomes.items() if one.contradicted] == ["always the first"]
    # Of the verdicts that are no ties: first, second; second, first; -; first, first; first; first; first.
    assert (found.about["shown_first"], found.about["decided"]) == (7, 9)
    assert (found.kind, found.name, found.about["failed"]) == ("judge", "j", 3)

    # A replayed file that has one order of one pair alone.
    lines = path.read_text(encoding="utf-8").splitlines()
    digest = messages_digest(ask_about(pairs[0]).messages)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(line for line in lines if digest in line), encoding="utf-8")
    half = ask_judge(make_judge(short, replayed=True), pairs, TEMPLATE)
    assert list(half.outcomes) == ["both a"]
    assert half.outcomes["both a"].failure == "one order is not in the replayed file"


# The rates


def judged(pairs: list[Sampled], values: list[float | None], kind: str = "judge") -> Judged:
    """A judge who says so of the chosen answers; nothing of pairs for which there is no value left."""
    outcomes = {
        row.comparison.pair_id: Outcome(None, "no label")
        if value is None
        else Outcome(value if row.chosen_is_a else 1 - value)
        for row, value in zip(pairs, values, strict=False)
    }
    return Judged(kind, "j", outcomes)


def sample(pairs: list[Sampled], reward: str = "crosslingual", iteration: int = 1, language: str = "es") -> Sample:
    return Sample(reward, iteration, language, 900, 0, pairs)


def test_ties_failures_and_what_nobody_judged() -> None:
    pairs = [pair(number) for number in range(10)]
    given = judged(pairs, [1.0, 1.0, 1.0, 0.0, 0.5, 0.5, None, None])
    [row] = accuracies_of(given, [sample(pairs)])
    assert (row.pairs, row.sampled, row.n, row.failed, row.lacking) == (900, 10, 6, 2, 2)
    assert (row.wins, row.losses, row.ties) == (3, 1, 2)
    assert (row.accuracy.value, row.decided.value) == (pytest.approx(4 / 6), 0.75)
    half, clear = wilson_interval([1, 1, 1, 0, 0.5, 0.5]), wilson_interval([1, 1, 1, 0])
    assert (row.accuracy.low, row.accuracy.high) == (pytest.approx(half.low), pytest.approx(half.high))
    assert (row.decided.low, row.decided.high) == (pytest.approx(clear.low), pytest.approx(clear.high))
    outcomes = outcomes_of(given, [sample(pairs)])
    assert [one.outcome for one in outcomes[:6]] == [1.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    assert [one.failure for one in outcomes] == [*[""] * 6, "no label", "no label", "no verdict", "no verdict"]
    [empty] = accuracies_of(judged(pairs, []), [sample(pairs)])
    assert (empty.n, empty.lacking, empty.accuracy.text(".2f"), empty.decided.text(".2f")) == (0, 10, "", "")


def test_prompts_in_several_languages_are_no_independent_pairs() -> None:
    samples, outcomes = [], {}
    for language in ("en", "es", "fr", "de"):
        pairs = [pair(number, language=language) for number in range(50)]
        samples.append(sample(pairs, language=language))
        outcomes |= dict(judged(pairs, [1.0] * 30 + [0.0] * 20).outcomes)
    *alone, pooled = accuracies_of(Judged("judge", "j", outcomes), samples)
    assert (pooled.language, pooled.n, pooled.pairs, pooled.accuracy.value) == (ALL, 200, 3600, 0.6)
    # Each prompt comes out alike in all of them, so four languages say no more than one.
    for end in ("low", "high"):
        assert getattr(pooled.accuracy, end) == pytest.approx(getattr(alone[0].accuracy, end), abs=0.01)


def test_newcombes_example() -> None:
    # Newcombe (1998), table II, (a), method 10: 56/70 and 48/80 are 0.2000 apart, from 0.0524 to 0.3339.
    gap = newcombe_interval(wilson_interval([1] * 56 + [0] * 14), wilson_interval([1] * 48 + [0] * 32))
    assert [round(value, 4) for value in (gap.value, gap.low, gap.high)] == [0.2, 0.0524, 0.3339]
    # (h): 10/10 and 0/10, from 0.6075 to 1.
    gap = newcombe_interval(wilson_interval([1] * 10), wilson_interval([0] * 10))
    assert [round(value, 4) for value in (gap.value, gap.low, gap.high)] == [1.0, 0.6075, 1.0]


@pytest.mark.parametrize(("wins", "word"), [(63, "no difference shown"), (85, "better"), (40, "worse")])
def test_better_only_where_the_interval_says_so(wins: int, word: str) -> None:
    first, second = ([pair(number) for number in range(start, start + 100)] for start in (0, 100))
    outcomes = {
        **judged(first, [1.0] * 61 + [0.0] * 39).outcomes,
        **judged(second, [1.0] * wins + [0.0] * (100 - wins)).outcomes,
    }
    [row] = changes_of(accuracies_of(Judged("judge", "j", outcomes), [sample(first), sample(second, iteration=2)]))
    assert (row.iteration, row.other_iteration, row.change.n) == (2, 1, 200)
    assert row.change.value == pytest.approx(wins / 100 - 0.61)
    assert row.change.verdict == word


def test_rewards_are_compared_with_the_first_one() -> None:
    pairs = [pair(number) for number in range(4)]
    names = ("crosslingual", "multilingual", "translated")
    rows = accuracies_of(judged(pairs, [1.0, 0.0, 1.0, 0.0]), [sample(pairs, reward=name) for name in names])
    assert [(row.reward, row.other_reward) for row in changes_of(rows)] == [(names[0], name) for name in names[1:]]


# People


def test_alpha_by_krippendorffs_examples() -> None:
    # Computing Krippendorff's Alpha-Reliability (2011): A, two observers of a binary variable: 0.095.
    meg, owen = "0100000010", "1110010000"
    assert nominal_alpha(zip(meg, owen, strict=True))[1] == pytest.approx(0.095, abs=5e-4)
    # C, four observers of nominal data, of which some is missing: 0.743.
    rows = ("123321412...", "1233224125.3", ".3332342251.", "1233244125 1.".replace(" ", ""))
    units = [[value for value in column if value != "."] for column in zip(*rows, strict=True)]
    assert nominal_alpha(units)[1] == pytest.approx(0.743, abs=5e-4)
    share, alpha = nominal_alpha([["a", "a"], ["a", "a"], ["b"]])
    assert (share, math.isnan(alpha)) == (1.0, True)
    assert nominal_alpha([["a", "b"], ["b", "a"]])[0] == 0.0
    with pytest.raises(ValueError, match="at least two people"):
        nominal_alpha([["a"], []])


PAIRS = [Comparison(f"p{number}", "es", f"prompt {number}", "one", "two") for number in range(6)]


def test_votes_most_decide_and_what_is_wrong_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    lines = [
        "id,choice,annotator",
        *("p0,a,ann", "p0, A ,bob", "p0,b,eve"),  # most say a
        *("p1,a,ann", "p1,b,bob"),  # as many: a tie
        *("p2,tie,ann", "p2,tie,bob", "p2,b,eve"),
        *("p3,b,ann", "p3,b,ann"),  # twice the same
        *("p4,a,ann", "p4,b,ann"),  # two things by one person
        *("p5,,ann", "p5,both,bob", ",a,ann", "p9,a,ann", "p5,a,eve,too many"),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = Votes(str(file)).judged(PAIRS)
    assert {name: one.value for name, one in found.outcomes.items()} == {"p0": 1.0, "p1": 0.5, "p2": 0.5, "p3": 0.0}
    assert (found.kind, found.name) == ("people", "3 annotators")
    assert found.about["problems"] == {
        "choices other than a, b and tie": 1,
        "rows without id": 1,
        "broken rows": 1,
        "pairs of which one person said two things": 1,
        "pairs that are not in this sample": 1,
    }
    assert (found.about["votes"], found.about["shared_pairs"]) == (9, 3)
    # Of p0 and p2 one third of pairs of votes agrees, of p1 none; they have 3, 3 and 2 of the 8 votes.
    assert found.about["agreement"] == pytest.approx((3 / 3 + 3 / 3 + 0) / 8)


def test_files_that_are_no_votes(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    file.write_text("id|choice\np1|a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"needs the columns id and choice; it has 'id\|choice'"):
        Votes(str(file))
    with pytest.raises(DataError, match="is no file"):
        Votes(str(tmp_path / "none.csv"))
    (tmp_path / "votes.txt").write_text("p1 a")
    with pytest.raises(DataError, match="none of the kinds"):
        Votes(str(tmp_path / "votes.txt"))
    file.write_text("id,choice\n", encoding="utf-8")
    assert Votes(str(file)).judged(PAIRS).outcomes == {}


def test_the_sheet_computes_nothing_and_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ["=HYPERLINK(1)", "+1", "-1", "@a", "\t=1", "＝1", "a=1", 'say "x",\nthen\r go', "\rb"]
    pairs = [Comparison(f"p{number}", "es", text, f"{text}!", "two") for number, text in enumerate(texts)]
    sheet = tmp_path / "sheet.csv"
    assert write_sheet(sheet, pairs[::-1])
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [one.pair_id for one in pairs]
    assert [row["prompt"].removeprefix("'") for row in rows] == texts
    assert [row["prompt"][0] for row in rows] == [*"''''''", "a", "s", "'"]
    assert {row["answer_b"] for row in rows} == {"two"}
    # What reads votes reads it, too.
    assert [row.broken for row in read_file(sheet, "sheet")] == [""] * len(pairs)
    assert Votes(str(sheet)).judged(pairs).outcomes == {}

    assert write_sheet(sheet, pairs[:3])  # nobody has begun: it may be written anew
    filled = sheet.read_text(encoding="utf-8").replace('"",""\n', '"tie","me"\n', 1)
    sheet.write_text(filled, encoding="utf-8")
    assert not write_sheet(sheet, pairs)
    assert sheet.read_text(encoding="utf-8") == filled
    assert {name: one.value for name, one in Votes(str(sheet)).judged(pairs).outcomes.items()} == {"p0": 0.5}
    sheet.write_text("id;choice\np1;a\n", encoding="utf-8")  # as some spreadsheets save it
    assert not write_sheet(sheet, pairs)


# A run's own pairs


def make_run(root: Path, iterations: dict[int, dict[str, list[Pair]]], **sections: Any) -> RunDirectory:
    """Write a run that has nothing but a recipe and these pairs."""
    run = begin(root, iterations=3, **sections)
    for iteration, by_language in iterations.items():
        for language, rows in by_language.items():
            store(run.iteration(iteration).pairs.unit(language), rows, Pair)
    return run


def stored(number: int, language: str, rewards: tuple[float, float] | tuple[None, None], chosen: str = "yes") -> Pair:
    roles = (("user", "?"), ("assistant", chosen), ("assistant", f"no {number}"))
    chats = [[{"role": role, "content": text}] for role, text in roles]
    return Pair(f"q{number}", language, *chats, 0, 1, None, None, *rewards, 0.0)


def work_on(run: RunDirectory, models: list[str], said: io.StringIO, **settings: Any) -> Evaluation:
    found = EvaluationSettings(reward_accuracy=RewardAccuracySettings(**settings))
    candidates = [Candidate(name, None) for name in models]
    target = Target(run.root / "evaluation", candidates, EngineSettings(), run=run)
    return Evaluation(found, target, Reporter(Console(file=said, width=200)))


def test_samples_of_a_run_that_is_not_done(tmp_path: Path) -> None:
    pairs = {tag: [stored(number, tag, (2.0 * number, 0.0)) for number in range(9)] for tag in ("en", "es")}
    pairs["es"].append(stored(99, "es", (1.0, 0.0), chosen="no 99"))
    run = make_run(tmp_path / "run", {1: pairs, 2: {"en": pairs["en"]}})
    said = io.StringIO()
    found = draw_samples(work_on(run, ["pi_I", "pi_0", "pi_1"], said, pairs=4))
    assert [(one.reward, one.iteration, one.language, one.pairs, one.alike) for one in found] == [
        ("crosslingual", 1, "en", 9, 0),
        ("crosslingual", 1, "es", 9, 1),
        ("crosslingual", 2, "en", 9, 0),
    ]
    assert [len(one.sampled) for one in found] == [4, 4, 4]
    assert "reward_accuracy es: iteration 2 has no pairs yet." in said.getvalue()
    for one in found:
        for row in one.sampled:
            assert row.gap == 2.0 * int(row.prompt_id[1:])
            assert (row.comparison.answer_a if row.chosen_is_a else row.comparison.answer_b) == "yes"
    # What comes later, or before, changes nothing.
    assert draw_samples(work_on(run, ["pi_1"], io.StringIO(), pairs=4)) == found[2:]


def test_pairs_by_language_imbalance_have_no_gaps(tmp_path: Path) -> None:
    pairs = [stored(number % 7, "en", (None, None), chosen=f"yes {number}") for number in range(30)]
    run = make_run(tmp_path / "run", {1: {"en": pairs, "es": pairs[:0]}}, language_imbalance={})
    found = draw_samples(work_on(run, ["pi_0"], io.StringIO(), pairs=10))
    assert [(one.reward, one.language, one.pairs, len(one.sampled)) for one in found] == [
        ("language_imbalance", "en", 30, 10),
        ("language_imbalance", "es", 0, 0),
    ]
    assert {row.gap for row in found[0].sampled} == {None}
    judge = Judged("judge", "j", {row.comparison.pair_id: Outcome(1.0) for row in found[0].sampled})
    english, spanish, pooled = accuracies_of(judge, found)
    assert (english.n, spanish.n, pooled.n) == (10, 0, 10)
    assert "LIDR, pi_0" in sheet_report(found).markdown()


def test_a_run_without_pairs_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    with pytest.raises(DataError, match=r"no pairs to be judged yet.*crosspref status"):
        draw_samples(work_on(run, ["pi_0"], io.StringIO()))
