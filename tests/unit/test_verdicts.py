"""The file of verdicts: append-only, found by key, and whole after a kill."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from crosspref.errors import DataError
from crosspref.run.verdicts import Verdict, VerdictLog, key_of, messages_digest
from crosspref.suites.judge.judge import Costs
from crosspref.suites.judge.questions import read_answer
from crosspref.suites.settings import JudgeSettings
from crosspref.suites.xalpaca.prompt import ask_about

DECODING = {"temperature": 1.0, "max_tokens": 1}


def verdict(text: str, judge: str = "j", value: float | None = 0.5) -> Verdict:
    messages = messages_digest([{"role": "user", "content": text}])
    key = key_of(judge, DECODING, messages)
    return Verdict(key, judge, DECODING, "2025-01-01", messages, "m", {"m": -0.1}, value, None, {"prompt_tokens": 3})


def write(path: Path, *verdicts: Verdict) -> None:
    log = VerdictLog.open(path)
    for one in verdicts:
        log.append(one)
    log.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "verdicts.jsonl"
    write(path, verdict("a"), verdict("¿qué? \ud800"))
    found = VerdictLog.open(path)
    assert list(found.verdicts.values()) == [verdict("a"), verdict("¿qué? \ud800")]
    assert found.judges() == ["j"]
    assert found.broken == 0


def test_each_verdict_is_in_the_file_at_once(tmp_path: Path) -> None:
    log = VerdictLog.open(tmp_path / "v.jsonl")
    for count in (1, 2, 3):
        log.append(verdict(str(count)))
        assert len(VerdictLog.open(log.path).verdicts) == count


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_cut_in_half_is_ignored_and_swallows_no_other(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "v.jsonl"
    write(path, verdict("a"), verdict("b"))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept].removesuffix(b"}" if kept == -1 else b""))
    log = VerdictLog.open(path)
    assert (list(log.verdicts), log.broken) == ([verdict("a").key], 1)
    log.append(verdict("c"))
    log.close()
    found = VerdictLog.open(path)
    assert [row.key for row in found.verdicts.values()] == [verdict("a").key, verdict("c").key]


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    write(path, verdict("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(path, verdict("b"))
    assert len(VerdictLog.open(path).verdicts) == 2


def test_of_two_with_one_key_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    write(path, verdict("a", value=0.25), verdict("a", value=0.75))
    assert [row.verdict for row in VerdictLog.open(path).verdicts.values()] == [0.25]
    assert len(path.read_bytes().splitlines()) == 2


def test_a_line_whose_key_is_not_its_own_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    write(path, verdict("a"))
    path.write_text(path.read_text().replace('"judge": "j"', '"judge": "another"'))
    log = VerdictLog.open(path)
    assert (log.verdicts, log.broken) == ({}, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"usage": {"prompt_tokens": 1.5}},
        {"logprobs": {"m": "-0.1"}},
        {"verdict": True},
        {"date": None},
    ],
)
def test_a_line_with_other_types_is_no_verdict(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    line = asdict(verdict("a")) | change
    path.write_text(json.dumps(line) + "\n" + json.dumps(asdict(verdict("b"))) + "\n", encoding="utf-8")
    log = VerdictLog.open(path)
    assert (list(log.verdicts), log.broken) == ([verdict("b").key], 1)


def test_impossible_numbers_of_a_file_are_no_verdict(tmp_path: Path) -> None:
    """A file to replay may come from anybody."""
    question = ask_about("Say hello.", "Hello!", "Hi!")
    path = tmp_path / "v.jsonl"
    for value in (math.nan, math.inf, 0.5):
        path.write_text(json.dumps(asdict(verdict("a")) | {"logprobs": {"m": value, "M": -2.0}, "verdict": 0.9}) + "\n")
        [found] = VerdictLog.open(path).verdicts.values()
        read = read_answer(found, question, by_logprobs=True)
        assert (read.verdict, read.failure) == (None, "impossible log-probabilities")


def test_impossible_counts_of_a_file_cost_nothing() -> None:
    costs = Costs(JudgeSettings(price_in=1e6, price_out=1e6, budget=10.0))
    for usage in (
        {"prompt_tokens": -5, "completion_tokens": 2},
        {"prompt_tokens": 10**12},
        {"completion_tokens": True},
    ):
        costs.count(usage)
    assert costs.spent == 2.0


def test_the_key_follows_judge_decoding_and_messages() -> None:
    messages = messages_digest([{"role": "user", "content": "a"}])
    keys = {
        key_of("j", DECODING, messages),
        key_of("k", DECODING, messages),
        key_of("j", {**DECODING, "max_tokens": 2}, messages),
        key_of("j", DECODING, messages_digest([{"role": "system", "content": "a"}])),
        key_of("j", DECODING, messages_digest([{"role": "user", "content": "b"}])),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("content", ["[1]\n3\n", json.dumps({"key": "x"}) + "\n", "prose\n"])
def test_a_file_to_replay_must_hold_verdicts(tmp_path: Path, content: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="holds no verdict"):
        VerdictLog.open(path, writable=False)
    with pytest.raises(DataError, match="cannot be read"):
        VerdictLog.open(tmp_path / "none.jsonl", writable=False)
