"""The engine `server` over real sockets: its samples and scores are those of transformers, whatever goes wrong between.

Behind the fake server stand the real (tiny) models that transformers loads here.
"""

import asyncio
import logging
import math
import random
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_openai_server import FakeOpenAIServer
from fault_proxy import FAULTS, RETRY_AFTER, FaultProxy

from crosspref.data.records import Response, derive_seed
from crosspref.engines import EngineSettings
from crosspref.engines.server.client import KEPT
from crosspref.engines.server.sampler import ServerSampler
from crosspref.engines.server.scorer import ServerScorer
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.errors import ModelError, ServerError
from crosspref.models.locate import locate_model
from crosspref.protocols import LogProbs, Sampled
from crosspref.recipe.sections import AskingSettings, ResourceSettings, RewardSettings, SampleSettings, ServerSettings
from crosspref.run.kept import Kept, keeping
from crosspref.run.store import Fingerprint, Unit

pytest.importorskip("openai")

Answers = list[list[Sampled]]
Pair = tuple[Path, Path]
NATS = 1e-4  # per sequence
EOS, END = 1, 2
KEY = "sk-secret-1234"
RESOURCES = ResourceSettings(device="cpu", dtype="float32")
SAMPLE = SampleSettings(max_new_tokens=12)
HERE = EngineSettings(sample=SAMPLE, resources=RESOURCES)
INSTRUCTIONS = ["Hi!", "¿Qué es un volcán?", "Explain in three short sentences why the sky is blue."]
REQUESTS = [
    (text, [derive_seed(42, 1, f"p{index}", "es", sample) for sample in range(4)])
    for index, text in enumerate(INSTRUCTIONS)
]


@pytest.fixture(scope="module")
def server(models: Pair) -> Iterator[FakeOpenAIServer]:
    with FakeOpenAIServer({"pi_I": models[0], "pi_0": models[1]}) as server:
        yield server


@pytest.fixture
def _fresh(server: FakeOpenAIServer) -> Iterator[None]:
    """What a test changed about the server is set back."""
    yield
    server.changes, server.around, server.key, server.context = {}, {}, None, 1024


def engine_settings(pair: Pair, url: str, **settings: Any) -> EngineSettings:
    roles = {str(pair[0]): "pi_I", str(pair[1]): "pi_0"}
    return EngineSettings(sample=SAMPLE, resources=RESOURCES, server=ServerSettings(url=url, **settings), roles=roles)


def make_sampler(pair: Pair, url: str, greedy: bool = False, **settings: Any) -> ServerSampler:
    return ServerSampler(engine_settings(pair, url, **settings), locate_model(str(pair[1])), greedy=greedy)


def make_scorer(pair: Pair, url: str, *, reward: RewardSettings | None = None, **settings: Any) -> Any:
    files = [locate_model(str(path)) for path in reversed(pair)]
    return ServerScorer(replace(engine_settings(pair, url, **settings), reward=reward or RewardSettings()), *files)


def draw(sampler: Any, requests: Any = REQUESTS) -> Answers:
    with closing(sampler):
        found: Answers = sampler.sample(requests, lambda *_: None)
    return found


def ids(count: int, seed: int) -> list[int]:
    stream = random.Random(seed)
    return [stream.randrange(6, 380) for _ in range(count)]


def response(token_ids: list[int] | None, finish_reason: Any = "stop", text: str = "") -> Response:
    return Response("p", "es", 0, text, token_ids, finish_reason, None)


RESPONSES = [
    response([*ids(30, 1), END]),
    response([*ids(9, 2), EOS]),
    response(ids(12, 3), "length"),
    response([END]),
    response([], "length"),
    response(None, "stop", "Una frase, con acentos: ¿qué tal?"),
]


def score(scorer: Any, instruction: str = INSTRUCTIONS[1]) -> list[LogProbs]:
    with closing(scorer):
        found: list[LogProbs] = scorer.score(instruction, RESPONSES)
    return found


@pytest.fixture(scope="module")
def expected(models: Pair) -> Answers:
    return draw(TransformersSampler(HERE, locate_model(str(models[1]))))


