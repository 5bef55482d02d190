"""Texts of others, shown in each target: they look as they are, and do nothing."""

import csv
import io
import json
import pickle
from pathlib import Path

import pytest
from rendered import texts

from crosspref.data.records import Response
from crosspref.data.tables import read_rows, write_rows
from crosspref.errors import CrossprefError, DataError, FileError, MissingLibraryError, RecipeError
from crosspref.escape import (
    REPLACEMENT,
    escape_csv,
    escape_latex,
    escape_markdown,
    escape_paragraph,
    json_text,
    listed,
    one_line,
    printable,
    printable_lines,
)
from crosspref.reports.table import Report, csv_text

TERMINAL = {
    "colour": "\x1b[31mred",
    "title of the window": "\x1b]0;mine\x07",
    "clipboard": "\x1b]52;c;ZWNobw==\x07",
    "hidden link": "\x1b]8;;http://example.org\x1b\\ours\x1b]8;;\x1b\\",
    "C1": "\x9b2J",
    "backspace": "rm -r /\b\b\b\b\b\b\bls",
    "return": "refused\rready ",
    "null": "a\0b",
    "delete": "a\x7fb",
    "writing direction": "\u202efdp.exe\u202c",
    "isolate": "\u2066a\u2069",
    "zero width": "pi\u200b_0",
    "joiner without use": "pi\u200d_0",
    "line separator": "a\u2028b",
    "next line": "a\x85b",
    "half a character": "\ud83d",
    "tag": "a\U000e0041",
    "byte order mark": "\ufeffa",
}


@pytest.mark.parametrize("text", TERMINAL.values(), ids=TERMINAL)
def test_nothing_acts_on_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    assert REPLACEMENT in printable(text)
    assert printable_lines(f"ours\n{text}\nours") == f"ours\n{printable(text)}\nours"
    message = str(DataError(f"a.jsonl: {text}.\nRename it."))
    assert [line.isprintable() for line in message.split("\n")] == [True, True]


@pytest.mark.parametrize(
    "text",
    ["", "pi_0 ~ [ok]", "¿Qué?", "日本語", "می\u200cخواهم", "क्\u200dष", "👩\u200d🔬", "Oui\xa0!", "名前\u3000"],
)
def test_what_languages_need_stays(text: str) -> None:
    assert printable(text) == text


def test_what_others_said_is_one_line() -> None:
    assert one_line(ValueError("a\n\tb\r\n  c")) == "a b c"
    assert one_line("x" * 700) == "x" * 599 + "…"
    assert listed(["a", "b\nc\x1b"]) == f"a, b c{REPLACEMENT}"
    assert listed([]) == "none"
    many = listed(f"model {number} {'x' * 1000}" for number in range(20_000))
    assert many.endswith("and 19,980 more")
    assert len(many) < 2000


