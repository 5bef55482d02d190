"""The scoring stage around an engine: on what a response is conditioned, beta, joins and progress."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosspref.data.records import Prompt, Response, Score, Translation
from crosspref.errors import DataError
from crosspref.languages import LANGUAGES
from crosspref.protocols import Known, LogProbs
from crosspref.recipe.sections import RewardSettings
from crosspref.run.kept import Kept, keeping
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages.score import condition, content_of, rate, score

INSTRUCTIONS = {
    ("q1", "en"): "Name a river.",
    ("q1", "es"): "Nombra un río.",
    ("q2", "en"): "Why?",
    ("q2", "es"): "¿Por qué?",
}
PROMPTS = [Prompt(*key, text) for key, text in INSTRUCTIONS.items()]
PREFIX = (
    "Please answer the following instruction using only Spanish, "
    "unless explicitly instructed to respond in a different language.\n\n"
)


class FakeScorer:
    """The policy gives -1 nat per token and the reference -0.25 per character of instruction and text."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def score(self, instruction: str, responses: Sequence[Response], known: Sequence[Known] = ()) -> list[LogProbs]:
        self.calls.append((instruction, [response.text for response in responses]))
        return [
            LogProbs(-float(tokens), -(len(instruction) + len(response.text)) / 4, tokens)
            for response in responses
            for tokens in [len(response.token_ids or response.text)]
        ]

    def close(self) -> None:
        pass