@pytest.mark.usefixtures("_fresh")
def test_samples_are_those_of_transformers(models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    """Prompt, seed, end of turn and text: the fake draws as transformers' sampler does, from the ids it is sent."""
    server.asked.clear()
    steps: list[tuple[int, int]] = []
    sampler = make_sampler(models, server.url)
    found = sampler.sample(REQUESTS, lambda *step: steps.append(step))
    sampler.close()
    assert found == expected
    assert {row.finish_reason for rows in found for row in rows} == {"stop", "length"}
    assert sum(count for count, _ in steps) == 12
    assert sum(tokens for _, tokens in steps) == sum(len(row.token_ids or []) for rows in found for row in rows)
    # Nothing is left to the defaults of a server, which vLLM takes from the model's files.
    settings = {"temperature": 0.9, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    for body in server.asked:
        assert {name: body[name] for name in settings} == settings
        assert body["stop_token_ids"] == [EOS, END]
    assert sorted(body["seed"] for body in server.asked) == sorted(seed for _, seeds in REQUESTS for seed in seeds)


def test_greedy(models: Pair, server: FakeOpenAIServer) -> None:
    found = draw(make_sampler(models, server.url, greedy=True))
    assert found == draw(TransformersSampler(HERE, locate_model(str(models[1])), greedy=True))


@pytest.mark.usefixtures("_fresh")
def test_prompts_that_are_too_long_get_no_responses(models: Pair, server: FakeOpenAIServer) -> None:
    """By the context that the server says it was started with, if that is less than the model's own."""
    server.context = 40
    steps: list[int] = []
    sampler = make_sampler(models, server.url)
    assert sampler.longest_prompt == 28
    found = sampler.sample([(INSTRUCTIONS[0], [1]), ("x" * 100, [2, 3])], lambda count, _: steps.append(count))
    sampler.close()
    assert [len(rows) for rows in found] == [1, 0]
    assert steps == [2, 1]


def test_chat_brings_text_alone(models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    found = draw(make_sampler(models, server.url, protocol="chat"))
    assert [[(row.text, row.finish_reason) for row in rows] for rows in found] == [
        [(row.text, row.finish_reason) for row in rows] for rows in expected
    ]
    assert {row.token_ids for rows in found for row in rows} == {None}


def test_switches_of_the_template_are_the_servers_to_set_where_it_takes_messages(
    models: Pair, server: FakeOpenAIServer
) -> None:
    switches = AskingSettings(chat_template_kwargs={"enable_thinking": False})
    for protocol, sent in (("chat", {"enable_thinking": False}), ("tokens", None)):
        server.asked.clear()
        settings = replace(engine_settings(models, server.url, protocol=protocol), asking=switches)
        draw(ServerSampler(settings, locate_model(str(models[1]))))
        assert [body.get("chat_template_kwargs") for body in server.asked] == [sent] * len(server.asked)


@pytest.mark.parametrize("end_of_turn", ["if_stopped", "never"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_scores_are_those_of_transformers(
    kind: str, end_of_turn: Any, tiny_models: dict[str, Pair], server: FakeOpenAIServer
) -> None:
    pair, settings = tiny_models[kind], RewardSettings(end_of_turn=end_of_turn)
    server.add(f"pi_I {kind}", pair[0])
    server.add(f"pi_0 {kind}", pair[1])
    models = [locate_model(str(path)) for path in reversed(pair)]
    theirs = score(TransformersScorer(replace(HERE, reward=settings), *models))
    names = {"pi_I": f"pi_I {kind}", "pi_0": f"pi_0 {kind}"}
    ours = score(make_scorer(pair, server.url, reward=settings, names=names))
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    assert [row.policy for row in ours] == pytest.approx([row.policy for row in theirs], abs=NATS)
    assert [row.reference for row in ours] == pytest.approx([row.reference for row in theirs], abs=NATS)
    assert min(row.policy for row in ours) < -10


def test_without_a_reference(models: Pair, server: FakeOpenAIServer) -> None:
    both = score(make_scorer(models, server.url))
    alone = score(ServerScorer(engine_settings(models, server.url), locate_model(str(models[1])), None))
    assert alone == [LogProbs(row.policy, None, row.tokens) for row in both]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_got_over(fault: str, models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    """The first attempt of every request fails, that for the list of models too."""
    with FaultProxy(server.url, (fault,), most=1) as proxy:
        if fault == "no choices":
            proxy.seen[b"GET/v1/models"] = 1  # which has none
        assert draw(make_sampler(models, proxy.url)) == expected
        assert proxy.injected[fault] >= 12
        assert set(proxy.seen.values()) == ({1} if fault == "delay" else {2})


def test_mixed_faults_change_no_sample_and_no_score(models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    faults = tuple(fault for fault in FAULTS if fault != "no choices")
    with FaultProxy(server.url, faults, share=0.6, seed=3) as proxy:
        assert draw(make_sampler(models, proxy.url)) == expected
        assert score(make_scorer(models, proxy.url)) == score(make_scorer(models, server.url))
        assert len(proxy.injected) >= 6
        assert max(proxy.seen.values()) <= 3


def test_retry_after_is_kept_to(models: Pair, server: FakeOpenAIServer) -> None:
    sampler = make_sampler(models, server.url)
    with FaultProxy(server.url, ("429",), most=1) as proxy:
        sampler.model = sampler.client.find("pi_0", models[1])
        sampler.client.settings = ServerSettings(url=proxy.url)
        sampler.model = sampler.client.find("pi_0", models[1])
        proxy.times.clear()
        draw(sampler, [(INSTRUCTIONS[0], [1])])
        first, second = proxy.times
        assert RETRY_AFTER <= second - first < 0.37  # the client's own first wait is 0.375 s or longer


def test_a_slow_answer_is_asked_for_again(models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    with FaultProxy(server.url, ("delay",), most=1, delay=6.0) as proxy:
        proxy.seen[b"GET/v1/models"] = 9
        instruction, seeds = REQUESTS[1]
        assert draw(make_sampler(models, proxy.url, timeout=2.0), [(instruction, seeds[:1])]) == [expected[1][:1]]
        assert sorted(proxy.seen.values()) == [2, 10]


@pytest.mark.parametrize("fault", ["429", "500", "drop after", "half JSON", "no choices"])
def test_a_server_that_keeps_failing_is_given_up(fault: str, models: Pair, server: FakeOpenAIServer) -> None:
    with FaultProxy(server.url, (fault,), most=99) as proxy:
        proxy.seen[b"GET/v1/models"] = 99
        sampler = make_sampler(models, proxy.url, retries=1)
        with pytest.raises(ServerError, match="pi_0") as caught:
            draw(sampler, [(INSTRUCTIONS[0], [1])])
        assert proxy.url in str(caught.value)
        assert "Finished shards are kept" in str(caught.value)
        assert sorted(proxy.seen.values()) == [2, 100]


def test_answers_of_another_model_stop_at_once(models: Pair, server: FakeOpenAIServer) -> None:
    with FaultProxy(server.url, ("other model",)) as proxy:
        proxy.seen[b"GET/v1/models"] = 99
        with pytest.raises(ServerError, match="answered as 'another'"):
            draw(make_sampler(models, proxy.url), [(INSTRUCTIONS[0], [1])])
        assert sorted(proxy.seen.values()) == [1, 100]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("protocol", "changes", "said"),
    [
        ("tokens", {"token_ids": None}, "server.protocol: chat"),
        ("tokens", {"token_ids": [7, 384]}, "token 384 is not in the vocabulary"),
        ("tokens", {"token_ids": [7, -1]}, "token -1 is not in the vocabulary"),
        ("tokens", {"token_ids": [7, "8"]}, "choices.0.token_ids.1"),
        ("tokens", {"token_ids": [7, 8], "finish_reason": "length"}, "after 2 of 12 tokens by 'length'"),
        ("tokens", {"token_ids": [7, 8], "finish_reason": "stop"}, "by 'stop', which does not end a turn"),
        ("tokens", {"token_ids": [7, END, 8], "finish_reason": "stop"}, "has token 2 at place 1"),
        ("tokens", {"token_ids": [7], "finish_reason": "abort"}, "by 'abort'"),
        ("tokens", {"finish_reason": None}, "choices.0.finish_reason"),
        ("chat", {"message": {"role": "assistant", "content": 7}}, "choices.0.message.content"),
        ("chat", {"message": {"content": [{"type": "image_url"}]}}, "part of the kind 'image_url'"),
        ("chat", {"message": {"content": ["Hola."]}}, "choices.0.message.content"),
        ("chat", {"message": None}, "choices.0.message"),
        ("chat", {"finish_reason": None}, "choices.0.finish_reason"),
        ("chat", {"finish_reason": "tool_calls", "message": {"content": None}}, "by 'tool_calls'.*'Hi!'"),
        ("chat", {"finish_reason": "eos_token"}, "by 'eos_token'"),
        ("tokens", {"token_ids": [], "finish_reason": "stop"}, "after 0 of 12 tokens by 'stop'"),
    ],
)
def test_an_answer_that_makes_no_sense_is_no_response(
    protocol: str, changes: dict[str, Any], said: str, models: Pair, server: FakeOpenAIServer
) -> None:
    sampler = make_sampler(models, server.url, retries=0, protocol=protocol)
    server.changes = changes
    with pytest.raises(ServerError, match=said) as caught:
        draw(sampler, [(INSTRUCTIONS[0], [1])])
    assert str(caught.value).endswith(KEPT) or "vocabulary" in said


@pytest.mark.usefixtures("_fresh")
def test_an_answer_that_the_server_filters_is_empty_and_stops_nothing(models: Pair, server: FakeOpenAIServer) -> None:
    server.changes = {"finish_reason": "content_filter"}
    [[answer]] = draw(make_sampler(models, server.url, retries=0, protocol="chat"), [(INSTRUCTIONS[0], [1])])
    assert (answer.text, answer.finish_reason) == ("", "length")


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("around", [{"choices": []}, {"choices": None}, {"choices": [{}, {}]}])
@pytest.mark.parametrize("protocol", ["tokens", "chat"])
def test_an_answer_without_its_one_choice_is_asked_for_again_and_then_an_error(
    protocol: str, around: dict[str, Any], models: Pair, server: FakeOpenAIServer
) -> None:
    sampler = make_sampler(models, server.url, retries=1, protocol=protocol)
    server.around = around
    server.asked.clear()
    with pytest.raises(ServerError, match=r"in 2 attempts; the last one: choices.*Finished shards are kept"):
        draw(sampler, [(INSTRUCTIONS[0], [1])])
    assert len(server.asked) == 2


THOUGHT = "The person greets me, so ..."


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "reasoning_content": THOUGHT}, ""),
        ({"content": "", "reasoning": THOUGHT}, ""),
        ({"role": "assistant"}, ""),
        ({"content": []}, ""),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}]}, ""),
        ({"content": [{"type": "text", "text": "Hola, "}, {"type": "text", "text": "¿qué tal?"}]}, "Hola, ¿qué tal?"),
        ({"content": "Hola.", "reasoning_content": THOUGHT}, "Hola."),
        ({"content": None, "refusal": "No puedo."}, "No puedo."),
    ],
)
def test_an_answer_may_be_empty_or_in_parts(
    message: dict[str, Any], text: str, finish_reason: Any, models: Pair, server: FakeOpenAIServer
) -> None:
    """The same seed would bring the same again: it is stored, and asked for once."""
    sampler = make_sampler(models, server.url, protocol="chat")
    server.changes = {"message": message, "finish_reason": finish_reason}
    server.asked.clear()
    assert draw(sampler, [(INSTRUCTIONS[0], [1])]) == [[Sampled(text, None, finish_reason)]]
    assert len(server.asked) == 1


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None, "prompt_tokens": None}])
@pytest.mark.parametrize("protocol", ["tokens", "chat"])
def test_tokens_need_not_be_counted(
    protocol: str, usage: Any, models: Pair, server: FakeOpenAIServer, expected: Answers
) -> None:
    sampler = make_sampler(models, server.url, retries=0, protocol=protocol)
    server.around = {"usage": usage}
    assert [row.text for rows in draw(sampler) for row in rows] == [row.text for rows in expected for row in rows]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "reward.engine: transformers"),
        ([None, {"5": {"logprob": -1.0}}], "2 log-probabilities of"),
        ([None, *[{"5": {"logprob": -1.0}}] * 999], "log-probabilities of"),
        ("other ids", "is missing"),
        ("logits", "above 0"),
        ("nan", "not finite"),
    ],
)
def test_log_probabilities_that_make_no_sense_are_no_score(
    values: Any, said: str, models: Pair, server: FakeOpenAIServer
) -> None:
    scorer = make_scorer(models, server.url, retries=0)
    ids = scorer.tokenizer.prompt_ids(INSTRUCTIONS[1]) + (RESPONSES[2].token_ids or [])
    if values == "other ids":
        values = [None] * len(ids)
    elif values in ("logits", "nan"):
        value = 7.0 if values == "logits" else math.nan
        values = [None, *({str(token): {"logprob": value}} for token in ids[1:])]
    server.changes = {"prompt_logprobs": values}
    with closing(scorer), pytest.raises(ServerError, match=said):
        scorer.score(INSTRUCTIONS[1], RESPONSES[2:3])


