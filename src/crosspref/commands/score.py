"""``crosspref score``: score responses by a reward (Eq. 8, 9, 12, 13), and compare with how znlp counts."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import Any, get_args

from crosspref.commands import PROMPTS, TABLE, add_set, languages_of, output_table
from crosspref.commands.select import rules_by_language
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Prompt, Response, Score, Translation
from crosspref.data.tables import read_rows, write_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import RecipeError
from crosspref.maths.reward import noise_gap
from crosspref.models.locate import ModelFiles, locate_model, require_different
from crosspref.recipe.files import PRESETS, stage_settings
from crosspref.recipe.sections import REFERENCE_FREE, RewardName
from crosspref.recipe.stages import ScoreStage
from crosspref.run.job import digest_rows, fingerprint_alone
from crosspref.run.kept import Parts
from crosspref.run.progress import Reporter
from crosspref.run.store import digest_of
from crosspref.run.terminal import Terminal
from crosspref.stages.score import rate, score
from crosspref.stages.select.flips import Flips, flips, flips_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, nargs="+", help=PROMPTS)
    parser.add_argument("--responses", required=True, help=f"table of responses {TABLE}")
    parser.add_argument("--policy", help="the English-aligned model pi_0; not for the reward reward_model")
    parser.add_argument(
        "--reference", help="the model it was aligned from, pi_I; not for reward_model, nor after simpo or orpo"
    )
    parser.add_argument(
        "--reward",
        choices=get_args(RewardName),
        default="crosslingual",
        help="R_n is what --set reward.reward_model=NAME says",
    )
    parser.add_argument(
        "--translations", help=f"English translations of the responses {TABLE}, for the reward translated"
    )
    parser.add_argument(
        "--compare",
        choices=["znlp"],
        help="also count what the paper's released scripts count, and show how many pairs would flip",
    )
    parser.add_argument("--out", required=True, type=output_table, help=f"where the scores go {TABLE}")
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    responses = read_rows(options.responses, Response)
    languages = languages_of(responses, options.responses)
    settings = _settings(options, languages, options.overrides)
    compared = _settings(options, languages, _with_other_counting(settings, options)) if options.compare else None
    prompts = load_prompts(settings.prompts, settings.languages).prompts
    translations = read_rows(options.translations, Translation) if options.translations else []
    is_implicit = settings.reward.name != "reward_model"
    names = [options.policy, options.reference] if is_implicit else [settings.reward.reward_model]
    models = [locate_model(name) for name in names if name is not None]
    tables = {"responses": responses, "prompts": prompts, "translations": translations}
    inputs = {name: digest_rows(rows) for name, rows in tables.items()}
    inputs["models"] = digest_of([model.identity for model in models])
    parts = Parts(options.out, fingerprint_alone(settings, "reward", **inputs))
    scores = score_table(settings, models, responses, prompts, parts, translations)
    write_rows(options.out, scores, Score)
    if compared is not None:
        results = (settings, scores), (compared, score_table(compared, models, responses, prompts, parts))
        (exact, exact_scores), (_, znlp_scores) = sorted(results, key=lambda result: result[0].reward.counting)
        Terminal().print(flips_table(_count_flips(exact, responses, prompts, exact_scores, znlp_scores)))
    parts.remove()


def _settings(options: argparse.Namespace, languages: list[str], overrides: Sequence[str]) -> ScoreStage:
    given = {"languages": languages, "prompts": {"source": options.prompts}, "reward": {"name": options.reward}}
    settings = stage_settings(ScoreStage, given, overrides)
    reward, algorithm = settings.reward.name, settings.reward.algorithm
    if options.compare and reward not in {"crosslingual", "multilingual"}:
        raise RecipeError(f"--compare is for the rewards crosslingual and multilingual, and not for {reward}.")
    if reward != "reward_model":
        if options.policy is None:
            raise RecipeError(f"The reward {reward} needs --policy, the English-aligned model.")
        if options.reference is None and algorithm not in REFERENCE_FREE:
            raise RecipeError(f"The reward that {algorithm} leaves needs --reference, the model before the alignment.")
        if options.reference is not None and algorithm in REFERENCE_FREE:
            raise RecipeError(
                f"The algorithm {algorithm} has no reference: leave out --reference, or name with --set "
                "reward.algorithm the one by which the policy was aligned from it."
            )
    if (reward == "translated") != (options.translations is not None):
        raise RecipeError("--translations TABLE goes with --reward translated, and the other way round.")
    return settings


def _with_other_counting(settings: ScoreStage, options: argparse.Namespace) -> list[str]:
    """Return overrides under which the other of the two countings, exact and znlp, is computed."""
    if settings.reward.counting == "znlp":
        kept = [change for change in options.overrides if change.partition("=")[0].strip() != "preset"]
        return [*kept, "reward.counting=exact"]
    return [*options.overrides, *(f"reward.{key}={value}" for key, value in PRESETS["znlp"]["reward"].items())]


def score_table(
    settings: ScoreStage,
    models: Sequence[ModelFiles],
    responses: Sequence[Response],
    prompts: Sequence[Prompt],
    parts: Parts,
    translations: Sequence[Translation] = (),
) -> list[Score]:
    """Score a table of responses by the policy and, where the reward has one, its reference; or by the reward model.

    Languages are scored one after the other, in the order of their first response, and so are a language's prompts:
    the batches of the released scripts hold prompts of one language.
    """
    reward = settings.reward
    engine = _engine(settings, models)
    prompt_count = len({(row.prompt_id, row.language) for row in responses})
    scores: list[Score] = []
    with closing(engine), Reporter().step(f"score {reward.name}, {reward.counting}", prompt_count) as meter:
        for language in dict.fromkeys(row.language for row in responses):
            in_language = [row for row in responses if row.language == language]
            with parts.keeping(meter.advance, reward.counting, language) as kept:
                if reward.name == "reward_model":
                    scores += rate(in_language, prompts, engine, advance=kept)
                else:
                    scores += score(
                        in_language,
                        prompts,
                        engine,
                        settings=reward,
                        reward=reward.name,
                        advance=kept,
                        translations=translations,
                    )
    return scores


def _engine(settings: ScoreStage, models: Sequence[ModelFiles]) -> Any:
    if settings.reward.name == "reward_model":
        return EngineFactory(EngineSettings.of(settings)).reward_model(*models)
    roles = dict(zip(("pi_0", "pi_I"), (model.name for model in models), strict=False))
    reference = models[1] if len(models) > 1 else None
    require_different(models[0], reference)
    return EngineFactory(EngineSettings.of(settings, **roles)).scorer(models[0], reference)


def _count_flips(
    settings: ScoreStage,
    responses: Sequence[Response],
    prompts: Sequence[Prompt],
    exact_scores: Sequence[Score],
    znlp_scores: Sequence[Score],
) -> list[Flips]:
    """Compare both ways of counting in every language, over the prompts that have responses."""
    answered = {(row.prompt_id, row.language) for row in responses}
    used = [prompt for prompt in prompts if (prompt.prompt_id, prompt.language) in answered]
    counts = []
    for rules in rules_by_language(settings, used, noise_gap(settings.reward.algorithm, settings.reward.beta)):
        tag, answers = rules.language, [row for row in responses if row.language == rules.language]
        exact, znlp = ([row for row in scores if row.language == tag] for scores in (exact_scores, znlp_scores))
        counts.append(flips(answers, exact, znlp, rules))
    return counts
