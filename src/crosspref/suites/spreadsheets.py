"""Texts of others in files that people open with a spreadsheet."""

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters that make a spreadsheet read a cell as a formula, in their wide forms, too."""


def harmless(text: str) -> str:
    """Return a text that a spreadsheet shows and does not compute: behind an apostrophe if it looks like a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
