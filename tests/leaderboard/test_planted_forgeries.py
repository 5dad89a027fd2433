"""Forgeries planted on a board are refused with the reason, by verifying alone; honest entries all pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from forgeries import REFUSED, Model
from leaderboard_samples import Bench
from planted_forgeries import AUDITED, PLANTED
from tiny_board import Planted

from sam_bench.api.verifying import means_of
from sam_bench.leaderboard.verify import verify_entry

OF_ENTRIES = [kind for kind in REFUSED if kind != "a terminal escape in a file's name"]  # that is no entry
TABLE = Path(__file__).with_name("forgeries.md").read_text()
REFUSED_AT = dict(re.findall(r"^\| (.+) \| (numbers|manifest|training|replay|audit) \|$", TABLE, re.MULTILINE))
"""The table: which step refuses which forgery."""
PAGE = Path(__file__).parents[2] / "docs" / "verification.md"


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_forgery_is_refused_with_its_reason(planted: Planted, kind: str) -> None:
    forge, reason = PLANTED[kind]
    forge(planted)
    found = planted.verify()
    assert not found.passed and found.state == "claimed"
    assert reason in found.reason and found.checks[-1].name == REFUSED_AT[kind]
    assert found.reason.isprintable() and len(found.reason) < 1500


@pytest.mark.parametrize("kind", AUDITED)
def test_a_claim_that_is_too_high_is_found_by_the_audit(planted: Planted, kind: str) -> None:
    forge, reason = AUDITED[kind]
    forge(planted)
    assert planted.verify().passed  # the upper bound holds
    found = planted.verify(audit=3, beacon="the hash of a later commit")
    assert not found.passed and reason in found.reason and REFUSED_AT[kind] == "audit"


@pytest.mark.parametrize("kind", OF_ENTRIES)
def test_a_forgery_that_the_board_refuses_is_refused_with_the_same_reason(bench: Bench, kind: str) -> None:
    forge, reason = REFUSED[kind]
    model = Model(bench)
    forge(model)
    model.write()
    options = {"dataset": None, "data_dir": bench.root, "zoo": None, "audit": None, "beacon": None, "device": "cpu"}
    entries = sorted(bench.folder.glob("*/*/*.json"))
    refusals = [verify_entry(path, means_of(**options)) for path in entries]
    assert any(reason in each.reason and each.checks[-1].name == REFUSED_AT[kind] for each in refusals)


def test_the_table_lists_all_kinds_and_the_documentation_their_number() -> None:
    assert set(REFUSED_AT) == {*PLANTED, *AUDITED, *OF_ENTRIES} and len(REFUSED_AT) >= 150
    assert f"The tests plant {len(REFUSED_AT)} forgeries" in PAGE.read_text()
