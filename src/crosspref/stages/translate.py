"""Translating: responses into English for R_t (Eq. 14), and both ways for language imbalance (section A.5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from crosspref.data.records import Response, Translation
from crosspref.data.rows import is_blank
from crosspref.languages import ENGLISH
from crosspref.protocols import Advance, Sampled, Translator
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TranslateSettings
from crosspref.run.job import Filling, Job, Shard, asking_of, fill, settings_of
from crosspref.run.layout import Iteration
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages.evaluate import repeated_share
from crosspref.stages.select.select import Identify

LOOPING_SHARE = 0.5
"""A text loops if more than this share of its 4-grams stood there before. Greedy decoding that has fallen into a cycle
comes near 1, since only the first turn is new; the embedded English answers reach 0.25 at most, in words."""

WORD_CHARACTERS = 20
"""Text whose words are longer than this on average is taken as written without spaces (Chinese, Japanese, Thai)."""

UNIDENTIFIED = "; the language cannot be identified, so a text that was left untranslated is not noticed"


def phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that translates the responses."""
    translations = Output(
        "translations",
        lambda run: run.iteration(iteration).translations,
        ("translate", "models", "sample.max_prompt_tokens", "language_imbalance"),
        ("responses",),
        names=_foreign(recipe),
    )
    return Phase("translate", iteration, translate_responses, expect_translations, [translations])


def _foreign(recipe: Recipe) -> list[str]:
    return [language for language in recipe.languages if language != ENGLISH]


@dataclass(frozen=True, slots=True)
class TranslationShard(Shard):
    """A shard of translations: ``responses`` of its language, and English answers to translate into it."""

    language: str
    responses: Unit
    english: Sequence[Response]

    def requests(self) -> list[tuple[Response, str]]:
        """Return what is translated, each response with the language wanted."""
        into_english = [(row, ENGLISH) for row in self.responses.rows(Response)]
        return into_english + [(row, self.language) for row in self.english]


def translate_responses(job: Job, iteration: int) -> None:
    """Eq. 14: translate the responses into English; for language imbalance also the English answers into l (A.5)."""
    settings, policy = job.recipe.translate, job.policy(iteration - 1)
    shards = translation_shards(job, job.run.iteration(iteration))
    identifier = job.engines.identifier

    def work(translator: Translator, shard: TranslationShard, advance: Advance) -> list[Translation]:
        identify = identifier(shard.language)
        return translate(shard.requests(), translator, settings=settings, identify=identify, advance=advance)

    per_prompt = 2 if job.recipe.language_imbalance is not None else job.recipe.sample.n
    label = f"iteration {iteration} translate"
    fill(job, shards, Filling(label, Translation, partial(job.engines.translator, policy), work, per_prompt))
    for language in dict.fromkeys(shard.language for shard in shards):
        rows = [row for shard in shards if shard.language == language for row in shard.unit.rows(Translation)]
        failures = [row.failure for row in rows if row.failure is not None]
        reasons = ", ".join(f"{failures.count(reason)} {reason}" for reason in dict.fromkeys(failures))
        unidentified = "" if job.engines.identifier(language) else UNIDENTIFIED
        made = f"{len(rows) - len(failures)} translations, {reasons or 'none'} failed{unidentified}"
        job.reporter.say(f"{label} {language}: {made}")


def expect_translations(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the translations must be."""
    for shard in translation_shards(job, job.run.iteration(iteration)):
        yield Expected(shard.unit, shard.fingerprint, Translation, partial(_translation_faults, shard))


def _translation_faults(shard: TranslationShard, rows: list[Translation]) -> Iterator[str]:
    wanted = [(row.prompt_id, row.language, row.sample, target) for row, target in shard.requests()]
    if [(row.prompt_id, row.language, row.sample, row.target) for row in rows] != wanted:
        yield f"its {len(rows)} rows are not the translations of the {len(wanted)} responses"


def translation_shards(job: Job, iteration: Iteration) -> list[TranslationShard]:
    """Return the shards of translations, done or not."""
    recipe, both_ways = job.recipe, job.recipe.language_imbalance is not None
    policy, name = job.policy(iteration.number - 1), recipe.translate.model
    translator = policy if name is None else job.model(name)
    settings = {
        **settings_of("translate", recipe.translate, without=("model",)),
        **asking_of(recipe.models),
        "sample.max_prompt_tokens": recipe.sample.max_prompt_tokens,
        "both_ways": both_ways,
    }
    english: dict[str, list[Response]] = {}
    for row in iteration.responses.rows(ENGLISH) if both_ways else ():
        english.setdefault(row.prompt_id, []).append(row)
    english_digest = {"english": iteration.responses.digest([ENGLISH])} if both_ways else {}
    shards = []
    for language, start, prompts in iteration.translations.cut(_foreign(recipe), recipe.resources.shard_prompts):
        responses = iteration.responses.unit(language, start)
        inputs = {"translator": translator.identity, "responses": responses.digest, **english_digest}
        answers = [row for prompt in prompts for row in english.get(prompt.prompt_id, ())]
        unit = iteration.translations.unit(language, start)
        shards.append(TranslationShard(unit, Fingerprint(settings, inputs), prompts, language, responses, answers))
    return shards


def translate(
    requests: Sequence[tuple[Response, str]],
    translator: Translator,
    *,
    settings: TranslateSettings,
    identify: Identify | None,
    advance: Advance,
) -> list[Translation]:
    """Translate each (response, language wanted), in the order given; an empty response is not sent to the translator.

    A translation that cannot be used says why in ``failure``, and keeps its text as it came. Where there is no text,
    since there was nothing to translate or it was too long, ``finish_reason`` is ``stop`` and means nothing.

    Args:
        requests: the responses, each with the tag of the language wanted.
        translator: who translates.
        settings: what a translation that was cut is.
        identify: tells a text's language, to find texts that were left untranslated; None if that is not to be checked.
        advance: called with finished responses and their tokens.
    """
    with_text = [index for index, (response, _) in enumerate(requests) if not is_blank(response.text)]
    advance(len(requests) - len(with_text), 0)
    texts = [(requests[index][0].text, requests[index][0].language, requests[index][1]) for index in with_text]
    translated = translator.translate(texts, advance) if texts else []
    answers = dict(zip(with_text, translated, strict=True))
    nothing = Sampled("", [], "stop")
    rows = []
    for index, (response, target) in enumerate(requests):
        answer = answers.get(index, nothing)
        failure = "too long" if answer is None else _failure(answer, response.language, target, settings, identify)
        shown = answer or nothing
        rows.append(
            Translation(
                response.prompt_id,
                response.language,
                response.sample,
                target,
                shown.text,
                shown.token_ids or None,
                shown.finish_reason,
                failure,
            )
        )
    return rows


def _failure(
    answer: Sampled, source: str, target: str, settings: TranslateSettings, identify: Identify | None
) -> str | None:
    """Return why a translation cannot be used, or None if it can.

    Most loops only end at the token limit, so loops come first: a higher limit would not help them.
    """
    source, target = source.partition("-")[0], target.partition("-")[0]
    if is_blank(answer.text):
        return "empty"
    if _loops(answer):
        return "loops"
    if settings.truncated == "drop" and answer.finish_reason == "length":
        return "cut at the token limit"
    if identify and source != target and identify(answer.text) == source:
        return "still in the source language"
    return None


def _loops(answer: Sampled) -> bool:
    words = answer.text.split()
    spaced = len(answer.text) <= WORD_CHARACTERS * len(words)
    return max(repeated_share(words if spaced else answer.text), repeated_share(answer.token_ids or ())) > LOOPING_SHARE
