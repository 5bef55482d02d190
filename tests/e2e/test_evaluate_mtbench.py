"""`crosspref evaluate RUN_OR_MODEL --suite mtbench`: tiny models answer twice, and a fake judge grades."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from running import ForkServer, Models, Run, assert_one_message, succeeded, table, write_evaluation, write_lines

from crosspref.data.records import Response
from crosspref.run.store import Unit

pytest.importorskip("openai")

TEXTS: dict[str, list[tuple[int, str, list[str]]]] = {
    "en": [
        (81, "writing", ["Write about snow.", "Now make it short."]),
        (91, "roleplay", ["Be a baker.", "Greet a guest."]),
        (101, "reasoning", ["Who is taller?", "And who is older?"]),
        (111, "math", ["What is 2 + 2?", "And times 3?"]),
        (141, "stem", ["What is light?", "How fast is it?"]),
    ],
    "es": [
        (81, "writing", ["Escribe sobre la nieve.", "Ahora hazlo breve."]),
        (91, "roleplay", ["Sé un panadero.", "Saluda a un cliente."]),
        (101, "reasoning", ["¿Quién es más alto?", "¿Y quién es mayor?"]),
        (111, "math", ["¿Cuánto es 2 + 2?", "¿Y por 3?"]),
        (141, "stem", ["¿Qué es la luz?", "¿Qué tan rápida es?"]),
    ],
}
REFERENCED = (101, 111)


def questions(language: str) -> list[dict[str, Any]]:
    return [{"question_id": name, "category": kind, "turns": turns} for name, kind, turns in TEXTS[language]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Questions and references, made up here, as FastChat has them, and the settings that name them."""
    for language in TEXTS:
        write_lines(tmp_path / "data" / language / "question.jsonl", questions(language))
        answers = [
            {"question_id": name, "model_id": "j", "choices": [{"index": 0, "turns": [f"R1-{name}", f"R2-{name}"]}]}
            for name in REFERENCED
        ]
        write_lines(tmp_path / "data" / language / "reference_answer" / "j.jsonl", answers)
    data = str(tmp_path / "data")
    write_evaluation(tmp_path, mtbench={"questions": data, "references": data})
    return tmp_path


def arguments(place: Path, model: Path, *more: str | Path) -> list[str | Path]:
    return ["evaluate", model, "--suite", "mtbench", "--with", place / "evaluation.yaml", *more]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("answers/mtbench/*/*/*.parquet"))


def test_a_run_from_answers_to_the_table(command: Run, done: Path, place: Path) -> None:
    run = place / "run"
    shutil.copytree(done, run)
    with FakeJudge() as judge:
        output, _ = succeeded(command(*arguments(place, run, "--judge", judge.url)))
        asked = len(judge.asked)
        assert asked == len(set(judge.questions())) <= 3 * 2 * 10
        again, same, errors = command(*arguments(place, run, "--judge", judge.url))
        assert (again, same) == (0, output), errors
        assert len(judge.asked) == asked
        assert {(body["temperature"], body["max_tokens"]) for body in judge.asked} == {(0.0, 2048)}
        referenced = [text for text in judge.questions() if "R1-" in text]
        assert all("R2-" in text or "times 3" not in text for text in referenced)
    folder = run / "evaluation"
    rows, judged = table(folder, "mtbench/scores"), table(folder, "mtbench/judgements")
    whole = [row for row in rows if row.category == "all"]
    assert [(row.model, row.language) for row in whole] == [
        (model, language) for model in ("pi_I", "pi_0", "pi_1") for language in ("en", "es", "mean")
    ]
    for row in whole:
        if row.language != "mean":
            own = [one for one in judged if (one.model, one.language) == (row.model, row.language)]
            first, second = ([one.score for one in own if one.turn == turn] for turn in (1, 2))
            assert (row.questions, row.n_1, row.n_2, row.failed, row.no_answer) == (5, 5, 5, 0, 0)
            assert (row.turn_1, row.turn_2) == (pytest.approx(sum(first) / 5), pytest.approx(sum(second) / 5))
            assert row.overall == pytest.approx(sum([*first, *second]) / 10)
    for english, spanish, mean in zip(whole[::3], whole[1::3], whole[2::3], strict=True):
        assert mean.overall == pytest.approx((english.overall + spanish.overall) / 2)
    prompts = {(one.category, one.turn): one.prompt for one in judged}
    assert prompts["math", 2] == "turn 2 with reference"
    assert prompts["writing", 2] == "turn 2"
    for text in ("MT-Bench: judged by judge-1", "MT-Bench by category", "what differs between models", "pi_1 - pi_0"):
        assert text in output
    changes = table(folder, "mtbench/changes")
    assert {(row.rate, row.language) for row in changes} == {
        (rate, language) for rate in ("turn 1", "turn 2", "overall") for language in ("en", "es", "mean")
    }
    about = json.loads((folder / "mtbench" / "scores.json").read_text(encoding="utf-8"))
    assert about["judge"]["decoding"] == [{"temperature": 0.0, "max_tokens": 2048}]
    assert about["prompts"]["turn 1"]["messages"][1][1].count("{answer_1}") == 1
    assert len(about["rows"]) == len(rows)
    with (folder / "mtbench" / "scores.csv").open(encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row.model for row in rows]
    assert (folder / "mtbench.md").read_text(encoding="utf-8").startswith("# MT-Bench")


