"""Conversations as prompts: how they are read, stored and conditioned on, and that a single turn is what it was."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data.messages import MessagesError, read_conversation
from crosspref.data.prompts import load_prompts
from crosspref.data.records import (
    Instruction,
    Message,
    Pair,
    Prompt,
    Response,
    Score,
    Translation,
    as_messages,
    from_table,
    schema_of,
    to_table,
)
from crosspref.data.rows import RowError
from crosspref.errors import DataError, RecipeError
from crosspref.languages import CROSSLINGUAL_PREFIX, Prefix, crosslingual_instruction
from crosspref.plan.work import Lengths
from crosspref.recipe.files import check_settings
from crosspref.recipe.sections import LengthPenaltySettings, PromptSettings, RewardSettings, SelectSettings
from crosspref.run.job import digest_rows
from crosspref.stages.score import condition
from crosspref.stages.select.language_imbalance import Answered, language_imbalance_pairs
from crosspref.stages.select.select import PairRules, select
from crosspref.suites.reward_accuracy.judges import ask_about
from crosspref.suites.reward_accuracy.pairs import compare


def system(text: Any) -> Any:
    return {"role": "system", "content": text}


def user(text: Any) -> Any:
    return {"role": "user", "content": text}


def assistant(text: Any) -> Any:
    return {"role": "assistant", "content": text}


RIVER = {
    "en": [system("Be brief.\n"), user(" Name a river."), assistant("The Nile."), user("And a lake?\n")],
    "es": [system("Sé breve."), user("Nombra un río."), assistant("El Nilo."), user("¿Y un lago?")],
}
PROMPTS = [
    Prompt("a", "en", "Hello"),
    Prompt("b", "en", RIVER["en"]),
    Prompt("a", "es", "Hola"),
    Prompt("b", "es", RIVER["es"]),
]
TEXTS: dict[str, dict[str, Instruction]] = {"en": {}, "es": {}}
for _prompt in PROMPTS:
    TEXTS[_prompt.language][_prompt.prompt_id] = _prompt.instruction


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(source: str | list[str], **settings: Any) -> list[Prompt]:
    return load_prompts(PromptSettings(source=source, **settings), ["en", "es"]).prompts


# --- what is read ---


@pytest.mark.parametrize("column", ["prompt", "messages", "instruction"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", ["long", "wide", "folder", "struct"])
def test_every_layout_gives_the_same_conversations(tmp_path: Path, layout: str, ending: str, column: str) -> None:
    # Parquet's columns have one type, so all are messages there; a text is the user's only message.
    texts = {tag: {key: as_messages(one) for key, one in by_id.items()} for tag, by_id in TEXTS.items()}
    if layout == "folder":
        for tag, by_id in texts.items():
            rows = [{"id": key, column: value} for key, value in by_id.items()]
            write(tmp_path / "folder" / f"{tag}.{ending}", rows)
        source = str(tmp_path / "folder")
    else:
        rows = [{"id": key, **{tag: texts[tag][key] for tag in texts}} for key in "ab"]
        if layout == "struct":
            rows = [{"id": row.pop("id"), column: row} for row in rows]
        if layout == "long":
            rows = [{"id": key, "language": tag, column: texts[tag][key]} for key in "ab" for tag in texts]
        source = write(tmp_path / f"prompts.{ending}", rows)
    assert load(source) == PROMPTS


def test_texts_and_conversations_may_stand_side_by_side(tmp_path: Path) -> None:
    rows = [{"id": key, **{tag: TEXTS[tag][key] for tag in TEXTS}} for key in "ab"]
    assert load(write(tmp_path / "x.jsonl", rows)) == PROMPTS


def test_content_in_parts_of_text_is_joined_and_other_keys_are_left_out() -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river. ", "image": None}]
    assert read_conversation([{**user(parts), "name": "x", "tool_calls": None}]) == "Name a river. "
    assert read_conversation([system(""), user([parts[0]])]) == [system(""), user("Name ")]


IMAGE = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
UNUSABLE = {
    "ends with an answer": (RIVER["en"][:3], "nothing to answer", "the last message is of 'assistant'"),
    "another role": ([{"role": "developer", "content": "x"}, user("y")], "unknown role", "message 1 is of 'developer'"),
    "a late system": ([user("x"), assistant("y"), system("z"), user("q")], "misplaced system message", "message 3"),
    "two of the user": ([system("x"), user("y"), user("z")], "turns do not alternate", "message 3 is of 'user'"),
    "the assistant begins": ([assistant("x"), user("y")], "turns do not alternate", "message 1 is of 'assistant'"),
    "an empty message": ([user("x"), assistant(""), user("y")], "empty text", "message 2: the text is empty"),
    "a white system message": ([system(" "), user("x")], "empty text", "message 1"),
    "no content": ([{"role": "user"}], "not text", "message 1"),
    "an image": ([user(IMAGE)], "not text", "message 1 has a part of type 'image_url'"),
    "a part without text": ([user([{"type": "text"}])], "not text", "message 1 has a part without"),
    "a tool call": ([user("x"), {**assistant("y"), "tool_calls": [{"id": "1"}]}, user("z")], "tool calls", "message 2"),
    "no role": ([user("x"), {"content": "y"}], "no message", "message 2 is not"),
    "a text between": ([user("x"), "y", user("z")], "no message", "message 2 is not"),
}


@pytest.mark.parametrize(("messages", "reason", "detail"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("language", ["en", "es"])
def test_what_no_model_can_answer_is_a_problem_of_its_row(
    tmp_path: Path, messages: list[Any], reason: str, detail: str, language: str
) -> None:
    with pytest.raises(MessagesError) as caught:
        read_conversation(messages)
    assert caught.value.reason == reason
    good = {"id": "good", "en": "Hello", "es": "Hola"}
    source = write(tmp_path / "x.jsonl", [good, {"id": "bad", "en": "Hi", "es": "Hola", language: messages}])
    with pytest.raises(RowError) as stopped:
        load(source)
    [problem] = stopped.value.problems
    assert (problem.file, problem.row, problem.language, problem.prompt_id) == (source, 2, language, "bad")
    assert detail in problem.detail
    loaded = load_prompts(PromptSettings(source=source, on_problem="drop"), ["en", "es"])
    everywhere = language == "en"
    assert [row.language for row in loaded.dropped] == (["en", "es"] if everywhere else ["es"])
    assert {row.reason for row in loaded.dropped} == {f"{reason} in English" if everywhere else reason}
    assert [prompt.prompt_id for prompt in loaded.prompts] == (["good"] * 2 if everywhere else ["good", "bad", "good"])


@pytest.mark.parametrize("text", [json.dumps(RIVER["es"]), str(RIVER["es"]), ' [\n{"content": "x"}]'])
def test_messages_that_were_written_out_as_a_text_are_not_asked(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "en", "es"], ["a", "[Hello]", "[{Hola}]"], ["b", "Hi", text]])
    with pytest.raises(RowError) as caught:
        load(str(path))
    [problem] = caught.value.problems
    assert (problem.reason, problem.language, problem.prompt_id) == ("messages as text", "es", "b")


@pytest.mark.parametrize("spanish", ["¿Y un lago?", RIVER["es"][1:], [RIVER["es"][0], RIVER["es"][3]]])
def test_a_conversation_with_other_turns_than_the_english_one_is_no_translation(
    tmp_path: Path, spanish: Instruction
) -> None:
    rows = [{"id": "a", "en": "Hi", "es": "Hola"}, {"id": "b", "en": RIVER["en"], "es": spanish}]
    source = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(RowError) as caught:
        load(source)
    [problem] = caught.value.problems
    assert (problem.row, problem.language, problem.prompt_id) == (2, "es", "b")
    assert "system, user, assistant, user" in problem.detail
    kept = load(source, on_problem="drop")
    assert [(prompt.prompt_id, prompt.language) for prompt in kept] == [("a", "en"), ("b", "en"), ("a", "es")]


# --- structs, and several sources ---


def test_structs_without_an_id_column_are_numbered_by_their_rows(tmp_path: Path) -> None:
    rows = [{"translation": {"en": "Hello", "es": "Hola", "fr": None}}, {"translation": {"en": "Bye", "es": "Adiós"}}]
    expected = [Prompt(*key) for key in [("1", "en", "Hello"), ("2", "en", "Bye"), ("1", "es", "Hola")]]
    expected.append(Prompt("2", "es", "Adiós"))
    for ending in ("jsonl", "parquet"):
        assert load(write(tmp_path / f"x.{ending}", rows)) == expected


def test_an_id_column_is_no_translation_and_a_struct_with_indonesian_no_id(tmp_path: Path) -> None:
    rows = [{"id": "q", "translation": {"en": "Hello", "id": "Halo"}}]
    loaded = load_prompts(PromptSettings(source=write(tmp_path / "x.jsonl", rows)), ["id"])
    assert loaded.prompts == [Prompt("q", "en", "Hello"), Prompt("q", "id", "Halo")]


def test_columns_of_languages_come_before_structs(tmp_path: Path) -> None:
    rows = [{"id": "q", "title": {"en": "no", "es": "no"}, "en": "Hello", "es": "Hola"}]
    assert load(write(tmp_path / "x.jsonl", rows)) == [Prompt("q", "en", "Hello"), Prompt("q", "es", "Hola")]


def test_of_several_structs_one_is_named_or_stands_where_texts_do(tmp_path: Path) -> None:
    one, other = {"en": "Hello", "es": "Hola"}, {"en": "no", "es": "no"}
    found = [Prompt("q", "en", "Hello"), Prompt("q", "es", "Hola")]
    assert load(write(tmp_path / "x.jsonl", [{"id": "q", "title": other, "text": one}])) == found
    source = write(tmp_path / "y.jsonl", [{"id": "q", "title": other, "body": one}])
    with pytest.raises(DataError, match="title, body"):
        load(source)
    assert load(source, text_column="body") == found


def test_a_struct_must_have_every_language(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"id": "q", "translation": {"en": "Hello", "fr": "Salut"}}])
    with pytest.raises(DataError, match=r"'translation'.*: es"):
        load(source)
    rows = [{"id": "q", "translation": {"en": "Hello", "es": "Hola"}}, {"id": "r", "translation": {"en": "Bye"}}]
    with pytest.raises(RowError) as caught:
        load(write(tmp_path / "y.jsonl", rows))
    assert [(one.row, one.language, one.prompt_id) for one in caught.value.problems] == [(2, "es", "r")]


def test_several_sources_are_read_one_after_the_other(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.jsonl", [{"id": "a", "en": "Hello", "es": "Hola"}])
    rows = [{"id": "b", "language": tag, "prompt": RIVER[tag]} for tag in RIVER]
    long = write(tmp_path / "long.parquet", rows)
    assert load([wide, long]) == PROMPTS
    assert load([long, wide]) == [PROMPTS[number] for number in (1, 0, 3, 2)]
    assert load([wide]) == load(wide)
    assert load([wide, long], limit=1) == [PROMPTS[0], PROMPTS[2]]


def test_an_id_that_two_sources_have_is_named_with_both_places(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [{"id": "a", "en": "Hello", "es": "Hola"}])
    rows = [{"id": key, "en": "Bye", "es": "Adiós"} for key in "ba"]
    second = write(tmp_path / "second.jsonl", rows)
    with pytest.raises(RowError) as caught:
        load([first, second])
    problems = caught.value.problems
    assert [(one.file, one.row, one.prompt_id) for one in problems] == [(second, 2, "a")] * 2
    assert all(f"{first}, row 1" in one.detail for one in problems)


# --- what is stored ---


def test_prompts_are_stored_as_messages_if_any_is_a_conversation() -> None:
    table = to_table(PROMPTS, Prompt)
    assert table.column("instruction").to_pylist()[2] == [user("Hola")]
    assert from_table(table, Prompt) == PROMPTS
    single = to_table([PROMPTS[0], PROMPTS[2]], Prompt)
    assert single.schema == schema_of(Prompt)
    assert single.column("instruction").to_pylist() == ["Hello", "Hola"]


def test_a_stored_table_is_itself_a_source(tmp_path: Path) -> None:
    for tag in TEXTS:
        rows = [prompt for prompt in PROMPTS if prompt.language == tag]
        pq.write_table(to_table(rows, Prompt), tmp_path / f"{tag}.parquet")
    assert load(str(tmp_path)) == PROMPTS


def test_digests_of_single_turns_and_of_second_turns_are_those_of_older_versions() -> None:
    # As computed before prompts could be conversations.
    single = [Prompt("q1", "en", "Name a river."), Prompt("q1", "es", "Nombra un río.")]
    assert digest_rows(single) == "2c0b62be39d0ddf3cfc4"
    turns = [user("Name a river."), assistant("Nile"), user("And a lake?")]
    assert digest_rows([Prompt("q1.2", "en", turns)]) == "6733397a253e0a93870b"
    assert digest_rows([Prompt("q1.2", "en", [system("x"), *turns])]) != "6733397a253e0a93870b"


# --- G(x) ---

OURS = CROSSLINGUAL_PREFIX.replace("{language}", "Spanish")
TURNS = RIVER["en"][1:]


@pytest.mark.parametrize(
    ("english", "prefix", "expected"),
    [
        ("Name a river.", None, OURS + "Name a river."),
        (RIVER["en"][::3], None, [RIVER["en"][0], user(OURS + "And a lake?\n")]),
        (TURNS, None, [*TURNS[:2], user(OURS + "And a lake?\n")]),
        (RIVER["en"], None, [*RIVER["en"][:3], user(OURS + "And a lake?\n")]),
        ("Why?", "Only {language}, {not} {0}: ", "Only Spanish, {not} {0}: Why?"),
        ("Why?", {"es": "¡Solo español!\n"}, "¡Solo español!\nWhy?"),
        (TURNS, {"es": "{language}! "}, [*TURNS[:2], user("Spanish! And a lake?\n")]),
        ("Why?", {"fr": "En français. "}, OURS + "Why?"),
        ("Why?", "", "Why?"),
    ],
)
def test_the_prefix_stands_before_the_last_english_message(
    english: Instruction, prefix: Prefix, expected: Instruction
) -> None:
    given: list[Message] | str = json.loads(json.dumps(english))
    assert crosslingual_instruction(english, "es", prefix) == expected
    assert english == given  # it is shared by all languages
    assert crosslingual_instruction(english, "en", prefix) == english
    known: dict[tuple[str, str], Instruction] = {("q", "en"): english, ("q", "es"): "en español"}
    assert condition("q", "es", known, "crosslingual", prefix) == expected
    assert condition("q", "es", known, "multilingual", prefix) == "en español"
    assert condition("q", "es", known, "translated", prefix) == english


@pytest.mark.parametrize("prefix", [{"en": "x"}, {"xx": "x"}, {1: "x"}, {"es": 1}, 1])
def test_a_prefix_is_a_text_or_texts_by_other_languages(prefix: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        check_settings(RewardSettings, {"prefix": prefix}, "x")
    assert caught.value.keys == ("prefix",)


@pytest.mark.parametrize("source", [5, [], ["a", 5], ["a", "a"], None])
def test_sources_are_a_place_or_several(source: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        check_settings(PromptSettings, {"source": source}, "x")
    assert caught.value.keys == ("source",)


# --- pairs ---


def test_a_pair_has_the_whole_conversation() -> None:
    texts = {"a": ("Sí.", "No."), "b": ("Titicaca", "Como")}
    responses = [
        Response(key, "es", sample, text, None, "stop", None)
        for key, both in texts.items()
        for sample, text in enumerate(both)
    ]
    scores = [
        Score(row.prompt_id, "es", row.sample, "crosslingual", -1.0, -2.0, 3, len(row.text), float(row.sample))
        for row in responses
    ]
    rules = PairRules("es", TEXTS["es"], LengthPenaltySettings(mode="none"), SelectSettings(min_gap=0.0))
    pairs = select(responses, scores, rules).pairs
    assert [(pair.prompt, pair.chosen[0]["content"]) for pair in pairs] == [
        ([user("Hola")], "No."),
        (RIVER["es"], "Como"),
    ]
    assert Pair.of(RIVER["es"], *responses[2:]).prompt == RIVER["es"]


def test_pairs_by_language_imbalance_have_it_in_each_language() -> None:
    def answer(language: str) -> Response:
        return Response("b", language, 0, f"in {language}", None, "stop", None)

    both = [Answered(tag, {"b": TEXTS[tag]["b"]}, [answer(tag)]) for tag in ("es", "en")]
    translations = [
        Translation("b", one, 0, other, f"{one} in {other}", None, "stop", None)
        for one, other in (("en", "es"), ("es", "en"))
    ]
    pairs, dropped = language_imbalance_pairs(both[0], both[1], translations, [])
    assert dropped == []
    assert [pair.prompt for pair in pairs] == [RIVER["es"], RIVER["en"]]


def test_who_judges_a_pair_sees_the_whole_conversation() -> None:
    whole, alone = (compare("es", asked, "Titicaca", "Como")[0] for asked in (RIVER["es"], "¿Y un lago?"))
    assert whole.pair_id != alone.pair_id
    [shown] = [message["content"] for message in ask_about(whole).messages if message["role"] == "user"]
    assert "system: Sé breve." in shown
    assert "user: Nombra un río.\n\nassistant: El Nilo.\n\nuser: ¿Y un lago?" in shown


def test_a_plan_counts_every_message() -> None:
    lengths = Lengths(template=5.0, per_byte={"es": 1.0})
    assert lengths.prompt("Sí", "es") == 5 + 3
    assert lengths.prompt(RIVER["es"], "es") == 5 + sum(len(turn["content"].encode()) for turn in RIVER["es"])
