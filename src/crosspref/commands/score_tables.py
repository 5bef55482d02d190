"""What ``crosspref translate`` and ``crosspref score`` do with a table of responses, and its comparison with znlp."""

from collections.abc import Sequence
from typing import Any

from crosspref.data.records import Prompt, Response, Score, Translation
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.languages import ENGLISH
from crosspref.maths.reward import noise_gap
from crosspref.models.locate import locate_model
from crosspref.recipe.schema import Recipe
from crosspref.run.progress import Reporter
from crosspref.stages.score import rate, score
from crosspref.stages.select.flips import Flips, flips
from crosspref.stages.translate import translate


def translate_table(recipe: Recipe, model: str, responses: Sequence[Response]) -> list[Translation]:
    """Translate a table of responses into English; those in English are left out, since Eq. 14 leaves them as they are.

    Args:
        recipe: how to translate.
        model: the name of who translates. Its token ids are taken for the policy's, unless it is a translation model
            or the recipe names another translator.
        responses: the responses.
    """
    engines, foreign = EngineFactory(EngineSettings.of(recipe)), [row for row in responses if row.language != ENGLISH]
    translator = engines.translator(locate_model(model))
    rows: list[Translation] = []
    try:
        with Reporter().step("translate", len(foreign)) as meter:
            for language in dict.fromkeys(row.language for row in foreign):
                rows += translate(
                    [(row, ENGLISH) for row in foreign if row.language == language],
                    translator,
                    settings=recipe.translate,
                    identify=engines.identifier(language),
                    advance=meter.advance,
                )
    finally:
        translator.close()
    return rows


def score_table(
    recipe: Recipe,
    models: tuple[str | None, str | None],
    responses: Sequence[Response],
    prompts: Sequence[Prompt],
    translations: Sequence[Translation] = (),
) -> list[Score]:
    """Score a table of responses by the recipe's reward.

    Languages are scored one after the other, in the order of their first response: the batches of the released scripts
    hold prompts of one language.

    Args:
        recipe: which reward, and how it is computed.
        models: names of the policy and of the reference, where the reward has them.
        responses: the responses; the prompts of a language are taken in the order of their first response.
        prompts: their prompts, in the languages that the reward needs.
        translations: of the responses into English, for the reward ``translated``.
    """
    engines, settings = EngineFactory(EngineSettings.of(recipe)), recipe.reward
    policy, reference = (None if name is None else locate_model(name) for name in models)
    engine: Any
    if settings.name == "reward_model":
        engine = engines.reward_model(locate_model(settings.reward_model or ""))
    elif policy is None:
        raise ValueError(f"The reward {settings.name} needs a policy.")
    else:
        build = engines.released_scorer if settings.counting == "znlp" else engines.scorer
        engine = build(policy, reference)
    prompt_count = len({(row.prompt_id, row.language) for row in responses})
    rows: list[Score] = []
    try:
        with Reporter().step(f"score {settings.name}, {settings.counting}", prompt_count) as meter:
            for language in dict.fromkeys(row.language for row in responses):
                own = [row for row in responses if row.language == language]
                if settings.name == "reward_model":
                    rows += rate(own, prompts, engine, advance=meter.advance)
                else:
                    rows += score(
                        own,
                        prompts,
                        engine,
                        settings=settings,
                        reward=settings.name,
                        advance=meter.advance,
                        translations=translations,
                    )
    finally:
        engine.close()
    return rows


def count_flips(
    recipe: Recipe,
    responses: Sequence[Response],
    prompts: Sequence[Prompt],
    exact_scores: Sequence[Score],
    znlp_scores: Sequence[Score],
) -> list[Flips]:
    """Compare both ways of counting in every language, over the prompts that have responses.

    Args:
        recipe: how pairs are made of the exact scores.
        responses: the responses.
        prompts: their prompts.
        exact_scores: their scores with ``reward.counting`` exact.
        znlp_scores: their scores with ``reward.counting`` znlp.
    """
    answered = {(row.prompt_id, row.language) for row in responses}
    asked = [prompt for prompt in prompts if (prompt.prompt_id, prompt.language) in answered]
    return [
        flips(
            [row for row in responses if row.language == language],
            [row for row in exact_scores if row.language == language],
            [row for row in znlp_scores if row.language == language],
            {prompt.prompt_id: prompt.instruction for prompt in asked if prompt.language == language},
            language,
            unit=recipe.length_penalty.unit,
            settings=recipe.select,
            identify=EngineFactory(EngineSettings.of(recipe)).identifier(language),
            noise=noise_gap(recipe.reward.algorithm, recipe.reward.beta),
        )
        for language in recipe.languages
    ]
