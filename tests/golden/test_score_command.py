"""``crosspref score`` on files: the folder of a run, its own table, and the flips against the paper's scripts."""

from dataclasses import replace
from pathlib import Path

import naive
import pytest
import torch

from crosspref.cli import main
from crosspref.data.records import Response, Score, Translation
from crosspref.data.tables import read_rows, write_rows
from crosspref.errors import DataError

Models = dict[str, tuple[Path, Path]]
# Of different lengths, so that rows are padded, and two of them cut.
TEXTS = [
    "Sí.",
    "No, y otra vez no.",
    "Quizás, pero sólo si llueve mañana por la tarde.",
    "Hoy",
    "¿Por qué?",
    "Ya lo sé.",
]
RESPONSES = [
    Response(f"p{prompt}", language, sample, TEXTS[(2 * prompt + sample) % 6], None, reason, None)
    for language in ("es", "en")
    for prompt in range(4)
    for sample, reason in enumerate(["stop", "length", "stop"])
]


@pytest.fixture
def arguments(tiny_models: Models, tmp_path: Path) -> list[str]:
    """Responses as a run leaves them: shards in one folder per language, in another order than the languages' names."""
    lines = [f'{{"prompt_id": "p{n}", "en": "Why {"so " * n}?", "es": "¿Por qué {n}?"}}\n' for n in range(5)]
    (tmp_path / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    for number, start in enumerate(range(0, 24, 6)):
        part = RESPONSES[start : start + 6]
        write_rows(tmp_path / "responses" / part[0].language / f"{number:08d}.parquet", part, Response)
    return ["score", "--prompts", str(tmp_path / "prompts.jsonl"), "--responses", str(tmp_path / "responses")]


def models(tiny_models: Models) -> list[str]:
    initial, aligned = tiny_models["llama"]
    resources = [f"resources.{item}" for item in ("device=cpu", "dtype=float32", "threads=1")]
    return ["--policy", str(aligned), "--reference", str(initial), *(p for item in resources for p in ("--set", item))]


def scored(path: Path, *command: str) -> list[Score]:
    assert main([*command, "--out", str(path)]) == 0
    return read_rows(path, Score)


def test_compare_writes_what_was_asked_and_shows_the_flips(
    tiny_models: Models, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments, *models(tiny_models)]
    exact = scored(tmp_path / "exact.parquet", *given)
    assert [(row.language, row.prompt_id, row.sample) for row in exact] == [
        (row.language, row.prompt_id, row.sample) for row in read_rows(tmp_path / "responses", Response)
    ]
    znlp = scored(tmp_path / "znlp.parquet", *given, "--set", "preset=znlp")
    assert all(one.implicit_reward != other.implicit_reward for one, other in zip(exact, znlp, strict=True))
    capsys.readouterr()

    tables = []
    for name, wanted, more in (("a", exact, []), ("b", znlp, ["--set", "preset=znlp"])):
        assert scored(tmp_path / f"{name}.parquet", *given, *more, "--compare", "znlp") == wanted
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        tables.append([line for line in printed if line[:1] in (["en"], ["es"])])
    assert tables[0] == tables[1]  # whichever of the two was asked for
    assert [line[:2] for line in tables[0]] == [["en", "4"], ["es", "4"]]  # and not the prompt that nobody answered
    assert all(len(line) == 11 for line in tables[0])


def test_batches_of_the_scripts_hold_one_language(tiny_models: Models, arguments: list[str], tmp_path: Path) -> None:
    """The fourth prompt of a language stands alone, though another language's prompts are read after it."""
    initial, aligned = tiny_models["llama"]
    found = scored(tmp_path / "out.parquet", *arguments, *models(tiny_models), "--set", "preset=znlp")
    [row] = [row for row in found if (row.language, row.prompt_id, row.sample) == ("en", "p3", 0)]
    answer = next(other.text for other in RESPONSES if (other.language, other.prompt_id) == ("en", "p3"))
    prompt = naive.prompt_ids(aligned, "Why so so so ?")
    ids = naive.AutoTokenizer.from_pretrained(aligned)(answer, add_special_tokens=False)["input_ids"]
    sums = [naive.released_logprob(naive.load(path), prompt, ids, 2) for path in (aligned, initial)]
    assert [row.policy_logprob, row.reference_logprob] == pytest.approx(sums, abs=1e-4)
    assert row.implicit_reward == pytest.approx(sums[0] - sums[1], abs=1e-4)  # beta is left out


def test_rewards_without_a_reference(tiny_models: Models, arguments: list[str], tmp_path: Path) -> None:
    _, *rest = models(tiny_models)
    policy, _, _, *resources = rest
    given = [*arguments, "--policy", policy, *resources, "--set", "reward.algorithm=orpo"]
    rows = scored(tmp_path / "out.parquet", *given)
    assert {row.reference_logprob for row in rows} == {None}
    for row in rows:
        mean = torch.tensor(row.policy_logprob / row.tokens, dtype=torch.float64)
        assert row.implicit_reward == pytest.approx(float(torch.special.logit(mean.exp())), abs=1e-4)


def test_the_translated_reward(tiny_models: Models, arguments: list[str], tmp_path: Path) -> None:
    """What is scored is the translation, given the English prompt."""
    translations = [
        Translation(row.prompt_id, "es", row.sample, "en", "Yes" if row.sample else "", None, "stop", None)
        for row in RESPONSES[:12]
    ]
    translations[1] = replace(translations[1], failure="empty")
    write_rows(tmp_path / "translations.parquet", translations, Translation)
    given = [*arguments, *models(tiny_models), "--reward", "translated"]
    rows = scored(tmp_path / "out.parquet", *given, "--translations", str(tmp_path / "translations.parquet"))
    found = {(row.language, row.prompt_id, row.sample): row for row in rows}
    assert found["es", "p0", 1].implicit_reward is None
    yes = naive.AutoTokenizer.from_pretrained(tiny_models["llama"][0])("Yes", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model, prompt = naive.load(tiny_models["llama"][1]), naive.prompt_ids(tiny_models["llama"][1], "Why ?")
        expected = float(naive.sequence_logprob(model, prompt, [*yes, 2]))
    assert found["es", "p0", 2].policy_logprob == pytest.approx(expected, abs=1e-4)
    assert found["es", "p0", 2].characters == len(RESPONSES[2].text)


@pytest.mark.parametrize(
    ("drop", "more", "said"),
    [
        ((), ["--compare", "znlp", "--reward", "translated"], "--compare is for the rewards crosslingual and mult"),
        (
            (),
            ["--compare", "znlp", "--reward", "reward_model", "--set", "reward.reward_model=x"],
            "not for reward_model",
        ),
        ((), ["--compare", "znlp", "--set", "reward.algorithm=ipo"], "contradicts algorithm ipo"),
        (("--policy",), [], "needs --policy"),
        (("--reference",), [], "The reward that dpo leaves needs --reference"),
        ((), ["--set", "reward.algorithm=simpo"], "simpo has no reference"),
        ((), ["--reward", "translated"], "--translations TABLE goes with --reward translated"),
        ((), ["--translations", "x.jsonl"], "--translations TABLE goes with --reward translated"),
        ((), ["--reward", "reward_model"], "reward.reward_model"),
        ((), ["--responses", "."], "There is no .parquet file in the directory ."),
    ],
)
def test_what_does_not_fit_is_refused_before_any_model_is_loaded(
    tiny_models: Models,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drop: tuple[str, ...],
    more: list[str],
    said: str,
) -> None:
    given = models(tiny_models)
    for flag in drop:
        place = given.index(flag)
        del given[place : place + 2]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main([*arguments, *given, *more, "--out", str(tmp_path / "out.parquet")]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.parquet").exists()


def test_a_key_that_two_files_of_a_folder_share_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / "rows" / f"{name}.parquet", RESPONSES[:1], Response)
    with pytest.raises(DataError, match="rows, row 2:"):
        read_rows(tmp_path / "rows", Response)
