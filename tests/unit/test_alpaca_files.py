"""Instructions, outputs and annotations in alpaca_eval's formats: joined by item, and what is wrong is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from crosspref.data.items import Item, Problems, join, read_items
from crosspref.data.rows import Row, RowError
from crosspref.data.sources import read_languages
from crosspref.errors import DataError
from crosspref.run.progress import Reporter
from crosspref.suites.given import read_given
from crosspref.suites.xalpaca.files import OUTPUTS, read_preference, write_json


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row("file.json", number, value) for number, value in enumerate(values, start=1)]


def test_a_directory_of_languages_in_any_layout(tmp_path: Path) -> None:
    write_json(tmp_path / "es.json", [{"id": 1, "instruction": "Hola"}])
    (tmp_path / "de.jsonl").write_text(json.dumps({"id": 1, "instruction": "Hallo"}) + "\n")
    write_json(tmp_path / "fr" / "model_outputs.json", [{"instruction": "Salut", "output": "!"}])
    write_json(tmp_path / "notes.json", [])
    found = read_languages(str(tmp_path), "items", None, OUTPUTS)
    assert {language: len(own) for language, own in found.items()} == {"es": 1, "de": 1, "fr": 1}
    assert list(read_languages(str(tmp_path), "items", ["es", "ja"], OUTPUTS)) == ["es"]


def test_a_file_names_languages_or_is_of_the_one_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "items.json"
    write_json(file, [{"id": 1, "instruction": "Hola", "language": "es"}, {"id": 1, "instruction": "Hi", "lang": "en"}])
    found = read_languages(str(file), "items", None, OUTPUTS)
    assert {language: len(own) for language, own in found.items()} == {"es": 1, "en": 1}
    write_json(file, [{"id": 1, "instruction": "Hola"}])
    assert list(read_languages(str(file), "items", ["es"], OUTPUTS)) == ["es"]
    with pytest.raises(DataError, match="names no language"):
        read_languages(str(file), "items", None, OUTPUTS)
    with pytest.raises(DataError, match="no file or directory"):
        read_languages(str(tmp_path / "none"), "items", None, OUTPUTS)
    with pytest.raises(DataError, match="no file of a language"):
        read_languages(str(tmp_path), "items", None, OUTPUTS)


def test_duplicated_ids_are_counted_and_ambiguous_ones_left_out() -> None:
    problems = Problems()
    found = read_items(
        rows(
            {"id": 1, "instruction": "a"},
            {"id": 2, "instruction": "b"},
            {"id": 1, "instruction": "a"},
            {"id": 2, "instruction": "c"},
            {"id": 3, "instruction": " "},
            {"instruction": "d"},
            {"id": 4.0, "instruction": "e"},
            {"id": 5, "instruction": "half a character \ud83d"},
        ),
        problems,
        "items",
    )
    assert [(item.item_id, item.place) for item in found] == [("1", 0), ("4", 6)]
    assert problems == {"duplicated ids": 2, "items without id or text": 3}
    assert str(problems) == "2 duplicated ids, 3 items without id or text"


ITEMS = [Item("1", 0, "a"), Item("2", 1, "same"), Item("3", 2, "same"), Item("4", 3, "b")]


def outputs(found: dict[str, Row]) -> dict[str, object]:
    return {item_id: row.values["output"] for item_id, row in found.items()}


def test_rows_are_joined_by_id_wherever_they_stand() -> None:
    problems = Problems()
    found = join(rows({"id": 4, "output": "D"}, {"id": "1", "output": "A"}, {"id": 9, "output": "?"}), ITEMS, "output",
                 problems)  # fmt: skip
    assert outputs(found) == {"4": "D", "1": "A"}
    assert not problems


def test_rows_without_ids_are_joined_by_instruction_the_kth_to_the_kth() -> None:
    problems = Problems()
    given = rows(
        {"instruction": "b", "output": "D"},
        {"instruction": "same", "output": "B"},
        {"instruction": "unknown", "output": "?"},
        {"instruction": "same", "output": "C"},
        {"instruction": "a ", "output": "A"},
    )
    assert outputs(join(given, ITEMS, "output", problems)) == {"4": "D", "2": "B", "3": "C", "1": "A"}
    assert problems == {"rows without item or output": 1}
    assert join(rows({"instruction": 5, "output": "A"}), [Item("1", 0, "5")], "output", problems) == {}


def test_answers_that_are_not_text_are_counted_and_the_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{"id": 1, "output": "A"}, {"id": 2, "output": True}, {"id": 3, "output": 5}, {"id": 4, "output": None}]
    write_json(tmp_path / "es.json", answers)
    [given], problems = read_given(tmp_path / "es.json", ["es"], "mine"), Problems()
    assert given.answers("es", ITEMS, problems, Reporter()) == {"1": "A"}
    assert +problems == {"answers of mine that are not text": 3}
    assert f"{tmp_path / 'es.json'}, row 2" in capsys.readouterr().err


def test_doubled_rows_count_once_and_contradicting_ones_not_at_all() -> None:
    problems = Problems()
    given = rows(
        {"id": 1, "output": "A"},
        {"id": 1, "output": "A"},
        {"instruction": "b", "output": "D"},
        {"instruction": "b", "output": "other"},
        {"id": 2},
    )
    assert outputs(join(given, ITEMS, "output", problems)) == {"1": "A"}
    assert problems == {"duplicated rows": 2, "rows without item or output": 1}


def test_ids_that_count_from_0_are_not_taken_for_those_that_count_from_1() -> None:
    """Only a text that is another item's contradicts an id: a translated or a shortened one does not."""
    problems = Problems()
    given = rows(
        {"id": 0, "instruction": "a", "output": "A"},
        {"id": 1, "instruction": "same", "output": "B"},
        {"id": 3, "instruction": "b", "output": "C"},
        {"id": 4, "instruction": "b, in other words", "output": "D"},
    )
    assert outputs(join(given, ITEMS, "output", problems)) == {"4": "D"}
    assert problems == {"rows whose id is of one item and whose instruction is of another": 2}


