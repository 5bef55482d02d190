"""``crosspref translate``: translate responses into English, for the reward ``translated`` (Eq. 14)."""

import argparse

from crosspref.commands import TABLE, Commands, add_set, languages_of, stage_engines, table_name


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    text = "translate responses into English, for the reward translated (Eq. 14)"
    parser = commands.add_parser("translate", help=text, description=text)
    parser.add_argument("--responses", required=True, help=f"table of responses {TABLE}")
    parser.add_argument(
        "--model", required=True, help="who translates: the policy, another chat model, or a translation model"
    )
    parser.add_argument("--out", required=True, type=table_name, help=f"where the translations go {TABLE}")
    add_set(parser)
    parser.set_defaults(command=_translate)


def _translate(options: argparse.Namespace) -> None:
    """Translate every response that is not in English already, which Eq. 14 leaves as it is."""
    from crosspref.data.records import Response, Translation
    from crosspref.data.tables import read_rows, write_rows
    from crosspref.languages import ENGLISH
    from crosspref.models.locate import locate_model
    from crosspref.recipe.files import stage_settings
    from crosspref.recipe.stages import TranslateStage
    from crosspref.run.progress import Reporter
    from crosspref.stages.translate import translate

    responses = read_rows(options.responses, Response)
    given = {"languages": languages_of(responses, options.responses)}
    settings = stage_settings(TranslateStage, given, options.overrides)
    engines, foreign = stage_engines(settings), [row for row in responses if row.language != ENGLISH]
    # The model's token ids are taken for the policy's, unless it is a translation model.
    translator = engines.translator(locate_model(options.model))
    translations: list[Translation] = []
    try:
        with Reporter().step("translate", len(foreign)) as meter:
            for language in dict.fromkeys(row.language for row in foreign):
                translations += translate(
                    [(row, ENGLISH) for row in foreign if row.language == language],
                    translator,
                    settings=settings.translate,
                    identify=engines.identifier(language),
                    advance=meter.advance,
                )
    finally:
        translator.close()
    write_rows(options.out, translations, Translation)
