"""Every stage alone, on files: together they make what a run makes, and take what was made elsewhere."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ForkServer, Run, assert_one_message, by_key, rows, succeeded, write_lines
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from crosspref.data.records import Dropped, Measure, Pair, Response, Score, Translation
from crosspref.data.tables import read_rows


def settings(content: dict[str, Any], *sections: str) -> list[str]:
    """The recipe's settings as the options of a stage."""
    given = {
        f"{section}.{key}": value for section in (*sections, "resources") for key, value in content[section].items()
    }
    return [part for key, value in given.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def test_the_stages_one_by_one_make_what_a_run_makes(
    command: Run, content: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    initial, policy = content["models"]["initial"], content["models"]["policy"]
    names = ("responses.parquet", "scores.jsonl", "pairs.jsonl", "dropped.parquet", "measures.jsonl")
    place = {name.partition(".")[0]: tmp_path / "made" / name for name in names}

    def stage(name: str, *arguments: str | Path, sections: tuple[str, ...] = ()) -> None:
        succeeded(command(name, *arguments, *settings(content, *sections)))

    prompts = ("--prompts", content["prompts"]["source"])
    limit = ("--set", "prompts.limit=5")
    both = ("--responses", place["responses"], "--scores", place["scores"])
    made = ("--languages", "en,es", "--model", policy, "--out", place["responses"])
    stage("sample", *prompts, *limit, *made, sections=("sample",))
    models = ("--policy", policy, "--reference", initial)
    stage("score", *prompts, *models, *both[:2], "--out", place["scores"])
    kept = ("--out", place["pairs"], "--dropped", place["dropped"])
    stage("select", *prompts, *limit, *both, *kept, sections=("select",))
    stage("evaluate", *both, "--baseline-scores", place["scores"], "--out", place["measures"])

    first = done / "iteration_1"
    assert read_rows(place["responses"], Response) == rows(first / "responses")
    for own, theirs in zip(read_rows(place["scores"], Score), rows(first / "scores"), strict=True):
        assert (own.prompt_id, own.language, own.sample) == (theirs.prompt_id, theirs.language, theirs.sample)
        assert own.implicit_reward == pytest.approx(theirs.implicit_reward, abs=1e-5)
    pairs = read_rows(place["pairs"], Pair)
    for own, theirs in zip(pairs, rows(first / "pairs"), strict=True):
        assert (own.prompt, own.chosen_token_ids) == (theirs.prompt, theirs.chosen_token_ids)
        assert own.rejected_token_ids == theirs.rejected_token_ids
        assert own.chosen_reward == pytest.approx(theirs.chosen_reward, abs=1e-5)
    assert read_rows(place["dropped"], Dropped) == rows(first / "dropped")
    won = {row.language: row for row in read_rows(place["measures"], Measure) if row.measure.startswith("win_rate")}
    assert {language: (row.mean, row.prompts) for language, row in won.items()} == {"en": (0.5, 5), "es": (0.5, 5)}

    trained = tmp_path / "trained"
    stage("train", "--model", policy, "--pairs", place["pairs"], "--out", trained, sections=("train",))
    ours, theirs = (load_file(path / "model.safetensors") for path in (trained, first / "policy"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "trained", "trained.training.json"]


def test_translating_and_the_reward_of_it_alone(
    command: Run, content: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    responses, limits = done / "iteration_1" / "responses", ("--set", "translate.max_new_tokens=8")
    made, scores = tmp_path / "translations.jsonl", tmp_path / "scores.jsonl"
    given = (*limits, "--set", "translate.truncated=keep", *settings(content))
    model = ("--model", content["models"]["policy"])
    succeeded(command("translate", *model, "--responses", responses, "--out", made, *given))
    translations = read_rows(made, Translation)
    assert {(row.language, row.target) for row in translations} == {("es", "en")}
    assert len(translations) == 5 * 3
    models = ("--policy", content["models"]["policy"], "--reference", content["models"]["initial"])
    what = ("--prompts", content["prompts"]["source"], "--responses", responses, "--reward", "translated")
    command("score", *models, *what, "--translations", made, "--out", scores, *settings(content))
    found = by_key(read_rows(scores, Score))
    assert len(found) == 2 * 5 * 3
    for row in translations:
        assert (found[row.prompt_id, "es", row.sample].implicit_reward is None) == (row.failure is not None)
    assert_one_message(command("score", *models, *what, "--out", scores), "--translations")


def test_another_training_reference_alone(command: Run, content: dict[str, Any], done: Path, tmp_path: Path) -> None:
    models = ("--model", content["models"]["policy"], "--reference", content["models"]["initial"])
    pairs, out = done / "iteration_1" / "pairs", tmp_path / "trained"
    succeeded(command("train", *models, "--pairs", pairs, "--out", out, *settings(content, "train")))
    ours, theirs = (load_file(path / "model.safetensors") for path in (out, done / "iteration_1" / "policy"))
    assert any(not torch.equal(ours[name], tensor) for name, tensor in theirs.items())


SPANISH = [
    # (id, instruction, answers, rewards before the penalty)
    ("p1", "¿Por qué?", ["Porque sí.", "No lo sé.", "Porque no."], [1.0, 0.0, 0.5]),
    ("p2", "¿Cuándo?", ["Mañana.", "Hoy", "Nunca."], [-1.0, 2.0, 0.5]),
    ("p3", "¿Dónde?", ["Aquí.", "Aquí."], [0.3, 0.1]),
]


@pytest.fixture
def by_hand(tmp_path: Path) -> dict[str, Path]:
    """Prompts, responses and scores that a person wrote, in another order and without token ids."""
    keyed = [
        ({"prompt_id": name, "language": "es", "sample": number}, answer, reward)
        for name, _, answers, rewards in SPANISH
        for number, (answer, reward) in enumerate(zip(answers, rewards, strict=True))
    ]
    counts = {"reward": "mine", "policy_logprob": 0.0, "reference_logprob": 0.0, "tokens": 1}
    tables: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"prompt_id": name, "en": "Why?", "es": text} for name, text, _, _ in SPANISH],
        "responses": [{**key, "text": answer} for key, answer, _ in keyed],
        "scores": [
            {**key, **counts, "characters": len(answer), "implicit_reward": reward} for key, answer, reward in keyed
        ][::-1],
    }
    return {name: write_lines(tmp_path / f"{name}.jsonl", table) for name, table in tables.items()}


def select(by_hand: dict[str, Path], out: Path, *more: str | Path) -> list[str | Path]:
    given = [part for name in ("prompts", "responses", "scores") for part in (f"--{name}", by_hand[name])]
    return ["select", *given, "--out", out, *more]


def test_select_takes_what_was_written_by_hand(command: Run, by_hand: dict[str, Path], tmp_path: Path) -> None:
    pairs, dropped = tmp_path / "pairs.jsonl", tmp_path / "dropped.jsonl"
    succeeded(command(*select(by_hand, pairs, "--dropped", dropped, "--set", "length_penalty.mode=none")))
    found = [(row.prompt_id, row.chosen, row.rejected, row.chosen_token_ids) for row in read_rows(pairs, Pair)]
    assert found == [
        ("p1", [{"role": "assistant", "content": "Porque sí."}], [{"role": "assistant", "content": "No lo sé."}], None),
        ("p2", [{"role": "assistant", "content": "Hoy"}], [{"role": "assistant", "content": "Mañana."}], None),
    ]
    assert [(row.prompt_id, row.reason) for row in read_rows(dropped, Dropped)] == [
        ("p3", "fewer than two usable responses (1 repeated)")
    ]


@pytest.mark.parametrize(
    ("table", "change", "parts"),
    [
        ("scores", lambda rows: rows[1:], ["no score", "'p1'", "sample"]),
        ("scores", lambda rows: rows + rows[-1:], ["scores.jsonl", "row 9", "p3"]),
        ("responses", lambda rows: rows[1:], ["1 scores have no response", "'p1'"]),
        ("prompts", lambda rows: rows[1:], ["no prompt", "'p1'"]),
        ("responses", lambda rows: [{**row, "text": None} for row in rows], ["responses.jsonl, row 1", "text"]),
        ("scores", lambda rows: [{"prompt_id": "p1", "language": "es"}], ["scores.jsonl", "no column"]),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    command: Run, by_hand: dict[str, Path], tmp_path: Path, table: str, change: Any, parts: list[str]
) -> None:
    path = by_hand[table]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = lines[::-1] if table == "scores" else lines
    write_lines(path, change(lines))
    assert_one_message(command(*select(by_hand, tmp_path / "pairs.jsonl")), *parts)
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.fixture
def pairs_by_hand(tmp_path: Path) -> Path:
    table = [
        {
            "prompt_id": name,
            "prompt": [{"role": "user", "content": instruction}],
            "chosen": [{"role": "assistant", "content": answers[0]}],
            "rejected": [{"role": "assistant", "content": answers[1]}],
        }
        for name, instruction, answers, _ in SPANISH[:2]
    ]
    return write_lines(tmp_path / "pairs.jsonl", table)


def test_train_goes_on_after_a_kill_but_never_from_checkpoints_of_other_pairs(
    command: Run, content: dict[str, Any], done: Path, pairs_by_hand: Path, forks: ForkServer, tmp_path: Path
) -> None:
    """Killed, then started with other pairs, then with the first ones, beside somebody's own file."""
    out, model = tmp_path / "out", content["models"]["policy"]
    options = ["--model", model, "--out", out, *settings(content, "train"), "--set", "train.epochs=4"]
    from_run = tmp_path / "run_pairs.jsonl"
    write_lines(from_run, [asdict(row) for row in rows(done / "iteration_1" / "pairs")])
    process = forks.spawn("train", "--pairs", from_run, *options, log=tmp_path / "log")
    process.kill_when(lambda: list(tmp_path.glob("out.checkpoints/*/checkpoint-2/*complete")))
    assert not out.exists()
    [first] = (tmp_path / "out.checkpoints").iterdir()
    mine = first.with_name("mine.txt")
    mine.write_text("mine")

    results = {}
    for name, pairs in (("other", pairs_by_hand), ("first", from_run)):
        assert command("train", "--pairs", pairs, *options)[0] == 0
        AutoModelForCausalLM.from_pretrained(out)
        results[name] = load_file(out.rename(tmp_path / name) / "model.safetensors")
        assert set(mine.parent.iterdir()) == ({first, mine} if name == "other" else {mine})
    for name, pairs in (("other", pairs_by_hand), ("first", from_run)):
        fresh = tmp_path / f"fresh_{name}"
        assert command("train", "--pairs", pairs, *options, "--out", fresh)[0] == 0
        assert not fresh.with_name(f"{fresh.name}.checkpoints").exists()
        expected = load_file(fresh / "model.safetensors")
        assert all(torch.equal(results[name][key], tensor) for key, tensor in expected.items())
    answer = command("train", "--pairs", from_run, *options, "--out", tmp_path / "first")
    assert_one_message(answer, str(tmp_path / "first"), "is there already")


def test_train_says_which_pairs_were_too_long_and_keeps_its_losses(
    command: Run, content: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    pairs, out = rows(done / "iteration_1" / "pairs"), tmp_path / "out"
    longer = replace(pairs[0], chosen_token_ids=[*(pairs[0].chosen_token_ids or []), *[9] * 300])
    write_lines(tmp_path / "pairs.jsonl", [asdict(row) for row in [*pairs[1:], longer]])
    options = [*settings(content, "train"), "--set", "train.max_length=300"]
    model = content["models"]["policy"]
    answer = command("train", "--model", model, "--pairs", tmp_path / "pairs.jsonl", "--out", out, *options)
    assert f"1 of {len(pairs)} pairs" in "".join(succeeded(answer))
    figures = json.loads((tmp_path / "out.training.json").read_text())
    assert (figures["pairs"], figures["too_long"]) == (len(pairs) - 1, 1)
    assert [entry["loss"] > 0 for entry in figures["log"]] == [True] * figures["steps"]


def test_a_file_of_an_unknown_kind_is_refused(command: Run, by_hand: dict[str, Path], tmp_path: Path) -> None:
    code, _, errors = command(*select(by_hand, tmp_path / "pairs.csv"))
    assert (code, errors.count("must end with .parquet or .jsonl")) == (2, 1)  # before any work
    by_hand["responses"] = tmp_path / "gone.jsonl"
    assert_one_message(command(*select(by_hand, tmp_path / "pairs.jsonl")), "gone.jsonl")
    by_hand["responses"].write_text("")
    assert_one_message(command(*select(by_hand, tmp_path / "pairs.jsonl")), "gone.jsonl has no rows")
