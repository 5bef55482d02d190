"""Progress on a terminal and off it."""

import io
import itertools
from collections.abc import Callable

import pytest
from rich.console import Console

from crosspref.run import progress
from crosspref.run.progress import Reporter, Schedule

Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def reporter(*, terminal: bool = False, width: int = 80) -> tuple[Reporter, Callable[[], str]]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    return Reporter(console), console.file.getvalue


def test_plain_lines_off_a_terminal(clock: Clock) -> None:
    shown, text = reporter()
    with shown.step("iteration 1 sample", 40) as meter:
        clock(9)
        meter.advance(5, 4000)  # too early for a line
        clock(1)
        meter.advance(5, 16000)
        clock(9)
        meter.advance(10, 0)
        clock(1)
        meter.advance(10, 40000)
        clock(5)
        meter.advance(10, 15000)
    # 20,000 tokens in 10 s, and 30 units left at one a second; 60,000 in 20 s, and 10 left at 1.5 a second.
    assert text().splitlines() == [
        "iteration 1 sample: 10/40  2,000 tokens/s  30 s left",
        "iteration 1 sample: 30/40  3,000 tokens/s  7 s left",
        "iteration 1 sample: 40/40  3,000 tokens/s  25 s",
    ]


def test_no_speed_is_shown_before_there_are_tokens(clock: Clock) -> None:
    shown, text = reporter()
    with shown.step("select", 2) as meter:
        clock(11)
        meter.advance(0)
        clock(0)
    assert text().splitlines() == ["select: 0/2    22 s left", "select: 0/2    11 s"]
    assert meter.speed == ""


def test_labels_are_not_taken_for_markup_and_not_wrapped(clock: Clock) -> None:
    shown, text = reporter(width=20)
    label = "[red]a/b[/red] [link=file:x] [/] :smile:"
    with shown.step(label, 2) as meter:
        clock(20)
        meter.advance(1, 10)
    shown.say(label)
    assert text().splitlines() == [f"{label}: 1/2  0 tokens/s  20 s left", f"{label}: 1/2  0 tokens/s  20 s", label]


def test_a_step_that_fails_does_not_say_that_it_is_done(clock: Clock) -> None:
    shown, text = reporter()
    with pytest.raises(ZeroDivisionError), shown.step("train", 2) as meter:
        meter.advance(1 // 0)
    assert text() == ""


def test_a_bar_on_a_terminal() -> None:
    shown, text = reporter(terminal=True, width=120)
    with shown.step("[red]sample[/red]", 40) as meter:
        for tokens in itertools.repeat(1000, 20):
            meter.advance(1, tokens)
        meter.bar.refresh()
        drawn = text()
    for part in ("[red]sample[/red]", "20/40", "tokens/s", "left"):
        assert part in drawn
    assert (meter.done, meter.tokens) == (20, 20_000)
    assert text().splitlines()[-1].rstrip().split(":")[0].endswith("[red]sample[/red]")


def test_phases_are_counted_and_tell_how_long_the_rest_of_the_run_takes(clock: Clock) -> None:
    shown, text = reporter()
    schedule = Schedule(shown, 4, {("prompts", 0): 0.0, ("sample", 1): 2.0, ("train", 1): 3.0, ("evaluate", 1): 1.0})
    for name, iteration, seconds in (("prompts", 0, 1), ("sample", 1, 120), ("train", 1, 300), ("evaluate", 1, 0)):
        with schedule.phase(name, iteration, done=0, is_done=False):
            clock(seconds)
    # A unit takes a minute in sampling, and four are left; then five units have taken seven minutes, and one is left.
    assert text().splitlines() == [
        "Phase 1 of 4: prompts, iteration 0",
        "Phase 2 of 4: sample, iteration 1",
        "Phase 3 of 4: train, iteration 1 (about 4 min left in the run)",
        "Phase 4 of 4: evaluate, iteration 1 (about 1 min left in the run)",
    ]


def test_what_was_done_before_tells_nothing_of_the_time_left(clock: Clock) -> None:
    shown, text = reporter()
    schedule = Schedule(shown, 3, {("sample", 1): 1.0, ("score", 1): 1.0, ("train", 1): 60.0})
    for name, done, is_done in (("sample", 5, True), ("score", 2, False), ("train", 0, False)):
        with schedule.phase(name, 1, done=done, is_done=is_done):
            clock(1)
    assert text().splitlines() == [
        "Phase 1 of 3: sample, iteration 1 (finished before)",
        "Phase 2 of 3: score, iteration 1",
        "Phase 3 of 3: train, iteration 1",
    ]
