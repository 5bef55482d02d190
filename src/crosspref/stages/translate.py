"""Translating: responses into English for R_t (Eq. 14), and both ways for language imbalance (section A.5)."""

from collections.abc import Sequence

from crosspref.data.records import Response, Translation
from crosspref.protocols import Advance, Sampled, Translator
from crosspref.recipe.sections import TranslateSettings
from crosspref.stages.evaluate import repeated_share
from crosspref.stages.select.select import Identify

LOOPING_SHARE = 0.5
"""A text loops if more than this share of its 4-grams stood there before. Greedy decoding that has fallen into a cycle
comes near 1, since only the first turn is new; the embedded English answers reach 0.25 at most, in words."""

WORD_CHARACTERS = 20
"""Text whose words are longer than this on average is taken as written without spaces (Chinese, Japanese, Thai)."""


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
    asked = [index for index, (response, _) in enumerate(requests) if response.text.strip()]
    advance(len(requests) - len(asked), 0)
    texts = [(response.text, response.language, target) for response, target in (requests[index] for index in asked)]
    found = translator.translate(texts, advance) if texts else []
    answers = dict(zip(asked, found, strict=True))
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
    if not answer.text.strip():
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
