"""The answers of the measured models: tables in shards, each with its done-marker, so that a kill loses at most one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crosspref.data.records import Prompt, Response
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import ModelError, RunError
from crosspref.protocols import Advance, Sampler
from crosspref.run.job import Filling, Shard, Workers, digest_rows, fill, settings_of
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages import sample as sampling
from crosspref.suites.targets import Candidate, Target


@dataclass(frozen=True, slots=True)
class _Shard(Shard):
    """Prompts that are answered at one temperature; None is that of the settings."""

    temperature: float | None = None


def answer_prompts(
    target: Target, candidate: Candidate, suite: str, prompts: Sequence[Prompt], seed: int, reporter: Reporter,
    *, greedy: bool = False, temperatures: Sequence[float] | None = None,
) -> list[Response]:  # fmt: skip
    """Return a candidate's answers, one to each prompt; those that are stored already are not made again.

    The seed of an answer derives from the prompt's id and language alone, so it is the same for every model. A prompt
    that is too long for the model has no answer. Shards are named by their prompts, so that other items, or fewer, are
    other shards. ``temperatures``, one per prompt, take the place of the settings' and of ``greedy``; 0 is greedy.

    Raises:
        ModelError: answers are missing, and the model is not on this machine.
        RunError: stored answers were made with other settings, or by another model.
    """
    folder = target.folder / "answers" / suite / candidate.slug
    greedy = greedy or target.greedy
    workers = Workers(EngineFactory(target.answering), reporter)
    given: Sequence[float | None] = [None] * len(prompts) if temperatures is None else temperatures
    groups: dict[tuple[str, float | None], list[Prompt]] = {}
    for prompt, temperature in zip(prompts, given, strict=True):
        groups.setdefault((prompt.language, temperature), []).append(prompt)
    shards = [
        shard
        for (language, temperature), own in groups.items()
        for shard in _shards(target.answering, folder / language, candidate, own, seed, greedy, temperature)
    ]

    def work(sampler: Sampler, shard: _Shard, advance: Advance) -> list[Response]:
        return sampling.sample(
            shard.prompts, sampler, n=1, seed=seed, iteration=0, advance=advance, temperature=shard.temperature
        )

    try:
        todo = [shard for shard in shards if not shard.unit.finished(shard.fingerprint)]
    except RunError as error:
        raise RunError(f"{error}\nTo have {candidate.name} answer anew: rm -r {folder}") from error
    if todo and candidate.files is None:
        raise ModelError(f"{candidate.name} is to answer, but is not here. {candidate.missing}")
    if todo and candidate.files is not None:
        build = partial(workers.engines.sampler, candidate.files, greedy=greedy)
        with workers.engines.cluster():
            fill(workers, shards, Filling(f"{candidate.name} answers {suite}", Response, build, work))
    return [row for shard in shards for row in shard.unit.rows(Response)]


def _shards(
    answering: EngineSettings, folder: Path, candidate: Candidate, prompts: Sequence[Prompt], seed: int, greedy: bool,
    temperature: float | None,
) -> list[_Shard]:  # fmt: skip
    """Return the shards of one language and temperature, done or not."""
    settings = {**settings_of("sample", answering.sample, without=("n",)), "seed": seed, "greedy": greedy}
    if temperature is not None:
        settings |= {"sample.temperature": temperature, "greedy": temperature == 0}
    if answering.sample.engine == "server":
        settings["server.protocol"] = answering.server.protocol
    found = []
    size = answering.resources.shard_prompts
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        digest = digest_rows(part)
        unit = Unit(folder / f"{start:08d}-{digest[:8]}.parquet")
        inputs = {"policy": identity_of(candidate, unit), "prompts": digest}
        found.append(_Shard(unit, Fingerprint(settings, inputs), part, temperature=temperature))
    return found


def identity_of(candidate: Candidate, unit: Unit, part: str = "policy") -> str:
    """Return what identifies a model: of one that is not here, what a unit's marker says of it under ``part``."""
    if candidate.files is not None:
        return candidate.files.identity
    return str(unit.read_marker()["parts"].get(part)) if unit.marker.exists() else "not here"
