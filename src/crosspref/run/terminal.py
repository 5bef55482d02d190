"""The door to the terminal. All that a command prints passes it, so that no text of somebody else can act there."""

import logging
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType  # noqa: TID251 - this is the door
from rich.segment import Segment
from rich.text import Text

from crosspref.escape import printable_lines
from crosspref.run.ranks import is_main


class Terminal(Console):
    """A console that replaces what would move the cursor, or change the terminal or the writing direction."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces of what is printed; those that rich itself uses to control a terminal stay."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(printable_lines(piece.text), piece.style)

    def on_broken_pipe(self) -> None:
        """End the command without an error if the reader of its results, such as head, has enough."""
        if self.stderr:
            super().on_broken_pipe()
        raise BrokenPipeError


def say(text: str, console: Console | None = None) -> None:
    """Print a message as it is, and log it: no markup, no emoji for words, and no line is cut.

    It goes to the standard output unless a console is given. Of processes that train together, only the first one logs.
    """
    show(text, console or Terminal())
    if is_main():
        logging.getLogger(__name__).info("%s", text)


def show(text: str, console: Console) -> None:
    """Print a line as ``say`` does, without logging it."""
    console.print(Text(printable_lines(text)), soft_wrap=True)
