"""`crosspref evaluate RUN_OR_MODEL --suite xalpaca`: tiny models answer, and a fake judge over a real socket judges."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from fake_judge import FakeJudge
from running import Models, Run, assert_one_message, succeeded, table, write_evaluation, write_lines

from crosspref import api

pytest.importorskip("openai")

TEXTS = {
    "en": ["Name a river.", "Say why the sky is blue.", "Greet a friend.", "Count to three.", "Describe snow."],
    "es": ["Nombra un río.", "Di por qué el cielo es azul.", "Saluda a un amigo.",
           "Cuenta hasta tres.", "Describe la nieve."],
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Items and a baseline's answers, made up here, and the settings that name them."""
    for language, texts in TEXTS.items():
        write_lines(
            tmp_path / "items" / f"{language}.jsonl", [{"id": n, "instruction": t} for n, t in enumerate(texts, 1)]
        )
        outputs = [{"instruction": t, "output": f"Answer to: {t}", "generator": "turbo"} for t in texts]
        write_lines(tmp_path / "baseline" / f"{language}.jsonl", outputs)
    write_evaluation(tmp_path, xalpaca={"items": str(tmp_path / "items"), "baseline": str(tmp_path / "baseline")})
    return tmp_path


def arguments(place: Path, model: Path, *more: str | Path) -> list[str | Path]:
    return ["evaluate", model, "--suite", "xalpaca", "--with", place / "evaluation.yaml", *more]


