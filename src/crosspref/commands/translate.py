"""``crosspref translate``: translate responses into English, for the reward ``translated`` (Eq. 14)."""

import argparse
from contextlib import closing

from crosspref.commands import TABLE, add_set, languages_of, output_table
from crosspref.data.records import Response, Translation
from crosspref.data.tables import read_rows, write_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.languages import ENGLISH
from crosspref.models.locate import locate_model
from crosspref.recipe.files import stage_settings
from crosspref.recipe.stages import TranslateStage
from crosspref.run.job import digest_rows, fingerprint_alone
from crosspref.run.kept import Parts
from crosspref.run.progress import Reporter
from crosspref.stages.translate import UNIDENTIFIED, translate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--responses", required=True, help=f"table of responses {TABLE}")
    parser.add_argument(
        "--model", required=True, help="who translates: the policy, another chat model, or a translation model"
    )
    parser.add_argument("--out", required=True, type=output_table, help=f"where the translations go {TABLE}")
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    """Translate every response that is not in English already, which Eq. 14 leaves as it is."""
    responses = read_rows(options.responses, Response)
    given = {"languages": languages_of(responses, options.responses)}
    settings = stage_settings(TranslateStage, given, options.overrides)
    engines, foreign = EngineFactory(EngineSettings.of(settings)), [row for row in responses if row.language != ENGLISH]
    # The model's token ids are taken for the policy's, unless it is a translation model.
    policy = locate_model(options.model)
    model = policy if settings.translate.model is None else locate_model(settings.translate.model)
    inputs = {"translator": model.identity, "policy": policy.identity, "responses": digest_rows(foreign)}
    parts = Parts(options.out, fingerprint_alone(settings, "translate", "sample", **inputs))
    translator = engines.translator(policy)
    translations: list[Translation] = []
    with closing(translator), Reporter().step("translate", len(foreign)) as meter:
        for language in dict.fromkeys(row.language for row in foreign):
            if engines.identifier(language) is None:
                Reporter().say(f"translate {language}{UNIDENTIFIED}")
            with parts.keeping(meter.advance, language) as kept:
                translations += translate(
                    [(row, ENGLISH) for row in foreign if row.language == language],
                    translator,
                    settings=settings.translate,
                    identify=engines.identifier(language),
                    advance=kept,
                )
    write_rows(options.out, translations, Translation)
    parts.remove()
