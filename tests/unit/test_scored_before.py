"""What earlier iterations scored is found again, by model and by what a response said, and not computed anew."""

from dataclasses import replace
from pathlib import Path

import made_runs
import pytest

from crosspref.data.records import Prompt, Response, Score
from crosspref.protocols import Known
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint
from crosspref.stages.score import ScoreShard, content_of, scored_before

SETTINGS = {"reward.beta": 0.1, "reward": "crosslingual"}
PROMPTS = [Prompt("q1", "es", "Nombra un río.")]


def response(sample: int, ids: list[int] | None, text: str = "", reason: str = "stop") -> Response:
    return Response("q1", "es", sample, text, ids, reason, None)  # type: ignore[arg-type]


def shard(root: Path, iteration: int, policy: str, reference: str, **inputs: str) -> ScoreShard:
    iterations = [RunDirectory(root).iteration(number) for number in range(iteration + 1)]
    *earlier, (unit, responses) = [
        (places.scores("crosslingual").unit("es", 0), places.responses.unit("es", 0)) for places in iterations
    ]
    given = {"policy": policy, "reference": reference, "responses": f"of {policy}", "prompts": "the same", **inputs}
    return ScoreShard(unit, Fingerprint(SETTINGS, given), PROMPTS, "crosslingual", [], responses, None, earlier)


def store(shard: ScoreShard, scored: list[tuple[Response, float, float | None]]) -> None:
    made_runs.store(shard.responses, [row for row, _, _ in scored], Response)
    scores = [
        Score(row.prompt_id, row.language, row.sample, "crosslingual", policy, reference, 2, 4, 0.5)
        for row, policy, reference in scored
    ]
    made_runs.store(shard.unit, scores, Score, shard.fingerprint)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Iteration 1: pi_0 against pi_I, of two responses with ids and one with text alone."""
    rows = [(response(0, [5, 2]), -3.0, -4.0), (response(1, [5, 2], reason="length"), -1.0, -2.0)]
    store(shard(tmp_path, 1, "pi_0", "pi_I"), [*rows, (response(2, None, "Ebro"), -6.0, -7.0)])
    return tmp_path


def found(shard: ScoreShard, *rows: Response) -> list[Known | None]:
    known = scored_before(shard)
    return [known.get(content_of(row)) for row in rows]


def test_the_reference_stays_known_and_a_new_policy_does_not(run: Path) -> None:
    again = response(7, [5, 2]), response(8, [5, 2], reason="length"), response(9, None, "Ebro")
    assert found(shard(run, 2, "pi_1", "pi_I"), *again) == [(None, -4.0), (None, -2.0), (None, -7.0)]
    assert found(shard(run, 2, "pi_1", "pi_I"), response(0, [5, 3]), response(0, [2])) == [None, None]


def test_what_was_the_policy_may_be_the_reference(run: Path) -> None:
    # reward.reference: previous; pi_I, which was the reference, is not asked for any more.
    assert found(shard(run, 2, "pi_1", "pi_0"), response(0, [5, 2])) == [(None, -3.0)]
    assert found(shard(run, 2, "pi_I", "pi_0"), response(0, [5, 2])) == [(-4.0, -3.0)]


def test_the_nearest_values_do_not_hide_older_ones(run: Path) -> None:
    store(shard(run, 2, "pi_1", "pi_I"), [(response(0, [9, 2]), -8.0, -9.0)])
    known = found(shard(run, 3, "pi_2", "pi_I"), response(4, [5, 2]), response(5, [9, 2]))
    assert known == [(None, -4.0), (None, -9.0)]


def test_each_model_of_a_pair_is_found_where_it_was(run: Path) -> None:
    store(shard(run, 2, "pi_1", "another"), [(response(0, [5, 2]), -8.0, -9.0)])
    assert found(shard(run, 3, "pi_1", "pi_I"), response(4, [5, 2])) == [(-8.0, -4.0)]
    assert found(shard(run, 3, "pi_0", "another"), response(4, [5, 2])) == [(-3.0, -9.0)]


def test_other_models_prompts_or_settings_know_nothing(run: Path) -> None:
    assert scored_before(shard(run, 2, "pi_1", "another")) == {}
    assert scored_before(shard(run, 2, "pi_1", "pi_I", prompts="others")) == {}
    changed = shard(run, 2, "pi_1", "pi_I")
    other = replace(changed, fingerprint=Fingerprint({**SETTINGS, "reward.beta": 1.0}, changed.fingerprint.inputs))
    assert scored_before(other) == {}
    assert scored_before(shard(run, 1, "pi_0", "pi_I")) == {}  # itself is not before itself


def test_what_is_not_finished_is_not_known(run: Path) -> None:
    shard(run, 1, "pi_0", "pi_I").unit.marker.unlink()
    assert scored_before(shard(run, 2, "pi_1", "pi_I")) == {}
