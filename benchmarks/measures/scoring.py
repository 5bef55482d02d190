"""The lines on scoring: against the released scripts' way, TRL's reference pass and the limit; an adapter; again."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import rivals
from lines import reached
from measures.memory import weights_of
from timing import alternate, in_child, medians, ratios, timed
from workload import Workload, difference, quiet, rate

from crosspref.data.records import Response, Score
from crosspref.engines.transformers.models import readable_directory
from crosspref.languages import ENGLISH
from crosspref.recipe.sections import RewardSettings
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint
from crosspref.stages.score import ScoreShard, score, scored_before

Lines = dict[str, dict[str, Any]]
WARM_UP = 2
"""Prompts of the untimed round."""

ROWS = [(tokens, rows) for tokens in (256, 512, 1024) for rows in (1, 4)]
HEADS = (256, 1024, 4096)
"""The limit takes the quickest of these sizes: tokens of a row, rows at a time; and tokens of the head at a time."""


def measure_one_model(work: Workload) -> Lines:
    """Score under one model: crosspref, the released scripts' way, TRL's reference pass and the limit alternate.

    With a second model all of them do the same work once more.
    """
    # Loaded in the number format that crosspref scores in: TRL is slower with float32 weights, its default.
    dtype = work.dtype
    model, same = (rivals.load(readable_directory(work.policy), dtype) for _ in range(2))
    rows, small = work.rows(), work.first(WARM_UP)
    pairs, scorer = rivals.two_by_two(rows), work.engines().scorer(work.policy, None)
    folder, changes = work.options.cache / "trl", {"bf16": work.options.dtype == "bfloat16"}
    trainer = rivals.dpo_trainer(pairs, (model, same), work.tokenizer().tokenizer, folder, **changes)
    tiles, tried = quickest_limit(model, work.first(max(WARM_UP, len(rows) // 4)).rows())
    limit = rivals.Limit(model, rows, *tiles)
    ours = [row.policy_logprob for row in score_alone(scorer, small)]
    theirs = {
        "TRL": rivals.trl_reference(trainer, rivals.two_by_two(small.rows())),
        "released": [*chain(*rivals.released_logprobs(model, small.rows()))],
    }
    apart = {
        f"{name}, furthest": f"{difference(ours, scores, work.options.dtype):.3g} nats"
        for name, scores in theirs.items()
    }
    runs = {
        "crosspref": partial(score_alone, scorer),
        "released": lambda _: rivals.released_logprobs(model, rows),
        "TRL": lambda _: rivals.trl_reference(trainer, pairs),
        "limit": lambda _: limit.run(),
    }
    speeds, _ = alternate({name: per_second(run, work) for name, run in runs.items()}, work.options.rounds)
    scorer.close()
    figures = {**medians(speeds, "tokens/s"), **apart}
    chosen = "rows of {} tokens, {} at a time; head on {} tokens at a time".format(*tiles)
    return {
        "released": reached("released", ratios(speeds["crosspref"], speeds["released"]), **figures),
        "trl-reference": reached("trl-reference", ratios(speeds["crosspref"], speeds["TRL"]), **figures),
        "limit": reached("limit", ratios(speeds["crosspref"], speeds["limit"]), tiles=chosen, tried=tried, **figures),
    }


def quickest_limit(model: Any, rows: rivals.Rows) -> tuple[tuple[int, int, int], int]:
    """Return the tile sizes by which the limit takes least time over some rows, and how many were tried."""
    rivals.Limit(model, rows, *ROWS[0], HEADS[0]).run()  # what is done once is done
    seconds: dict[tuple[int, int, int], float] = {}

    def quickest(sizes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        for tiles in sizes:
            seconds[tiles] = timed(rivals.Limit(model, rows, *tiles).run)[0]
        return min(seconds, key=seconds.__getitem__)

    tokens, count, _ = quickest([(tokens, count, HEADS[1]) for tokens, count in ROWS])
    return quickest([(tokens, count, head) for head in (HEADS[0], HEADS[2])]), len(seconds)


def measure_adapter(work: Workload) -> Lines:
    """Hold policy and reference as an adapter on and off of one base, against two models."""
    policies = {"adapter": work.adapter, "two models": work.policy}
    rounds = work.options.rounds
    # In fresh processes, where it hardly varies.
    megabytes = {
        name: [in_child(weights_of, work, files, work.initial) for _ in range(rounds)]
        for name, files in policies.items()
    }
    scorers = {name: work.engines().scorer(files, work.initial) for name, files in policies.items()}
    part = work.first(max(WARM_UP, len(work.prompts) // 4))
    scores = ([row.policy_logprob for row in rate(scorer, part.first(WARM_UP))] for scorer in scorers.values())
    apart = difference(*scores, work.options.dtype)
    turns = {name: per_second(partial(rate, scorer), part) for name, scorer in scorers.items()}
    speeds, _ = alternate(turns, rounds)
    for scorer in scorers.values():
        scorer.close()
    about = {"prompts": len(part.prompts), "apart": f"{apart:.3g} nats at most"}
    memory, time = (
        ratios(megabytes["two models"], megabytes["adapter"]),
        ratios(speeds["adapter"], speeds["two models"]),
    )
    return {
        "adapter-memory": reached("adapter-memory", memory, **medians(megabytes, "MB")),
        "adapter-time": reached("adapter-time", time, **about, **medians(speeds, "tokens/s")),
    }


def measure_rescoring(work: Workload) -> Lines:
    """Score the workload's first prompts in iteration 1, and again in iteration 2 as its policy sampled the same.

    Counted are the tokens that the reference computes: those of the policy, which is another one, must be computed.
    """
    part = work.first(WARM_UP)
    given = {"settings": RewardSettings(), "reward": "multilingual", "advance": quiet}
    scorer = work.engines().scorer(work.policy, work.initial)
    tokens: dict[str, int] = {"policy": 0, "reference": 0}
    for name in tokens:
        getattr(scorer, name).model.base_model.register_forward_hook(partial(count, tokens, name), with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        first = shard_of(Path(folder), 1, "pi_0")
        store(first, part.responses, score(part.responses, part.prompts, scorer, **given))
        anew, tokens["reference"], tokens["policy"] = dict(tokens), 0, 0
        known = scored_before(shard_of(Path(folder), 2, "pi_1"))
        again = score(part.responses, part.prompts, scorer, before=known, **given)
        assert [row.reference_logprob for row in again] == [row.reference_logprob for row in first.unit.rows(Score)]
    scorer.close()
    assert tokens["policy"] == anew["policy"] > 0, "the policy of iteration 2 is another one, and has to be computed"
    return {"rescoring": reached("rescoring", [float(tokens["reference"])], anew=anew["reference"])}


def count(tokens: dict[str, int], name: str, _: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
    """Count the tokens of a forward pass."""
    tokens[name] += given["input_ids"].numel()


def shard_of(run: Path, iteration: int, policy: str) -> ScoreShard:
    """Return where an iteration's scores belong; its reference is pi_I."""
    iterations = [RunDirectory(run).iteration(number) for number in range(iteration + 1)]
    *earlier, (unit, responses) = [
        (places.scores("multilingual").unit(ENGLISH, 0), places.responses.unit(ENGLISH, 0)) for places in iterations
    ]
    fingerprint = Fingerprint({}, {"policy": policy, "reference": "pi_I", "responses": policy})
    return ScoreShard(unit, fingerprint, [], "multilingual", [], responses, None, earlier)


def store(shard: ScoreShard, responses: Sequence[Response], scores: Sequence[Score]) -> None:
    """Store responses and scores as a run does."""
    for table, rows, kind in ((shard.responses, responses, Response), (shard.unit, scores, Score)):
        table.write_rows(list(rows), kind)
        table.finish(shard.fingerprint, len(rows))


def score_alone(scorer: Any, work: Workload) -> list[Score]:
    """Score the workload under a scorer of one model, by a reward that has no reference."""
    given = {"settings": RewardSettings(algorithm="simpo"), "reward": "multilingual", "advance": quiet}
    return score(work.responses, work.prompts, scorer, **given)


def per_second(run: Callable[[Workload], Any], work: Workload) -> Callable[[], tuple[float, Any]]:
    """Return what runs over the workload and returns its response tokens per second, and the result."""

    def turn() -> tuple[float, Any]:
        seconds, result = timed(lambda: run(work))
        return work.tokens() / seconds, result

    return turn
