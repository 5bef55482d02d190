"""The stages as commands of their own, on files: for responses or scores that were made elsewhere."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspref.commands.evaluate import add_command as add_evaluate

if TYPE_CHECKING:
    from crosspref.data.records import Pair, Prompt, Response
    from crosspref.recipe.schema import Recipe

TABLE = "(.parquet or .jsonl)"
REWARDS = ["crosslingual", "multilingual", "translated", "reward_model"]
REQUIRED: dict[str, dict[str, Any]] = {
    "--model": {"help": "the policy to sample from, or to start training from: then it is its own reference"},
    "--prompts": {"help": "parallel prompts: file, folder, package:NAME/path or hub id"},
    "--languages": {"help": "comma-separated tags, for example en,es,fr"},
    "--responses": {"help": f"table of responses {TABLE}"},
    "--pairs": {"help": f"table of pairs {TABLE}"},
}


def add_commands(commands: Any, add_set: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add sample, translate, score, select, train and evaluate to the command line."""

    def add(command: Callable[[argparse.Namespace], None], text: str, *flags: str, **extra: dict[str, Any]) -> None:
        parser = commands.add_parser(command.__name__.lstrip("_"), help=text, description=text)
        for flag in flags:
            parser.add_argument(flag, required=True, **REQUIRED[flag])
        for name, keywords in extra.items():
            parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
        add_set(parser)
        parser.set_defaults(command=command)

    out = {"required": True, "type": _table, "help": f"where the table goes {TABLE}"}
    add(_sample, "draw responses to prompts from a model (Eq. 7)", "--model", "--prompts", "--languages", out=out)
    add(
        _translate,
        "translate responses into English, for the reward translated (Eq. 14)",
        "--responses",
        model={"required": True, "help": "who translates: the policy, another chat model, or a translation model"},
        out=out,
    )
    add(
        _score,
        "score responses by a reward (Eq. 8, 9, 12, 13)",
        *("--prompts", "--responses"),
        policy={"help": "the English-aligned model pi_0; not for the reward reward_model"},
        reference={"help": "the model it was aligned from, pi_I; not for reward_model, nor after simpo or orpo"},
        reward={"choices": REWARDS, "default": REWARDS[0], "help": "R_n is what --set reward.reward_model=NAME says"},
        translations={"help": f"English translations of the responses {TABLE}, for the reward translated"},
        compare={
            "choices": ["znlp"],
            "help": "also count what the paper's released scripts count, and show how many pairs would flip",
        },
        out=out,
    )
    add(
        _select,
        "make preference pairs under the optimal length penalty (Eq. 10, 15)",
        *("--prompts", "--responses"),
        scores={"required": True, "help": f"table of scores {TABLE}"},
        dropped={"type": _table, "help": f"where the prompts without a pair go {TABLE}"},
        out=out,
    )
    add(
        _train,
        "train a model on preference pairs (Eq. 11, 16); if it was stopped, the same command goes on",
        *("--model", "--pairs"),
        reference={"help": "the training reference, if it is not the model itself"},
        out={"required": True, "help": "the directory for the trained model, which must not exist yet"},
    )
    add_evaluate(commands, add_set, _evaluate)


def _table(name: str) -> str:
    """Return a table's file name, or stop here: after hours of sampling it is late to hear that it cannot be used."""
    if not name.endswith((".parquet", ".jsonl")):
        raise argparse.ArgumentTypeError(f"{name} must end with .parquet or .jsonl")
    return name


def _languages(rows: "Sequence[Response | Pair]", path: str) -> list[str]:
    from crosspref.errors import DataError

    if not rows:
        raise DataError(f"{path} has no rows.")
    return sorted({row.language for row in rows})


def _recipe(
    options: argparse.Namespace, languages: list[str], initial: str | None = None, policy: str | None = None
) -> "Recipe":
    """Return a recipe with the given overrides, from which a stage alone takes its section."""
    from crosspref.recipe.files import make_recipe, override
    from crosspref.recipe.sections import REFERENCE_FREE

    source = getattr(options, "prompts", "none")
    content: dict[str, Any] = {
        "models": {"initial": initial, "policy": policy or "none"},
        "languages": languages,
        "prompts": {"source": source},
        "reward": {"name": getattr(options, "reward", "crosslingual")},
        "resources": {"shard_prompts": 48},  # a stage alone has no shards; any multiple of 3 does for znlp
    }
    for change in options.overrides:
        override(content, change)
    reward = content["reward"]
    if initial is None and not (isinstance(reward, dict) and reward.get("algorithm") in list(REFERENCE_FREE)):
        content["models"]["initial"] = "none"
    return make_recipe(content, "--set")


