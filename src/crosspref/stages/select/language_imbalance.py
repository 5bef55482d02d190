"""Language imbalance driven rewarding (section A.5; Yang et al., 2024): pairs without a reward.

The model is taken to answer better in English than in other languages. So the translation of its English answer is
preferred to its own answer in the other language, and its English answer to the translation of that one.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from crosspref.data.records import Dropped, Instruction, Pair, Response, Translation, as_messages, ended
from crosspref.data.rows import is_blank
from crosspref.errors import DataError
from crosspref.languages import ENGLISH
from crosspref.run.job import Job, digest_rows, settings_of
from crosspref.run.layout import Iteration
from crosspref.run.phases import Expected
from crosspref.run.store import Fingerprint
from crosspref.stages.prompts import stored_instructions
from crosspref.stages.select.select import pair_faults


def expected_imbalance_pairs(job: Job, places: Iteration) -> Iterator[Expected]:
    """Yield what the pairs of every language must be."""
    fingerprint, (pairs, _) = _fingerprint(job, places), _all_pairs(job, places)
    for language in job.recipe.languages:
        again = [pair for pair in pairs if pair.language == language]
        yield Expected(places.pairs.unit(language), fingerprint, Pair, partial(pair_faults, again=again))


def _fingerprint(job: Job, places: Iteration) -> Fingerprint:
    recipe, settings = job.recipe, job.recipe.language_imbalance
    return Fingerprint(
        {
            **(settings_of("language_imbalance", settings) if settings else {}),
            "select.truncated": recipe.select.truncated,
        },
        {
            "answers": places.responses.digest(recipe.languages),
            "translations": places.translations.digest(recipe.languages),
            "prompts": digest_rows([row for language in recipe.languages for row in places.prompts.rows(language)]),
        },
    )


def make_imbalance_pairs(job: Job, places: Iteration) -> None:
    """Make the pairs of every language by language imbalance (A.5); the English ones come from all the others."""
    recipe, fingerprint = job.recipe, _fingerprint(job, places)
    units = {language: places.pairs.unit(language) for language in recipe.languages}
    done = [unit.finished(fingerprint) for unit in units.values()]  # all of them: each stale one must be noticed
    if all(done):
        return
    pairs, dropped = _all_pairs(job, places)
    for language, unit in units.items():
        kept = [pair for pair in pairs if pair.language == language]
        lost = [row for row in dropped if row.language == language]
        unit.write_rows(kept, Pair)
        places.dropped.unit(language).write_rows(lost, Dropped)
        lengths = [len(pair.chosen[-1]["content"]) - len(pair.rejected[-1]["content"]) for pair in kept]
        reasons = Counter(row.reason for row in lost)
        mean = sum(lengths) / len(lengths) if lengths else None
        unit.finish(fingerprint, len(kept), mean_length_difference=mean, dropped=dict(reasons))
        counts = "".join(f", {count} dropped: {reason}" for reason, count in reasons.items())
        job.reporter.say(f"iteration {places.number} select {language}: {len(kept)} pairs{counts}")


def _all_pairs(job: Job, places: Iteration) -> tuple[list[Pair], list[Dropped]]:
    """Return the pairs of all languages, and the prompts without one."""
    recipe, settings = job.recipe, job.recipe.language_imbalance
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    english, *foreign = (
        Answered(language, stored_instructions(places.prompts, language), places.responses.rows(language))
        for language in [ENGLISH, *(language for language in recipe.languages if language != ENGLISH)]
    )
    for answered in foreign:
        made, left_out = language_imbalance_pairs(
            answered,
            english,
            places.translations.rows(answered.language),
            settings.translation_prompts if settings else [],
            truncated=recipe.select.truncated,
        )
        pairs += made
        dropped += left_out
    return pairs, dropped


class _Side(NamedTuple):
    """One side of a pair. ``sample`` is None where the text is no response to the pair's own prompt."""

    text: str
    token_ids: list[int] | None
    sample: int | None
    ended: bool | None


_Why = str
"""Why there is no such side."""


class Answered(NamedTuple):
    """The prompts in one language by prompt_id, and at most one answer to each."""

    language: str
    instructions: Mapping[str, Instruction]
    answers: Sequence[Response]


