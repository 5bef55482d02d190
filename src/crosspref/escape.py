"""What models, servers, data and other people wrote, made harmless for the place where it is shown.

Names, columns, answers and messages of libraries are texts: they are shown as they are, but move no cursor, and are no
link, image, HTML, formula or command. Each target has its function. Pictures (SVG) are made by rich and matplotlib,
which escape what they write.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_NEEDED = re.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]|(?<=[^\0-\x7f])[\u200c\u200d](?=[^\0-\x7f])")
"""What is not printable in Python's sense, but harmless, and needed: the spaces of French and Chinese, and the joiners
inside words of Persian and Hindi, and inside emoji."""

_MARKDOWN = re.compile(
    r"""
    [\\`*~|\#$\{]  # code, emphasis, struck-out text, cells, headings, formulas, attributes
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; an underscore between letters or digits, as in pi_0, is none
    | \](?=[(\[:])  # links, images, and what a footnote or another link refers to; [0.1, 0.2] is none of them
    | :(?=//) | (?<=www)\.  # addresses, which GitHub makes links
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HTML = re.compile(r"<(?=[a-z/!?]|[^\s<>]+@)|&(?=\w+;)", re.IGNORECASE)
"""What begins an HTML tag, an address or the name of a character; ``p <0.001`` and ``R&D`` do not."""
_BLOCK = re.compile(r"(\d*)([-+=>.)])")
"""What begins a list, a quotation or a line at the start of a paragraph."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be an option of the row's end before it
    "`": "{`}",  # two of them would be a quotation mark
    REPLACEMENT: "?",
    "\N{EN DASH}": "--",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters that make a spreadsheet read a cell as a formula, including their wide forms."""
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tabs and the ends of lines, changes of the writing direction, and halves of characters,
which no file can hold."""

_UNSEEN = re.compile(
    r"[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What JSON may hold as it is, but a terminal obeys or does not show."""


def printable(text: str) -> str:
    """Return the text on one line, with a replacement for each character that would act there or cannot be seen.

    These are control characters, line ends, changes of the writing direction and halves of characters.
    """
    if text.isprintable():
        return text
    needed = {found.start() for found in _NEEDED.finditer(text)}
    return "".join(
        character if character.isprintable() or place in needed else REPLACEMENT for place, character in enumerate(text)
    )


def printable_lines(text: str) -> str:
    """Return the text, printable but for the ends of its lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(said: object, most: int = 600) -> str:
    """Return what somebody else said on one line, printable, and cut after so many characters."""
    line = " ".join(str(said).split())
    return printable(line if len(line) <= most else f"{line[: most - 1]}…")


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names that somebody else gave, such as those of columns, on one line; of many only the first ones."""
    shown = [one_line(name, 80) for name in names]
    more = [f"and {len(shown) - most:,} more"] if len(shown) > most else []
    return ", ".join([*shown[:most], *more]) or "none"


def escape_markdown(text: str) -> str:
    """Return Markdown that shows the text inside a line: in a heading or in a table's cell.

    Only what CommonMark or GitHub would act on is escaped, so that a table can be read as it is, too.
    """
    marked = _MARKDOWN.sub(r"\\\g<0>", printable(text))
    return _HTML.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", marked)


def escape_paragraph(text: str) -> str:
    """Return Markdown that shows the text as a paragraph: no heading, list, quotation or table begins with it."""
    paragraph = escape_markdown(text.strip(" "))
    begun = _BLOCK.match(paragraph)
    return f"{begun[1]}\\{paragraph[begun.end(1) :]}" if begun else paragraph


def escape_latex(text: str) -> str:
    """Return LaTeX that shows the text."""
    plain = printable(text)
    shown = "{}" if plain.startswith("*") else ""  # it would be taken for a part of the row's end before it
    for before, character in zip(f" {plain}", plain, strict=False):
        shown += "{}" if before == character == "-" else ""  # two of them would be a dash
        shown += _LATEX.get(character, character)
    return shown


def escape_csv(text: str) -> str:
    """Return the text for a cell of a CSV file, with an apostrophe in front if a spreadsheet would compute it."""
    shown = _CONTROL.sub(REPLACEMENT, text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def json_text(content: Any, indent: int | None = None) -> str:
    """Return JSON that is read back as the same, and in which nothing acts on a terminal."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
