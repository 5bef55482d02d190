"""``crosspref sample``: draw responses to prompts from a model (Eq. 7)."""

import argparse

from crosspref.commands import PROMPTS, TABLE, add_set, output_table
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Response
from crosspref.data.tables import write_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import DataError
from crosspref.models.locate import locate_model
from crosspref.recipe.files import stage_settings
from crosspref.recipe.stages import SampleStage
from crosspref.run.job import digest_rows, fingerprint_alone
from crosspref.run.kept import Parts
from crosspref.run.progress import Reporter
from crosspref.stages.sample import Drawing, sample, thinking_cut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="the policy to sample from")
    parser.add_argument("--prompts", required=True, nargs="+", help=PROMPTS)
    parser.add_argument("--languages", required=True, help="comma-separated tags, for example en,es,fr")
    parser.add_argument("--out", required=True, type=output_table, help=f"where the responses go {TABLE}")
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    given = {"languages": options.languages.split(","), "prompts": {"source": options.prompts}}
    settings = stage_settings(SampleStage, given, options.overrides)
    loaded = load_prompts(settings.prompts, settings.languages)  # English too, which may not be asked for
    prompts = [prompt for prompt in loaded.prompts if prompt.language in settings.languages]
    n = settings.sample.n
    policy, reporter = locate_model(options.model), Reporter()
    inputs = {"policy": policy.identity, "prompts": digest_rows(prompts), "protocol": settings.server.protocol}
    parts = Parts(options.out, fingerprint_alone(settings, "sample", **inputs))
    sampler = EngineFactory(EngineSettings.of(settings)).sampler(policy)
    with reporter.step("sample", len(prompts) * n) as meter, parts.keeping(meter.advance) as kept:
        rows = sample(prompts, sampler, Drawing(n, settings.seed, iteration=1), kept)
    if settings.models.thinking == "cut":
        reporter.say(f"sample: {thinking_cut(rows)}")
    left_out = len(prompts) - len({(row.prompt_id, row.language) for row in rows})
    if left_out:
        text = f"{left_out} of {len(prompts)} prompts are too long and have no responses."
        advice = "A smaller sample.max_new_tokens or a larger sample.max_prompt_tokens leaves more room for a prompt."
        if left_out == len(prompts):
            raise DataError(f"{text} {advice}")
        reporter.say(f"{text} {advice}")
    write_rows(options.out, rows, Response)
    parts.remove()
