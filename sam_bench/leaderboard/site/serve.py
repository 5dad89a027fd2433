"""The built pages over HTTP, for browsers that are not on this machine's files."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sam_bench.errors import InputError
from sam_bench.leaderboard.site.pages import FOLDER


def server(folder: Path, *, zoo: Path, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server of the built pages, on this machine's loopback only.

    It gives out the leaderboards folder and the zoo beside it, which the pages link, and nothing else.

    Args:
        folder: The leaderboards folder.
        zoo: Folder of the zoo.
        port: 0: any that is free.

    Returns:
        The server, to be started by `serve_forever`, and the address of the start page.

    Raises:
        InputError: There are no pages, or the port is taken.
    """
    folder = folder.resolve()
    if not (folder / FOLDER / "index.html").is_file():
        raise InputError(f"{folder} has no pages: `sam-bench leaderboard build` makes them")
    handler = partial(_Files, directory=str(folder.parent), allowed=(folder, zoo.resolve()))
    try:
        http = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error.strerror}", field="port", value=port) from error
    return http, f"http://127.0.0.1:{http.server_address[1]}/{folder.name}/{FOLDER}/index.html"


class _Files(SimpleHTTPRequestHandler):
    """Files inside the allowed folders; no listings."""

    def __init__(self, *args: Any, allowed: tuple[Path, ...], **options: Any) -> None:
        self.allowed = allowed
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        found = Path(super().translate_path(path)).resolve()
        inside = any(found.is_relative_to(folder) for folder in self.allowed)
        return str(found if inside and found.is_file() else found / "nothing there")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""
