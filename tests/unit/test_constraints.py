"""The versions that are pinned for installing lie in the ranges that pyproject.toml takes."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges(*extras: str) -> dict[str, Requirement]:
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {requirement.name: requirement for requirement in map(Requirement, asked)}


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pinned}


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ("eval", "gguf", "lab", "qlora", "ray", "server")),
        ("constraints-vllm.txt", ("gguf", "server")),
        ("constraints-gpu.txt", ("vllm", "qlora", "ray")),
    ],
)
def test_pins_lie_in_the_ranges(file: str, extras: tuple[str, ...]) -> None:
    pinned = pins(file)
    asked = ranges(*extras)
    outside = {name for name, version in pinned.items() if name in asked and version not in asked[name].specifier}
    assert not outside
    if file == "constraints-gpu.txt":
        assert set(asked) <= set(pinned)


def test_trl_is_bound_to_the_minor_release_that_is_tested() -> None:
    """The trainers override private methods."""
    tested = pins("constraints.txt")["trl"]
    following = Version(f"{tested.major}.{tested.minor + 1}")
    assert following not in ranges()["trl"].specifier