@pytest.mark.usefixtures("_fresh")
def test_a_conversation_that_is_too_long_to_score(models: Pair, server: FakeOpenAIServer) -> None:
    server.context = 20
    with pytest.raises(ServerError, match=r"400.*maximum context length is 20"):
        score(make_scorer(models, server.url))


def test_a_server_that_is_down(models: Pair) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        started = time.monotonic()
        with pytest.raises(ServerError, match="does not answer") as caught:
            make_sampler(models, url)
    assert time.monotonic() - started < 10
    assert url in str(caught.value)
    assert f"vllm serve {models[1]} --served-model-name pi_0" in str(caught.value)


def test_a_server_that_accepts_and_says_nothing(models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosspref.engines.server.client.LOOK_UP", {"timeout": 0.3, "max_retries": 0})
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerError, match="does not answer"):
        make_sampler(models, f"http://127.0.0.1:{silent.getsockname()[1]}/v1")


def test_a_model_that_is_not_served(models: Pair, server: FakeOpenAIServer) -> None:
    files = locate_model(str(models[1]))
    settings = replace(engine_settings(models, server.url, names={"pi_3": "mine"}), roles={files.name: "pi_3"})
    with pytest.raises(ServerError, match="does not serve pi_3") as caught:
        ServerSampler(settings, files)
    for part in (server.url, "'mine'", "'pi_I', 'pi_0'", f"vllm serve {models[1]} --served-model-name mine"):
        assert part in str(caught.value)
    with pytest.raises(ServerError, match=r"404.*server\.url"):
        make_sampler(models, server.url.removesuffix("/v1"))


