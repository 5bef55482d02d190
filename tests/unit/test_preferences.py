import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data.preferences import load_preferences, read_preferences
from crosspref.data.records import Pair, from_table, to_table
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


def expected(prompt, chosen="Paris.", rejected="Lyon.", prompt_id="a"):
    return Pair(prompt_id, "en", prompt, [assistant(chosen)], [assistant(rejected)], *[None] * 7)


PROMPT = [user("Capital of France?")]
DIALOGUE = [SYSTEM, user("Hi"), assistant("Hello"), user("Capital of France?")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({}, PROMPT),
        ({"prompt": PROMPT}, PROMPT),
        ({"prompt": PROMPT, "chosen": [assistant("Paris.")], "rejected": [assistant("Lyon.")]}, PROMPT),
        ({"prompt": DIALOGUE, "chosen": [assistant("Paris.")], "rejected": [assistant("Lyon.")]}, DIALOGUE),
        ({"chosen": [*PROMPT, assistant("Paris.")], "rejected": [*PROMPT, assistant("Lyon.")]}, PROMPT),
        (
            {"prompt": None, "chosen": [*DIALOGUE, assistant("Paris.")], "rejected": [*DIALOGUE, assistant("Lyon.")]},
            DIALOGUE,
        ),
        ({"chosen": [*DIALOGUE, assistant("Paris.")], "rejected": [*DIALOGUE, assistant("Lyon.")]}, DIALOGUE),
        (
            {
                "prompt": DIALOGUE,
                "chosen": [*DIALOGUE, assistant("Paris.")],
                "rejected": [*DIALOGUE, assistant("Lyon.")],
            },
            DIALOGUE,
        ),
    ],
    ids=[
        "strings",
        "prompt-list",
        "trl",
        "trl-dialogue",
        "ultrafeedback",
        "implicit",
        "string-in-dialogue",
        "explicit",
    ],
)
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


def test_pairs_fit_the_table(tmp_path):
    pairs = [only(tmp_path, PLAIN)]
    assert from_table(to_table(pairs, Pair), Pair) == pairs


def test_csv_parquet_json_and_folder_give_what_jsonl_gives(tmp_path):
    rows = [PLAIN, PLAIN | {"prompt_id": "b", "chosen": 'Par"is,\nof course'}]
    wanted = load_preferences(write(tmp_path / "x.jsonl", rows))
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(PLAIN))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "en.jsonl", rows)
    for name in ("x.csv", "x.parquet", "x.json", "folder"):
        assert load_preferences(str(tmp_path / name)) == wanted, name


def test_parquet_with_messages(tmp_path):
    row = PLAIN | {"chosen": [*PROMPT, assistant("Paris.")], "rejected": [*PROMPT, assistant("Lyon.")]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    assert load_preferences(str(tmp_path / "x.parquet")) == [expected(PROMPT)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "Paris."}, "chosen and rejected are equal"),
        ({"chosen": ""}, "chosen: the text is empty"),
        ({"chosen": " \n"}, "chosen: the text is only white space"),
        ({"rejected": 7}, "rejected: the value is int, not text: 7"),
        ({"rejected": None}, "rejected: the value is NoneType, not text"),
        ({"prompt": ""}, "prompt: the text is empty"),
        ({"prompt": None}, "there is no prompt"),
        ({"prompt": []}, "prompt has no messages"),
        ({"prompt": [assistant("Hi")]}, "the prompt ends with a message of 'assistant'"),
        ({"prompt": [user("Hi"), user("")]}, "prompt, message 2: the text is empty"),
        ({"prompt": [SYSTEM | {"content": None}, user("Hi")]}, "prompt, message 1: the value is NoneType"),
        ({"chosen": ["Paris."]}, "chosen, message 1 is not {"),
        ({"chosen": [{"content": "Paris."}]}, "chosen, message 1 is not {"),
        ({"chosen": [assistant([{"type": "text"}])]}, "chosen, message 1: the value is list, not text"),
        ({"chosen": [*PROMPT]}, "chosen ends with a message of 'user'"),
        ({"chosen": [user("Hi"), assistant("Paris.")]}, "differ before their last message"),
        (
            {"chosen": [user("Hi"), assistant("Paris.")], "rejected": [user("Hi"), assistant("Lyon.")]},
            "the prompt is not what chosen and rejected begin with",
        ),
        (
            {
                "prompt": [SYSTEM, *PROMPT],
                "chosen": [*PROMPT, assistant("Paris.")],
                "rejected": [*PROMPT, assistant("Ly")],
            },
            "the prompt is not what chosen and rejected begin with",
        ),
        ({"prompt_id": "a"}, "the id is double: row 1 has it already"),
        ({"prompt_id": "b", "chosen": "Paris.", "prompt": "Capital of France?"}, "the pair is double: row 1"),
        ({"prompt_id": None}, "None in the column 'prompt_id' is not an id"),
    ],
)
def test_each_problem_is_named_with_file_row_and_id(tmp_path, change, message):
    second = {"prompt_id": "b", "prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Cusco."}
    if "chosen" in change or "rejected" in change or "prompt" in change:
        second = PLAIN | {"prompt_id": "b"}
    source = write(tmp_path / "x.jsonl", [PLAIN, second | change])
    text = error_of(source)
    assert f"the preferences of {source} have 1 problem:" in text
    prompt_id = (second | change)["prompt_id"]
    at = f"  {source}, row 2, id {prompt_id!r}: " if prompt_id else f"  {source}, row 2: "
    line = next(line for line in text.splitlines() if line.startswith(at))
    assert message in line
    assert text.endswith("Mend these rows, or take them out of the file.")


def test_usable_pairs_come_beside_the_problems(tmp_path):
    source = write(tmp_path / "x.jsonl", [PLAIN | {"rejected": "Paris."}, PLAIN | {"prompt_id": "b"}])
    pairs, problems = read_preferences(source)
    assert [pair.prompt_id for pair in pairs] == ["b"]
    assert [(problem.row, problem.prompt_id, problem.reason) for problem in problems] == [(1, "a", "equal answers")]


def test_more_than_twenty_problems_are_counted(tmp_path):
    source = write(tmp_path / "x.jsonl", [PLAIN | {"prompt_id": n, "chosen": ""} for n in range(33)])
    text = error_of(source)
    assert "have 33 problems:" in text
    assert "row 20," in text
    assert "row 21," not in text
    assert "... and 13 more" in text


def test_broken_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(PLAIN) + "\n{oops\n")
    assert "x.jsonl, row 2: the line is not valid JSON" in error_of(str(tmp_path / "x.jsonl"))


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