def test_errors_keep_their_fields_and_travel_between_processes() -> None:
    for error in (
        CrossprefError("a\x1b\nb"),
        RecipeError("a\x9b", ("models.policy",)),
        FileError("\x1b[2J.md", "cannot be written"),
        MissingLibraryError("ray", "x\u202e", "pip"),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (str(again), vars(again)) == (str(error), vars(error))
        assert REPLACEMENT in str(error)
    assert FileError("\x1b[2J.md", "cannot be written").path == "\x1b[2J.md"


MARKDOWN = [
    "[x](javascript:alert(1))",
    "![t](http://example.org/t.png)",
    '<img src=x onerror="alert(1)">',
    "<script>alert(1)</script> <!-- x --> <?php ?> <!DOCTYPE x> </td>",
    "<http://example.org> <a@example.org> <1@example.org>",
    "[x][1] [1] [^1]",
    "[1]: http://example.org",
    "[^1]: a footnote",
    "see https://example.org/?a=b and WWW.example.org",
    "`code` ``more`` ```",
    "*a* **b** a*b*c _c_ __d__ _e",
    "pi_0 and pi_(t-1) of a_b_c, snake_case_, R_c's",
    "~~gone~~ ~x~",
    "a|b\\|c\\\\|d\\",
    "&lt;img&gt; &amp; &#60; &#x3c; R&D; AT&T",
    "10.0 [8.5, 11.5] [0.1](0.2) p <0.001 a<b a>b",
    "$x$ {: onclick=x } {{ site.x }} {% x %}",
    "# a", "## a ##", "- a", "+ a", "* a", "-", "> a", "1. a", "12) a", "---", "===", "***", "___", "~~~", "```x",
    "    a", "\ta", "| a | b |", "+1.5", "-0.25 [-0.5, 0.1]", "0.5 nats", "a\\",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKDOWN)
def test_nothing_is_active_in_markdown(text: str) -> None:
    report = Report(text, [text, "b"], [[text, text], ["c", "d"]], [text, "our note", text])
    shown = printable(text.strip(" "))
    assert texts(report.markdown()) == [shown, shown, "b", shown, shown, "c", "d", shown, "our note", shown]


def test_markdown_that_is_not_active_stays_as_it_is() -> None:
    for text in ("pi_0", "R_c (a, b) - c", "-0.019 [-0.032, -0.006]", "50% [40%, 60%]", "p <0.001", "R&D", "a: b; c"):
        assert escape_markdown(text) == text
    assert escape_markdown("a\nb") == f"a{REPLACEMENT}b"
    assert escape_paragraph("8 prompts, 1.5 each.") == "8 prompts, 1.5 each."


def test_no_text_is_a_command_in_latex() -> None:
    assert escape_latex(r"a|b_c*d`e [x](y) <i> \z {q} 50% $1 #2 & ~ ^") == (
        r"a\textbar{}b\_c*d{`}e {[}x](y) \textless{}i\textgreater{} \textbackslash{}z \{q\} 50\% \$1 \#2 \& "
        r"\textasciitilde{} \textasciicircum{}"
    )
    assert escape_latex(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert escape_latex(r"\write18{ls}%") == r"\textbackslash{}write18\{ls\}\%"
    assert escape_latex("^^5cinput") == r"\textasciicircum{}\textasciicircum{}5cinput"
    assert escape_latex("a\n\n\\par\x1b") == r"a??\textbackslash{}par?"
    assert escape_latex("models--a---b") == "models-{}-a-{}-{}-b"
    assert escape_latex("*a") == "{}*a"
    assert escape_latex("a\N{REPLACEMENT CHARACTER}") == "a?"


@pytest.mark.parametrize(
    "text", ["=1+1", "@SUM(A1)", "+1+1", "-1+cmd", "-A1", "-1", "-", "\tx", "\r=1", "\n=1", "\uff1d1"]
)
def test_no_text_is_a_formula(text: str) -> None:
    assert escape_csv(text) == f"'{text}"


@pytest.mark.parametrize("text", ["1-2", "a=1", "", "two\nlines\tand a tab", "می\u200cخواهم"])
def test_other_texts_stay_as_they_are_in_csv(text: str) -> None:
    assert escape_csv(text) == text


def test_csv_has_no_control_characters_and_numbers_are_numbers() -> None:
    for text in TERMINAL.values():
        written = csv_text([text], [[text, -1.5, None]])
        assert not set(written) & {"\x1b", "\x07", "\x9b", "\b", "\0", "\x7f", "\x85", "\u202e", "\ud83d"}
        assert next(csv.reader(io.StringIO(written.split("\n")[-2], newline="")))[1:] == ["-1.5", ""]


@pytest.mark.parametrize("text", TERMINAL.values(), ids=TERMINAL)
def test_json_is_read_back_as_it_was_and_nothing_in_it_acts(text: str) -> None:
    written = json_text({"ours é": [text, {text: 1}]}, indent=1)
    assert json.loads(written) == {"ours é": [text, {text: 1}]}
    assert "é" in written
    assert all(line.isprintable() or "\u200d" in line for line in written.split("\n"))


def test_tables_that_are_data_are_read_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        Response(f"=p{number}", "es", 0, f"=1\r\n{text}", None, "stop", None)
        for number, text in enumerate(TERMINAL.values())
        if "\ud83d" not in text  # which no table can hold
    ]
    for ending in ("jsonl", "parquet"):
        write_rows(tmp_path / f"responses.{ending}", rows, Response)
        assert read_rows(tmp_path / f"responses.{ending}", Response) == rows