def test_items_without_ids_take_their_positions_and_are_joined_by_instruction() -> None:
    problems = Problems()
    items = read_items(rows({"instruction": "a"}, {"instruction": " "}, {"instruction": "b"}), problems, "items")
    assert [(item.item_id, item.place, item.named) for item in items] == [("1", 0, False), ("3", 2, False)]
    given = rows({"id": 1, "instruction": "b", "output": "B"}, {"id": 1, "output": "A"})
    assert outputs(join(given, items, "output", problems)) == {"3": "B", "1": "A"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (2.0, 2.0), (0, 1.5), (None, None), (float("nan"), None), (3, None), (0.5, None), (True, None)],
)
def test_preferences(value: object, expected: float | None) -> None:
    assert read_preference(value) == expected


def test_a_broken_row_keeps_the_place_of_those_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    given = [{"id": n, "instruction": f"Hi {n}", "language": tag} for n, tag in enumerate(["en", "en", "en", "es"])]
    lines = [json.dumps(row) for row in given]
    file.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    for asked in (None, ["en"]):
        problems = Problems()
        found = read_languages(str(file), "items", asked, OUTPUTS)
        items = read_items(found["en"], problems, "items")
        assert [(item.item_id, item.place) for item in items] == [("0", 0), ("2", 2)]
        assert problems["items without id or text"] == 1
    file.write_text("\n".join([*lines[:2], lines[2][:-9], lines[3]]))
    with pytest.raises(RowError, match="it is en before it and es after it") as caught:
        read_languages(str(file), "items", None, OUTPUTS)
    assert caught.value.problems[0].row == 3


def test_a_language_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "items.json"
    write_json(file, [{"id": 1, "instruction": "Hi", "language": "English"}])
    with pytest.raises(RowError, match="did you mean en") as caught:
        read_languages(str(file), "items", None, OUTPUTS)
    assert caught.value.problems[0].row == 1
