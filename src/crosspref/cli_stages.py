"""The stages as commands of their own, on files: for responses or scores that were made elsewhere."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspref.recipe import Recipe
    from crosspref.records import Pair, Prompt, Response


TABLE = "(.parquet or .jsonl)"
REQUIRED: dict[str, dict[str, Any]] = {
    "--model": {"help": "the policy to sample from, or to start training from: then it is its own reference"},
    "--policy": {"help": "the English-aligned model pi_0"},
    "--reference": {"help": "the model it was aligned from, pi_I"},
    "--prompts": {"help": "parallel prompts: file, folder, package:NAME/path or hub id"},
    "--languages": {"help": "comma-separated tags, for example en,es,fr"},
    "--responses": {"help": f"table of responses {TABLE}"},
    "--pairs": {"help": f"table of pairs {TABLE}"},
}


def add_commands(commands: Any, add_set: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add sample, score, select, train and evaluate to the command line."""

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
        _score,
        "score responses by the implicit reward (Eq. 8, 9)",
        *("--policy", "--reference", "--prompts", "--responses"),
        reward={"choices": ["crosslingual", "multilingual"], "default": "crosslingual"},
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
        "train a model on preference pairs by DPO+NLL (Eq. 11); if it was stopped, the same command goes on",
        *("--model", "--pairs"),
        out={"required": True, "help": "the directory for the trained model, which must not exist yet"},
    )
    add(
        _evaluate,
        "count what can be counted in responses, and compare them with others by reward",
        "--responses",
        scores={"help": f"their scores {TABLE}"},
        baseline_scores={"help": f"scores of another model's responses to the same prompts {TABLE}"},
        out=out,
    )


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


def _recipe(options: argparse.Namespace, languages: list[str], initial: str = "none", policy: str = "none") -> "Recipe":
    """Return a recipe with the given overrides, from which a stage alone takes its section."""
    from crosspref.recipe_file import make_recipe, override

    source = getattr(options, "prompts", "none")
    content: dict[str, Any] = {
        "models": {"initial": initial, "policy": policy},
        "languages": languages,
        "prompts": {"source": source},
    }
    for change in options.overrides:
        override(content, change)
    return make_recipe(content, "What was given with --set")


def _load_prompts(recipe: "Recipe") -> "list[Prompt]":
    from crosspref.stages.prompts import PromptColumns, load_prompts

    asked = recipe.prompts
    columns = PromptColumns(asked.id_column, asked.text_column, asked.language_column)
    problem, limit = asked.on_problem, asked.limit
    return load_prompts(asked.source, recipe.languages, on_problem=problem, limit=limit, columns=columns).prompts


def _sample(options: argparse.Namespace) -> None:
    from crosspref.engines import RecipeEngines
    from crosspref.models import locate_model
    from crosspref.progress import Reporter
    from crosspref.records import Response
    from crosspref.stages.files import write_rows
    from crosspref.stages.sample import sample

    recipe = _recipe(options, options.languages.split(","))
    prompts = [prompt for prompt in _load_prompts(recipe) if prompt.language in recipe.languages]
    sampler = RecipeEngines(recipe).sampler(locate_model(options.model))
    with Reporter().step("sample", len(prompts) * recipe.sample.n) as meter:
        rows = sample(prompts, sampler, n=recipe.sample.n, seed=recipe.seed, iteration=1, advance=meter.advance)
    write_rows(options.out, rows, Response)


def _score(options: argparse.Namespace) -> None:
    from crosspref.engines import RecipeEngines
    from crosspref.models import locate_model
    from crosspref.progress import Reporter
    from crosspref.records import Response, Score
    from crosspref.stages.files import read_rows, write_rows
    from crosspref.stages.score import score

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, _languages(responses, options.responses), options.reference, options.policy)
    prompts = _load_prompts(recipe)
    scorer = RecipeEngines(recipe).scorer(locate_model(options.policy), locate_model(options.reference))
    with Reporter().step("score", len({(row.prompt_id, row.language) for row in responses})) as meter:
        rows = score(responses, prompts, scorer, beta=recipe.reward.beta, reward=options.reward, advance=meter.advance)
    write_rows(options.out, rows, Score)


def _select(options: argparse.Namespace) -> None:
    from crosspref.engines import RecipeEngines
    from crosspref.progress import Reporter
    from crosspref.records import Dropped, Pair, Response, Score
    from crosspref.stages.files import read_rows, write_rows
    from crosspref.stages.select import select

    responses, scores = read_rows(options.responses, Response), read_rows(options.scores, Score)
    recipe = _recipe(options, _languages(responses, options.responses))
    prompts = _load_prompts(recipe)
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
            identify=RecipeEngines(recipe).identifier(language),
        )
        Reporter().say(f"select {language}: {selection.summary()}")
        pairs += selection.pairs
        dropped += selection.dropped
    write_rows(options.out, pairs, Pair)
    if options.dropped:
        write_rows(options.dropped, dropped, Dropped)


def _train(options: argparse.Namespace) -> None:
    import shutil

    from crosspref.engines import RecipeEngines
    from crosspref.errors import DataError
    from crosspref.job import training_fingerprint
    from crosspref.models import locate_model
    from crosspref.progress import Reporter
    from crosspref.records import Pair
    from crosspref.stages.files import read_rows
    from crosspref.store import publish_directory

    out = Path(options.out)
    if out.exists():
        raise DataError(f"{out} is there already, and is not overwritten. Name another --out, or remove it.")
    pairs = read_rows(options.pairs, Pair)
    recipe = _recipe(options, _languages(pairs, options.pairs), options.model, options.model)
    start = locate_model(options.model)
    # Named by what determines the policy, so that checkpoints of other pairs or settings are never gone on with.
    every = out.with_name(out.name + ".checkpoints")
    checkpoints = every / training_fingerprint("train", recipe.train, recipe.seed, start, pairs).digest
    temporary = checkpoints / "policy"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    trainer = RecipeEngines(recipe).trainer(start, recipe.train)
    with Reporter().step("train", len(pairs) * recipe.train.epochs) as meter:
        trainer.train(pairs, temporary, checkpoints, meter.advance)
    publish_directory(temporary, out)
    shutil.rmtree(every)


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from crosspref.engines import RecipeEngines
    from crosspref.records import Measure, Response, Score
    from crosspref.stages.evaluate import compare, measure
    from crosspref.stages.files import read_rows, write_rows
    from crosspref.stages.report import make_report

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, _languages(responses, options.responses))
    engines = RecipeEngines(recipe)
    both = [read_rows(path, Score) if path else [] for path in (options.scores, options.baseline_scores)]
    settings = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    rows: list[Measure] = []
    for language in recipe.languages:
        own = [row for row in responses if row.language == language]
        rows += measure(own, language, 1, identify=engines.identifier(language), **settings)
        scores, baseline = ([row for row in part if row.language == language] for part in both)
        won = compare(scores, baseline, language, 1, **settings)
        rows += [won] if won else []
    write_rows(options.out, rows, Measure)
    Console().print(make_report(rows).table())
