"""What commands print: texts of others change nothing on the terminal, and an output may be narrow, full or closed."""

import argparse
import io
import json
import logging
import os
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from http_server import JsonHandler, LocalServer
from made_runs import begin
from rich.text import Text

from crosspref import cli
from crosspref.commands import status
from crosspref.data.records import Prompt, Response
from crosspref.engines.server.client import ServerClient
from crosspref.errors import ServerError
from crosspref.recipe.sections import ServerSettings
from crosspref.reports.report import answers_table
from crosspref.reports.table import Report
from crosspref.run.progress import Reporter
from crosspref.run.terminal import Terminal, say

HOSTILE = "\x1b]0;mine\x07\x9b2J\u202ea\b\r[/b]:x:"
ACTS = "\x1b\x07\x9b\u202e\b\r"


def answer(text: str) -> Response:
    return Response("a", "es", 0, text, None, "stop", None)


def assert_shown(text: str) -> None:
    """Fail unless the hostile text is there, and does nothing."""
    assert "mine" in text
    assert "[/b]:x:" in text
    assert not set(text) & set(ACTS)


def test_whatever_is_printed_passes_one_door() -> None:
    terminal = Terminal(file=io.StringIO(), width=100)
    say(f"{HOSTILE}\nour line", terminal)
    terminal.print(Text(HOSTILE))
    terminal.print(HOSTILE, markup=False, emoji=False)
    terminal.print(answers_table(Prompt("a", "es", HOSTILE), {"pi_0": answer(HOSTILE)}))
    Report(HOSTILE, ["a", HOSTILE], [[HOSTILE, "1"]], [HOSTILE]).show(terminal)
    printed = terminal.file.getvalue()
    assert printed.count("[/b]:x:") == 9
    assert "\nour line\n" in printed
    assert_shown(printed)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_passes_it_and_bars_are_drawn(is_terminal: bool) -> None:
    terminal = Terminal(file=io.StringIO(), width=100, force_terminal=is_terminal)
    reporter = Reporter(terminal)
    reporter.say(HOSTILE)
    with reporter.step(HOSTILE, 3) as meter:
        meter.advance(3)
    printed = terminal.file.getvalue()
    assert printed.count("[/b]:x:") >= 2
    assert "\x1b]" not in printed
    assert not set(printed) & {"\x07", "\x9b", "\u202e", "\b"}
    assert ("\x1b[" in printed) == is_terminal  # rich's own


def test_a_picture_has_nothing_but_texts() -> None:
    text = f"{HOSTILE}<script>alert(1)</script><image href='http://example.org'/>&#27;"
    canvas = Terminal(record=True, width=200, file=io.StringIO())
    canvas.print(answers_table(Prompt("a", "es", text), {"pi_0": answer(text)}))
    picture = canvas.export_svg(title="crosspref")
    kinds = {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()}  # noqa: S314 - our own
    assert not kinds & {"script", "image", "a", "foreignObject"}
    assert "&lt;script&gt;" in picture


def test_a_servers_words_are_one_line_of_an_error() -> None:
    class Refusing(JsonHandler):
        def get(self) -> None:
            self.send_json(400, {"error": {"message": f"{HOSTILE}\nReady.\n"}})

    class Naming(JsonHandler):
        def get(self) -> None:
            self.send_json(200, {"data": [{"id": f"{HOSTILE}\n{number}"} for number in range(20_000)]})

    for handler in (Refusing, Naming):
        with LocalServer(handler) as server:
            client = ServerClient(ServerSettings(url=server.url, retries=0))
            with pytest.raises(ServerError) as caught:
                client.find("pi_0", Path("m"))
            client.close()
        message = str(caught.value)
        assert "mine" in message
        assert not set(message) & set(ACTS)
        assert "\nReady" not in message
        assert len(message) < 4000


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def execute(_: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(status, "execute", execute)


def test_errors_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "r.jsonl"
    table.write_text(json.dumps({f"{HOSTILE}\nWritten: all.": 1}) + "\n", encoding="utf-8")
    for arguments in (
        ["evaluate", "--responses", str(table), "--out", str(tmp_path / "m.jsonl")],
        ["status", str(tmp_path / HOSTILE)],
        ["run", str(tmp_path / f"{HOSTILE}.yaml"), "--out", str(tmp_path / "run")],
    ):
        assert cli.main(arguments) == 1
        output, errors = capsys.readouterr()
        assert_shown(errors)
        assert "\nWritten" not in output + errors
    with pytest.raises(SystemExit):
        cli.main(["status", "a", HOSTILE])
    assert_shown(capsys.readouterr().err)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for error in (KeyError(HOSTILE), OSError(5, "the reason", HOSTILE), RuntimeError(HOSTILE)):
        failing(monkeypatch, error)
        monkeypatch.setenv(cli.DEBUG, "1")
        assert cli.main(["status", str(tmp_path)]) == 1
        assert not set(capsys.readouterr().err) & set(ACTS)
    logs = [log.read_text(encoding="utf-8") for log in tmp_path.glob("crosspref-*.log")]
    assert logs
    assert not set("".join(logs)) & set(ACTS)


def test_what_libraries_log_passes_it_too(caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(["settings"]) == 0
    logging.getLogger("a library").warning("of %s, %d", HOSTILE, 3)
    assert_shown(caplog.messages[-1])
    assert caplog.messages[-1].endswith(", 3")


def test_every_command_prints_to_any_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {
        "judge": {"judge": "j", "decoding": []},
        "prompts": {},
        "settings": {},
        "rows": [{"model": "blåbær 日本", "language": "en", "overall": 5.0, "questions": 1, "judge": "j"}],
    }
    begin(tmp_path / "run")
    (tmp_path / "m" / "mtbench").mkdir(parents=True)
    (tmp_path / "m" / "mtbench" / "scores.json").write_text(json.dumps(results), encoding="utf-8")
    board = ["leaderboard", str(tmp_path / "m"), "--suite", "mtbench"]
    forms = ([*board, "--format", form] for form in ("terminal", "markdown", "csv", "latex"))
    commands = [["settings"], ["status", str(tmp_path / "run")], *forms]
    for arguments in (["--help"], *commands):
        with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
            patch.setattr(sys, "stdout", full)
            capsys.readouterr()
            assert cli.main(arguments) == 1, arguments
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    for arguments in commands:
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
            assert cli.main(arguments) == 0, arguments
            sys.stdout.detach()
        assert written.getvalue().isascii()
        assert written.getvalue()
        reader, writer = os.pipe()
        os.close(reader)  # as head does when it has enough
        with monkeypatch.context() as patch, os.fdopen(writer, "w") as closed:
            patch.setattr(sys, "stdout", closed)
            assert cli.main(arguments) == 0, arguments
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert cli.main(arguments) == 0, arguments
