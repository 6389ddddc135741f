"""The engine under the schedule that it recorded is the product of that schedule's matrices."""

from pathlib import Path

import pytest

BODY = Path(__file__).parent / "replay_body.py"


@pytest.mark.parallel
@pytest.mark.parametrize("progress", ["thread", "inline"])
@pytest.mark.parametrize("number", [2, 4])
def test_gossip_is_the_product_of_its_matrices(number, progress, ranks):
    """To the precision of the messages, which is float32's."""
    done = ranks(number, str(BODY), progress, "7")
    assert done.returncode == 0, done.stderr
    _, messages, _, difference = done.stdout.split()
    assert int(messages) > 10
    assert float(difference) < 1e-5
