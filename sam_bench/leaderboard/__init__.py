"""The leaderboard: entries made of cards and records, and the tables, figure and pages made of entries."""

from sam_bench.leaderboard.boards import Board, Row
from sam_bench.leaderboard.build import BuiltLeaderboard, build_leaderboard
from sam_bench.leaderboard.checks import checked_records
from sam_bench.leaderboard.entries import StoredEntry, headline, make_entry, read_entries, read_entry
from sam_bench.leaderboard.labels import architecture_label, attack_name, method_label
from sam_bench.leaderboard.robustbench_issue import Condition
from sam_bench.leaderboard.site import TestLabels, server
from sam_bench.leaderboard.submit import Submission, submit_entry
from sam_bench.leaderboard.tables import PlainTable, plain_table

__all__ = [
    "Board",
    "BuiltLeaderboard",
    "Condition",
    "PlainTable",
    "Row",
    "StoredEntry",
    "Submission",
    "TestLabels",
    "architecture_label",
    "attack_name",
    "build_leaderboard",
    "checked_records",
    "headline",
    "make_entry",
    "method_label",
    "plain_table",
    "read_entries",
    "read_entry",
    "server",
    "submit_entry",
]
