"""The judge over real sockets: nothing is asked twice, nothing is lost, and nothing is guessed."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_judge import TOKENS_IN, TOKENS_OUT, FakeJudge, make_judge, opinion
from fault_proxy import FaultProxy

from crosspref.errors import BudgetError, RecipeError, ServerError
from crosspref.run.verdicts import Verdict, VerdictLog
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.questions import Question
from crosspref.suites.xalpaca.prompt import ask_about

pytest.importorskip("openai")

KEY = "sk-secret-of-the-judge"
QUESTIONS = [ask_about(f"Instruction {number}", f"theirs {number}", f"ours {number}") for number in range(12)]
PRICES = {"price_in": 1000.0, "price_out": 2000.0}  # of a million: an answer costs 0.102
COST = (TOKENS_IN * PRICES["price_in"] + TOKENS_OUT * PRICES["price_out"]) / 1e6


def said(judge: Judge) -> str:
    text = judge.reporter.console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def values(verdicts: list[Verdict | None]) -> list[float | None]:
    return [verdict and verdict.verdict for verdict in verdicts]


def chances(questions: list[Question] = QUESTIONS) -> list[float]:
    return [opinion([dict(message) for message in question.messages]) for question in questions]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.jsonl"


def test_by_logprobs(path: Path) -> None:
    with FakeJudge(known_as="j-2025-01-01") as server:
        judge = make_judge(path, server.url)
        found = judge.ask(QUESTIONS)
    assert values(found) == pytest.approx(chances(), abs=1e-12)
    assert len(server.asked) == len(QUESTIONS)
    for body in server.asked:
        assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1.0, 1, True, 5)
    about = judge.describe()
    assert (about["judge"], about["answered_as"], about["failed"]) == ("j", ["j-2025-01-01"], 0)
    assert about["decoding"] == [{"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["usage"]["prompt_tokens"] for line in lines] == [TOKENS_IN] * len(QUESTIONS)
    assert all(math.isclose(sum(map(math.exp, line["logprobs"].values())), 1, abs_tol=1e-5) for line in lines)


def test_fields_that_a_server_wants_are_sent_and_are_part_of_the_key(path: Path) -> None:
    wanted = {"max_tokens": None, "max_completion_tokens": 40, "chat_template_kwargs": {"enable_thinking": False}}
    with FakeJudge() as server:
        plain = make_judge(path, server.url, protocol="text").ask(QUESTIONS[:2])
        judge = make_judge(path, server.url, protocol="text", request=wanted)
        found = judge.ask(QUESTIONS[:2])
        assert len(server.asked) == 4
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.asked] == [
        *[(True, None)] * 2, *[(False, 40)] * 2,
    ]  # fmt: skip
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.asked[2:])
    assert not {verdict.key for verdict in plain if verdict} & {verdict.key for verdict in found if verdict}
    sent = {"temperature": 0.0, **{name: value for name, value in wanted.items() if value is not None}}
    assert judge.describe()["decoding"] == [sent]
    assert make_judge(path, protocol="text", request=wanted, replayed=True).ask(QUESTIONS[:2]) == found


@pytest.mark.parametrize("refuses", [False, True])
def test_by_text_where_there_are_no_logprobs_found_out_by_one_question(path: Path, refuses: bool) -> None:
    with FakeJudge(logprobs=False, refuses=refuses) as server:
        judge = make_judge(path, server.url)
        found = judge.ask(QUESTIONS)
    assert values(found) == [1.0 if chance >= 0.5 else 0.0 for chance in chances()]
    assert len(server.asked) == len(QUESTIONS) + 1
    assert [bool(body.get("logprobs")) for body in server.asked] == [True] + [False] * len(QUESTIONS)
    assert "Its choices are read from its text, as 1 or 0." in said(judge)


def test_logprobs_that_are_asked_for_and_not_given_are_an_error(path: Path) -> None:
    with FakeJudge(logprobs=False) as server, pytest.raises(ServerError, match="set it to auto or text"):
        make_judge(path, server.url, protocol="logprobs").ask(QUESTIONS)
    assert len(server.asked) == 1
    assert not path.exists()


def test_nothing_is_asked_twice(path: Path) -> None:
    with FakeJudge() as server:
        first = make_judge(path, server.url).ask([*QUESTIONS[:6], *QUESTIONS[:3]])
        assert len(server.asked) == 6
        second = make_judge(path, server.url)
        found = second.ask(QUESTIONS)
        assert len(server.asked) == len(QUESTIONS)
        second.ask(QUESTIONS)
        assert len(server.asked) == len(QUESTIONS)
        other = make_judge(path, server.url, model="another")
        other.ask(QUESTIONS[:2])
        assert len(server.asked) == len(QUESTIONS) + 2
    assert first == [*found[:6], *found[:3]]
    assert len(set(server.questions())) == len(QUESTIONS)


ODD = {
    "theirs 1<": "Model m gives the more helpful answer, because it is right.",
    "theirs 3<": "Modell M ist besser, weil es höflich antwortet.",
    "theirs 5<": "I'm sorry, but I can't help with that.",
    "theirs 7<": '{"better": "m',
    "theirs 9<": "",
}


@pytest.mark.parametrize("protocol", ["text", "logprobs"])
def test_what_cannot_be_read_is_kept_counted_and_not_asked_again(path: Path, protocol: str) -> None:
    odd = {text.replace("<", "\\n"): said for text, said in ODD.items()}
    with FakeJudge(odd=odd) as server:
        judge = make_judge(path, server.url, protocol=protocol)
        found = judge.ask(QUESTIONS)
        again = make_judge(path, server.url, protocol=protocol).ask(QUESTIONS)
        assert len(server.asked) == len(QUESTIONS)
    assert again == found
    failed = [number for number, verdict in enumerate(found) if verdict and verdict.verdict is None]
    assert failed == [1, 3, 5, 7, 9]
    kinds = ["no label", "no label", "no label", "half JSON", "empty"] if protocol == "text" else ["no label"] * 5
    assert [verdict.failure for verdict in found if verdict and verdict.failure] == kinds
    assert judge.describe()["failed"] == 5
    stored = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {line["text"] for line in stored} >= {said for said in ODD.values() if said}


def message(content: Any, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"content": content, **more}, "finish_reason": finish_reason, "logprobs": None}


ALONE = {"logprobs": {"content": [{"token": "M", "logprob": -0.1, "top_logprobs": None}]}}


@pytest.mark.parametrize(
    ("protocol", "said", "verdict", "failure"),
    [
        ("text", message(None), None, "empty"),
        ("text", message(None, "length", reasoning_content="First I compare"), None, "cut off"),
        ("text", message([]), None, "empty"),
        ("text", message(None, "content_filter"), None, "refusal"),
        ("text", message(None, refusal="I would rather not."), None, "refusal"),
        ("text", message([{"type": "thinking", "thinking": "M is longer"}, {"type": "text", "text": "M"}]), 0.0, None),
        ("text", message("m", "an unknown reason"), 1.0, None),
        ("text", {"message": {}, "logprobs": {"content": []}}, None, "empty"),
        ("logprobs", ALONE, 0.0, None),
    ],
)
def test_an_odd_answer_is_read_or_has_failed_and_is_not_asked_for_again(
    path: Path, protocol: str, said: dict[str, Any], verdict: float | None, failure: str | None
) -> None:
    with FakeJudge(odd={"theirs 0\\n": said}) as server:
        found = make_judge(path, server.url, protocol=protocol).ask(QUESTIONS[:2])
        assert make_judge(path, server.url, protocol=protocol).ask(QUESTIONS[:2]) == found
        assert len(server.asked) == 2
    assert found[0] is not None
    assert (found[0].verdict, found[0].failure) == (verdict, failure)
    assert found[1] is not None
    assert found[1].failure is None


def test_a_server_in_trouble_is_asked_again_and_every_verdict_comes(path: Path) -> None:
    with FakeJudge() as server, FaultProxy(server.url, share=0.6, seed=3, most=2, delay=0.05) as proxy:
        judge = make_judge(path, proxy.url, retries=6)
        found = judge.ask(QUESTIONS)
    assert values(found) == pytest.approx(chances(), abs=1e-12)
    assert {"429", "500", "503"} & set(proxy.injected)
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(QUESTIONS)


def test_a_server_that_stays_down_loses_nothing(path: Path) -> None:
    with FakeJudge() as server:
        with FaultProxy(server.url, ("500",), share=0.5, seed=1, most=99) as proxy, pytest.raises(ServerError):
            make_judge(path, proxy.url, retries=0, concurrency=2).ask(QUESTIONS)
        kept = len(VerdictLog.open(path).verdicts) if path.exists() else 0
        asked = len(server.asked)
        assert kept == asked < len(QUESTIONS)
        make_judge(path, server.url).ask(QUESTIONS)
    assert len(server.asked) == len(QUESTIONS)


def test_the_budget_stops_before_it_is_exceeded_and_a_larger_one_goes_on(path: Path) -> None:
    with FakeJudge() as server:
        judge = make_judge(path, server.url, budget=5.5 * COST, concurrency=4, **PRICES)
        with pytest.raises(BudgetError, match=r"with a larger judge\.budget") as caught:
            judge.ask(QUESTIONS)
        kept = len(VerdictLog.open(path).verdicts)
        assert 1 <= kept <= 5
        assert len(server.asked) == kept
        assert judge.costs.spent == pytest.approx(kept * COST)
        assert f"{len(QUESTIONS) - kept} questions are left" in str(caught.value)
        # What was spent before counts: nothing more is within the same budget than there was room for.
        with pytest.raises(BudgetError):
            make_judge(path, server.url, budget=5.5 * COST, concurrency=4, **PRICES).ask(QUESTIONS)
        assert len(server.asked) <= 5
        judge = make_judge(path, server.url, budget=100 * COST, **PRICES)
        found = judge.ask(QUESTIONS)
    assert values(found) == pytest.approx(chances(), abs=1e-12)
    assert len(server.asked) == len(set(server.questions())) == len(QUESTIONS)
    assert judge.costs.spent == pytest.approx(len(QUESTIONS) * COST)


def test_the_price_is_estimated_before_anything_is_asked(path: Path) -> None:
    judge = make_judge(path, retries=0, **PRICES)
    with pytest.raises(ServerError):  # nobody is there
        judge.ask(QUESTIONS)
    characters = sum(len(message["content"]) for question in QUESTIONS for message in question.messages)
    money = (characters / 4 * PRICES["price_in"] + 16 * len(QUESTIONS) * PRICES["price_out"]) / 1e6
    assert f"12 questions, about {characters / 4:,.0f} tokens to read and at most 192 to write (an estimate" in said(
        judge
    )
    assert f"about {money:,.2f}" in said(judge)


@pytest.mark.parametrize("usage", [False, {"prompt_tokens": None}, {"prompt_tokens": None, "completion_tokens": None}])
def test_tokens_that_are_not_reported_are_counted_as_expected(path: Path, usage: Any) -> None:
    with FakeJudge(usage=usage) as server:
        judge = make_judge(path, server.url, **PRICES)
        judge.ask(QUESTIONS[:2])
    assert judge.costs.spent > 0
    assert make_judge(path, server.url, **PRICES).costs.spent == pytest.approx(judge.costs.spent)
    assert all(verdict.usage["estimated"] for verdict in VerdictLog.open(path).verdicts.values())


def test_replaying_asks_nobody_and_says_what_is_lacking(path: Path) -> None:
    with FakeJudge() as server:
        first = make_judge(path, server.url).ask(QUESTIONS[:8])
    before = path.read_bytes()
    judge = make_judge(path, replayed=True, model=None)  # its name is in the file
    found = judge.ask(QUESTIONS)
    assert found == [*first, None, None, None, None]
    assert judge.lacking == judge.describe()["lacking"] == 4
    assert "lacks the verdicts of j on 4 of 12 questions" in said(judge)
    assert path.read_bytes() == before
    assert make_judge(path, replayed=True, model="another").ask(QUESTIONS) == [None] * len(QUESTIONS)


def test_a_judge_needs_a_name(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"set judge\.model"):
        make_judge(path, model=None)


def test_the_key_reaches_the_server_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", KEY)
    with FakeJudge() as server:
        judge = make_judge(path, server.url, key_variable="MY_JUDGE_KEY")
        judge.ask(QUESTIONS[:2])
    assert server.keys == {f"Bearer {KEY}"}
    for text in (path.read_text(encoding="utf-8"), said(judge), caplog.text, json.dumps(judge.describe())):
        assert KEY not in text


@pytest.mark.parametrize("protocol", ["auto", "logprobs", "text"])
def test_a_question_that_the_server_refuses_is_counted_also_when_it_is_the_first(path: Path, protocol: str) -> None:
    with FakeJudge(unwilling="theirs 0") as server:
        judge = make_judge(path, server.url, protocol=protocol)
        found = judge.ask(QUESTIONS)
        assert [number for number, verdict in enumerate(found) if verdict and verdict.failure] == [0]
        assert "Its choices are read from its text" not in said(judge)
        asked = len(server.asked)
        assert make_judge(path, server.url, protocol=protocol).ask(QUESTIONS) == found
        assert len(server.asked) == asked
        # Alone in a later round, it is known that others were taken.
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["text"]]
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        assert make_judge(path, server.url, protocol=protocol).ask(QUESTIONS)[0] == found[0]


def test_a_server_that_refuses_every_question_is_an_error(path: Path) -> None:
    with FakeJudge(unwilling="Instruction") as server:
        with pytest.raises(ServerError, match="the prompt is too long"):
            make_judge(path, server.url, protocol="text").ask(QUESTIONS)
        assert len(server.asked) == 5
    assert not path.exists()


def test_what_is_asked_beside_the_question_counts_for_the_budget(path: Path) -> None:
    request, most = {"max_tokens": None, "max_completion_tokens": 4000}, 4000 * PRICES["price_out"] / 1e6
    with FakeJudge() as server:
        judge = make_judge(path, server.url, request=request, budget=most, **PRICES)
        with pytest.raises(BudgetError):
            judge.ask(QUESTIONS[:2])
        assert not server.asked
        assert "at most 8,000 to write" in said(judge)
        assert None not in make_judge(path, server.url, request=request, budget=2 * most, **PRICES).ask(QUESTIONS[:2])


def test_an_answer_that_cannot_be_used_is_paid_for_and_counted(path: Path) -> None:
    class Nothing(FakeJudge):
        def answer(self, body: dict[str, Any]) -> dict[str, Any]:
            return super().answer(body) | {"choices": []}

    with Nothing() as server:
        judge = make_judge(path, server.url, protocol="text", retries=1, **PRICES)
        [verdict] = judge.ask(QUESTIONS[:1])
        assert len(server.asked) == 2
        assert make_judge(path, server.url, protocol="text", **PRICES).ask(QUESTIONS[:1]) == [verdict]
        assert len(server.asked) == 2
    assert verdict is not None
    assert (verdict.verdict, verdict.failure) == (None, "no usable answer")
    assert judge.costs.spent == pytest.approx(2 * COST)
    assert make_judge(path, **PRICES).costs.spent == pytest.approx(2 * COST)  # what it took is stored with it


def test_an_error_in_between_keeps_what_was_paid_for(path: Path) -> None:
    broken = ask_about("Half a character", "\ud83d", "ours")
    with FakeJudge(delay=0.1) as server:
        with pytest.raises(UnicodeEncodeError):
            make_judge(path, server.url, concurrency=4).ask([*QUESTIONS[:4], broken])
        assert len(VerdictLog.open(path).verdicts) == len(server.asked) >= 1


@pytest.mark.parametrize("key", ["sk-secret\u201d", "sk-sec\nret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", key)
    with pytest.raises(ServerError, match="MY_JUDGE_KEY has characters that no key has") as caught:
        make_judge(path, key_variable="MY_JUDGE_KEY").ask(QUESTIONS[:1])
    assert key not in str(caught.value)
    monkeypatch.setenv("MY_JUDGE_KEY", f"{KEY}\r\n")
    with FakeJudge() as server:
        make_judge(path, server.url, key_variable="MY_JUDGE_KEY").ask(QUESTIONS[:1])
    assert server.keys == {f"Bearer {KEY}"}


def test_what_goes_wrong_names_the_settings_of_the_judge(path: Path) -> None:
    with FakeJudge() as server, pytest.raises(ServerError) as caught:
        make_judge(path, server.url.removesuffix("/v1"), retries=0).ask(QUESTIONS)
    said = str(caught.value)
    assert "Check judge.url" in said
    assert f"--judge replay {path} for the tables of what there is" in said
    assert "shards" not in said
