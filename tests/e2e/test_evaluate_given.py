"""`crosspref evaluate --answers`: answers that exist already are judged by a fake judge, and no model is needed."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from running import Run, assert_stopped, succeeded, table, write_lines

pytest.importorskip("openai")

TEXTS = ["Name a river.", "Count to three.", "Name a river.", "Greet a friend.", "Describe snow."]


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def published(model: str, *, column: str = "output", texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    """Answers as alpaca_eval publishes them: no ids, and an instruction that is there twice."""
    return [
        {"dataset": "made_up", "instruction": text, column: f"{model} on {place}", "generator": model}
        for place, text in enumerate(texts)
    ]


def evaluate(place: Path, judge: FakeJudge, suite: str, *more: str | Path) -> tuple[str | Path, ...]:
    return ("evaluate", "--suite", suite, "--out", place / "out", "--judge", judge.url,
            *sets("judge.model=judge-1", "resamples=100"), *more)  # fmt: skip


def alpaca(place: Path, *more: str | Path) -> tuple[str | Path, ...]:
    """The settings of X-AlpacaEval on published files: the baseline's are the items, too."""
    write_json(place / "turbo.json", published("turbo"))
    write_json(place / "turbo_responses.json", published("turbo", column="response"))
    files = f"xalpaca.items={place / 'turbo.json'}", f"xalpaca.baseline={place / 'turbo_responses.json'}"
    return (*sets(*files), *more)


def test_published_outputs_without_ids_and_nothing_is_asked_twice(command: Run, tmp_path: Path) -> None:
    """Two models in a directory; one has its rows in another order, a row twice, and one that is of no item."""
    given = tmp_path / "given"
    write_json(given / "first" / "model_outputs.json", published("first"))
    other = published("second")
    unknown = {"instruction": "Something else.", "output": "?", "generator": "second"}
    write_json(given / "second" / "model_outputs.json", [*other[::-1][:4], other[3], unknown])
    write_json(given / "second" / "annotations.json", [{"output_1": "a", "output_2": "b"}])
    with FakeJudge() as judge:
        arguments = evaluate(tmp_path, judge, "xalpaca", *alpaca(tmp_path), "--answers", given, "--languages", "en")
        output, errors = succeeded(command(*arguments))
        rows = {row.model: row for row in table(tmp_path / "out", "xalpaca/win_rates")}
        assert {name: (row.items, row.n, row.no_answer) for name, row in rows.items()} == {
            "first": (5, 5, 0), "second": (5, 4, 1),
        }  # fmt: skip
        assert {row.baseline for row in rows.values()} == {"turbo"}
        asked = [text for text in judge.questions() if "on 0" in text]
        assert all("turbo on 0" in text for text in asked)
        count = len(judge.asked)
        assert count == 9
        assert succeeded(command(*arguments))[0] == output
        assert len(judge.asked) == count
    assert "have no ids" in errors
    assert str(given / "first" / "model_outputs.json") in " ".join(output.split())
    about = json.loads((tmp_path / "out" / "xalpaca" / "win_rates.json").read_text(encoding="utf-8"))
    assert about["answers"] == {
        "files": {name: [str(given / name / "model_outputs.json")] for name in ("first", "second")}
    }
    assert about["problems"]["en"]["duplicated rows"] == 1
    assert about["problems"]["en"]["rows without item or output"] == 1


def test_what_of_a_file_cannot_be_used_is_named_by_row(command: Run, tmp_path: Path) -> None:
    """Of five rows one is broken, one is of no item, and two contradict each other: one answer is left."""
    items = [{"id": place, "instruction": text} for place, text in enumerate(TEXTS, 1)]
    lines = [json.dumps({"id": name, "output": text}) for name, text in ((1, "a"), (7, "b"), (2, "c"), (2, "d"))]
    (tmp_path / "mine.jsonl").write_text("\n".join([lines[0], lines[1][:-4], *lines[1:]]), encoding="utf-8")
    named = sets(f"xalpaca.items={write_json(tmp_path / 'items.json', items)}")
    settings = alpaca(tmp_path, *named, "--languages", "en", "--answers", tmp_path / "mine.jsonl")
    with FakeJudge() as judge:
        _, errors = succeeded(command(*evaluate(tmp_path, judge, "xalpaca", *settings)))
        assert len(judge.asked) == 1
    [row] = table(tmp_path / "out", "xalpaca/win_rates")
    assert (row.model, row.items, row.n, row.no_answer) == ("mine", 5, 1, 4)
    for said in ("mine.jsonl, row 2: the line is not", "mine.jsonl, row 3: id 7", "mine.jsonl, row 4: id 2"):
        assert said in errors
    shown, _ = succeeded(command("leaderboard", tmp_path / "out"))
    assert "mine" in shown


