"""The page of `make bench`."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLACE = {
    "machine": {
        "processor": "A processor",
        "cores": 2,
        "threads": 2,
        "bfloat16": True,
        "memory_gb": 24,
        "python": "3.11",
        "versions": {"torch": "2"},
    },
    "settings": {"prompts": 16},
    "seconds": 90,
}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("page")


def results() -> dict[str, dict[str, Any]]:
    lines = importlib.import_module("lines")
    return {
        "released": {**lines.reached("released", [3.0, 6.0, 5.0], released=12.25), **PLACE},
        "memory": {**lines.reached("memory", [600.0]), **PLACE, "settings": {"prompts": 8}},
        "rescoring": {**lines.reached("rescoring", [0.0]), **PLACE},
    }


def test_the_page_shows_medians_spread_targets_and_notes(page: Any) -> None:
    text = page.text(results(), {"released": "The head takes most of it.", "all": "On a quiet machine."})
    released, memory, rescoring = (line for line in text.splitlines() if line.startswith("| ["))
    assert released.endswith("| at least 4.00 x | **5.00 x** | 3.00 x to 6.00 x | yes |")
    assert memory.endswith("| at most 512 MB | **600 MB** | 600 MB to 600 MB | **no** |")
    assert rescoring.endswith("| at most 0 | **0** | 0 to 0 | yes |")
    assert "Rounds: 3.00 x, 6.00 x, 5.00 x. Medians and other figures: released 12.25." in text
    assert "The head takes most of it." in text.partition("## released")[2].partition("## memory")[0]
    assert text.index("On a quiet machine.") < text.index("## released")


def test_lines_that_were_measured_elsewhere_say_so(page: Any) -> None:
    places = page.places(results())
    assert [place.partition(":")[0] for place in places] == ["released, rescoring", "memory"]
    assert page.places({"memory": results()["memory"]})[0].startswith("All lines: A processor, 2 cores with bfloat16")


def test_files_are_the_same_when_written_again(page: Any, tmp_path: Path) -> None:
    page.write(tmp_path, results())
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    page.write(tmp_path, results())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert set(first) == {"performance.md", "performance.svg"}


def test_a_note_on_a_line_that_does_not_exist_is_an_error(page: Any, tmp_path: Path) -> None:
    (tmp_path / "performance_notes.yaml").write_text("releasd: A note.\n")
    with pytest.raises(AssertionError, match="releasd"):
        page.write(tmp_path, results())
