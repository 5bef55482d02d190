"""Our win rates against alpaca-eval 0.6.6, on made-up verdicts and a made-up gamed table; `make test-alpaca`."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from alpaca_world import draw_gamed

from crosspref.maths.alpaca import Comparisons, WinRates, comparisons, win_rates
from crosspref.suites.xalpaca.files import read_preference

if importlib.util.find_spec("alpaca_eval") is None:
    pytest.skip("alpaca-eval is not installed: make test-alpaca", allow_module_level=True)

from crosspref.engines.liblinear import fit_by_cross_validation

ITEMS = 805
GLM_NAMES = {
    "LC": "length_controlled_v1",
    "LC-noreg": "length_controlled_noreg",
}


@dataclass
class Case:
    lc_name: str = "LC"
    seed: int = 0
    first: int = 0
    keep: int = ITEMS
    by_position: bool = False
    missing: float = 0.0
    ties: float = 0.1
    skill: float = -1.0
    items: list[int] = field(init=False)
    preferences: list[float | None] = field(init=False)
    lengths: tuple[list[int], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        self.items = sorted(draw.permutation(range(self.first, ITEMS))[: self.keep].tolist())
        first, second = (np.exp(draw.normal(mean, 0.6, self.keep)).astype(int) for mean in (7.5, 7.3))
        self.lengths = first.tolist(), second.tolist()
        difficulty = GAMED.difficulty[self.items]
        logit = self.skill + 0.8 * difficulty - np.tanh((second - first) / 1000) + draw.normal(0, 2, self.keep)
        preferences = 1 + 1 / (1 + np.exp(-2 * logit))
        drawn = draw.random(self.keep)
        preferences[drawn < self.ties] = 1.5
        preferences[drawn < self.ties / 2] = 0
        missing = draw.random(self.keep) < self.missing
        self.preferences = [None if gone else float(one) for one, gone in zip(preferences, missing, strict=True)]

    def compared(self) -> Comparisons:
        return comparisons(
            self.items,
            [read_preference(one) for one in self.preferences],
            *self.lengths,
            GAMED.difficulty[: self.keep] if self.by_position else GAMED.difficulty[self.items],
            GAMED if self.lc_name == "LC" else None,
        )

    def ours(self) -> WinRates:
        return win_rates(self.compared(), fit_by_cross_validation)

    def theirs(self) -> dict[str, object]:
        """Their difficulty is by row, or by a column named "index" where the annotations have one."""
        columns: dict[str, list] = {
            "preference": [math.nan if one is None else one for one in self.preferences],
            "output_1": ["x" * length for length in self.lengths[1]],
            "output_2": ["x" * length for length in self.lengths[0]],
        }
        if not self.by_position:
            columns["index"] = self.items
        return {"glm_name": GLM_NAMES[self.lc_name], "annotations": columns}


GAMED = draw_gamed(ITEMS)
CASES = {
    "all": Case(),
    "all by position": Case(by_position=True),
    "another": Case(seed=1, skill=0.5, ties=0.0),
    "missing verdicts": Case(seed=2, missing=0.05),
    "all but the first": Case(seed=3, first=1, keep=804),
    "all but the first, by position": Case(seed=3, first=1, keep=804, by_position=True),
    "few items": Case(seed=4, keep=60, missing=0.1),
    "a weak model": Case(seed=5, skill=-7.0),
    "without gamed answers": Case("LC-noreg", seed=6),
    "without gamed answers, few": Case("LC-noreg", seed=7, keep=100, missing=0.1, by_position=True),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("alpaca_eval")
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for row in range(2 * ITEMS):
        numbers = ",".join(repr(float(column[row])) for column in (GAMED.outcomes, GAMED.lengths, GAMED.difficulty))
        lines.append(f"{'verbose' if row < ITEMS else 'concise'},{row % ITEMS},{numbers},False")
    (folder / "gamed.csv").write_text("\n".join(lines))
    (folder / "cases.json").write_text(json.dumps({name: case.theirs() for name, case in CASES.items()}))
    oracle = Path(__file__).with_name("alpaca_eval_oracle.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(oracle), str(folder)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_rates_are_those_of_alpaca_eval(name: str, answers: dict[str, dict[str, float]]) -> None:
    theirs, ours = answers[name], CASES[name].ours()
    assert ours.lc_name == CASES[name].lc_name
    assert ours.lc == pytest.approx(theirs["length_controlled_winrate"], abs=1e-9)
    assert ours.win_rate == pytest.approx(theirs["win_rate"], abs=1e-9)
    outcomes = CASES[name].compared().outcomes
    counts = [ours.n, (outcomes > 0.5).sum(), (outcomes < 0.5).sum(), (outcomes == 0.5).sum()]
    assert counts == [theirs["n_total"], theirs["n_wins"], theirs["n_wins_base"], theirs["n_draws"]]


def test_an_item_left_out_moves_the_rate_by_position(answers: dict[str, dict[str, float]]) -> None:
    by_item, by_position = answers["all but the first"], answers["all but the first, by position"]
    assert by_item["win_rate"] == by_position["win_rate"]
    assert abs(by_item["length_controlled_winrate"] - by_position["length_controlled_winrate"]) > 0.1