def test_what_this_project_wrote_is_read_again(command: Run, tmp_path: Path) -> None:
    """MODEL/LANGUAGE/model_outputs.json, with ids."""
    write_json(tmp_path / "mine.json", published("mine"))
    with FakeJudge() as judge:
        files = alpaca(tmp_path, "--languages", "en")
        first = evaluate(tmp_path, judge, "xalpaca", *files, "--answers", tmp_path / "mine.json")
        succeeded(command(*first))
        again = evaluate(tmp_path, judge, "xalpaca", *files, "--answers", tmp_path / "out" / "xalpaca")
        before = (tmp_path / "out" / "xalpaca" / "win_rates.csv").read_text(encoding="utf-8")
        succeeded(command(*again))
        assert (tmp_path / "out" / "xalpaca" / "win_rates.csv").read_text(encoding="utf-8") == before
        assert len(judge.asked) == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": TEXTS[0], "text_of_it": "?"}, "no column with answers. Looked for: output, response"),
        ({"instruction": TEXTS[0], "response": "?", "answer": "!"}, "several columns with answers (response, answer)"),
        ({"output": "?"}, "neither ids nor instructions"),
        ({"instruction": "Something else.", "output": "?"}, "none of the 1 rows of mine answers an item"),
    ],
)
def test_the_cause_is_named_and_nobody_asked(command: Run, tmp_path: Path, row: dict[str, str], said: str) -> None:
    file = write_json(tmp_path / "mine.json", [row])
    with FakeJudge() as judge:
        arguments = evaluate(tmp_path, judge, "xalpaca", *alpaca(tmp_path), "--answers", file, "--languages", "en")
        code, _, errors = command(*arguments)
        assert not judge.asked
    assert code == 1
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"id": 1, "query": "?"}], "no column with instructions. Looked for: instruction"),
        ([{"instruction": "Hi"}], "the baseline has no answers (none of its 5 rows answers an item)"),
    ],
)
def test_what_is_wrong_with_items_and_baseline(command: Run, tmp_path: Path, items: Any, said: str) -> None:
    file = write_json(tmp_path / "mine.json", published("mine"))
    settings = alpaca(
        tmp_path, *sets(f"xalpaca.items={write_json(tmp_path / 'items.json', items)}"), "--languages", "en"
    )
    with FakeJudge() as judge:
        code, _, errors = command(*evaluate(tmp_path, judge, "xalpaca", *settings, "--answers", file))
    assert code == 1
    assert said in " ".join(errors.split())