def _load_prompts(recipe: "Recipe") -> "list[Prompt]":
    from crosspref.data.prompts import load_prompts

    return load_prompts(recipe.prompts, recipe.languages).prompts


def _sample(options: argparse.Namespace) -> None:
    from crosspref.data.records import Response
    from crosspref.data.tables import write_rows
    from crosspref.engines import EngineFactory, EngineSettings
    from crosspref.models.locate import locate_model
    from crosspref.run.progress import Reporter
    from crosspref.stages.sample import sample

    recipe = _recipe(options, options.languages.split(","))
    prompts, n = [row for row in _load_prompts(recipe) if row.language in recipe.languages], recipe.sample.n
    sampler = EngineFactory(EngineSettings.of(recipe)).sampler(locate_model(options.model))
    with Reporter().step("sample", len(prompts) * n) as meter:
        rows = sample(prompts, sampler, n=n, seed=recipe.seed, iteration=1, advance=meter.advance)
    write_rows(options.out, rows, Response)


def _translate(options: argparse.Namespace) -> None:
    from crosspref.commands.score_tables import translate_table
    from crosspref.data.records import Response, Translation
    from crosspref.data.tables import read_rows, write_rows

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, _languages(responses, options.responses))
    write_rows(options.out, translate_table(recipe, options.model, responses), Translation)


def _score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from crosspref.commands.score_tables import count_flips, score_table
    from crosspref.data.records import Response, Score, Translation
    from crosspref.data.tables import read_rows, write_rows
    from crosspref.stages.select.flips import flips_table

    responses = read_rows(options.responses, Response)
    languages = _languages(responses, options.responses)
    recipe = _score_recipe(options, languages)
    other = _score_recipe(_in_the_other_counting(options, recipe), languages) if options.compare else None
    prompts = _load_prompts(recipe)
    translations = read_rows(options.translations, Translation) if options.translations else []
    models = options.policy, options.reference
    rows = score_table(recipe, models, responses, prompts, translations)
    write_rows(options.out, rows, Score)
    if other is not None:
        both = (recipe, rows), (other, score_table(other, models, responses, prompts))
        exact, znlp = sorted(both, key=lambda one: one[0].reward.counting)
        Console().print(flips_table(count_flips(exact[0], responses, prompts, exact[1], znlp[1])))


def _score_recipe(options: argparse.Namespace, languages: list[str]) -> "Recipe":
    from crosspref.errors import RecipeError
    from crosspref.recipe.sections import REFERENCE_FREE

    recipe = _recipe(options, languages, options.reference, options.policy)
    reward, algorithm = recipe.reward.name, recipe.reward.algorithm
    if options.compare and reward not in {"crosslingual", "multilingual"}:
        raise RecipeError(f"--compare is for the rewards crosslingual and multilingual, and not for {reward}.")
    if reward != "reward_model" and options.policy is None:
        raise RecipeError(f"The reward {reward} needs --policy, the English-aligned model.")
    if reward != "reward_model" and options.reference is None and algorithm not in REFERENCE_FREE:
        raise RecipeError(f"The reward that {algorithm} leaves needs --reference, the model before the alignment.")
    if (reward == "translated") != (options.translations is not None):
        raise RecipeError("--translations TABLE goes with --reward translated, and the other way round.")
    return recipe


def _in_the_other_counting(options: argparse.Namespace, recipe: "Recipe") -> argparse.Namespace:
    from crosspref.recipe.files import PRESETS

    if recipe.reward.counting == "znlp":
        kept = [change for change in options.overrides if change.partition("=")[0].strip() != "preset"]
        overrides = [*kept, "reward.counting=exact"]
    else:
        preset = {part: PRESETS["znlp"][part] for part in ("reward", "resources")}
        changes = [f"{part}.{key}={value}" for part, values in preset.items() for key, value in values.items()]
        overrides = [*options.overrides, *changes]
    return argparse.Namespace(**{**vars(options), "overrides": overrides})


