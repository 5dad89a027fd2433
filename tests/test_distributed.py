"""What the processes of a team say to each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from team import run_as_team

from sam_bench.distributed import ALONE, current_team, main_first

SCRIPT = """
import sys, time
from pathlib import Path
from sam_bench.distributed import current_team, joined, main_first

with joined() as team:
    assert current_team() == team
    with main_first() as same:
        assert same == team
        if team.is_main:
            time.sleep(0.3)
            Path("downloaded").write_text("all of it")
        found = Path("downloaded").read_text()
    told = [found, team.broadcast(team.rank), team.all_reduce_max(team.rank), team.all_gather(team.rank * 10)]
    print(told, team.gather(team.rank), team.total([team.rank, 1]), flush=True)
"""


def test_alone_everything_is_as_it_was_given() -> None:
    assert current_team() is ALONE
    with main_first() as team:
        assert team is ALONE and team.is_main
    team.barrier()
    assert (team.broadcast("a"), team.all_reduce_max(3), team.all_gather("b"), team.gather(4)) == ("a", 3, ["b"], [4])


@pytest.mark.slow
def test_rank_0_goes_first_and_all_hear_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_as_team(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = "['all of it', 0, 1, [0, 10]]"
    assert done.stdout.splitlines() == [f"{told} [0, 1] [1.0, 2.0]", f"{told} [] [1.0, 2.0]"]
