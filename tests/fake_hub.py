"""A fake of the hub over a real socket: repositories are folders, and private ones want a token."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from http_server import JsonHandler, LocalServer


class _Handler(JsonHandler):
    def do_HEAD(self) -> None:  # noqa: N802
        self.get()

    def get(self) -> None:
        hub: FakeHub = self.owner
        path = unquote(urlsplit(self.path).path).strip("/")
        kind, _, rest = path.partition("/") if path.startswith("api/") else ("", "", path)
        owner, name, *parts = rest.removeprefix("models/").split("/") if kind else path.split("/")
        repository = f"{owner}/{name}"
        hub.asked.append((path, self.headers.get("Authorization")))
        folder = hub.repositories.get(repository)
        if folder is None or (hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}"):
            said = f"Wrong token: {self.headers.get('Authorization')}"  # some servers repeat it
            self.send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": said})
        elif parts[0] == "revision":
            self.send_json(200, {"id": repository, "sha": hub.commit, "siblings": []})
        elif parts[0] == "tree":
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            self.send_json(200, [hub.entry(folder, file) for file in files])
        else:
            file = folder.joinpath(*parts[2:])
            entry, content = hub.entry(folder, file), file.read_bytes()
            hub.sent.add(entry["path"])
            headers = {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": hub.commit}
            self.send(200, content, headers, keep=0 if self.command == "HEAD" else None)


class FakeHub(LocalServer):
    """Serves ``repositories``, folders by owner/name; notes what was asked, with which token, and which files left."""

    def __init__(self, repositories: dict[str, Path], token: str | None = None) -> None:
        self.repositories, self.token = repositories, token
        self.commit = "c0ffee" + "0" * 34
        self.asked: list[tuple[str, str | None]] = []
        self.sent: set[str] = set()
        super().__init__(_Handler, path="")

    def entry(self, folder: Path, file: Path) -> dict[str, Any]:
        """Return what the hub says of a file."""
        content = file.read_bytes()
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(content), "oid": oid}