def test_each_category_has_its_temperature_and_turn_2_goes_on_from_turn_1(
    command: Run, models: Models, place: Path
) -> None:
    out = place / "out"
    with FakeJudge() as judge:
        given = arguments(place, models[1], "--out", out, "--judge", judge.url, "--languages", "en")
        assert command(*given)[0] == 0
        found: dict[str, tuple[float, bool]] = {}
        for path in shards(out):
            parts = Unit(path).read_marker()["parts"]
            for row in Unit(path).rows(Response):
                found[row.prompt_id] = parts["sample.temperature"], parts["greedy"]
        expected = {"81": (0.7, False), "91": (0.7, False), "141": (0.1, False)}
        greedy = (0.0, True)
        names = [str(name) for name, _, _ in TEXTS["en"]]
        assert found == {f"{name}.{turn}": expected.get(name, greedy) for name in names for turn in (1, 2)}

        # Other answers in the first turn are another conversation, and nothing else is answered again.
        asked, before = len(judge.asked), {path: path.stat().st_mtime_ns for path in shards(out)}
        [first] = [path for path in before if [row.prompt_id for row in Unit(path).rows(Response)] == ["141.1"]]
        [row] = Unit(first).rows(Response)
        Unit(first).write_rows(
            [Response(row.prompt_id, row.language, 0, "Quite bright.", None, "stop", row.seed)], Response
        )
        assert command(*given)[0] == 0
    new = set(shards(out)) - set(before)
    assert [row.prompt_id for path in new for row in Unit(path).rows(Response)] == ["141.2"]
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [first]
    assert 1 <= len(judge.asked) - asked <= 2
    assert "Quite bright." in judge.questions()[-1]