def test_models_on_two_servers_under_other_names(models: Pair, server: FakeOpenAIServer) -> None:
    with FakeOpenAIServer({"base": models[0]}) as other:
        found = score(make_scorer(models, server.url, urls={"pi_I": other.url}, names={"pi_I": "base"}))
    assert other.asked
    assert found == score(make_scorer(models, server.url))


def test_one_name_for_both_models_is_refused(models: Pair, server: FakeOpenAIServer) -> None:
    with pytest.raises(ModelError, match="every reward would be 0"):
        make_scorer(models, server.url, names={"pi_I": "pi_0"})


def test_models_with_two_tokenizers_are_refused(models: Pair, server: FakeOpenAIServer, tmp_path: Path) -> None:
    other = shutil.copytree(models[0], tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="chat template"):
        make_scorer((other, models[1]), server.url)


@pytest.mark.usefixtures("_fresh")
def test_the_key_comes_from_the_environment_and_stays_out_of_everything(
    models: Pair,
    server: FakeOpenAIServer,
    expected: Answers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    monkeypatch.setenv("MY_KEY", KEY)
    assert draw(make_sampler(models, server.url, key_variable="MY_KEY")) == expected
    monkeypatch.setenv("MY_KEY", "sk-of-somebody-else")
    with pytest.raises(ServerError, match="MY_KEY, which is set") as caught:
        make_sampler(models, server.url, key_variable="MY_KEY")
    assert "Incorrect API key provided: Bearer ***" in str(caught.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ServerError, match="MY_KEY, which is not set"):
        make_sampler(models, server.url, key_variable="MY_KEY")
    for secret in (KEY, "sk-of-somebody-else"):
        assert secret not in caplog.text
        assert secret not in str(caught.value)


def test_requests_per_minute(models: Pair, server: FakeOpenAIServer) -> None:
    with FaultProxy(server.url, ("500",), most=1) as proxy:
        draw(make_sampler(models, proxy.url, requests_per_minute=600), [(INSTRUCTIONS[0], [1, 2, 3])])
        gaps = [later - sooner for sooner, later in zip(proxy.times, proxy.times[1:], strict=False)]
    assert len(gaps) == 7  # the list of models and three responses, each twice: retries count
    assert min(gaps) > 0.08


@pytest.mark.parametrize("concurrency", [3, 32])
def test_concurrency(concurrency: int, models: Pair, server: FakeOpenAIServer) -> None:
    with FaultProxy(server.url, ("delay",)) as proxy:
        proxy.seen[b"GET/v1/models"] = 9
        draw(make_sampler(models, proxy.url, concurrency=concurrency))
        assert proxy.most_at_once == 3 if concurrency == 3 else proxy.most_at_once > 6


def test_inside_a_running_event_loop(models: Pair, server: FakeOpenAIServer, expected: Answers) -> None:
    async def notebook() -> Answers:
        return draw(make_sampler(models, server.url))

    assert asyncio.run(notebook()) == expected


def test_an_answer_that_came_is_not_asked_for_again(
    models: Pair, server: FakeOpenAIServer, expected: Answers, tmp_path: Path
) -> None:
    unit, fingerprint = Unit(tmp_path / "00000000.parquet"), Fingerprint({})
    left = 5

    def advance(units: int, tokens: int) -> None:
        nonlocal left
        left -= units
        if left < 0:
            raise ServerError("stopped")

    with closing(make_sampler(models, server.url, concurrency=1)) as sampler:
        with pytest.raises(ServerError, match="stopped"), keeping(advance, unit, fingerprint) as kept:
            sampler.sample(REQUESTS, kept)
        assert len(kept.items) == 6
        asked = len(server.asked)
        with keeping(lambda *_: None, unit, fingerprint) as kept:
            assert sampler.sample(REQUESTS, kept) == expected
    assert len(server.asked) - asked == 12 - 6


@pytest.mark.parametrize("impossible", [7, ["a", [384], "stop", None], ["a", [5], "abort", None]])
def test_an_answer_that_cannot_have_come_is_asked_for_again(
    impossible: Any, models: Pair, server: FakeOpenAIServer, expected: Answers
) -> None:
    kept = Kept(lambda *_: None)
    kept.items = {"0.0": impossible}
    with closing(make_sampler(models, server.url)) as sampler:
        assert sampler.sample(REQUESTS, kept) == expected


class FailsOnce(FaultProxy):
    """Answers one request as another model at once, and the others after a while: well, or with ``fault``."""

    def __init__(self, target: str, seed: int, delay: float, fault: str | None) -> None:
        self.failing, self.fault = f'"seed":{seed}'.encode(), fault
        super().__init__(target, delay=delay)

    def draw(self, request: bytes) -> str | None:
        if request.startswith(b"GET"):
            return None
        with self.lock:
            self.seen[request] += 1
        if self.failing in request:
            return "other model"
        time.sleep(self.delay)
        return self.fault


@pytest.mark.parametrize(
    ("delay", "fault", "timeout", "kept_answers"),
    [(1.0, None, 60.0, 3), (1.0, "500", 60.0, 0), (4.0, None, 1.5, 0)],
    ids=["they come", "they fail", "they come too late"],
)
def test_answers_on_their_way_are_kept_after_an_error(
    delay: float,
    fault: str | None,
    timeout: float,
    kept_answers: int,
    models: Pair,
    server: FakeOpenAIServer,
    expected: Answers,
    tmp_path: Path,
) -> None:
    """They are awaited up to the time limit; no request is sent again, and none that waits for its turn."""
    unit, fingerprint = Unit(tmp_path / "00000000.parquet"), Fingerprint({})
    with FailsOnce(server.url, REQUESTS[0][1][0], delay, fault) as proxy:
        with closing(make_sampler(models, proxy.url, concurrency=4, timeout=timeout)) as sampler:
            started = time.monotonic()
            with (
                pytest.raises(ServerError, match="answered as 'another'"),
                keeping(lambda *_: None, unit, fingerprint) as kept,
            ):
                sampler.sample(REQUESTS, kept)
            assert time.monotonic() - started < 3.5
        assert len(kept.items) == kept_answers
        assert list(proxy.seen.values()) == [1] * 4
    server.asked.clear()
    with closing(make_sampler(models, server.url)) as sampler, keeping(lambda *_: None, unit, fingerprint) as kept:
        assert sampler.sample(REQUESTS, kept) == expected
    assert len(server.asked) == 12 - kept_answers