def test_two_files_of_one_model_and_a_layout_of_another_suite(command: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / "given" / f"{name}.json", published("same"))
    write_lines(tmp_path / "bench" / "question.jsonl", [])
    with FakeJudge() as judge:
        settings = alpaca(tmp_path, "--languages", "en")
        twice = evaluate(tmp_path, judge, "xalpaca", *settings, "--answers", tmp_path / "given")
        assert_stopped(command(*twice), "two files have answers of same in en")
        bench = (*settings, "--set", f"xalpaca.baseline={tmp_path / 'bench'}")
        write_json(tmp_path / "both.json", [*published("turbo"), *published("other")])
        both = (*settings, *sets(f"xalpaca.baseline={tmp_path / 'both.json'}"))
        several = evaluate(tmp_path, judge, "xalpaca", *both, "--answers", tmp_path / "given" / "a.json")
        assert_stopped(command(*several), "both.json, row 6", "an answer of other", "that turbo has answered, too")
        layout = evaluate(tmp_path, judge, "xalpaca", *bench, "--answers", tmp_path / "given" / "a.json")
        assert_stopped(command(*layout), "no files model_outputs.json", "It has: question.jsonl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--suite", "xalpaca"), "--out DIR"),
        (("--suite", "xalpaca", "--out", "{out}", "--annotations", "a.json"), "both give the answers"),
        (("--suite", "nlp", "--out", "{out}"), "leave out --judge, --annotations and --answers"),
    ],
)
def test_wrong_usage(command: Run, tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    arguments = [part.format(out=tmp_path / "out") for part in given]
    assert_stopped(command("evaluate", "--answers", tmp_path, *arguments), said)


def bench(place: Path) -> Path:
    """FastChat's directory, with two questions in English and two models, of which one has left out a turn."""
    turns = {81: ["Write a poem.", "Make it shorter."], 111: ["What is 2 + 2?", "And 3 + 3?"]}
    write_lines(
        place / "question.jsonl",
        [
            {"question_id": name, "category": category, "turns": turns[name]}
            for name, category in ((81, "writing"), (111, "math"))
        ],
    )
    reference = {"question_id": 111, "choices": [{"index": 0, "turns": ["4", "6"]}]}
    write_lines(place / "reference_answer" / "gpt-4.jsonl", [reference])
    for model in ("vicuna", "koala"):
        answers = [
            {"question_id": name, "model_id": model, "choices": [{"index": 0, "turns": [f"{model} 1", f"{model} 2"]}]}
            for name in turns
        ]
        if model == "koala":
            answers[1]["choices"][0]["turns"] = ["", None]
            answers.append({**answers[0], "question_id": 999})
        write_lines(place / "model_answer" / f"{model}.jsonl", answers)
    return place


def test_fastchats_directory(command: Run, tmp_path: Path) -> None:
    """An empty answer is graded; a turn that is missing, and one to an unknown question, are counted."""
    place = bench(tmp_path / "bench")
    files = sets(f"mtbench.questions={place}", f"mtbench.references={place}")
    with FakeJudge() as judge:
        arguments = evaluate(tmp_path, judge, "mtbench", *files, "--answers", place, "--languages", "en")
        output, errors = succeeded(command(*arguments))
        assert len(judge.asked) == 7
        assert sum("koala" in text for text in judge.questions()) == 2
        succeeded(command(*arguments))
        assert len(judge.asked) == 7
    rows = {row.model: row for row in table(tmp_path / "out", "mtbench/scores") if row.category == "all"}
    assert {name: (row.n_1, row.n_2, row.no_answer) for name, row in rows.items()} == {
        "vicuna": (2, 2, 0), "koala": (2, 1, 1),
    }  # fmt: skip
    assert "koala.jsonl, row 3: id 999" in " ".join(errors.split())
    assert str(place / "model_answer" / "vicuna.jsonl") in " ".join(output.split())


def test_answers_of_two_turns_need_choices(command: Run, tmp_path: Path) -> None:
    place = bench(tmp_path / "bench")
    file = write_json(tmp_path / "mine.json", [{"question_id": 81, "output": "?"}])
    files = *sets(f"mtbench.questions={place}"), "--answers", file, "--languages", "en"
    with FakeJudge() as judge:
        arguments = evaluate(tmp_path, judge, "mtbench", *files)
        assert_stopped(command(*arguments), "no choices. Looked for: choices. Columns there: question_id, output")


def rated(model: str, rewards: list[float]) -> list[dict[str, Any]]:
    return [
        {"id": place, "instruction": f"Question {place}", "output": f"{model} {place}", "reward": reward,
         "language": "es", "generator": model}
        for place, reward in enumerate(rewards)
    ]  # fmt: skip


def test_two_sets_of_answers_and_a_reward(command: Run, tmp_path: Path) -> None:
    """The judge likes every answer of `a` better; the reward does so in three of four pairs. Ties are left out."""
    write_json(tmp_path / "a.json", rated("a", [2.0, 3.0, 0.5, 0.0, 1.0]))
    write_json(tmp_path / "b.json", rated("b", [1.0, 2.0, 0.0, 9.0, 1.0]))

    def prefers_a(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        return "Preferred: answer1" if text.index("\na ") < text.index("\nb ") else "Preferred: answer2"

    (tmp_path / "given").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.json").rename(tmp_path / "given" / f"{name}.json")
    with FakeJudge(says=prefers_a) as judge:
        arguments = evaluate(tmp_path, judge, "reward_accuracy", "--answers", tmp_path / "given")
        output, errors = succeeded(command(*arguments))
        succeeded(command(*arguments))
        assert len(judge.asked) == 8
    [row] = table(tmp_path / "out", "reward_accuracy/accuracy")
    assert (row.reward, row.language, row.n, row.wins, row.losses) == ("reward: a or b", "es", 4, 3, 1)
    assert row.accuracy == 0.75
    assert "1 pairs with equal rewards" in errors
    assert str(tmp_path / "given" / "b.json") in " ".join(output.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": "high"}, "'high' stands where a number is expected"),
        ({"generator": "a"}, "two files have answers of a in es"),
        (None, "needs answers of two models"),
    ],
)
def test_a_reward_that_is_none(command: Run, tmp_path: Path, change: dict[str, str] | None, said: str) -> None:
    write_json(tmp_path / "given" / "a.json", rated("a", [2.0]))
    if change is not None:
        write_json(tmp_path / "given" / "b.json", [{**rated("b", [1.0])[0], **change}])
    with FakeJudge() as judge:
        arguments = evaluate(tmp_path, judge, "reward_accuracy", "--answers", tmp_path / "given")
        assert_stopped(command(*arguments), said)
        assert not judge.asked
