"""Signals that ask a run to stop."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpc import signals
from hpc.signals import SIGNALS, StopRequest

ROOT = Path(signals.__file__).parent.parent


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_signal_sets_the_flag_and_says_its_name(number):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.name == number.name


def test_the_signals_are_those_of_schedulers_and_people():
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT}


def test_handlers_are_put_back():
    def own(*_):
        """A handler of the surrounding program's."""

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGUSR1, own)
    try:
        with StopRequest():
            assert all(signal.getsignal(number) not in (before[number], own) for number in SIGNALS)
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_handlers_are_put_back_after_an_error():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(ValueError, match="the run failed"), StopRequest():
        raise ValueError("the run failed")
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_handler_that_python_does_not_know_is_no_error(monkeypatch):
    """Where a C library had installed one before Python started, there is nothing to put back."""
    installed = []
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: installed.append((number, handler)))
    with StopRequest():
        pass
    assert all(handler is not None for _, handler in installed)


def test_signals_that_differ_do_not_end_the_process():
    """A scheduler sends SIGTERM after SIGUSR1; and one Ctrl-C after it is still a first one."""
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested


CHILD = """
import os, signal
from hpc.signals import StopRequest
with StopRequest() as stop:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        print("first", stop.requested, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("second", flush=True)
    finally:
        print("cleaned up", flush=True)
"""


def test_a_second_ctrl_c_ends_the_process_at_once_with_130():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stdout == "first True\n"
    assert "interrupted twice: ending without a checkpoint" in done.stderr