def test_what_is_missing_or_wrong_is_counted_and_the_rest_comes_out(command: Run, models: Models, place: Path) -> None:
    spanish = questions("es")
    long = {"question_id": 82, "category": "writing", "turns": ["Escribe.", "palabra " * 40]}
    one = {"question_id": 83, "category": "writing", "turns": ["Solo una vuelta."]}
    write_lines(place / "data" / "es" / "question.jsonl", [*spanish, spanish[0], long, one])
    shutil.rmtree(place / "data" / "es" / "reference_answer")
    odd = {
        "Write about snow.": "A fine answer, I would say.",
        "Be a baker.": "I'm sorry, but I cannot grade this.",
        "Who is taller?": '{"grade": 7',
        "What is 2 + 2?": "Grade: [[12]]",
        "¿Qué es la luz?": "La respuesta es buena, aunque breve: [[6]]",
    }
    out = place / "out"
    given = arguments(place, models[1], "--out", out, "--set", "answers.max_prompt_tokens=100")
    with FakeJudge(odd=odd) as judge:
        output, errors = succeeded(command(*given, "--judge", judge.url))
        assert "4 of 4 turns of math, reasoning and coding have no reference answer, and are not judged" in errors
        rows = {row.language: row for row in table(out, "mtbench/scores") if row.category == "all"}
        english, spanish_row = rows["en"], rows["es"]
        assert (english.n_1, english.n_2, english.failed) == (1, 1, 8)
        assert (spanish_row.questions, spanish_row.n_1, spanish_row.n_2, spanish_row.no_reference) == (6, 4, 3, 4)
        assert (spanish_row.no_answer, spanish_row.plain) == (1, 0)
        flat = " ".join(output.split())
        for text in (
            "4 turns: no grade", "2 turns: half JSON", "2 turns: grade out of 1..10", "1 turns: no answer",
            "4 turns: no reference", "1 duplicated ids", "1 questions without two turns", "8 verdicts failed",
        ):  # fmt: skip
            assert text in flat, output
        judged = table(out, "mtbench/judgements")
        light = [row for row in judged if row.question_id == "141" and row.language == "es"]
        assert [row.score for row in light] == [6.0, 6.0]
        assert [row.failure for row in judged if row.question_id == "82"] == ["", "no answer"]

        # A choice that is written down: without references they are judged by the plain prompt, and counted.
        code, _, errors = command(*given, "--judge", judge.url, "--set", "mtbench.without_reference=judge")
    assert code == 0, errors
    rows = {row.language: row for row in table(out, "mtbench/scores") if row.category == "all"}
    assert (rows["es"].n_1, rows["es"].n_2, rows["es"].no_reference, rows["es"].plain) == (6, 5, 0, 4)
    assert rows["en"].plain == 0


def test_a_judge_that_never_gives_a_grade_leaves_what_it_said(command: Run, models: Models, place: Path) -> None:
    out = place / "out"
    with FakeJudge(odd={"": "A fine answer, I would say."}) as judge:
        code, output, errors = command(*arguments(place, models[1], "--out", out, "--judge", judge.url))
    assert (code, output) == (1, "")
    assert "no answer of a model has a grade that can be read: 20 no grade. What the judge said is in " in errors
    with (out / "mtbench" / "judgements.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["judgement"], row["failure"]) for row in rows] == [("A fine answer, I would say.", "no grade")] * 20
    assert not (out / "mtbench" / "scores.csv").exists()


def test_killed_while_answering_and_while_judging_it_goes_on_and_asks_nothing_twice(
    forks: ForkServer, models: Models, place: Path
) -> None:
    out = place / "out"

    with FakeJudge(delay=0.15) as judge:
        command = arguments(place, models[1], "--out", out, "--judge", judge.url)
        forks.spawn(*command, log=place / "log").kill_when(lambda: len(list(out.rglob("*.done.json"))) >= 2)
        stored = {path: path.stat().st_mtime_ns for path in out.rglob("*.done.json")}
        forks.spawn(*command, log=place / "log").kill_when(lambda: len(judge.asked) >= 5)
        log = out / "verdicts.jsonl"
        kept = log.read_text(encoding="utf-8").splitlines()
        assert 0 < len(kept) < 20
        # As a kill in the middle of a line would leave it: that one is judged again.
        log.write_text("\n".join([*kept[:-1], kept[-1][: len(kept[-1]) // 2]]), encoding="utf-8")
        before = len(judge.asked)
        judge.delay = 0.0
        process = forks.run(*command, log=place / "log")
        assert len(judge.asked) - before == 20 - (len(kept) - 1)
    assert "1 lines are cut or damaged" in process.output()
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert [(row.n_1, row.n_2) for row in table(out, "mtbench/scores") if row.category == "all"][:2] == [(5, 5)] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "set mtbench.questions"),
        (("--annotations", "annotations.json"), "the suite mtbench reads none"),
        (("--set", "mtbench.questions={out}/none", "--set", "judge.model=j"), "mtbench.questions: there is no file"),
        (("--set", "mtbench.without_reference=guess"), "mtbench.without_reference"),
    ],
)
def test_what_is_wrong_is_said(command: Run, tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    out = tmp_path / "out"
    more = [part.format(out=out) for part in given]
    assert_one_message(command("evaluate", "nowhere", "--suite", "mtbench", "--out", out, *more), said)
