"""Scoring: every reward of the paper, of every response (Eq. 8, 9, 12, 13, 14, 17), without the length penalty."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import cast

from pydantic import TypeAdapter

from crosspref.data.records import Instruction, Prompt, Response, Score, Translation
from crosspref.errors import DataError
from crosspref.languages import ENGLISH, Prefix, crosslingual_instruction, crosslingual_prefix
from crosspref.maths.reward import PER_TOKEN, finite, implicit_reward
from crosspref.models.locate import ModelFiles, require_different
from crosspref.protocols import Advance, Known, LogProbs, ReleasedScorer, RewardModel, Scorer
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, RewardName, RewardSettings
from crosspref.run.job import Filling, Job, Shard, asking_of, digest_rows, fill, settings_of
from crosspref.run.kept import Count, Kept, Number, checked
from crosspref.run.layout import Iteration, ShardedTable
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint, Unit

SETTINGS = ("reward", "models", "resources.shard_prompts")
"""What scores depend on, but for ``WITHOUT``."""
WITHOUT = ("reward.name", "reward.also", "reward.reward_model")
"""Which rewards are computed, and which of them selects; and a model that its identity tells from others."""

MODELS = ("policy", "reference", "responses")
"""Inputs of a shard of scores that may differ where values of one model are the same."""

_LOGPROBS = TypeAdapter(list[tuple[Number, Number | None, Count]])
_RATINGS = TypeAdapter(list[Number])


def phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that scores the responses by every reward of the recipe."""
    scores = [
        Output(
            "scores",
            lambda run, reward=reward: run.iteration(iteration).scores(reward),  # type: ignore[misc]
            SETTINGS,
            ("responses", "translations"),
            WITHOUT if reward == "crosslingual" else (*WITHOUT, "reward.prefix"),
            recipe.languages,
        )
        for reward in recipe.reward.names
    ]
    return Phase("score", iteration, score_responses, expect_scores, scores)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Where the scores by one reward belong, and the tables that they are computed from.

    ``earlier`` holds the scores and the responses of earlier iterations, of which nothing is computed twice.
    """

    reward: RewardName
    scores: ShardedTable
    responses: ShardedTable
    translations: ShardedTable | None = None
    earlier: Sequence[tuple[ShardedTable, ShardedTable]] = ()


@dataclass(frozen=True, slots=True)
class ScoreShard(Shard):
    """A shard of scores: its reward, its prompts in English, and the units that it is computed from.

    ``earlier`` holds the scores and the responses to the same prompts of earlier iterations.
    """

    reward: RewardName
    english: list[Prompt]
    responses: Unit
    translations: Unit | None
    earlier: list[tuple[Unit, Unit]]


RELEASED = "padding is masked, responses are stripped"
"""What scores counted as the released scripts do depend on since that was found out; older ones are not reused."""

Models = tuple[ModelFiles, ModelFiles | None]
"""A policy and its reference, if the reward has one."""


def score_responses(job: Job, iteration: int) -> None:
    """Eq. 8, 9, 12, 13: score every response by pi_{t-1} against the reward's reference, by every reward."""
    settings, label = job.recipe.reward, f"iteration {iteration} score"
    scorings = _scorings(job, iteration)
    if scorings:
        models = job.policy(iteration - 1), reward_reference(job, iteration)
        fill_scores(job, label, scorings, models, settings)
    if "reward_model" in settings.names:
        _fill_ratings(job, f"{label} by reward model", job.run.iteration(iteration))


def _scorings(job: Job, iteration: int) -> list[Scoring]:
    """Return where the scores by each implicit reward belong."""
    places, before = job.run.iteration(iteration), [job.run.iteration(number) for number in range(iteration)]
    return [
        Scoring(
            reward,
            places.scores(reward),
            places.responses,
            places.translations if reward == "translated" else None,
            [(earlier.scores(reward), earlier.responses) for earlier in before],
        )
        for reward in job.recipe.reward.names
        if reward != "reward_model"
    ]