def _select(options: argparse.Namespace) -> None:
    from crosspref.data.records import Dropped, Pair, Response, Score
    from crosspref.data.tables import read_rows, write_rows
    from crosspref.engines import EngineFactory, EngineSettings
    from crosspref.maths.reward import noise_gap
    from crosspref.run.progress import Reporter
    from crosspref.stages.select.select import select

    responses, scores = read_rows(options.responses, Response), read_rows(options.scores, Score)
    recipe = _recipe(options, _languages(responses, options.responses))
    prompts = _load_prompts(recipe)
    # What 0.5 nats are worth is known of the rewards of Eq. 9, 12 and 13, and not of a reward model's or of a person's.
    is_implicit = {row.reward for row in scores} <= {"crosslingual", "multilingual", "translated"}
    noise = noise_gap(recipe.reward.algorithm, recipe.reward.beta) if is_implicit else 0.0
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for language in recipe.languages:
        selection = select(
            [row for row in responses if row.language == language],
            [row for row in scores if row.language == language],
            {prompt.prompt_id: prompt.instruction for prompt in prompts if prompt.language == language},
            language,
            penalty=recipe.length_penalty,
            settings=recipe.select,
            identify=EngineFactory(EngineSettings.of(recipe)).identifier(language),
            noise=noise,
        )
        Reporter().say(f"select {language}: {selection.summary()}")
        pairs += selection.pairs
        dropped += selection.dropped
    write_rows(options.out, pairs, Pair)
    if options.dropped:
        write_rows(options.dropped, dropped, Dropped)


def _train(options: argparse.Namespace) -> None:
    import shutil

    from crosspref.data.records import Pair
    from crosspref.data.tables import read_rows
    from crosspref.engines import EngineFactory, EngineSettings
    from crosspref.errors import DataError
    from crosspref.models.locate import locate_model
    from crosspref.run.job import training_fingerprint
    from crosspref.run.progress import Reporter
    from crosspref.run.ranks import is_main
    from crosspref.run.store import Unit, publish_directory

    out = Path(options.out)
    if out.exists():
        raise DataError(f"{out} is there already, and is not overwritten. Name another --out, or remove it.")
    pairs = read_rows(options.pairs, Pair)
    recipe = _recipe(options, _languages(pairs, options.pairs), options.reference or options.model, options.model)
    start = locate_model(options.model)
    reference = locate_model(options.reference) if options.reference else None
    # Named by what determines the policy, so that checkpoints of other pairs or settings are never gone on with.
    every = out.with_name(out.name + ".checkpoints")
    checkpoints = every / training_fingerprint("train", recipe.train, recipe.seed, start, pairs, reference).digest
    temporary = Unit(checkpoints / "policy").temporary()
    trainer = EngineFactory(EngineSettings.of(recipe)).trainer(start, recipe.train, reference)
    with Reporter().step("train", len(pairs) * recipe.train.epochs) as meter:
        trainer.train(pairs, temporary, checkpoints, meter.advance)
    publish_directory(temporary, out)
    if is_main():  # of processes that torchrun or accelerate started
        shutil.rmtree(every)


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from crosspref.data.records import Measure, Response, Score
    from crosspref.data.tables import read_rows, write_rows
    from crosspref.engines import EngineFactory, EngineSettings
    from crosspref.maths.reward import PER_TOKEN
    from crosspref.reports.report import measures_report
    from crosspref.stages.evaluate import compare, measure

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, _languages(responses, options.responses))
    engines = EngineFactory(EngineSettings.of(recipe))
    both = [read_rows(path, Score) if path else [] for path in (options.scores, options.baseline_scores)]
    settings: dict[str, Any] = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    rows: list[Measure] = []
    for language in recipe.languages:
        own = [row for row in responses if row.language == language]
        rows += measure(own, language, 1, identify=engines.identifier(language), **settings)
        scores, baseline = ([row for row in part if row.language == language] for part in both)
        per_token = recipe.reward.algorithm in PER_TOKEN
        won = compare(scores, baseline, language, 1, per_token=per_token, **settings)
        rows += [won] if won else []
    write_rows(options.out, rows, Measure)
    Console().print(measures_report(rows).table())