def language_imbalance_pairs(
    foreign: Answered,
    english: Answered,
    translations: Sequence[Translation],
    translation_prompts: Collection[str],
    *,
    truncated: Literal["drop", "keep"] = "drop",
) -> tuple[list[Pair], list[Dropped]]:
    """Make the pairs of one language and of English; every prompt of the language ends as a pair or dropped in both.

    Args:
        foreign: prompts and answers in a language that is not English.
        english: the same prompts in English, of which there may be more, and their answers.
        translations: of the answers into English, and of the English answers into the language.
        translation_prompts: ids of prompts that ask for a translation, whose English answer is in the right language
            already: it is the chosen one as it stands.
        truncated: what happens to answers that were cut at the token limit.

    Raises:
        DataError: a prompt has no English version, a key is duplicated, or a row belongs to none of this.
    """
    language, instructions = foreign.language, foreign.instructions
    if language == ENGLISH:
        raise DataError("Language imbalance compares English with another language, so there are no pairs of English.")
    lacking = sorted(instructions.keys() - english.instructions.keys())
    if lacking:
        raise DataError(f"{len(lacking)} prompts in {language!r} are not there in English, the first: {lacking[0]!r}.")
    answers, english_answers = _by_prompt(foreign), _by_prompt(english)
    translated = _by_direction(translations, {language: answers, ENGLISH: english_answers})
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for prompt_id, instruction in instructions.items():
        here, there = answers.get(prompt_id), english_answers.get(prompt_id)
        said, english_said = (
            _answer(row, whose, truncated)
            for row, whose in ((here, f"the answer in {language}"), (there, "the English answer"))
        )
        into_language = _translation(translated.get((prompt_id, ENGLISH)), english_said, "the English answer")
        if prompt_id in translation_prompts and isinstance(english_said, _Side):
            into_language = english_said._replace(sample=None)
        into_english = _translation(translated.get((prompt_id, language)), said, f"the answer in {language}")
        for row in (
            _pair(prompt_id, language, instruction, into_language, said),
            _pair(prompt_id, ENGLISH, english.instructions[prompt_id], english_said, into_english),
        ):
            if isinstance(row, Pair):
                pairs.append(row)
            else:
                dropped.append(row)
    return pairs, dropped


def _by_prompt(answered: Answered) -> dict[str, Response]:
    language, answers = answered.language, dict[str, Response]()
    for answer in answered.answers:
        if answer.language != language:
            raise DataError(
                f"An answer to prompt {answer.prompt_id!r} is in {answer.language!r}, among those in {language!r}."
            )
        if answer.prompt_id not in answered.instructions:
            raise DataError(f"There is no prompt in {language!r} for the answer to {answer.prompt_id!r}.")
        if answer.prompt_id in answers:
            raise DataError(
                f"Prompt {answer.prompt_id!r} ({language}) has two answers, samples "
                f"{answers[answer.prompt_id].sample} and {answer.sample}. Language imbalance takes one greedy answer "
                "per prompt."
            )
        answers[answer.prompt_id] = answer
    return answers


def _by_direction(
    translations: Sequence[Translation], answers: Mapping[str, Mapping[str, Response]]
) -> dict[tuple[str, str], Translation]:
    """Return translations by (prompt_id, language of the answer); ``answers`` holds those of the two languages."""
    by_direction: dict[tuple[str, str], Translation] = {}
    for row in translations:
        where = f"prompt {row.prompt_id!r}, sample {row.sample} ({row.language} to {row.target})"
        if row.language == row.target or not {row.language, row.target} <= answers.keys():
            raise DataError(f"A translation is of other languages than {' and '.join(answers)}: {where}.")
        answer = answers[row.language].get(row.prompt_id)
        if answer is None or answer.sample != row.sample:
            raise DataError(f"There is no answer for the translation of {where}.")
        if (row.prompt_id, row.language) in by_direction:
            raise DataError(f"There are two translations of {where}.")
        by_direction[row.prompt_id, row.language] = row
    return by_direction


def _answer(answer: Response | None, whose: str, truncated: str) -> _Side | _Why:
    if answer is None:
        return f"{whose} is missing"
    if is_blank(answer.text):
        return f"{whose} is empty"
    if truncated == "drop" and answer.finish_reason == "length":
        return f"{whose} is truncated"
    return _Side(answer.text, answer.token_ids or None, answer.sample, ended(answer))


def _translation(translation: Translation | None, source: _Side | _Why, whose: str) -> _Side | _Why:
    if isinstance(source, _Why):
        return source
    if translation is None:
        return f"translation of {whose} is missing"
    failure = translation.failure or ("empty" if is_blank(translation.text) else None)
    if failure:
        return f"translation of {whose} failed ({failure})"
    return _Side(translation.text, translation.token_ids or None, None, ended(translation))


def _pair(
    prompt_id: str, language: str, instruction: Instruction, chosen: _Side | _Why, rejected: _Side | _Why
) -> Pair | Dropped:
    if isinstance(chosen, _Why):
        return Dropped(prompt_id, language, "select", chosen)
    if isinstance(rejected, _Why):
        return Dropped(prompt_id, language, "select", rejected)
    if chosen.text == rejected.text:
        return Dropped(prompt_id, language, "select", "chosen and rejected are the same text")
    return Pair(
        prompt_id,
        language,
        as_messages(instruction),
        [{"role": "assistant", "content": chosen.text}],
        [{"role": "assistant", "content": rejected.text}],
        chosen.sample,
        rejected.sample,
        chosen.token_ids,
        rejected.token_ids,
        chosen_ended=chosen.ended,
        rejected_ended=rejected.ended,
    )
