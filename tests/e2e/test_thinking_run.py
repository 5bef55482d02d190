"""A run of models that think aloud, whose thinking is cut; killed and resumed, it ends as the one left alone."""

from pathlib import Path

from running import ForkServer, Models, assert_same_run, by_key, rows, small_recipe, write_recipe
from thinkers import thinker


def test_thinking_is_cut_from_all_that_follows(models: Models, forks: ForkServer, tmp_path: Path) -> None:
    thinkers = [thinker(model, tmp_path / model.name) for model in models]
    recipe = small_recipe(*thinkers, iterations=1, sample={"max_new_tokens": 20})
    recipe["models"]["thinking"] = "cut"
    file = write_recipe(tmp_path / "recipe.yaml", recipe)
    whole = forks.run("run", file, "--out", tmp_path / "whole", log=tmp_path / "whole.log")
    killed = forks.spawn("run", file, "--out", tmp_path / "killed", log=tmp_path / "killed.log")
    killed.kill_when(lambda: list(tmp_path.glob("killed/iteration_1/responses/en/*.done.json")))
    forks.run("run", file, "--out", tmp_path / "killed", log=tmp_path / "again.log")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")

    responses = rows(tmp_path / "whole" / "iteration_1" / "responses")
    assert any(row.thinking_tokens for row in responses)
    assert f"of {len(responses)} responses" in whole.output()
    answers = by_key(responses)
    for key, score in by_key(rows(tmp_path / "whole" / "iteration_1" / "scores")).items():
        response = answers[key]
        assert (score.tokens, score.characters) == (len(response.token_ids), len(response.text))
    pairs = rows(tmp_path / "whole" / "iteration_1" / "pairs")
    assert pairs
    for pair in pairs:
        assert pair.chosen_token_ids == answers[pair.prompt_id, pair.language, pair.chosen_sample].token_ids