def test_a_run_from_answers_to_the_table_and_again_by_replay(command: Run, done: Path, place: Path) -> None:
    run = place / "run"
    shutil.copytree(done, run)
    with FakeJudge() as judge:
        output, _ = succeeded(command(*arguments(place, run, "--judge", judge.url)))
        asked = len(judge.asked)
        assert asked == len(set(judge.questions())) <= 3 * 10
        again, same, errors = command(*arguments(place, run, "--judge", judge.url))
        assert (again, same) == (0, output), errors
        assert len(judge.asked) == asked
    folder = run / "evaluation"
    rows = table(folder, "xalpaca/win_rates")
    assert [(row.model, row.language) for row in rows] == [
        (model, language) for model in ("pi_I", "pi_0", "pi_1") for language in ("en", "es", "mean")
    ]
    for english, spanish, mean in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (english.n, english.failed, english.judge, english.baseline) == (5, 0, "judge-1", "turbo")
        assert mean.wr == pytest.approx((english.wr + spanish.wr) / 2)
    for text in ("X-AlpacaEval: against turbo, judged by judge-1", "pi_1", "do not cover the judge"):
        assert text in output
    annotations = json.loads((folder / "xalpaca" / "pi_0" / "es" / "annotations.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in annotations] == ["1", "2", "3", "4", "5"]
    wins = [100 * (row["preference"] - 1) for row in annotations]
    assert rows[4].wr == pytest.approx(sum(wins) / 5)
    assert {row["generator_1"] for row in annotations} == {"turbo"}
    outputs = json.loads((folder / "xalpaca" / "pi_0" / "es" / "model_outputs.json").read_text(encoding="utf-8"))
    assert rows[4].length == pytest.approx(sum(len(row["output"]) for row in outputs) / 5)
    with (folder / "xalpaca" / "win_rates.csv").open(encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row.model for row in rows]
    assert (folder / "xalpaca.md").read_text(encoding="utf-8").startswith("# X-AlpacaEval")

    assert api.verify(run).damages == []
    rates = folder / "xalpaca" / "win_rates.csv"
    whole = rates.read_bytes()
    rates.write_bytes(whole.replace(b"1", b"2", 1))
    assert [damage.path for damage in api.verify(run).damages] == [rates]
    rates.write_bytes(whole)

    # Somebody without a key, and without the models, checks it.
    replay = place / "verdicts.jsonl"
    (folder / "verdicts.jsonl").rename(replay)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["models"] = {"initial": "nowhere/pi_I", "policy": "nowhere/pi_0"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code, replayed, errors = command(*arguments(place, run, "--judge", "replay", replay))
    assert (code, replayed) == (0, output), errors
    assert repr(table(folder, "xalpaca/win_rates")) == repr(rows)

    # And the annotations alone give the same rates.
    given = folder / "xalpaca" / "pi_0"
    succeeded(command(*arguments(place, "pi_0", "--annotations", given, "--out", place / "annotated")))
    found = table(place / "annotated", "xalpaca/win_rates")
    assert [(row.language, row.wr, row.wr_low, row.n, row.length) for row in found] == [
        (row.language, row.wr, row.wr_low, row.n, row.length) for row in rows[3:6]
    ]


def test_what_is_missing_or_double_is_counted_and_the_rest_comes_out(command: Run, models: Models, place: Path) -> None:
    lines = (place / "baseline" / "es.jsonl").read_text(encoding="utf-8").splitlines()
    spanish = [json.loads(line) for line in lines]
    write_lines(place / "baseline" / "es.jsonl", [*spanish[:3], spanish[0]])  # two fewer, and one twice
    items = [{"id": n, "instruction": t} for n, t in enumerate(TEXTS["en"], 1)]
    write_lines(place / "items" / "en.jsonl", [*items, items[1], {"id": 3, "instruction": "Something else."}])
    write_lines(place / "items" / "ja.jsonl", [{"id": 1, "instruction": "川の名前を一つ挙げてください。"}])
    prose = {TEXTS["en"][3]: "Both are fine, I think."}
    out = place / "out"
    with FakeJudge(logprobs=False, odd=prose) as judge:
        code, output, errors = command(*arguments(place, models[1], "--out", out, "--judge", judge.url))
    assert code == 0, errors
    assert "gives no log-probabilities" in errors
    assert "xalpaca ja: the baseline has no answers" in errors
    assert "the baseline answers 3 of 5 items" in errors
    rows = {row.language: row for row in table(out, "xalpaca/win_rates")}
    assert list(rows) == ["en", "es", "mean"]
    assert (rows["en"].items, rows["en"].n, rows["en"].failed, rows["en"].no_baseline) == (4, 3, 1, 0)
    assert (rows["es"].items, rows["es"].n, rows["es"].failed, rows["es"].no_baseline) == (5, 3, 0, 2)
    flat = " ".join(output.split())
    for text in ("1 no label", "2 duplicated ids", "1 duplicated rows", "1 language without baseline"):
        assert text in flat, output


def test_results_of_several_commands_in_one_leaderboard(command: Run, models: Models, place: Path) -> None:
    places = [place / "one", place / "two"]
    with FakeJudge() as judge:
        for model, out, name in zip(models, places, ("judge-1", "judge-2"), strict=True):
            given = ("--out", out, "--judge", judge.url, "--set", f"judge.model={name}")
            succeeded(command(*arguments(place, model, *given)))
    text, _ = succeeded(command("leaderboard", *places, "--format", "csv"))
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["model"], row["judge"]) for row in rows] == [(str(models[0]), "judge-1"), (str(models[1]), "judge-2")]
    for row, out in zip(rows, places, strict=True):
        for found in table(out, "xalpaca/win_rates"):
            assert float(row[f"{found.language}_wr"]) == found.wr
            assert float(row[f"{found.language}_length"]) == found.length
            assert row[f"{found.language}_lc"] == ""  # there were no difficulties
    text, _ = succeeded(command("leaderboard", *places, "--quoted"))
    flat = " ".join(text.split())
    for part in ("[a]", "[b] judge judge-2", "they differ in judge.", "gpt-4o-mini [quoted]", "48.20"):
        assert part in flat, text


def test_changed_settings_do_not_mix_with_stored_answers(command: Run, models: Models, place: Path) -> None:
    out = ("--out", place / "out")
    with FakeJudge() as judge:
        assert command(*arguments(place, models[1], *out, "--judge", judge.url, "--set", "xalpaca.limit=2"))[0] == 0
        code, _, errors = command(*arguments(place, models[1], *out, "--judge", judge.url))  # more items are no change
        assert code == 0, errors
        hotter = ("--set", "answers.temperature=0")
        code, _, errors = command(*arguments(place, models[1], *out, "--judge", judge.url, *hotter))
    assert code == 1
    assert "sample.temperature" in errors or "greedy" in errors
    assert "rm -r" in errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("evaluate",), "required without RUN_OR_MODEL: --responses, --out"),
        (("evaluate", "--suite", "xalpaca"), "needs a run or a model"),
        (("evaluate", "m"), "name a suite"),
        (("evaluate", "m", "--suite", "xalpaca", "--responses", "r.jsonl"), "--responses: files are evaluated without"),
        (("evaluate", "m", "--suite", "xalpaca", "--judge", "replay"), "or: replay FILE"),
        (("evaluate", "--responses", "r.jsonl", "--out", "o.csv"), "must end with .parquet or .jsonl"),
    ],
)
def test_wrong_usage(command: Run, given: tuple[str, ...], said: str) -> None:
    code, _, errors = command(*given)
    assert code == 2
    assert said in errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("nowhere", "--suite", "xalpaca"), "--out DIR"),
        (("nowhere", "--suite", "mmlu"), "There is no suite 'mmlu'. Known: xalpaca"),
        (("nowhere", "--suite", "xalpaca", "--out", "{out}"), "set xalpaca.items"),
        (("nowhere", "--suite", "xalpaca", "--out", "{out}", "--languages", "xx"), "xx"),
        (("nowhere", "--suite", "xalpaca", "--out", "{out}", "--set", "judge.modell=x"), "did you mean model"),
    ],
)
def test_what_is_wrong_is_said(command: Run, tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    assert_one_message(command("evaluate", *(part.format(out=tmp_path / "out") for part in given)), said)


def test_help_names_both_ways(command: Run) -> None:
    output, _ = succeeded(command("evaluate", "--help"))
    for text in ("RUN_OR_MODEL", "--suite", "--judge", "--responses"):
        assert text in output
