"""Readers of files that come from anybody raise nothing but the package's own errors, whatever is in the files."""

from pathlib import Path

import pytest
from nightly.campaign.readers import READING, read_examples


@pytest.mark.parametrize("name", READING)
def test_what_is_drawn_is_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # hypothesis leaves notes
    read_examples(name, tmp_path, 15, 1)
