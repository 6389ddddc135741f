"""What the experiments do on real ranks still runs."""

import csv
from pathlib import Path

import pytest

CONSENSUS = Path(__file__).parents[2] / "experiments" / "consensus"
PLAN = """
{seed: 0, workers: 2, dim: 4, rho: [0.5], steps: [8], variance: [1, 4],
 ranks: {runs: [1], every: [2], running: [0.5], pace_s: 0.001}}
"""


@pytest.mark.parallel
def test_consensus_is_measured_on_ranks(ranks, tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "tiny.yaml").write_text(PLAN)
    done = ranks(2, str(CONSENSUS / "ranks.py"), str(tmp_path / "tiny.yaml"), "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2  # strategies, steps, variances
    errors = {name: [float(row["error"]) for row in rows if row["strategy"] == name] for name in ("persyn", "gossip")}
    assert max(errors["persyn"]) < 1e-10  # measured right after every mean
    assert max(errors["gossip"]) > 1e-3
    with (tmp_path / "running.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 2  # not after the last step, before which they pause
