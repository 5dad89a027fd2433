"""The leaderboard as pages: a start page, a page for each board and one for each model, for any browser."""

from sam_bench.leaderboard.site.assets import MISSING, available
from sam_bench.leaderboard.site.classes import TestLabels
from sam_bench.leaderboard.site.pages import Content, write_site
from sam_bench.leaderboard.site.serve import server

__all__ = ["MISSING", "Content", "TestLabels", "available", "server", "write_site"]
