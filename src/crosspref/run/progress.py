"""Progress of long steps: a bar with tokens per second and time left, or plain lines where there is no terminal."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console  # noqa: TID251 - whoever calls may give any
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crosspref.run.ranks import is_main
from crosspref.run.terminal import Terminal, say, show

PLAIN_SECONDS = 10.0
"""Without a terminal a line is printed at most this often, and at the end of each step."""


class Meter:
    """Counts the finished units and tokens of one step."""

    def __init__(self, console: Console, label: str, total: int, bar: Progress | None) -> None:
        self.console, self.label, self.total, self.bar = console, label, total, bar
        self.done, self.tokens, self.started = 0, 0, time.monotonic()
        self.printed = self.started
        self.task = bar.add_task(label, total=total, speed="") if bar else None

    @property
    def seconds(self) -> float:
        """Time since the step began."""
        return time.monotonic() - self.started

    @property
    def speed(self) -> str:
        """Tokens per second as text; empty before any token is counted."""
        return f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s" if self.tokens else ""

    def advance(self, units: int, tokens: int = 0) -> None:
        """Count finished units (what ``total`` counts) and the tokens that they took."""
        self.done += units
        self.tokens += tokens
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, speed=self.speed)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            left = self.seconds * (self.total - self.done) / max(self.done, 1)
            show(f"{self.label}: {self.done}/{self.total}  {self.speed}  {left:.0f} s left", self.console)


class Schedule:
    """Announces the ``count`` phases of a run one after another, and about how long the rest of the run takes.

    ``expected`` says by (name, iteration) what a phase takes, in any unit: what phases took is compared with it.
    Without it, nothing is said of the time left.
    """

    def __init__(self, reporter: "Reporter", count: int, expected: Mapping[tuple[str, int], float]) -> None:
        self.reporter, self.count, self.left = reporter, count, dict(expected)
        self.number, self.seconds, self.measured = 0, 0.0, 0.0

    @contextlib.contextmanager
    def phase(self, name: str, iteration: int, *, done: int, is_done: bool) -> Iterator[None]:
        """Announce a phase and measure it, unless a part of its units was ``done`` before."""
        self.number += 1
        expected = 0.0 if is_done else self.left.get((name, iteration), 0.0)
        note = "finished before" if is_done else self._time_left()
        title = f"Phase {self.number} of {self.count}: {name}, iteration {iteration}"
        self.reporter.say(f"{title} ({note})" if note else title)
        started = time.monotonic()
        yield
        if expected and not done:
            self.seconds += time.monotonic() - started
            self.measured += expected
        self.left.pop((name, iteration), None)

    def _time_left(self) -> str:
        if not self.measured:
            return ""
        minutes = self.seconds / self.measured * sum(self.left.values()) / 60
        if minutes < 1:
            return "less than a minute left in the run"
        left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        return f"about {left} left in the run"


class Reporter:
    """Shows the steps of a run on a console; of processes that train together, only the first one's are shown."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(stderr=True, quiet=not is_main())

    def say(self, text: str) -> None:
        """Print one line, and log it."""
        say(text, self.console)

    @contextlib.contextmanager
    def step(self, label: str, total: int) -> Iterator[Meter]:
        """Show one step of ``total`` units."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self.console, transient=True) if self.console.is_terminal else None
        with bar or contextlib.nullcontext():
            meter = Meter(self.console, label, total, bar)
            yield meter
        self.say(f"{label}: {meter.done}/{meter.total}  {meter.speed}  {meter.seconds:.0f} s")
