"""``crosspref select``: make preference pairs under the optimal length penalty (Eq. 10, 15)."""

import argparse

from crosspref.commands import PROMPTS, TABLE, Commands, add_set, languages_of, stage_engines, table_name


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    text = "make preference pairs under the optimal length penalty (Eq. 10, 15)"
    parser = commands.add_parser("select", help=text, description=text)
    parser.add_argument("--prompts", required=True, help=PROMPTS)
    parser.add_argument("--responses", required=True, help=f"table of responses {TABLE}")
    parser.add_argument("--scores", required=True, help=f"table of scores {TABLE}")
    parser.add_argument("--dropped", type=table_name, help=f"where the prompts without a pair go {TABLE}")
    parser.add_argument("--out", required=True, type=table_name, help=f"where the pairs go {TABLE}")
    add_set(parser)
    parser.set_defaults(command=_select)


def _select(options: argparse.Namespace) -> None:
    from crosspref.data.prompts import load_prompts
    from crosspref.data.records import Dropped, Pair, Response, Score
    from crosspref.data.tables import read_rows, write_rows
    from crosspref.maths.reward import noise_gap
    from crosspref.recipe.files import stage_settings
    from crosspref.recipe.stages import SelectStage
    from crosspref.run.progress import Reporter
    from crosspref.stages.select.select import PairRules, select

    responses, scores = read_rows(options.responses, Response), read_rows(options.scores, Score)
    given = {"languages": languages_of(responses, options.responses), "prompts": {"source": options.prompts}}
    settings = stage_settings(SelectStage, given, options.overrides)
    prompts = load_prompts(settings.prompts, settings.languages).prompts
    # What 0.5 nats are worth is known of the rewards of Eq. 9, 12 and 13, and not of a reward model's or of a person's.
    is_implicit = {row.reward for row in scores} <= {"crosslingual", "multilingual", "translated"}
    noise = noise_gap(settings.reward.algorithm, settings.reward.beta) if is_implicit else 0.0
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for language in settings.languages:
        instructions = {prompt.prompt_id: prompt.instruction for prompt in prompts if prompt.language == language}
        identify = stage_engines(settings).identifier(language)
        rules = PairRules(language, instructions, settings.length_penalty, settings.select, identify, noise)
        answers = [row for row in responses if row.language == language]
        selection = select(answers, [row for row in scores if row.language == language], rules)
        Reporter().say(f"select {language}: {selection.summary()}")
        pairs += selection.pairs
        dropped += selection.dropped
    write_rows(options.out, pairs, Pair)
    if options.dropped:
        write_rows(options.dropped, dropped, Dropped)
