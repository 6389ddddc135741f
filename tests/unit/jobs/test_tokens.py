"""Tokens of this machine: never more than there are, never some of those that are needed, never lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.errors import RunError
from jobs import tokens as module
from jobs.tokens import FOLDER, Need, Tokens, gpus, held, hold, leaves_enough

TAKES = """
import sys
from jobs.tokens import Need, Tokens
tokens = Tokens()
with tokens.locked():
    print("got" if tokens.take(Need(int(sys.argv[1]), 0)) else "none", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tokens(tmp_path, monkeypatch) -> Tokens:
    """Those of a machine of three cores and two GPUs."""
    monkeypatch.setattr(module, "cores", lambda: ["0", "1", "5"])
    monkeypatch.setattr(module, "gpus", lambda: ["1", "GPU-a/2"])
    return Tokens(tmp_path / "machine")


def test_a_job_gets_all_that_it_needs_or_nothing(tokens) -> None:
    with tokens.locked():
        first = tokens.take(Need(2, 1))
        assert (first.cpus, first.gpus) == (("0", "1"), ("1",))
        assert tokens.take(Need(2, 1)) is None
        assert tokens.take(Need(1, 2)) is None
        second = tokens.take(Need(1, 1))  # what the others did not get is still there
        assert (second.cpus, second.gpus) == (("5",), ("GPU-a/2",))
        first.close()
        assert tokens.take(Need(3, 0)) is None
        third = tokens.take(Need(2, 1))
        assert (third.cpus, third.gpus) == (("0", "1"), ("1",))
        second.close()
        third.close()


def test_a_job_leaves_what_others_wait_for(tokens) -> None:
    with tokens.locked():
        assert tokens.take(Need(1, 0), [Need(3, 0)]) is None
        assert tokens.take(Need(2, 0), [Need(1, 2)]).cpus == ("0", "1")


def test_the_kernel_gives_back_what_was_held_by_a_process_that_is_killed(tmp_path, monkeypatch, environment) -> None:
    monkeypatch.setattr(module, "cores", lambda: [str(core) for core in sorted(os.sched_getaffinity(0))])
    all_of_them = len(module.cores())
    tokens = Tokens(tmp_path)

    def other(cpus: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TAKES, str(cpus)], env=environment | {FOLDER: str(tmp_path)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    with other(all_of_them) as child:
        assert child.stdout.readline() == "got\n"
        with tokens.locked():
            assert tokens.take(Need(1, 0)) is None
        child.kill()
    with tokens.locked():
        taken = tokens.take(Need(1, 0))
    assert taken is not None
    with other(all_of_them) as child:
        assert child.stdout.readline() == "none\n"
        child.kill()
    taken.close()


def test_one_process_at_a_time(tokens) -> None:
    refused = pytest.raises(RunError, match=r"lock: held by another process for 0\.05 s; see which")
    with tokens.locked(), refused, tokens.locked(0.05):
        pass
    with tokens.locked(0):
        pass


def test_what_is_held_is_seen(tmp_path) -> None:
    assert not held(tmp_path / "a")
    descriptor = hold(tmp_path / "a")
    assert held(tmp_path / "a")
    assert hold(tmp_path / "a") is None
    os.close(descriptor)
    assert not held(tmp_path / "a")


def test_tokens_of_somebody_else_are_not_used(tmp_path, monkeypatch) -> None:
    mine = tmp_path / "mine"
    assert Tokens(mine).path.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o755)
    with pytest.raises(RunError, match=r"mine: is open to other users \(mode 755\); chmod 700 it"):
        Tokens(mine)
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(
        RunError, match="link: is no folder of this user, whose tokens belong there; remove it, or name"
    ):
        Tokens(tmp_path / "link")
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"file: cannot be made a folder \(File exists\); .* with STRUCTLEARN_LOCAL"):
        Tokens()
    mine.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(RunError, match="is no folder of this user"):
        Tokens(mine)
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr(module.Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(RunError, match="/tmp/structlearn-12345: cannot be made a folder"):
        Tokens()


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["0", "1", "2"]), ("2,0", ["2", "0"]), ("", []), ("1,-1,0", ["1"]), (" GPU-a , GPU-b", ["GPU-a", "GPU-b"])],
)
def test_gpus_are_named_as_the_driver_is_told(visible, names, monkeypatch) -> None:
    from hpc.config import devices

    monkeypatch.setattr(devices.Path, "glob", lambda *_: iter(range(3)))
    assert gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == names


NEEDS = st.builds(Need, st.integers(0, 6), st.integers(0, 3)).filter(lambda need: need.cpus + need.gpus > 0)


@settings(deadline=None)
@given(st.lists(st.tuples(NEEDS, st.integers(1, 9)), max_size=20), st.randoms(use_true_random=False))
def test_every_job_starts_and_none_is_overtaken_for_ever(jobs, random) -> None:
    """Jobs that come in this order; in each round some end, and those that wait ask in any order."""
    most, waiting, running, rounds = Need(6, 3), dict(enumerate(jobs)), dict[int, tuple[Need, int]](), 0
    while waiting:
        oldest = min(waiting)
        for number in random.sample(sorted(waiting), len(waiting)):
            need, lasts = waiting[number]
            free = Need(
                most.cpus - sum(each.cpus for each, _ in running.values()),
                most.gpus - sum(each.gpus for each, _ in running.values()),
            )
            if leaves_enough(free, need, [waiting[other][0] for other in waiting if other < number]):
                assert need.cpus <= free.cpus
                assert need.gpus <= free.gpus
                running[number] = waiting.pop(number)[0], lasts
        running = {number: (need, left - 1) for number, (need, left) in running.items() if left > 1}
        rounds = rounds + 1 if oldest in waiting else 0
        assert rounds <= 9  # as long as those run that ran when it became the oldest
