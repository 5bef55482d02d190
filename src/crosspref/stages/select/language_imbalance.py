"""Language imbalance driven rewarding (section A.5; Yang et al., 2024): pairs without a reward.

The model is taken to answer better in English than in other languages. So the translation of its English answer is
preferred to its own answer in the other language, and its English answer to the translation of that one.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from crosspref.data.records import Dropped, Pair, Response, Translation
from crosspref.errors import DataError
from crosspref.languages import ENGLISH
from crosspref.run.job import Job, digest_rows, settings_of
from crosspref.run.layout import Iteration
from crosspref.run.store import Fingerprint
from crosspref.stages.prompts import stored_instructions


def make_imbalance_pairs(job: Job, places: Iteration) -> None:
    """Make the pairs of every language by language imbalance (A.5); the English ones come from all the others."""
    recipe, settings = job.recipe, job.recipe.language_imbalance
    fingerprint = Fingerprint(
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
    units = {language: places.pairs.unit(language) for language in recipe.languages}
    done = [unit.finished(fingerprint) for unit in units.values()]  # all of them: each stale one must be noticed
    if all(done):
        return
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    english, english_answers = stored_instructions(places.prompts, ENGLISH), places.responses.rows(ENGLISH)
    for language in recipe.languages:
        if language != ENGLISH:
            made, left_out = language_imbalance_pairs(
                language,
                stored_instructions(places.prompts, language),
                english,
                places.responses.rows(language),
                english_answers,
                places.translations.rows(language),
                settings.translation_prompts if settings else [],
                truncated=recipe.select.truncated,
            )
            pairs += made
            dropped += left_out
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


class _Side(NamedTuple):
    """One side of a pair. ``sample`` is None where the text is no response to the pair's own prompt."""

    text: str
    token_ids: list[int] | None
    sample: int | None


_Why = str
"""Why there is no such side."""


def language_imbalance_pairs(
    language: str,
    instructions: Mapping[str, str],
    english_instructions: Mapping[str, str],
    answers: Sequence[Response],
    english_answers: Sequence[Response],
    translations: Sequence[Translation],
    translation_prompts: Collection[str],
    *,
    truncated: Literal["drop", "keep"] = "drop",
) -> tuple[list[Pair], list[Dropped]]:
    """Make the pairs of one language and of English; every prompt of the language ends as a pair or dropped in both.

    Args:
        language: a tag, not English.
        instructions: the prompts in this language by prompt_id.
        english_instructions: the same prompts in English; there may be more of them.
        answers: at most one answer per prompt in this language.
        english_answers: at most one answer per prompt in English.
        translations: of the answers into English, and of the English answers into the language.
        translation_prompts: ids of prompts that ask for a translation, whose English answer is in the right language
            already: it is the chosen one as it stands.
        truncated: what happens to answers that were cut at the token limit.

    Raises:
        DataError: a prompt is not there in English, a key is double, or a row belongs to none of this.
    """
    if language == ENGLISH:
        raise DataError("Language imbalance compares English with another language, so there are no pairs of English.")
    lacking = sorted(instructions.keys() - english_instructions.keys())
    if lacking:
        raise DataError(f"{len(lacking)} prompts in {language!r} are not there in English, the first: {lacking[0]!r}.")
    own = _by_prompt(answers, language, instructions)
    english = _by_prompt(english_answers, ENGLISH, english_instructions)
    translated = _by_direction(translations, {language: own, ENGLISH: english})
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for prompt_id, instruction in instructions.items():
        here, there = own.get(prompt_id), english.get(prompt_id)
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
            _pair(prompt_id, ENGLISH, english_instructions[prompt_id], english_said, into_english),
        ):
            if isinstance(row, Pair):
                pairs.append(row)
            else:
                dropped.append(row)
    return pairs, dropped


def _by_prompt(answers: Sequence[Response], language: str, instructions: Mapping[str, str]) -> dict[str, Response]:
    found: dict[str, Response] = {}
    for answer in answers:
        if answer.language != language:
            raise DataError(
                f"An answer to prompt {answer.prompt_id!r} is in {answer.language!r}, among those in {language!r}."
            )
        if answer.prompt_id not in instructions:
            raise DataError(f"There is no prompt in {language!r} for the answer to {answer.prompt_id!r}.")
        if answer.prompt_id in found:
            raise DataError(
                f"Prompt {answer.prompt_id!r} ({language}) has two answers, samples {found[answer.prompt_id].sample} "
                f"and {answer.sample}. Language imbalance takes one greedy answer per prompt."
            )
        found[answer.prompt_id] = answer
    return found


def _by_direction(
    translations: Sequence[Translation], answers: Mapping[str, Mapping[str, Response]]
) -> dict[tuple[str, str], Translation]:
    """Return translations by (prompt_id, language of the answer); ``answers`` holds those of the two languages."""
    found: dict[tuple[str, str], Translation] = {}
    for row in translations:
        where = f"prompt {row.prompt_id!r}, sample {row.sample} ({row.language} to {row.target})"
        if row.language == row.target or not {row.language, row.target} <= answers.keys():
            raise DataError(f"A translation is of other languages than {' and '.join(answers)}: {where}.")
        answer = answers[row.language].get(row.prompt_id)
        if answer is None or answer.sample != row.sample:
            raise DataError(f"There is no answer for the translation of {where}.")
        if (row.prompt_id, row.language) in found:
            raise DataError(f"There are two translations of {where}.")
        found[row.prompt_id, row.language] = row
    return found


def _answer(answer: Response | None, whose: str, truncated: str) -> _Side | _Why:
    if answer is None:
        return f"{whose} is missing"
    if not answer.text.strip():
        return f"{whose} is empty"
    if truncated == "drop" and answer.finish_reason == "length":
        return f"{whose} is truncated"
    return _Side(answer.text, answer.token_ids or None, answer.sample)


def _translation(translation: Translation | None, source: _Side | _Why, whose: str) -> _Side | _Why:
    if isinstance(source, _Why):
        return source
    if translation is None:
        return f"translation of {whose} is missing"
    failure = translation.failure or (None if translation.text.strip() else "empty")
    if failure:
        return f"translation of {whose} failed ({failure})"
    return _Side(translation.text, translation.token_ids or None, None)


def _pair(
    prompt_id: str, language: str, instruction: str, chosen: _Side | _Why, rejected: _Side | _Why
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
        [{"role": "user", "content": instruction}],
        [{"role": "assistant", "content": chosen.text}],
        [{"role": "assistant", "content": rejected.text}],
        chosen.sample,
        rejected.sample,
        chosen.token_ids,
        rejected.token_ids,
        None,
        None,
        None,
    )
