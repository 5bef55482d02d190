"""Servers that are hostile or broken, over real sockets: one error in time, nothing impossible taken for an answer.

`hostile_server` has all that they do; here are the sharpest, asked by a judge, a sampler and a scorer.
"""

import io
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hostile_server
import pytest
from hostile_server import FORMS, OF_STATUS, OF_THE_BODY, OF_THE_WIRE, HostileServer, drawn
from rich.console import Console

from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.server.sampler import ServerSampler
from crosspref.engines.server.scorer import ServerScorer
from crosspref.errors import ServerError
from crosspref.keys import without_key
from crosspref.models.locate import locate_model
from crosspref.protocols import Sampled
from crosspref.recipe.sections import ResourceSettings, SampleSettings, ServerSettings
from crosspref.run.progress import Reporter
from crosspref.run.verdicts import Verdict, VerdictLog
from crosspref.suites.judge.judge import Judge
from crosspref.suites.settings import JudgeSettings
from crosspref.suites.xalpaca.prompt import ask_about

pytest.importorskip("openai")
pytestmark = pytest.mark.slow  # it waits for servers that do not answer

Pair = tuple[Path, Path]
KEY = "sk-live-aB3dE/fG+hIjK_0123456789"
QUESTIONS = [ask_about(f"Instruction {number}", f"theirs {number}", f"ours {number}") for number in range(3)]
ASKING = {"key_variable": "HOSTILE_KEY", "retries": 0, "timeout": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE_KEY", KEY)


def make_judge(path: Path, url: str, **settings: Any) -> Judge:
    reporter = Reporter(Console(file=io.StringIO(), width=400))
    return Judge(JudgeSettings(**{"model": "j", "url": url, **ASKING, **settings}), VerdictLog.open(path), reporter)


def asked(path: Path, url: str, **settings: Any) -> list[Verdict]:
    return [verdict for verdict in make_judge(path, url, **settings).ask(QUESTIONS) if verdict is not None]


@pytest.mark.parametrize("behaviour", [*OF_THE_WIRE, *OF_STATUS, *OF_THE_BODY])
def test_what_is_no_answer_is_one_error_in_time(behaviour: str, server: HostileServer, tmp_path: Path) -> None:
    path, started = tmp_path / "verdicts.jsonl", time.monotonic()
    if behaviour == "another type":
        assert [verdict.failure for verdict in asked(path, server.address(behaviour))] == [None] * 3
        return
    with pytest.raises(ServerError) as caught:
        asked(path, server.address(behaviour))
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 2000
    assert without_key(str(caught.value), KEY) == str(caught.value)
    assert server.asked["landed"] == 0
    assert not path.exists()


def test_a_redirect_says_where_to(server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"307.*/landed/v1.*judge\.url"):
        asked(tmp_path / "verdicts.jsonl", server.address("redirect to another host"))


def test_the_time_limit_is_for_each_attempt(server: HostileServer, tmp_path: Path) -> None:
    before, started = server.asked["drip body"], time.monotonic()
    with pytest.raises(ServerError, match=r"within 0\.3 s"):
        asked(tmp_path / "verdicts.jsonl", server.address("drip body"), timeout=0.3, retries=1)
    assert server.asked["drip body"] - before == 2
    assert 0.6 < time.monotonic() - started < 4


ANSWERED = {
    "no choices": "no usable answer",
    "two choices": "no usable answer",
    "choices are object": "no usable answer",
    "index is 7": "no usable answer",
    "message is null": "no usable answer",
    "content is 7": "no usable answer",
    "logprobs are text": "no usable answer",
    "a logprob is NaN": "impossible log-probabilities",
    "the other logprob is NaN": "impossible log-probabilities",
    "a logprob is 1e999": "impossible log-probabilities",
    "a logprob is above 0": "impossible log-probabilities",
    "a logprob is text": "impossible log-probabilities",
    "a logprob is true": "impossible log-probabilities",
    "a logprob is null": "impossible log-probabilities",
    "both logprobs are -Infinity": "no label",
    "text of brackets": "half JSON",
    "text of many megabytes": "no label",
}


@pytest.mark.parametrize("behaviour", ANSWERED)
def test_a_judges_nonsense_is_kept_counted_and_not_asked_for_again(
    behaviour: str, server: HostileServer, tmp_path: Path
) -> None:
    path, url = tmp_path / "verdicts.jsonl", server.address(behaviour)
    protocol = "text" if behaviour.startswith(("text", "content")) else "logprobs"
    found = asked(path, url, protocol=protocol, timeout=30.0)
    assert [(verdict.verdict, verdict.failure) for verdict in found] == [(None, ANSWERED[behaviour])] * 3
    before = server.asked[behaviour]
    assert asked(path, url, protocol=protocol) == found
    assert server.asked[behaviour] == before
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_judge_of_nothing_but_nonsense_is_asked_five_times(server: HostileServer, tmp_path: Path) -> None:
    questions = [ask_about(f"Instruction {number}", "theirs", "ours") for number in range(7)]
    path, before = tmp_path / "verdicts.jsonl", server.asked["no choices"]
    with pytest.raises(ServerError, match="no answer that can be used"):
        make_judge(path, server.address("no choices"), protocol="text").ask(questions)
    assert server.asked["no choices"] - before == 5
    assert len(VerdictLog.open(path).verdicts) == 5
    assert len(make_judge(path, server.address("no choices"), protocol="text").ask(questions)) == 7


@pytest.mark.parametrize("protocol", ["auto", "text"])
def test_nonsense_between_answers_costs_itself_alone(protocol: Any, server: HostileServer, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    for number, behaviour in enumerate(("no choices", "fine", "no choices")):
        make_judge(path, server.address(behaviour), protocol=protocol).ask(QUESTIONS[number : number + 1])
    found = asked(path, "http://127.0.0.1:9/v1", protocol=protocol)
    assert [verdict.failure for verdict in found] == ["no usable answer", None, "no usable answer"]


@pytest.mark.parametrize("name", ["NaN", "-1", "1.5", "10^30", "true", "text", "list", "object"])
@pytest.mark.parametrize("what", ["usage is", "tokens read are", "tokens written are"])
def test_a_count_that_cannot_be_is_as_none(what: str, name: str, server: HostileServer, tmp_path: Path) -> None:
    prices = {"price_in": 1000.0, "price_out": 1000.0, "budget": 10.0}
    path, url = tmp_path / "verdicts.jsonl", server.address(f"{what} {name}")
    judge = make_judge(path, url, **prices)
    found = judge.ask(QUESTIONS)
    assert [verdict and verdict.failure for verdict in found] == [None] * 3
    assert all(verdict and verdict.usage["estimated"] for verdict in found)
    assert 0 < judge.costs.spent < 10
    assert make_judge(path, url, **prices).costs.spent == pytest.approx(judge.costs.spent)


PLACES = ("content", "refusal", "finish_reason", "model", "token", "header", "400", "401", "500", "page", "redirect")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [*PLACES, "status line"])
def test_a_key_that_a_server_repeats_reaches_nothing(
    place: str, form: str, server: HostileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = make_judge(tmp_path / "verdicts.jsonl", server.address(f"key {form} in {place}"))
    said = ""
    try:
        judge.ask(QUESTIONS)
    except ServerError as error:
        said = str(error)
    stored = [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()]
    assert said or stored
    screen = judge.reporter.console.file
    assert isinstance(screen, io.StringIO)
    for text in (said, *stored, screen.getvalue(), json.dumps(judge.describe()), caplog.text):
        assert without_key(text, KEY) == text


def settings(pair: Pair, url: str, protocol: str, tokens: int = 4) -> EngineSettings:
    return EngineSettings(
        sample=SampleSettings(max_new_tokens=tokens),
        resources=ResourceSettings(device="cpu", dtype="float32"),
        server=ServerSettings(url=url, protocol=protocol, **ASKING),
        roles={str(pair[0]): "pi_I", str(pair[1]): "pi_0"},
    )


def sample(pair: Pair, url: str, protocol: str = "tokens", tokens: int = 4) -> list[list[Sampled]]:
    with closing(ServerSampler(settings(pair, url, protocol, tokens), locate_model(str(pair[1])))) as sampler:
        return sampler.sample([("Hi!", [1, 2])], lambda *_: None)


def test_the_hostile_server_can_behave(models: Pair, server: HostileServer) -> None:
    [answers] = sample(models, server.address("fine"))
    assert [(answer.token_ids, answer.finish_reason) for answer in answers] == [
        ([hostile_server.TOKEN] * 4, "length")
    ] * 2
    assert [answer.text for answer in sample(models, server.address("fine"), "chat")[0]] == ["m", "m"]
    assert score(models, server.address("fine")) == -2.0


@pytest.mark.parametrize(
    ("protocol", "behaviour"),
    [
        *(("tokens", f"a token is {name}") for name in ("NaN", "-1", "1.5", "10^30", "5,000 digits", "true", "null")),
        *(("tokens", f"token_ids are {name}") for name in ("null", "7", "text", "object", "nested")),
        *(("tokens", name) for name in ("too few tokens", "too many tokens", "a million tokens", "another prompt")),
        *(("tokens", name) for name in ("ended in the middle", "stopped without an end", "index is 7", "two choices")),
        *(("tokens", name) for name in ("model is text", "model is null", "drip chunks", "gzip bomb", "endless body")),
        *(
            ("chat", name)
            for name in ("content is 7", "finish_reason is null", "index is -1", "tool calls", "only an error")
        ),
        *(("chat", name) for name in ("parts of unknown kinds", "half a surrogate pair", "choice is list")),
    ],
)
def test_an_impossible_answer_is_no_response(
    protocol: str, behaviour: str, models: Pair, server: HostileServer
) -> None:
    with pytest.raises(ServerError) as caught:
        sample(models, server.address(behaviour), protocol)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["NaN", "-1", "10^30", "true", "text", "list"])
def test_a_count_of_tokens_that_cannot_be_costs_no_response(name: str, models: Pair, server: HostileServer) -> None:
    [answers] = sample(models, server.address(f"tokens written are {name}"), "chat")
    assert [answer.text for answer in answers] == ["m", "m"]


def test_a_key_in_a_response(models: Pair, server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample(models, server.address("key as it is in content"), "chat")[0][0].text == "m ***"
    with closing(
        ServerSampler(settings(models, server.address("fine"), "tokens"), locate_model(str(models[1])))
    ) as made:
        ids = made.tokenizer.response_ids(KEY, ended=False)
    monkeypatch.setitem(hostile_server.BEHAVIOURS, "tokens that spell it", drawn(lambda _: ids))
    with pytest.raises(ServerError, match="answered with the key"):
        sample(models, server.address("tokens that spell it"), tokens=len(ids))


def score(pair: Pair, url: str) -> float:
    files = [locate_model(str(path)) for path in reversed(pair)]
    response = Response("p", "es", 0, "", [hostile_server.TOKEN] * 2, "length", None)
    with closing(ServerScorer(settings(pair, url, "tokens"), *files)) as scorer:
        [scored] = scorer.score("Hi!", [response])
    return scored.policy


@pytest.mark.parametrize(
    "behaviour",
    [
        *(f"a scored logprob is {name}" for name in hostile_server.NUMBERS),
        *("too few scored", "too many scored", "scored nothing", "scored another prompt", "scored another beginning"),
        *("prompt_logprobs are null", "prompt_logprobs are 7", "prompt_logprobs are object", "index is 7"),
    ],
)
def test_an_impossible_log_probability_is_no_score(behaviour: str, models: Pair, server: HostileServer) -> None:
    with pytest.raises(ServerError) as caught:
        score(models, server.address(behaviour))
    assert len(str(caught.value)) < 2000


POSSIBLE = {"context is null", "context is 7", "context is 10^30"}


@pytest.mark.parametrize("behaviour", [name for name in hostile_server.OF_THE_LIST if name not in POSSIBLE])
def test_a_list_of_models_that_makes_no_sense(
    behaviour: str, models: Pair, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosspref.engines.server.client.LOOK_UP", {"timeout": 1.0, "max_retries": 0})
    with pytest.raises(ServerError) as caught:
        sample(models, server.address(behaviour))
    said = str(caught.value)
    assert len(said) < 3000
    assert "\x1b" not in said
    assert KEY not in said
