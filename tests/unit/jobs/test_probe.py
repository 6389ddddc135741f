"""Questions to other processes: answered in time, or given up in time with nobody left behind."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.probe import FILES, MPI, RANK, TORCH, Answer, ask, python


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_an_answer_is_what_was_printed() -> None:
    assert ask(program("print('here')"), 20) == Answer(ok=True, out="here\n", problem="")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import sys; print('so', file=sys.stderr); sys.exit('far')", "far"),
        ("print('out'); raise SystemExit(3)", "out"),
        ("raise SystemExit(3)", "exit code 3"),
        ("raise ValueError('bad')", "ValueError: bad"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_a_problem_is_its_last_line(text: str, problem: str) -> None:
    answer = ask(program(text), 20)
    assert (answer.ok, answer.problem) == (False, problem)


def test_a_program_that_is_not_there_is_a_problem() -> None:
    assert ask(["/nowhere/at-all"], 5).problem == "/nowhere/at-all cannot be started (No such file or directory)"


def test_bytes_that_are_no_text_do_not_matter() -> None:
    assert ask(program("import os; os.write(1, b'\\xff')"), 20) == Answer(ok=True, out="\ufffd", problem="")


def test_who_does_not_answer_is_ended_with_all_that_he_started(tmp_path: Path) -> None:
    """Also where neither listens to a polite word, and a child holds the pipe open for longer than a test may take."""
    text = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child}}")
time.sleep(900)
"""
    answer = ask(program(text), 1.5)
    assert answer == Answer(ok=False, out="", problem="no answer within 1.5 s")
    until = time.monotonic() + 30
    pids = [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_program_ends_itself_when_nobody_else_does() -> None:
    answer = ask(python("import time; time.sleep(60)", limit_s=1), 30)
    assert answer.problem == "exit code -14"  # SIGALRM


@pytest.mark.parametrize("text", [TORCH, MPI, RANK, FILES])
def test_the_programs_are_programs(text: str) -> None:
    compile(python(text, 5)[-1], "program", "exec")
