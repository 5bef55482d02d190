"""Pairs that carry their reference: what fingerprints and old tables make of them; launchers are found or named."""

from dataclasses import replace
from pathlib import Path

import pytest

from crosspref.data.records import Pair, from_table, to_table
from crosspref.errors import RecipeError
from crosspref.recipe.sections import ResourceSettings
from crosspref.run.job import digest_rows
from crosspref.run.processes import launch_command
from crosspref.run.store import digest_of

CHAT = [{"role": "user", "content": "ja"}]
PAIR = Pair("p", "es", CHAT, CHAT, CHAT, 0, 1, [1, 2], [3], 0.5, 0.1, 0.0)


def test_digests_of_runs_begun_before_stay() -> None:
    before = digest_of([["p", "es", CHAT, CHAT, CHAT, 0, 1, [1, 2], [3], 0.5, 0.1, 0.0]])
    assert digest_rows([PAIR]) == before
    assert digest_rows([replace(PAIR, reference_chosen_logprob=-3.0, reference_rejected_logprob=-4.0)]) == before


def test_tables_without_the_columns_are_read() -> None:
    table = to_table([PAIR], Pair).drop_columns(["reference_chosen_logprob", "reference_rejected_logprob"])
    assert from_table(table, Pair) == [PAIR]
    carried = replace(PAIR, reference_chosen_logprob=-3.0, reference_rejected_logprob=-4.0)
    assert from_table(to_table([carried], Pair), Pair) == [carried]


def test_launchers_are_found_beside_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").touch()
    command = launch_command(ResourceSettings(launch=f"accelerate launch --config_file '{tmp_path}/a b.yaml'"))
    assert command[1:] == ["launch", "--config_file", f"{tmp_path}/a b.yaml"]
    assert Path(command[0]).is_file()
    assert len(launch_command(ResourceSettings())) == 1


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ("accelerate launch --config_file nowhere.yaml", "names 'nowhere.yaml', but there is no such file"),
        ("accelerate launch --config_file=nowhere.yaml", "names 'nowhere.yaml', but there is no such file"),
        ("no-such-launcher 8", "starts with 'no-such-launcher'"),
        ("torchrun 'half", "cannot be read as a command"),
    ],
)
def test_launchers_that_cannot_start(launch: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        launch_command(ResourceSettings(launch=launch))


def test_a_launcher_needs_phases_of_their_own() -> None:
    with pytest.raises(ValueError, match="contradicts process_per_phase: false"):
        ResourceSettings(launch="torchrun", process_per_phase=False)