def expect_scores(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the scores by each reward must be."""
    for scoring in _scorings(job, iteration):
        models = job.policy(iteration - 1), reward_reference(job, iteration)
        yield from expected_scores(job, scoring, models, job.recipe.reward)
    if "reward_model" in job.recipe.reward.names:
        for shard in _rating_shards(job, job.run.iteration(iteration)):
            yield Expected(shard.unit, shard.fingerprint, Score, partial(_score_faults, shard, None))


def expected_scores(job: Job, scoring: Scoring, models: Models, settings: RewardSettings) -> Iterator[Expected]:
    """Yield what the shards of a table of implicit rewards must be."""
    for shard in score_shards(job, scoring, models, settings):
        yield Expected(shard.unit, shard.fingerprint, Score, partial(_score_faults, shard, settings))


def _score_faults(shard: ScoreShard, settings: RewardSettings | None, rows: list[Score]) -> Iterator[str]:
    """Each response has one score, which follows from its log-probabilities; what a reward model says needs none."""
    responses = {(row.prompt_id, row.language, row.sample): row for row in shard.responses.rows(Response)}
    if sorted((row.prompt_id, row.language, row.sample) for row in rows) != sorted(responses):
        yield f"its {len(rows)} scores are not those of the {len(responses)} responses"
        return
    for row in rows:
        response = responses[row.prompt_id, row.language, row.sample]
        if settings is None:
            expected = _rated(response, row.implicit_reward)
        elif row.policy_logprob is None:
            expected = _scored(response, None, shard.reward, settings)
        else:
            logprobs = LogProbs(row.policy_logprob, row.reference_logprob, row.tokens or 0)
            expected = _scored(response, logprobs, shard.reward, settings)
            if shard.reward == "translated" and settings.algorithm in PER_TOKEN:
                # It is per token of the translation, whose number is not stored.
                expected = replace(expected, implicit_reward=row.implicit_reward)
        if row != expected:
            yield f"the score of sample {row.sample} of prompt {row.prompt_id!r} does not follow from what is beside it"


def reward_reference(job: Job, iteration: int) -> ModelFiles | None:
    """Return the reference of the reward that pi_{t-1} holds: pi_I, or pi_{t-2} where the recipe lets it move along."""
    reward = job.recipe.reward
    if reward.algorithm in REFERENCE_FREE:
        return None
    if reward.reference == "previous" and iteration > 1:
        return job.policy(iteration - 2)
    return job.model(job.recipe.models.initial)


def fill_scores(job: Job, label: str, scorings: Sequence[Scoring], models: Models, settings: RewardSettings) -> None:
    """Fill tables of implicit rewards, which share their two models.

    Raises:
        ModelError: policy and reference are the same model.
    """
    policy, reference = models
    require_different(policy, reference)

    def work(scorer: Scorer, shard: ScoreShard, advance: Advance) -> list[Score]:
        translated = shard.translations is not None
        again = {} if translated or settings.counting == "znlp" else scored_before(shard)
        return score(
            shard.responses.rows(Response),
            [*shard.prompts, *shard.english],
            scorer,
            settings=settings,
            reward=shard.reward,
            advance=advance,
            translations=shard.translations.rows(Translation) if shard.translations is not None else (),
            before=again,
        )

    shards = [shard for scoring in scorings for shard in score_shards(job, scoring, models, settings)]
    fill(job, shards, Filling(label, Score, partial(job.engines.scorer, policy, reference), work))


def score_shards(job: Job, scoring: Scoring, models: Models, settings: RewardSettings) -> list[ScoreShard]:
    """Return the shards of a table of scores by an implicit reward, done or not."""
    policy, reference = models
    fingerprinted = {
        **settings_of("reward", settings, without=("name", "also", "reference", "reward_model", "prefix")),
        **asking_of(job.recipe.models),
        "reward": scoring.reward,
        **({"released scripts": RELEASED} if settings.counting == "znlp" else {}),
    }
    english = {prompt.prompt_id: prompt for prompt in scoring.scores.prompts.rows(ENGLISH)}
    shards = []
    for language, start, prompts in scoring.scores.cut(job.recipe.languages, job.recipe.resources.shard_prompts):
        in_english = [english[prompt.prompt_id] for prompt in prompts]
        prefix = crosslingual_prefix(language, settings.prefix)
        is_other = scoring.reward == "crosslingual" and prefix != crosslingual_prefix(language)
        responses, translations = scoring.responses.unit(language, start), None
        inputs = {
            "policy": policy.identity,
            "reference": reference.identity if reference else "none",
            "responses": responses.digest,
            "prompts": digest_rows([*prompts, *in_english]),
        }
        if scoring.translations is not None and language != ENGLISH:
            translations = scoring.translations.unit(language, start)
            inputs["translations"] = translations.digest
        shards.append(
            ScoreShard(
                scoring.scores.unit(language, start),
                Fingerprint({**fingerprinted, **({"reward.prefix": prefix} if is_other else {})}, inputs),
                prompts,
                scoring.reward,
                in_english,
                responses,
                translations,
                [(table.unit(language, start), answers.unit(language, start)) for table, answers in scoring.earlier],
            )
        )
    return shards


def scored_before(shard: ScoreShard) -> dict[Hashable, Known]:
    """Return what earlier iterations computed under this shard's models, by what the responses to its prompts said.

    A model is known by its identity: pi_I stays the reference, and a policy may become one.
    """
    wanted = shard.fingerprint.parts
    models = [wanted["policy"], wanted["reference"]]  # "none" for a reward without a reference
    known: dict[Hashable, Known] = {}
    for scores, responses in shard.earlier:
        if not (scores.marker.exists() and responses.marker.exists()):
            continue
        parts = scores.read_marker()["parts"]
        earlier_models = [parts.get("policy"), parts.get("reference")]
        differs = any(parts.get(name) != value for name, value in wanted.items() if name not in MODELS)
        if differs or not set(models) & set(earlier_models):
            continue
        rows = {(row.prompt_id, row.language, row.sample): row for row in scores.rows(Score)}
        for response in responses.rows(Response):
            row = rows[response.prompt_id, response.language, response.sample]
            by_model = dict(zip(earlier_models, (row.policy_logprob, row.reference_logprob), strict=True))
            content = content_of(response)
            policy, reference = (by_model.get(model) for model in models)
            before = known.get(content, (None, None))
            known[content] = (before[0] if policy is None else policy, before[1] if reference is None else reference)
    return known


def _rating_shards(job: Job, places: Iteration) -> list[ScoreShard]:
    """Return the shards of the table of what the reward model says, done or not."""
    model, table = job.model(job.recipe.reward.reward_model), places.scores("reward_model")
    shards = []
    for language, start, prompts in table.cut(job.recipe.languages, job.recipe.resources.shard_prompts):
        responses = places.responses.unit(language, start)
        inputs = {
            "reward_model": model.identity,
            "responses": responses.digest,
            "prompts": digest_rows(prompts),
        }
        fingerprint = Fingerprint({**asking_of(job.recipe.models), "reward": "reward_model"}, inputs)
        shards.append(
            ScoreShard(table.unit(language, start), fingerprint, prompts, "reward_model", [], responses, None, [])
        )
    return shards


def _fill_ratings(job: Job, label: str, places: Iteration) -> None:
    """Fill the table of what the reward model says (R_n)."""

    def work(judge: RewardModel, shard: ScoreShard, advance: Advance) -> list[Score]:
        return rate(shard.responses.rows(Response), shard.prompts, judge, advance=advance)

    model = job.model(job.recipe.reward.reward_model)
    fill(job, _rating_shards(job, places), Filling(label, Score, partial(job.engines.reward_model, model), work))


@dataclass(frozen=True, slots=True)
class _Group:
    """All responses to one prompt in one language, and on which instruction they are conditioned."""

    prompt_id: str
    language: str
    instruction: Instruction
    responses: list[Response]


def condition(
    prompt_id: str,
    language: str,
    instructions: Mapping[tuple[str, str], Instruction],
    reward: RewardName,
    prefix: Prefix = None,
) -> Instruction:
    """Return the instruction on which a response is conditioned.

    Args:
        prompt_id: which prompt was answered.
        language: the language it was answered in.
        instructions: by (prompt_id, language).
        reward: which reward is computed.
        prefix: P(l) of the reward ``crosslingual``.

    Raises:
        DataError: the prompt is not there in the language that the reward needs.
    """
    needed = ENGLISH if reward in {"crosslingual", "translated"} else language
    instruction = instructions.get((prompt_id, needed))
    if instruction is None:
        raise DataError(f"The prompt {prompt_id!r} has responses in {language!r} but no instruction in {needed!r}.")
    return crosslingual_instruction(instruction, language, prefix) if reward == "crosslingual" else instruction


def score(  # noqa: PLR0913 - all but three are keyword-only, and each is one thing
    responses: Sequence[Response],
    prompts: Iterable[Prompt],
    scorer: Scorer,
    *,
    settings: RewardSettings,
    reward: RewardName,
    advance: Advance,
    translations: Iterable[Translation] = (),
    before: Mapping[Hashable, Known] = MappingProxyType({}),
) -> list[Score]:
    """Return the implicit reward of each response without its length penalty (Eq. 9, 12 or 13 with alpha = 0).

    The scores of one prompt and language stand together, in the order of their first response.

    Args:
        responses: the responses.
        prompts: their prompts, in the languages that the reward needs.
        scorer: computes log-probabilities; a ReleasedScorer where ``settings.counting`` is ``znlp``.
        settings: which formula, and which tokens count.
        reward: ``crosslingual``, ``multilingual`` or ``translated``.
        advance: called after each prompt with 1 and the tokens that were summed.
        translations: into English, of every response in another language; for ``translated`` only.
        before: by ``content_of`` a response, its log-probabilities that were computed before; znlp knows none.

    Raises:
        DataError: a prompt's instruction, or a response's translation, is missing.
    """
    groups = _groups(responses, prompts, reward, settings.prefix)
    known = {(row.prompt_id, row.language, row.sample): row for row in translations if row.target == ENGLISH}
    texts: list[list[Response | None]] = [
        [_in_english(response, known) if reward == "translated" else response for response in group.responses]
        for group in groups
    ]
    # A response that has no text to score, since its translation failed, is left out and comes back without a reward.
    requests = [
        (group.instruction, [row for row in rows if row is not None]) for group, rows in zip(groups, texts, strict=True)
    ]

    def check(number: str, rows: object) -> None:
        _, scored = requests[int(number)]
        references = [reference for _, reference, _ in checked(_LOGPROBS, rows, len(scored))]
        if None in references and settings.algorithm not in REFERENCE_FREE:
            raise ValueError("a log-probability of the reference is missing")

    scores = []
    each = _logprobs(requests, scorer, settings.counting, before, Kept.of(advance, check))
    for group, rows, logprobs in zip(groups, texts, each, strict=True):
        places = [index for index, row in enumerate(rows) if row is not None]
        values = dict(zip(places, logprobs, strict=True))
        scores += [
            _scored(response, values.get(index), reward, settings) for index, response in enumerate(group.responses)
        ]
    return scores


def _logprobs(
    requests: Sequence[tuple[Instruction, Sequence[Response]]],
    scorer: Scorer,
    counting: str,
    before: Mapping[Hashable, Known],
    kept: Kept,
) -> Iterator[list[LogProbs]]:
    """Yield the log-probabilities of each request's responses, and keep them; what was kept is not computed again."""
    finished = {int(number): [LogProbs(*values) for values in rows] for number, rows in kept.items.items()}
    if finished:
        kept(len(finished), 0)
    if counting == "znlp":
        computed = iter(cast("ReleasedScorer", scorer).score_each(requests, finished))
    else:
        computed = (
            scorer.score(instruction, rows, [before.get(content_of(row), (None, None)) for row in rows])
            for number, (instruction, rows) in enumerate(requests)
            if number not in finished
        )
    for number in range(len(requests)):
        logprobs = finished.get(number)
        if logprobs is None:
            logprobs = next(computed)
            kept.keep({str(number): [astuple(value) for value in logprobs]})
            kept(1, sum(value.tokens for value in logprobs))
        yield logprobs


def content_of(response: Response) -> Hashable:
    """Return what decides the log-probability of a response: all but its number among the others."""
    ids = response.token_ids
    content = response.text if ids is None else tuple(ids)
    return response.prompt_id, response.language, response.finish_reason, content


def rate(
    responses: Sequence[Response], prompts: Iterable[Prompt], model: RewardModel, *, advance: Advance
) -> list[Score]:
    """Return what a reward model says of each response to the prompt in its own language (R_n of section 4.2)."""
    groups = _groups(responses, prompts, "reward_model")
    kept = Kept.of(advance, lambda number, values: checked(_RATINGS, values, len(groups[int(number)].responses)))
    if kept.items:
        kept(len(kept.items), 0)
    scores = []
    for number, group in enumerate(groups):
        values = kept.items.get(str(number))
        if values is None:
            values = model.rate(group.instruction, [response.text for response in group.responses])
            kept.keep({str(number): values})
            kept(1, sum(_own_tokens(response) or 0 for response in group.responses))
        scores += [_rated(response, value) for response, value in zip(group.responses, values, strict=True)]
    return scores


def _rated(response: Response, value: float | None) -> Score:
    key = response.prompt_id, response.language, response.sample, "reward_model"
    return Score(*key, None, None, _own_tokens(response), len(response.text), finite(value))


def _groups(
    responses: Sequence[Response], prompts: Iterable[Prompt], reward: RewardName, prefix: Prefix = None
) -> list[_Group]:
    instructions = {(prompt.prompt_id, prompt.language): prompt.instruction for prompt in prompts}
    groups: dict[tuple[str, str], list[Response]] = {}
    for response in responses:
        groups.setdefault((response.prompt_id, response.language), []).append(response)
    return [_Group(*key, condition(*key, instructions, reward, prefix), group) for key, group in groups.items()]


def _in_english(response: Response, known: Mapping[tuple[str, str, int], Translation]) -> Response | None:
    """Return T(y) of Eq. 14 as a response, or None if its translation failed."""
    if response.language == ENGLISH:
        return response
    translation = known.get((response.prompt_id, response.language, response.sample))
    if translation is None:
        where = f"prompt {response.prompt_id!r}, sample {response.sample} ({response.language})"
        raise DataError(f"There is no English translation of {where}. Translate all responses first.")
    if translation.failure is not None:
        return None
    return replace(
        response, text=translation.text, token_ids=translation.token_ids, finish_reason=translation.finish_reason
    )


def _scored(response: Response, logprobs: LogProbs | None, reward: RewardName, settings: RewardSettings) -> Score:
    key = (response.prompt_id, response.language, response.sample, reward)
    if logprobs is None:
        return Score(*key, None, None, _own_tokens(response), len(response.text), None)
    value = implicit_reward(settings.algorithm, logprobs.policy, logprobs.reference, logprobs.tokens, settings.beta)
    # |y| of Eq. 13 is the response's and not its translation's.
    is_other_text = reward == "translated" and response.language != ENGLISH
    tokens = _own_tokens(response) if is_other_text else logprobs.tokens
    # The released scripts strip a response before anything else.
    text = response.text.strip() if settings.counting == "znlp" else response.text
    return Score(*key, logprobs.policy, logprobs.reference, tokens, len(text), finite(value))


def _own_tokens(response: Response) -> int | None:
    return None if response.token_ids is None else len(response.token_ids)
