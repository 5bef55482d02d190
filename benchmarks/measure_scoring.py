"""The lines on scoring: against the released scripts' way, TRL's reference pass and the limit; an adapter; again."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import rivals
import workload
from lines import reached
from measure_memory import weights_of
from prepared import Prepared, quiet, rate
from stepping import in_child
from timing import ratios, spread, take_turns, timed

from crosspref.data.records import Response, Score
from crosspref.engines.transformers.models import free_memory, readable_directory
from crosspref.languages import ENGLISH
from crosspref.run.job import Shard
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages.score import score
from crosspref.stages.tables import scored_before

Found = dict[str, dict[str, Any]]
NATS = {"float32": 0.01, "bfloat16": 8.0}
"""By how much two ways of computing one response's log-probability may differ."""

WARM_UP = 2
"""Prompts of the untimed round."""

ROWS = [(tokens, rows) for tokens in (256, 512, 1024) for rows in (1, 4)]
HEADS = (256, 1024, 4096)
"""Of what the limit takes the quickest: tokens of a row, rows at a time; and tokens that the head takes at a time."""


def measure_one_model(work: Prepared) -> Found:
    """Score under one model: against the released scripts' way, TRL's reference pass and the limit, all by turns.

    With a second model all of them do the same work once more.
    """
    # Loaded in the number format that crosspref scores in: TRL is slower with float32 weights, its default.
    model, same = (rivals.load(readable_directory(work.policy), work.options.torch_dtype) for _ in range(2))
    rows, small = work.rows(), work.first(WARM_UP)
    scorer = work.engines().scorer(work.policy, None)
    folder, changes = work.options.cache / "trl", {"bf16": work.options.dtype == "bfloat16"}
    pairs = rivals.two_by_two(rows)
    trainer = rivals.dpo_trainer(pairs, (model, same), work.tokenizer().tokenizer, folder, **changes)
    tiles, tried = quickest_limit(model, work.first(max(WARM_UP, len(rows) // 4)).rows())
    limit = rivals.Limit(model, rows, *tiles)
    own = [row.policy_logprob for row in score_alone(scorer, small)]
    trl = rivals.trl_reference(trainer, rivals.two_by_two(small.rows()))
    released = [*chain(*rivals.released_logprobs(model, small.rows()))]
    apart = {
        name: f"{difference(own, theirs, work):.3g} nats" for name, theirs in (("TRL", trl), ("released", released))
    }
    turns = {
        "crosspref": per_second(partial(score_alone, scorer), work),
        "released": per_second(lambda _: rivals.released_logprobs(model, rows), work),
        "TRL": per_second(lambda _: rivals.trl_reference(trainer, pairs), work),
        "limit": per_second(lambda _: limit.run(), work),
    }
    speeds, _ = take_turns(turns, work.options.rounds)
    scorer.close()
    ours, said = speeds["crosspref"], {**medians(speeds), **{f"{name}, furthest": far for name, far in apart.items()}}
    chosen = "rows of {} tokens, {} at a time; head on {} tokens at a time".format(*tiles)
    return {
        "released": reached("released", ratios(ours, speeds["released"]), **said),
        "trl-reference": reached("trl-reference", ratios(ours, speeds["TRL"]), **said),
        "limit": reached("limit", ratios(ours, speeds["limit"]), tiles=chosen, tried=tried, **said),
    }


def quickest_limit(model: Any, rows: rivals.Rows) -> tuple[tuple[int, int, int], int]:
    """Return the tile sizes by which the limit takes least time over some rows, and how many were tried."""
    rivals.Limit(model, rows, *ROWS[0], HEADS[0]).run()  # what is done once is done
    seconds: dict[tuple[int, int, int], float] = {}
    for tokens, count in ROWS:
        seconds[tokens, count, HEADS[1]] = timed(rivals.Limit(model, rows, tokens, count, HEADS[1]).run)[0]
    best = min(seconds, key=seconds.__getitem__)
    for head in (HEADS[0], HEADS[2]):
        tiles = (*best[:2], head)
        seconds[tiles] = timed(rivals.Limit(model, rows, *tiles).run)[0]
    return min(seconds, key=seconds.__getitem__), len(seconds)


def measure_adapter(work: Prepared) -> Found:
    """Hold policy and reference as an adapter on and off of one base, against two models."""
    names = {"adapter": work.adapter, "two models": work.policy}
    # In fresh processes, where it hardly varies.
    grown = {
        name: [in_child(weights_of, work, files, work.initial) for _ in range(work.options.rounds)]
        for name, files in names.items()
    }
    scorers = {name: work.engines().scorer(files, work.initial) for name, files in names.items()}
    part = work.first(max(WARM_UP, len(work.prompts) // 4))
    small = part.first(WARM_UP)
    one, other = ([row.policy_logprob for row in rate(scorer, small)] for scorer in scorers.values())
    apart = difference(one, other, work)
    turns = {name: per_second(partial(rate, scorer), part) for name, scorer in scorers.items()}
    speeds, _ = take_turns(turns, work.options.rounds)
    for scorer in scorers.values():
        scorer.close()
    memory = ratios(grown["two models"], grown["adapter"])
    said = {f"{name}, MB": spread(values)["median"] for name, values in grown.items()}
    time = ratios(speeds["adapter"], speeds["two models"])
    about = {"prompts": len(part.prompts), "apart": f"{apart:.3g} nats at most"}
    return {
        "adapter-memory": reached("adapter-memory", memory, **said),
        "adapter-time": reached("adapter-time", time, **about, **medians(speeds)),
    }


def measure_rescoring(work: Prepared) -> Found:
    """Score the workload's first prompts in iteration 1, and again in iteration 2 as its policy sampled the same.

    Counted are the tokens that the reference computes: those of the policy, which is another one, must be computed.
    """
    part = work.first(WARM_UP)
    given = {"settings": part.recipe().reward, "reward": "multilingual", "advance": quiet}
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


def shard_of(run: Path, iteration: int, policy: str) -> Shard:
    """Return where an iteration's scores belong; its reference is pi_I."""
    unit = Unit(run / f"iteration_{iteration}" / "scores" / "multilingual" / ENGLISH / "00000000.parquet")
    inputs = {"policy": policy, "reference": "pi_I", "responses": policy}
    return Shard(unit, Fingerprint({}, inputs), [])


def store(shard: Shard, responses: Sequence[Response], scores: Sequence[Score]) -> None:
    """Store responses and scores as a run does."""
    unit = Unit(shard.unit.path.parents[3] / "responses" / ENGLISH / shard.unit.path.name)
    for table, rows, kind in ((unit, responses, Response), (shard.unit, scores, Score)):
        table.write_rows(list(rows), kind)
        table.finish(shard.fingerprint, len(rows))


def score_alone(scorer: Any, work: Prepared) -> list[Score]:
    """Score the workload under a scorer of one model, by a reward that has no reference."""
    settings = workload.recipe(work.policy.name, None, "none").reward
    return score(work.responses, work.prompts, scorer, settings=settings, reward="multilingual", advance=quiet)


def per_second(run: Callable[[Prepared], Any], work: Prepared) -> Callable[[], tuple[float, Any]]:
    """Return what runs over the workload and returns its response tokens per second, and the result."""

    def turn() -> tuple[float, Any]:
        seconds, result = timed(lambda: run(work))
        return work.tokens() / seconds, result

    return turn


def medians(speeds: dict[str, list[float]]) -> dict[str, float]:
    """Return each rival's median, in response tokens per second."""
    return {f"{name}, tokens/s": spread(values)["median"] for name, values in speeds.items()}


def difference(own: Sequence[Any], theirs: Sequence[Any], work: Prepared) -> float:
    """Return the greatest difference, nats, of two ways to score the same; it must be rounding alone."""
    found: float = max(abs(one - other) for one, other in zip(own, theirs, strict=True))
    assert found < NATS[work.options.dtype], f"two ways of scoring one response are {found} nats apart"
    free_memory()
    return found
