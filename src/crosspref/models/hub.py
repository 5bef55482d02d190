"""Models on the hub: what a name there says, and fetching files. The hub's own login and settings are used."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspref.errors import ModelError
from crosspref.keys import without_token

_NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+\.gguf))?")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository, perhaps at a branch, tag or commit; ``file`` is one of its GGUF files."""

    name: str
    repository: str
    revision: str | None
    file: str | None

    @classmethod
    def of(cls, name: str) -> "HubModel | None":
        """Return what a name says: ``owner/name[@revision][:file.gguf]``, with hf:// in front or not."""
        parts = _NAME.fullmatch(name)
        return None if parts is None else cls(name, parts[1], parts[2], parts[3])

    def fetch(self, patterns: Collection[str], commit: str | None = None) -> Path:
        """Return the directory with the files that match, which is named after the commit; fetch what is not here.

        Raises:
            ModelError: there is no such repository, or it cannot be reached.
        """
        from huggingface_hub import snapshot_download

        try:
            revision = commit or self.revision
            return Path(snapshot_download(self.repository, revision=revision, allow_patterns=sorted(patterns)))
        except Exception as error:  # noqa: BLE001 - also of the libraries by which it speaks HTTP
            raise ModelError(
                f"The model {self.name!r} is no path on this machine, and as a hub id it cannot be fetched: "
                f"{without_token(error)}\n"
                "Check the spelling and the network; a gated or private model needs `hf auth login`, or HF_TOKEN."
            ) from None

    def listed(self, commit: str) -> Sequence[str]:
        """Return the names of all files of a commit; none where the hub cannot be asked."""
        from huggingface_hub import HfApi

        try:
            return HfApi().list_repo_files(self.repository, revision=commit)
        except Exception:  # noqa: BLE001 - as above
            return []
