"""The stages as commands of their own, on files: for responses or scores that were made elsewhere."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_commands(commands: Any, add_set: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add sample, score, select, train and evaluate to the command line."""
    files = "(.parquet or .jsonl)"
    prompts = ("--prompts", {"required": True, "help": "parallel prompts: file, folder, package:NAME/path or hub id"})
    languages = ("--languages", {"required": True, "help": "comma-separated tags, for example en,es,fr"})
    out = ("--out", {"required": True, "help": f"where the table goes {files}"})
    responses = ("--responses", {"required": True, "help": f"table of responses {files}"})
    table: dict[str, tuple[Callable[[argparse.Namespace], None], str, list[tuple[str, dict[str, Any]]]]] = {
        "sample": (
            _sample,
            "draw responses to prompts from a model (Eq. 7)",
            [("--model", {"required": True, "help": "the policy"}), prompts, languages, out],
        ),
        "score": (
            _score,
            "score responses by the implicit reward (Eq. 8, 9)",
            [
                ("--policy", {"required": True, "help": "the English-aligned model pi_0"}),
                ("--reference", {"required": True, "help": "the model it was aligned from, pi_I"}),
                ("--reward", {"choices": ["crosslingual", "multilingual"], "default": "crosslingual"}),
                prompts,
                responses,
                out,
            ],
        ),
        "select": (
            _select,
            "make preference pairs under the optimal length penalty (Eq. 10, 15)",
            [
                prompts,
                responses,
                ("--scores", {"required": True, "help": f"table of scores {files}"}),
                ("--dropped", {"help": f"where the prompts without a pair go {files}"}),
                out,
            ],
        ),
        "train": (
            _train,
            "train a model on preference pairs by DPO+NLL (Eq. 11)",
            [
                ("--model", {"required": True, "help": "the policy to start from, which is its own reference"}),
                ("--pairs", {"required": True, "help": f"table of pairs {files}"}),
                ("--out", {"required": True, "help": "the directory for the trained model"}),
            ],
        ),
        "evaluate": (
            _evaluate,
            "count what can be counted in responses, and compare them with others by reward",
            [
                responses,
                ("--scores", {"help": f"their scores {files}"}),
                ("--baseline-scores", {"help": f"scores of another model's responses to the same prompts {files}"}),
                out,
            ],
        ),
    }
    for name, (command, text, options) in table.items():
        parser = commands.add_parser(name, help=text, description=text)
        for flag, keywords in options:
            parser.add_argument(flag, **keywords)
        add_set(parser)
        parser.set_defaults(command=command)


def _recipe(options: argparse.Namespace, languages: list[str], initial: str = "none", policy: str = "none") -> Any:
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


def _sample(options: argparse.Namespace) -> None:
    from crosspref.engines import RecipeEngines
    from crosspref.models import locate_model
    from crosspref.progress import Reporter
    from crosspref.records import Response
    from crosspref.stages.files import write_rows
    from crosspref.stages.prompts import load_prompts
    from crosspref.stages.sample import sample

    recipe = _recipe(options, options.languages.split(","))
    loaded = load_prompts(options.prompts, recipe.languages, on_problem=recipe.prompts.on_problem)
    prompts = [prompt for prompt in loaded.prompts if prompt.language in recipe.languages]
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
    from crosspref.stages.prompts import load_prompts
    from crosspref.stages.score import score

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, sorted({row.language for row in responses}), options.reference, options.policy)
    prompts = load_prompts(options.prompts, recipe.languages, on_problem=recipe.prompts.on_problem).prompts
    scorer = RecipeEngines(recipe).scorer(locate_model(options.policy), locate_model(options.reference))
    with Reporter().step("score", len({(row.prompt_id, row.language) for row in responses})) as meter:
        rows = score(responses, prompts, scorer, beta=recipe.reward.beta, reward=options.reward, advance=meter.advance)
    write_rows(options.out, rows, Score)


def _select(options: argparse.Namespace) -> None:
    from crosspref.engines import langid
    from crosspref.progress import Reporter
    from crosspref.records import Dropped, Pair, Response, Score
    from crosspref.stages.files import read_rows, write_rows
    from crosspref.stages.prompts import load_prompts
    from crosspref.stages.select import select

    responses, scores = read_rows(options.responses, Response), read_rows(options.scores, Score)
    recipe = _recipe(options, sorted({row.language for row in responses}))
    prompts = load_prompts(options.prompts, recipe.languages, on_problem=recipe.prompts.on_problem).prompts
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
            identify=langid.identify,
        )
        Reporter().say(f"select {language}: {selection.summary()}")
        pairs += selection.pairs
        dropped += selection.dropped
    write_rows(options.out, pairs, Pair)
    if options.dropped:
        write_rows(options.dropped, dropped, Dropped)


def _train(options: argparse.Namespace) -> None:
    from crosspref.engines import RecipeEngines
    from crosspref.models import locate_model
    from crosspref.progress import Reporter
    from crosspref.records import Pair
    from crosspref.stages.files import read_rows

    pairs = read_rows(options.pairs, Pair)
    recipe = _recipe(options, sorted({row.language for row in pairs}), options.model, options.model)
    out = Path(options.out)
    trainer = RecipeEngines(recipe).trainer(locate_model(options.model), recipe.train)
    with Reporter().step("train", len(pairs) * recipe.train.epochs) as meter:
        trainer.train(pairs, out, out.with_name(out.name + ".checkpoints"), meter.advance)


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from crosspref.engines import RecipeEngines
    from crosspref.records import Measure, Response, Score
    from crosspref.stages.evaluate import compare, measure
    from crosspref.stages.files import read_rows, write_rows
    from crosspref.stages.report import make_report

    responses = read_rows(options.responses, Response)
    recipe = _recipe(options, sorted({row.language for row in responses}))
    engines = RecipeEngines(recipe)
    both = [read_rows(path, Score) if path else [] for path in (options.scores, options.baseline_scores)]
    settings = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    rows: list[Measure] = []
    for language in recipe.languages:
        own = [row for row in responses if row.language == language]
        identify = engines.identify if engines.can_identify(language) else None
        rows += measure(own, language, 1, identify=identify, **settings)
        scores, baseline = ([row for row in part if row.language == language] for part in both)
        won = compare(scores, baseline, language, 1, **settings)
        rows += [won] if won else []
    write_rows(options.out, rows, Measure)
    Console().print(make_report(rows).table())
