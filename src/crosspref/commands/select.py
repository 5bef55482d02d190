"""``crosspref select``: make preference pairs under the optimal length penalty (Eq. 10, 15)."""

import argparse
from collections.abc import Iterator, Sequence

from crosspref.commands import PROMPTS, TABLE, add_set, languages_of, output_table
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Dropped, Pair, Prompt, Response, Score
from crosspref.data.tables import read_rows, write_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.maths.reward import noise_gap
from crosspref.recipe.files import stage_settings
from crosspref.recipe.stages import SelectStage
from crosspref.run.progress import Reporter
from crosspref.stages.select.select import PairRules, select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, nargs="+", help=PROMPTS)
    parser.add_argument("--responses", required=True, help=f"table of responses {TABLE}")
    parser.add_argument("--scores", required=True, help=f"table of scores {TABLE}")
    parser.add_argument("--dropped", type=output_table, help=f"where the prompts without a pair go {TABLE}")
    parser.add_argument("--out", required=True, type=output_table, help=f"where the pairs go {TABLE}")
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    responses, scores = read_rows(options.responses, Response), read_rows(options.scores, Score)
    given = {"languages": languages_of(responses, options.responses), "prompts": {"source": options.prompts}}
    settings = stage_settings(SelectStage, given, options.overrides)
    prompts = load_prompts(settings.prompts, settings.languages).prompts
    # What 0.5 nats are worth is known of the rewards of Eq. 9, 12 and 13, and not of a reward model's or of a person's.
    is_implicit = {row.reward for row in scores} <= {"crosslingual", "multilingual", "translated"}
    noise = noise_gap(settings.reward.algorithm, settings.reward.beta) if is_implicit else 0.0
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for rules in rules_by_language(settings, prompts, noise):
        answers, rewards = ([row for row in rows if row.language == rules.language] for rows in (responses, scores))
        selection = select(answers, rewards, rules)
        Reporter().say(f"select {rules.language}: {selection.summary()}")
        pairs += selection.pairs
        dropped += selection.dropped
    write_rows(options.out, pairs, Pair)
    if options.dropped:
        write_rows(options.dropped, dropped, Dropped)


def rules_by_language(settings: SelectStage, prompts: Sequence[Prompt], noise: float) -> Iterator[PairRules]:
    """Yield the rules by which pairs are made in each language; ``noise`` is a gap between rewards."""
    identifier = EngineFactory(EngineSettings.of(settings)).identifier
    for language in settings.languages:
        instructions = {prompt.prompt_id: prompt.instruction for prompt in prompts if prompt.language == language}
        penalty, rules, identify = settings.length_penalty, settings.select, identifier(language)
        always_ended = settings.reward.counting == "znlp"
        yield PairRules(language, instructions, penalty, rules, identify, noise, always_ended)
