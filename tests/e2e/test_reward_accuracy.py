"""`crosspref evaluate RUN --suite reward_accuracy` on a tiny run of two iterations, with everybody who can judge."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from running import (
    ForkServer,
    Models,
    Run,
    assert_one_message,
    assert_stopped,
    small_recipe,
    succeeded,
    table,
    write_evaluation,
    write_recipe,
)

from crosspref.data.records import Pair
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.reward_model import TransformersRewardModel
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import ResourceSettings
from crosspref.run.store import Unit
from crosspref.suites.reward_accuracy.pairs import compare

pytest.importorskip("openai")

CELLS = [
    (reward, iteration, language)
    for iteration in (1, 2)
    for reward in ("crosslingual", "multilingual")
    for language in ("en", "es", "all")
]


def longer(messages: list[dict[str, str]]) -> str:
    """Prefers the longer answer, whichever is shown first."""
    first, second = (len(answer) for answer in answers(messages))
    said = "tie" if first == second else "answer1" if first > second else "answer2"
    return f"Comparison: one is longer.\nPreferred: {said}"


def answers(messages: list[dict[str, str]]) -> tuple[str, str]:
    found = re.search(r"<answer1>\n(.*)\n</answer1>\n\n<answer2>\n(.*)\n</answer2>", messages[-1]["content"], re.DOTALL)
    assert found
    return found[1], found[2]


@pytest.fixture(scope="module")
def finished(models: Models, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations with two rewards, on models whose responses are always cut at the limit."""
    place = tmp_path_factory.mktemp("finished")
    recipe = small_recipe(*models, iterations=2, reward={"also": ["multilingual"]})
    forks.run("run", write_recipe(place / "recipe.yaml", recipe), "--out", place / "run", log=place / "log")
    return place / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    write_evaluation(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def arguments(run: Path, *more: str | Path) -> list[str | Path]:
    return ["evaluate", run, "--suite", "reward_accuracy", "--with", run.parent / "evaluation.yaml", *more]


def measured(run: Path, name: str = "accuracy") -> list[Any]:
    return table(run / "evaluation", f"reward_accuracy/{name}")


def sheet(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation" / "reward_accuracy" / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_judge_in_both_orders_and_again_by_replay(command: Run, run: Path) -> None:
    with FakeJudge(says=longer) as judge:
        output, _ = succeeded(command(*arguments(run, "--judge", judge.url)))
        asked = len(judge.asked)
        assert asked == len(set(judge.questions()))
        bodies = [body["messages"] for body in judge.asked]
        both = {answers(messages) for messages in bodies}
        assert all((second, first) in both for first, second in both)
        assert {body["temperature"] for body in judge.asked} == {0.0}
        again, same, errors = command(*arguments(run, "--judge", judge.url))
        assert (again, same) == (0, output), errors
        assert len(judge.asked) == asked
    rows = measured(run)
    assert [(row.reward, row.iteration, row.language) for row in rows] == CELLS
    for row in [row for row in rows if row.reward == "crosslingual" and row.language != "all"]:
        # The judge is a function of the pair, so what the table must say is known from the run's own pairs.
        pairs: list[Pair] = Unit(run / f"iteration_{row.iteration}" / "pairs" / f"{row.language}.parquet").rows(Pair)
        lengths = [tuple(len(chat[-1]["content"]) for chat in (pair.chosen, pair.rejected)) for pair in pairs]
        assert (row.pairs, row.sampled, row.n, row.failed, row.lacking) == (len(pairs), len(pairs), len(pairs), 0, 0)
        assert row.wins == sum(chosen > rejected for chosen, rejected in lengths)
        assert row.losses == sum(chosen < rejected for chosen, rejected in lengths)
        assert row.accuracy == pytest.approx((row.wins + row.ties / 2) / row.n)
        assert row.low <= row.accuracy <= row.high
        assert (row.kind, row.judge) == ("judge", "judge-1")
    for english, spanish, pooled in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (pooled.n, pooled.wins) == (english.n + spanish.n, english.wins + spanish.wins)
    changes = measured(run, "changes")
    compared = {(row.reward, row.iteration, row.other_reward, row.other_iteration) for row in changes}
    assert compared == {
        ("crosslingual", 1, "multilingual", 1),
        ("crosslingual", 2, "multilingual", 2),
        ("crosslingual", 2, "crosslingual", 1),
        ("multilingual", 2, "multilingual", 1),
    }
    for text in ("Reward accuracy", "R_c, pi_0", "R_m, pi_1", "Wilson", "shown first in 50% of"):
        assert text in " ".join(output.split())
    about = json.loads((run / "evaluation" / "reward_accuracy" / "accuracy.json").read_text(encoding="utf-8"))
    assert about["judges"]["judge judge-1"]["decoding"] == [{"temperature": 0.0, "max_tokens": 256}]
    assert len(about["prompt_sha256"]) == 64
    assert (run / "evaluation" / "reward_accuracy.md").read_text(encoding="utf-8").startswith("# Reward accuracy")

    # Somebody without a key checks it; an iteration alone is the same, whatever else was measured.
    replay = run.parent / "verdicts.jsonl"
    (run / "evaluation" / "verdicts.jsonl").rename(replay)
    code, replayed, errors = command(*arguments(run, "--judge", "replay", replay, "--set", "judge.model=null"))
    assert (code, replayed) == (0, output), errors
    assert repr(measured(run)) == repr(rows)
    succeeded(command(*arguments(run, "--judge", "replay", replay, "--set", "models=[pi_1]")))
    assert repr(measured(run)) == repr(rows[6:])


def test_what_cannot_be_read_fails_and_the_rest_comes_out(command: Run, run: Path) -> None:
    pair: Pair = Unit(run / "iteration_1" / "pairs" / "es.parquet").rows(Pair)[0]
    chosen = pair.chosen[-1]["content"]

    def says(messages: list[dict[str, str]]) -> str:
        return "The first one is a river of words." if answers(messages)[0] == chosen else "answer1"

    with FakeJudge(says=says) as judge:
        code, output, errors = command(*arguments(run, "--judge", judge.url, "--languages", "es"))
    assert code == 0, errors
    rows = [row for row in measured(run) if row.reward == "crosslingual"]
    assert [row.language for row in rows] == ["es", "es"]
    assert rows[0].failed >= 1
    # A judge that always takes the first answer contradicts itself, and says nothing of the reward.
    assert (rows[0].ties, rows[0].contradicted, rows[0].accuracy) == (rows[0].n, rows[0].n, 0.5)
    assert rows[0].decided != rows[0].decided
    assert "no label" in output


def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice(forks: ForkServer, run: Path) -> None:
    with FakeJudge(delay=0.1, says=longer) as judge:
        given = arguments(run, "--judge", judge.url, "--languages", "es")
        forks.spawn(*given, log=run.parent / "log").kill_when(lambda: len(judge.asked) >= 6)
        kept = (run / "evaluation" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
        before = len(judge.asked)
        judge.delay = 0.0
        forks.run(*given, log=run.parent / "log")
        every = set(judge.questions())
        assert len(judge.asked) - before == len(every) - len(kept) > 0
    assert all(row.n == row.sampled for row in measured(run))


def test_a_reward_model_and_people_judge_the_same_pairs(command: Run, run: Path, reward_model: Path) -> None:
    # Without anybody who judges there is the sheet.
    output, _ = succeeded(command(*arguments(run, "--set", "judge.model=null")))
    assert "Nobody has judged yet" in output
    blank = sheet(run)
    assert {row["choice"] for row in blank} == {""}
    assert len({row["id"] for row in blank}) == len(blank)

    # Two people fill it in: one prefers a, the other the longer answer, and leaves the last pair open.
    votes = []
    for number, row in enumerate(blank):
        votes.append({"id": row["id"], "choice": "A", "annotator": "ann"})
        if number < len(blank) - 1:
            a, b = (len(row[name].removeprefix("'")) for name in ("answer_a", "answer_b"))
            votes.append({"id": row["id"], "choice": "a" if a > b else "b" if b > a else "tie", "annotator": "bob"})
    votes += [{"id": "p0", "choice": "a", "annotator": "ann"}, {"id": blank[0]["id"], "choice": "c"}]
    file = run.parent / "votes.jsonl"
    file.write_text("".join(json.dumps(vote) + "\n" for vote in votes) + "{half a li", encoding="utf-8")
    given = ("--set", f"reward_accuracy.votes={file}", "--set", f"reward_accuracy.reward_model={reward_model}")
    with FakeJudge(says=longer) as judge:
        code, output, errors = command(*arguments(run, "--judge", judge.url, *given))
    assert code == 0, errors
    rows = measured(run)
    kinds = [("judge", "judge-1"), ("reward model", str(reward_model)), ("people", "2 annotators")]
    assert list(dict.fromkeys((row.kind, row.judge) for row in rows)) == kinds
    assert [(row.reward, row.iteration, row.language) for row in rows] == CELLS * 3
    flat = " ".join(output.split())
    for text in ("1 broken rows", "1 choices other than", "1 pairs that are not in this sample", "Krippendorff"):
        assert text in flat, output

    # Each outcome is what the reward model itself says, and what the votes say.
    settings = EngineSettings(resources=ResourceSettings(device="cpu", dtype="float32"))
    rater = TransformersRewardModel(settings, locate_model(str(reward_model)))
    by_person: dict[str, dict[str, float]] = {}
    worth = {"A": 1.0, "a": 1.0, "b": 0.0, "tie": 0.5}
    for vote in votes[:-1]:
        by_person.setdefault(vote["id"], {})[vote["annotator"]] = worth[vote["choice"]]
    pairs: list[Pair] = Unit(run / "iteration_1" / "pairs" / "es.parquet").rows(Pair)
    found = {
        (row.kind, row.prompt_id): row
        for row in measured(run, "pairs")
        if (row.reward, row.iteration, row.language) == ("crosslingual", 1, "es")
    }
    for pair in pairs:
        texts = [chat[-1]["content"] for chat in (pair.prompt, pair.chosen, pair.rejected)]
        one, chosen_is_a = compare("es", *texts)
        chosen, rejected = rater.rate(texts[0], texts[1:])
        assert found["reward model", pair.prompt_id].outcome == float(chosen > rejected)
        said = set(by_person[one.pair_id].values())
        for_a = said.pop() if len(said) == 1 else 0.5
        assert found["people", pair.prompt_id].outcome == (for_a if chosen_is_a else 1 - for_a)
        assert found["people", pair.prompt_id].gap == pytest.approx(pair.chosen_reward - pair.rejected_reward)

    # Ratings are kept: the model is not asked again, and files that somebody has begun to fill in stay.
    path = run / "evaluation" / "reward_accuracy" / "sheet.csv"
    begun = path.read_text(encoding="utf-8").replace(',"",""\n', ',"b","me"\n', 1)
    path.write_text(begun, encoding="utf-8")
    times = {shard: shard.stat().st_mtime_ns for shard in (path.parent / "ratings").rglob("*.parquet")}
    again = arguments(run, *given, "--set", "judge.model=null", "--set", "reward_accuracy.pairs=2")
    _, errors = succeeded(command(*again))
    assert "stays as it is" in " ".join(errors.split())
    assert path.read_text(encoding="utf-8") == begun
    assert times.items() <= {shard: shard.stat().st_mtime_ns for shard in times}.items()
    assert {row.sampled for row in measured(run) if row.language != "all"} == {2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--annotations", "a.json"), "--annotations is for xalpaca"),
        (("--judge", "http://127.0.0.1:9/v1", "--set", "judge.model=null"), "set judge.model"),
        (("--languages", "de"), "has pairs in en, es"),
        (("--set", "models=[pi_2]"), "no pairs to be judged yet"),
        (("--set", "reward_accuracy.votes=none.csv"), "is no file"),
        (("--set", "reward_accuracy.prompt=none.txt"), "reward_accuracy.prompt: none.txt cannot be read"),
        (("--set", "reward_accuracy.reward_model={model}"), "num_labels"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(
    command: Run, run: Path, models: Models, given: tuple[str, ...], said: str
) -> None:
    assert_stopped(command(*arguments(run, *(part.format(model=models[0]) for part in given))), said)


def test_a_model_alone_has_no_pairs(command: Run, models: Models, tmp_path: Path) -> None:
    answer = command("evaluate", models[0], "--suite", "reward_accuracy", "--out", tmp_path / "out")
    assert_one_message(answer, "a model alone has none")
