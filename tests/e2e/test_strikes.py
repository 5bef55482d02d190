"""The sharpest cases of the campaign, on the cheapest phase of a run: what strikes costs no row and no file of others.

`nightly/campaign/` has the machinery, and thousands of other cases.
"""

import errno
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import openai  # noqa: F401 - the children, which are forked from here, would import it again and again
import pytest
from nightly.campaign.cases import Case
from nightly.campaign.servers import Servers
from nightly.campaign.strikes import MOVES, Odd, Scene, Strikes, Watch, fail, kill, make_scene, resume
from nightly.campaign.world import World
from running import Models, head

TABLE, MARKER = "pairs/.en.parquet.*.tmp", "pairs/.en.parquet.done.json.*.tmp"
KILLED_BEFORE = [
    ("open", "phases.jsonl"),
    ("os.rename", TABLE),
    ("fsync", "iteration_1/pairs"),
    ("os.rename", "dropped/.en.parquet.*.tmp"),
    ("open", MARKER),
    ("os.rename", MARKER),
    ("os.remove", "pairs/en.parquet.part.json"),
    ("os.rename", ".report.md.*.tmp"),
]
REFUSED = [
    (errno.ENOSPC, "fsync", TABLE),
    (errno.ENOSPC, "open", MARKER),
    (errno.EDQUOT, "os.rename", MARKER),
    (errno.EIO, "open", "responses/en/*.done.json"),
    (errno.EIO, "open", "out/recipe.yaml"),
    (errno.ESTALE, "open", "phases.jsonl"),
]
"""Numbers of errors, and the operations that end with them; the last three read."""


@pytest.fixture(scope="module")
def world(recipe_file: Path, done: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> World:
    """As much of the campaign's world as is needed here."""
    root = tmp_path_factory.mktemp("world")
    shutil.copy(recipe_file, root / "recipe.yaml")
    shutil.copytree(done, root / "run")
    head("prompts_train.jsonl", root / "prompts.jsonl", 2)
    shutil.copytree(models[1], root / "policy")
    return World(root)


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    """A run of which everything is done but the pairs and the report."""
    start = Path(shutil.copytree(world.root / "run", world.root / "start"))
    for folder in ("pairs", "dropped", "length_penalty"):
        shutil.rmtree(start / "iteration_1" / folder)
    (start / "report.md").unlink()
    return make_scene(world.root / "scene", ["run", str(world.root / "recipe.yaml"), "--out", "out"], start)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """A case, which must have no faults in the end."""
    case = Case("strikes", 0, 1, tmp_path / "case")
    yield case
    assert case.faults == []


def at(operation: str, pattern: str, strike: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """Strike before an operation on a path."""

    def struck(heard: str, path: str) -> None:
        if heard == operation and Path(path).match(pattern):
            strike(heard, path)

    return struck


@pytest.mark.parametrize(("operation", "pattern"), KILLED_BEFORE)
def test_a_run_that_is_killed_goes_on(operation: str, pattern: str, case: Case, scene: Scene, world: World) -> None:
    Strikes(world, [scene]).begin(case, scene)
    trouble = Watch(case.folder, 0, at(operation, pattern, kill), lasting=True).begin
    assert case.run(*scene.command, trouble=trouble, codes={-signal.SIGKILL}).code == -signal.SIGKILL
    resume(case, scene)


@pytest.mark.parametrize(("number", "operation", "pattern"), REFUSED)
def test_a_disk_that_refuses_is_one_message_and_the_run_goes_on(
    number: int, operation: str, pattern: str, case: Case, scene: Scene, world: World
) -> None:
    Strikes(world, [scene]).begin(case, scene)
    trouble = Watch(case.folder, 0, at(operation, pattern, partial(fail, number)), lasting=True, reads=True).begin
    assert case.run(*scene.command, trouble=trouble).code == 1
    resume(case, scene)


@pytest.mark.parametrize("how", MOVES)
def test_a_run_that_is_killed_goes_on_in_another_place(how: str, case: Case, scene: Scene, world: World) -> None:
    Odd(world, [scene]).move(case, how, len(scene.events) // 2)


@pytest.mark.parametrize("kind", ["memory", "two", "clock", "slow"])
def test_odd_circumstances(kind: str, case: Case, scene: Scene, world: World) -> None:
    getattr(Odd(world, [scene]), kind)(case)


def test_a_run_that_may_only_be_read(case: Case, scene: Scene, world: World) -> None:
    Odd(world, [scene]).show(case, "report")


@pytest.mark.parametrize(
    ("behaviour", "when"),
    [("drip body", "at the third request"), ("endless body", "always"), ("redirect to another host", "now and then")],
)
def test_a_server_that_misbehaves_and_is_well_again(behaviour: str, when: str, case: Case, world: World) -> None:
    Servers(world).misbehave(case, "sample tokens", behaviour, when)
