"""What a reader of Markdown sees of a report: texts in headings, paragraphs and tables, and nothing else."""

import re

from markdown_it import MarkdownIt

SHOWN = {"heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td"}
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def texts(markdown: str) -> list[str]:
    """Return the texts in their order; a link, an image, HTML, a list or anything else that is active is an error."""
    shown = []
    for token in PARSER.parse(markdown):
        if token.type != "inline":
            assert token.type.removesuffix("_open").removesuffix("_close") in SHOWN, (token.type, token.content)
            continue
        parts = token.children or []
        assert {part.type for part in parts} <= {"text", "text_special"}, [part.type for part in parts]
        shown.append("".join(part.content for part in parts))
    assert not re.search(r"(?<!\\)://|www\.", markdown, re.IGNORECASE), "GitHub makes links of addresses"
    return shown
