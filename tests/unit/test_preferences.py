import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data.preferences import load_preferences
from crosspref.data.records import Pair
from crosspref.data.rows import RowError
from crosspref.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = {"prompt_id": "a", "prompt": "Capital of France?", "chosen": "Paris.", "rejected": "Lyon."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(tmp_path, row):
    [pair] = load_preferences(write(tmp_path / "one.jsonl", [row]))
    return pair


def error_of(source):
    with pytest.raises(DataError) as error:
        load_preferences(source)
    return str(error.value)


def problems_of(source):
    """Return row, id and detail of each problem."""
    with pytest.raises(RowError) as error:
        load_preferences(source)
    assert {problem.file for problem in error.value.problems} == {source}
    return [(problem.row, problem.prompt_id, problem.detail) for problem in error.value.problems]


def expected(prompt, chosen="Paris.", rejected="Lyon.", prompt_id="a"):
    return Pair(prompt_id, "en", prompt, [assistant(chosen)], [assistant(rejected)])


PROMPT = [user("Capital of France?")]
DIALOGUE = [SYSTEM, user("Hi"), assistant("Hello"), user("Capital of France?")]


def turns(*before):
    """Return both answers behind the same messages."""
    return {side: [*before, assistant(text)] for side, text in (("chosen", "Paris."), ("rejected", "Lyon."))}


FORMS = {
    "strings": ({}, PROMPT),
    "prompt-list": ({"prompt": PROMPT}, PROMPT),
    "trl": ({"prompt": PROMPT, **turns()}, PROMPT),
    "trl-dialogue": ({"prompt": DIALOGUE, **turns()}, DIALOGUE),
    "ultrafeedback": (turns(*PROMPT), PROMPT),
    "implicit": ({"prompt": None, **turns(*DIALOGUE)}, DIALOGUE),
    "string-in-dialogue": (turns(*DIALOGUE), DIALOGUE),
    "explicit": ({"prompt": DIALOGUE, **turns(*DIALOGUE)}, DIALOGUE),
}


@pytest.mark.parametrize(("row", "prompt"), FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_pair(tmp_path, row, prompt):
    assert only(tmp_path, PLAIN | row) == expected(prompt)


def test_other_keys_of_messages_are_left_out_and_text_is_kept_as_it_is(tmp_path):
    row = PLAIN | {"prompt": [user(" Hi \n") | {"name": None}], "chosen": "  Paris.\n"}
    assert only(tmp_path, row) == expected([user(" Hi \n")], chosen="  Paris.\n")


def test_an_empty_system_message_is_allowed(tmp_path):
    prompt = [{"role": "system", "content": ""}, *PROMPT]
    assert only(tmp_path, PLAIN | {"prompt": prompt}).prompt == prompt


def test_without_an_id_column_the_id_is_the_row_number(tmp_path):
    rows = [{key: f"{PLAIN[key]} {n}" for key in ("prompt", "chosen", "rejected")} for n in range(3)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:2]) + "\n\n" + json.dumps(rows[2]))
    assert [pair.prompt_id for pair in load_preferences(str(tmp_path / "x.jsonl"))] == ["1", "2", "4"]


def test_rows_in_other_languages_are_left_out(tmp_path):
    spanish = {"prompt_id": "b", "prompt": "¿Por qué?", "chosen": "Sí.", "rejected": "No.", "lang": "es"}
    source = write(tmp_path / "x.jsonl", [PLAIN | {"lang": "en-US"}, spanish])
    assert [pair.prompt_id for pair in load_preferences(source)] == [PLAIN["prompt_id"]]
    with pytest.raises(DataError, match="no row in English"):
        load_preferences(write(tmp_path / "y.jsonl", [spanish]))


def test_parquet_with_messages(tmp_path):
    pq.write_table(pa.Table.from_pylist([PLAIN | turns(*PROMPT)]), tmp_path / "x.parquet")
    assert load_preferences(str(tmp_path / "x.parquet")) == [expected(PROMPT)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "Paris."}, "chosen and rejected are equal"),
        ({"chosen": ""}, "chosen: the text is empty"),
        ({"rejected": 7}, "rejected: the value is int, not text: 7"),
        ({"prompt": ""}, "prompt: the text is empty"),
        ({"prompt": None}, "there is no prompt"),
        ({"prompt": []}, "prompt, the list of messages is empty"),
        ({"prompt": [assistant("Hi")]}, "the prompt ends with a message of 'assistant'"),
        ({"prompt": [user("Hi"), user("")]}, "prompt, message 2: the text is empty"),
        ({"prompt": [SYSTEM | {"content": None}, user("Hi")]}, "prompt, message 1: the value is NoneType"),
        ({"chosen": ["Paris."]}, "chosen, message 1 is not {"),
        ({"chosen": [*PROMPT]}, "chosen ends with a message of 'user'"),
        ({"chosen": [user("Hi"), assistant("Paris.")]}, "differ before their last message"),
        (turns(user("Hi")), "the prompt is not what chosen and rejected begin with"),
        ({"prompt": [SYSTEM, *PROMPT], **turns(*PROMPT)}, "the prompt is not what chosen and rejected begin with"),
        ({"prompt_id": "a"}, "duplicate id: row 1 has it already"),
        ({"prompt_id": "b", "chosen": "Paris.", "prompt": "Capital of France?"}, "duplicate pair: row 1"),
        ({"prompt_id": None}, "None in the column 'prompt_id' is not an id"),
    ],
)
def test_each_problem_is_named_with_file_row_and_id(tmp_path, change, message):
    second = {"prompt_id": "b", "prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Cusco."}
    if "chosen" in change or "rejected" in change or "prompt" in change:
        second = PLAIN | {"prompt_id": "b"}
    source = write(tmp_path / "x.jsonl", [PLAIN, second | change])
    [(row, prompt_id, detail)] = problems_of(source)
    assert (row, prompt_id) == (2, (second | change)["prompt_id"])
    assert message in detail


def test_broken_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(PLAIN) + "\n{oops\n")
    [(row, prompt_id, detail)] = problems_of(str(tmp_path / "x.jsonl"))
    assert (row, prompt_id) == (2, None)
    assert "not valid JSON" in detail


@pytest.mark.parametrize(
    ("column", "shown"), [("chosen", "prompt_id, prompt, rejected"), ("rejected", "prompt_id, prompt")]
)
def test_missing_column_lists_those_there(tmp_path, column, shown):
    row = {key: value for key, value in PLAIN.items() if key != column}
    text = error_of(write(tmp_path / "x.jsonl", [row]))
    assert f"has no column {column}" in text
    assert f"Columns there: {shown}" in text


def test_no_rows(tmp_path):
    assert "x.jsonl has no rows" in error_of(write(tmp_path / "x.jsonl", []))
