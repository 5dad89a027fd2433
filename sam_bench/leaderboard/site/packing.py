"""What the pages of models have in common is kept once, in `assets/pieces.js`; a page holds what is its own.

The common pieces are the texts of the templates and the plots' specifications. `board.js` puts a page together.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from jinja2 import Environment

_SHORTEST = 12
_PLOT = re.compile(r'(?<=<script type="application/json">).*?"data":\{"values":\[', re.DOTALL)
"""A plot's specification up to its numbers, which stand last in it."""


class Pieces:
    """Texts that many pages hold.

    Args:
        texts: Short ones are left out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = sorted({text for text in texts if len(text) >= _SHORTEST}, key=lambda text: (-len(text), text))
        self._places = {text: place for place, text in enumerate(self.texts)}
        self._pattern = re.compile(f"({'|'.join(map(re.escape, self.texts)) or '(?!)'})")

    @classmethod
    def of(cls, environment: Environment, templates: Iterable[str], pages: Iterable[str]) -> Pieces:
        """The texts of templates, and what the plots of several pages have in common."""
        plots = Counter(head for page in pages for head in set(_PLOT.findall(page)))
        texts = [head for head, count in plots.items() if count > 1]
        for name in templates:
            source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
            texts += [text for _, kind, text in environment.lex(source, name) if kind == "data"]
        return cls(texts)

    def script(self) -> str:
        """The file that all pages share."""
        return f"window.pieces = {json.dumps(self.texts, ensure_ascii=False)};\n"

    def packed(self, html: str) -> str:
        """A JSON array: the number of a piece, or a text of the page's own. It can stand inside a script element."""
        split = self._pattern.split(html)  # every second one is a piece
        parts = [self._places[text] if at % 2 else text for at, text in enumerate(split) if text]
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return text.replace("</", "<\\/").replace("<!--", "\\u003c!--")
