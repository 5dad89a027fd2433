"""A local server that speaks as much of the Hugging Face Hub's HTTP API as `huggingface_hub` and timm use.

It can be told to be bad: to cut a download short, or to send other bytes than were stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

CHUNK = 1 << 16


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repos: Name to path to content.
        cut: Path to the bytes after which the next download of it is cut, once.
        altered: Path to what is sent in its place, at the same length.
        ranges: The `Range` headers that were asked for.
        uploads: How many large files were sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.altered: dict[str, bytes] = {}
        self.ranges: list[str] = []
        self.uploads = 0
        self.refuse_commit = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def commit(self, repo: str) -> str:
        """The id of the state of a repository."""
        content = b"".join(path.encode() + body for path, body in sorted(self.repos[repo].items()))
        return hashlib.sha1(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of the loopback, while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `HF_ENDPOINT` and `HF_HUB_CACHE` do to a process that starts with them."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, code: str, message: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            there = name in self.server.repos
            self.server.repos.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}"}, 409 if there else 200)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": modes[file["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._missing("Unknown", path)

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        told = []
        for each in objects:
            action = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}
            new = each["oid"] not in self.server.objects
            told.append({"oid": each["oid"], "size": each["size"], **({"actions": action} if new else {})})
        self._json({"transfer": "basic", "objects": told})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.server.refuse_commit:
            self._json({"error": "not allowed"}, 403)
            return
        files = self.server.repos[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.commit(repo)
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.server.uploads += 1
        self._json({})

    def do_HEAD(self) -> None:
        self._get(send=False)

    def do_GET(self) -> None:
        self._get(send=True)

    def _get(self, *, send: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._with_repo(found[1], self._tree)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self._with_repo(found[1], self._info)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(found[1], found[2], send=send)
        else:
            self._missing("Unknown", path)

    def _with_repo(self, repo: str, answer: Any) -> None:
        if repo in self.server.repos:
            answer(repo)
        else:
            self._missing("RepoNotFound", "Repository not found")

    def _info(self, repo: str) -> None:
        files = [{"rfilename": name} for name in self.server.repos[repo]]
        self._json({"_id": "0", "id": repo, "sha": self.server.commit(repo), "siblings": files, "tags": []})

    def _tree(self, repo: str) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.repos[repo].items()
            ]
        )

    def _resolve(self, repo: str, path: str, *, send: bool) -> None:
        if path not in self.server.repos.get(repo, {}):
            self._missing("EntryNotFound" if repo in self.server.repos else "RepoNotFound", "not found")
            return
        stored = self.server.repos[repo][path]
        body, start = self.server.altered.get(path, stored), 0
        asked = self.headers.get("Range")
        if asked and send:
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(stored).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit(repo))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if send:
            self._send(path, body, start)

    def _send(self, path: str, body: bytes, start: int) -> None:
        stop = self.server.cut.pop(path, None)
        self.wfile.write(body[start:stop])
        self.wfile.flush()
        if stop is not None:
            self.close_connection = True
            self.connection.shutdown(2)