def answer(prompt: str, language: str, sample: int, text: str) -> Response:
    return Response(prompt, language, sample, text, [7] * (len(text) // 2), "stop", None)


SPANISH = [answer("q1", "es", 0, "El Duero"), answer("q1", "es", 1, "Ebro"), answer("q2", "es", 0, "Porque sí.")]


def scored(responses: Sequence[Response], scorer: FakeScorer | None = None, **options: object) -> list[Score]:
    named = {"reward": "crosslingual", "advance": lambda units, tokens: None}
    formula = {key: options.pop(key) for key in ("beta", "algorithm") if key in options}
    prompts = options.pop("prompts", PROMPTS)
    return score(responses, prompts, scorer or FakeScorer(), settings=RewardSettings(**formula), **{**named, **options})


def test_conditioned_on_the_english_instruction_behind_the_prefix() -> None:
    # Eq. 8: G(x) is P(l) in front of the parallel English instruction, whatever language was asked in.
    scorer = FakeScorer()
    scored(SPANISH, scorer)
    assert scorer.calls == [(PREFIX + "Name a river.", ["El Duero", "Ebro"]), (PREFIX + "Why?", ["Porque sí."])]


class FakeReleasedScorer(FakeScorer):
    def score_each(
        self, requests: Sequence[tuple[str, Sequence[Response]]], without: Collection[int] = ()
    ) -> Iterator[list[LogProbs]]:
        return (self.score(*request) for number, request in enumerate(requests) if number not in without)


@pytest.mark.parametrize(("counting", "characters"), [("exact", 9), ("znlp", 4)])
def test_the_released_scripts_count_the_characters_of_the_stripped_response(counting: str, characters: int) -> None:
    settings = RewardSettings(counting=counting)
    rows = [answer("q1", "es", 0, " \nEbro\n  ")]
    [row] = score(
        rows, PROMPTS, FakeReleasedScorer(), settings=settings, reward="crosslingual", advance=lambda *_: None
    )
    assert row.characters == characters


def test_english_is_conditioned_on_its_own_prompt() -> None:
    scorer = FakeScorer()
    scored([answer("q1", "en", 0, "Nile")], scorer)
    assert scorer.calls == [("Name a river.", ["Nile"])]


def test_the_multilingual_reward_is_conditioned_on_the_prompt_as_asked() -> None:
    scorer = FakeScorer()
    rows = scored([*SPANISH[:1], answer("q1", "en", 0, "Nile")], scorer, reward="multilingual")
    assert scorer.calls == [("Nombra un río.", ["El Duero"]), ("Name a river.", ["Nile"])]
    assert [row.reward for row in rows] == ["multilingual", "multilingual"]


def test_every_language_has_its_name_in_the_prefix() -> None:
    for language in set(LANGUAGES) - {"en"}:
        text = condition("q1", language, INSTRUCTIONS, "crosslingual")
        assert text == PREFIX.replace("Spanish", LANGUAGES[language]) + "Name a river."


def test_worked_rewards() -> None:
    rows = scored(SPANISH[:2])
    # -4 and -2 nats against -(126 + 13 + 8) / 4 and -(126 + 13 + 4) / 4, times 0.1. The prefix has 126 characters.
    assert len(PREFIX) == 126
    assert rows[0] == Score("q1", "es", 0, "crosslingual", -4.0, -36.75, 4, 8, pytest.approx(3.275))
    assert rows[1] == Score("q1", "es", 1, "crosslingual", -2.0, -35.75, 2, 4, pytest.approx(3.375))


def test_beta_and_the_algorithm_shape_the_reward_alone() -> None:
    [dpo], [ipo] = scored(SPANISH[:1], beta=2.0), scored(SPANISH[:1], beta=2.0, algorithm="ipo")
    # 2 times the 32.75 nats from above, and that per token, of which there are 4.
    assert (dpo.implicit_reward, ipo.implicit_reward) == (pytest.approx(65.5), pytest.approx(65.5 / 4))
    assert (ipo.policy_logprob, ipo.reference_logprob) == (-4.0, -36.75)


def test_characters_are_code_points_of_the_text() -> None:
    [row] = scored([answer("q1", "es", 0, "añé 👍🏽")])
    assert row.characters == 6


def test_each_prompt_is_computed_once_with_all_its_responses() -> None:
    mixed = [SPANISH[0], SPANISH[2], answer("q1", "en", 0, "Nile"), SPANISH[1]]
    scorer = FakeScorer()
    rows = scored(mixed, scorer)
    assert [texts for _, texts in scorer.calls] == [["El Duero", "Ebro"], ["Porque sí."], ["Nile"]]
    keys = [(row.prompt_id, row.language, row.sample) for row in rows]
    assert keys == [("q1", "es", 0), ("q1", "es", 1), ("q2", "es", 0), ("q1", "en", 0)]
    # By key, the scores are those that the responses get in any other order.
    assert sorted(rows[:3], key=str) == sorted(scored(SPANISH), key=str)
    assert {row.characters for row in rows} == {8, 4, 10}
    assert scored(SPANISH, prompts=PROMPTS[::-1]) == scored(SPANISH)


def test_progress_counts_prompts_and_scored_tokens() -> None:
    seen: list[tuple[int, int]] = []
    scored(SPANISH, advance=lambda units, tokens: seen.append((units, tokens)))
    assert seen == [(1, 4 + 2), (1, 5)]


@pytest.mark.parametrize(
    ("prompt", "language", "reward", "lacking"),
    [("q9", "es", "crosslingual", "en"), ("q1", "sw", "multilingual", "sw")],
)
def test_a_missing_instruction_is_an_error(prompt: str, language: str, reward: str, lacking: str) -> None:
    with pytest.raises(DataError, match=f"'{prompt}' has responses in '{language}' but no instruction in '{lacking}'"):
        scored([*SPANISH, answer(prompt, language, 0, "x")], reward=reward)


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(DataError, match="unknown language 'xx'"):
        scored([answer("q1", "xx", 0, "x")])


def test_an_engine_that_loses_a_response_is_an_error() -> None:
    class Forgetful(FakeScorer):
        def score(self, instruction: str, responses: Sequence[Response], known: Sequence[Known] = ()) -> list[LogProbs]:
            return super().score(instruction, responses)[1:]

    with pytest.raises(ValueError, match="zip"):
        scored(SPANISH, Forgetful())


def english(sample: int, text: str, failure: str | None = None, **other: str) -> Translation:
    row = Translation("q1", "es", sample, "en", text, [5] * len(text), "length", failure)
    return replace(row, **other)


def test_the_translated_reward_scores_the_translation_given_the_english_prompt_without_a_prefix() -> None:
    # Eq. 13: pi(T(y) | x_en); |y| stays that of the Spanish response.
    scorer = FakeScorer()
    translations = [english(1, "Ebro, a river"), english(0, "The Duero"), english(0, "Le Duero", target="fr")]
    rows = scored(SPANISH[:2], scorer, reward="translated", translations=translations)
    assert scorer.calls == [("Name a river.", ["The Duero", "Ebro, a river"])]
    # -9 nats against -(13 + 9) / 4, times 0.1; 4 tokens and 8 characters are those of "El Duero".
    assert rows[0] == Score("q1", "es", 0, "translated", -9.0, -5.5, 4, 8, pytest.approx(-0.35))
    assert (rows[1].policy_logprob, rows[1].tokens, rows[1].characters) == (-13.0, 2, 4)


def test_english_is_its_own_translation() -> None:
    # Eq. 14: the identity, so that in English R_t is R_c.
    nile = [answer("q1", "en", 0, "Nile")]
    [translated] = scored(nile, reward="translated")
    [crosslingual] = scored(nile, reward="crosslingual")
    assert replace(translated, reward="crosslingual") == crosslingual


def test_a_failed_translation_has_no_reward_and_the_others_keep_theirs() -> None:
    scorer = FakeScorer()
    translations = [english(0, "", "empty"), english(1, "Ebro, a river")]
    rows = scored(SPANISH[:2], scorer, reward="translated", translations=translations)
    assert scorer.calls == [("Name a river.", ["Ebro, a river"])]
    assert rows[0] == Score("q1", "es", 0, "translated", None, None, 4, 8, None)
    assert rows[1].policy_logprob == -13.0
    assert rows[1].implicit_reward is not None


def test_a_missing_translation_is_an_error() -> None:
    with pytest.raises(DataError, match="no English translation of prompt 'q1', sample 1"):
        scored(SPANISH[:2], reward="translated", translations=[english(0, "The Duero")])


class FakeRewardModel:
    """One point per character; nothing for what has none."""

    def rate(self, instruction: str, responses: Sequence[str]) -> list[float]:
        self.asked = instruction
        return [float(len(response)) or math.nan for response in responses]

    def close(self) -> None:
        pass


def test_a_reward_model_sees_the_prompt_and_the_response_in_their_own_language() -> None:
    model = FakeRewardModel()
    rows = rate([SPANISH[0], replace(SPANISH[1], text="", token_ids=None)], PROMPTS, model, advance=lambda *_: None)
    assert model.asked == "Nombra un río."
    # What is not a number is no reward: it is counted when pairs are made.
    assert rows == [
        Score("q1", "es", 0, "reward_model", None, None, 4, 8, 8.0),
        Score("q1", "es", 1, "reward_model", None, None, None, 0, None),
    ]


def test_what_was_computed_before_is_handed_to_the_scorer() -> None:
    handed: list[Known] = []

    class Asking(FakeScorer):
        def score(self, instruction: str, responses: Sequence[Response], known: Sequence[Known] = ()) -> list[LogProbs]:
            handed.extend(known)
            return super().score(instruction, responses)

    scored(SPANISH, Asking(), before={content_of(replace(SPANISH[1], sample=9)): (None, -3.0)})
    assert handed == [(None, None), (None, -3.0), (None, None)]


class StoppingScorer(FakeReleasedScorer):
    """Is stopped at the so-manieth instruction."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop

    def score(self, instruction: str, responses: Sequence[Response], known: Sequence[Known] = ()) -> list[LogProbs]:
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        return super().score(instruction, responses, known)

    def rate(self, instruction: str, responses: Sequence[str]) -> list[float]:
        rows = [answer("q1", "es", number, text) for number, text in enumerate(responses)]
        return [math.inf, *(value.policy / 3 for value in self.score(instruction, rows)[1:])]


def by_reward_model(responses: Sequence[Response], scorer: StoppingScorer, advance: Any) -> list[Score]:
    return rate(responses, PROMPTS, scorer, advance=advance)


def by_models(responses: Sequence[Response], scorer: StoppingScorer, advance: Any) -> list[Score]:
    return scored(responses, scorer, advance=advance)


def by_released_scripts(responses: Sequence[Response], scorer: StoppingScorer, advance: Any) -> list[Score]:
    settings = RewardSettings(counting="znlp")
    return score(responses, PROMPTS, scorer, settings=settings, reward="crosslingual", advance=advance)


@pytest.mark.parametrize("work", [by_models, by_released_scripts, by_reward_model])
def test_no_prompt_is_scored_again_after_a_stop(work: Any, tmp_path: Path) -> None:
    responses = [*SPANISH, answer("q1", "en", 0, "Thames"), answer("q2", "en", 0, "So.")]
    expected = work(responses, StoppingScorer(9), lambda *_: None)
    unit, fingerprint = Unit(tmp_path / "00000000.parquet"), Fingerprint({})
    asked, counts = [], []
    for stop in (1, 2, 9):
        scorer = StoppingScorer(stop)
        with suppress(KeyboardInterrupt), keeping(lambda *count: counts.append(count), unit, fingerprint) as kept:
            found = work(responses, scorer, kept)
        asked += scorer.calls
    assert found == expected
    assert len(asked) == 4
    assert sum(units for units, _ in counts) == 1 + (1 + 2) + (3 + 1)


PRINTED = [[-1.0, -2.0, 3]] * 2  # q1 has two responses


@pytest.mark.parametrize(
    ("work", "items"),
    [
        (by_models, {"0": 7}),
        (by_models, {"0": PRINTED[:1]}),
        (by_models, {"0": [[-1.0, None, 3]] * 2}),
        (by_models, {"0": [["-1.0", -2.0, 3]] * 2}),
        (by_models, {"0": [[math.nan, -2.0, 3]] * 2}),
        (by_models, {"0": [[-1.0, -2.0, 10**30]] * 2}),
        (by_models, {"7": PRINTED}),
        (by_models, {"first": PRINTED}),
        (by_released_scripts, {"0": [7, 7]}),
        (by_reward_model, {"0": [1.0]}),
        (by_reward_model, {"0": [None, 1.0]}),
    ],
)
def test_what_scoring_cannot_have_kept_is_computed_again(work: Any, items: dict[str, Any]) -> None:
    kept = Kept(lambda *_: None)
    kept.items = dict(items)
    assert work(SPANISH, StoppingScorer(9), kept) == work(SPANISH, StoppingScorer(9), lambda *_: None)
