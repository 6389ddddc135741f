"""Make one fault in this very process, at one moment of one phase of its training.

FAULT is a JSON object: ``kind`` (KINDS), ``phase`` (of PHASES), ``rank``, ``entry`` (the phase is entered for the so
many-th time; from 2), ``by`` and ``share``, and ``note``, a file.

With ``by: line`` the fault comes at one line of the package's Python code inside the phase, which is ``share`` (0 to 1)
of the lines that the phase took the time before: every place in the code is as likely as any other. With ``by: time``
it comes ``share`` of the seconds that it took the time before, from a timer of the kernel, in the middle of whatever
this rank then does: torch, a system call, MPI. An exception comes at a line.

Just before, the note is written: when (seconds of the monotonic clock, which all processes share, and of the day's) and
where.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

KINDS: Final = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM, "exception": None}
ENTERED_BY: Final = {
    "training": (("hpc.objective", "Objective.__call__"), ("torch", "Tensor.backward")),
    "mixing": (("hpc.exchange.gossip", "Gossip.after_step"),),
    "checkpoint": (("hpc.checkpoint", "Checkpoints.save"),),
    "drain": (("hpc.exchange.gossip", "Gossip.quiesce"),),
}
OURS: Final = tuple(f"{Path(__file__).parents[3] / folder}{os.sep}" for folder in ("hpc", "structlearn"))


class FaultError(Exception):
    """What the package does not expect."""


class Fault:
    """One fault, made once.

    Args:
        asked: what FAULT says.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self.kind, self.phase, self.note = asked["kind"], asked["phase"], Path(asked["note"])
        self._entry, self._by, self._share = asked["entry"], asked["by"], asked["share"]
        self._entered = self._lines = self._seen = 0
        self._seconds = 0.0
        self._made = False

    def inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is part of the phase."""

        @wraps(call)
        def watched(*arguments: Any, **more: Any) -> Any:
            if self._made or threading.current_thread() is not threading.main_thread():
                return call(*arguments, **more)
            self._entered += 1
            before = self._entered < self._entry
            if self._by == "time":
                if not before:
                    self._arm(self._share * self._seconds)
                begun = time.perf_counter()
                result = call(*arguments, **more)
                self._seconds = time.perf_counter() - begun
                return result
            if self._entered == self._entry:
                self._lines, self._seen = int(self._share * self._seen), 0
            elif before:
                self._seen = 0
            sys.settrace(self._count if before else self._strike)
            try:
                return call(*arguments, **more)
            finally:
                sys.settrace(None)

        return watched

    def _count(self, frame: FrameType, event: str, _argument: object) -> Any:
        self._seen += event == "line"
        return self._count if frame.f_code.co_filename.startswith(OURS) else None

    def _strike(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        self._seen += event == "line"
        if event != "line" or self._seen <= self._lines or self._made:
            return self._strike
        sys.settrace(None)
        self._made = True
        place = Path(frame.f_code.co_filename).relative_to(Path(OURS[0]).parent)
        self._write(0.0, f"{place}:{frame.f_lineno} {frame.f_code.co_qualname}")
        if (number := KINDS[self.kind]) is None:
            raise FaultError("a fault that was asked for")
        os.kill(os.getpid(), number)
        return None

    def _arm(self, seconds: float) -> None:
        self._made = True
        number = KINDS[self.kind]
        assert number is not None, "an exception comes at a line"
        self._write(seconds, f"{1e3 * seconds:.3f} of {1e3 * self._seconds:.3f} ms")
        signal_in(seconds, number)

    def _write(self, later: float, where: str) -> None:
        self.note.write_text(json.dumps({"at": time.monotonic() + later, "clock": time.time() + later, "where": where}))


def signal_in(seconds: float, number: int) -> None:
    """Have the kernel send this process a signal: a timer of Python's own would wait for the interpreter."""

    class Event(ctypes.Structure):  # sigevent
        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signo", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("pad", ctypes.c_char * 48),
        )

    libc, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = Event(None, number, 0, b"")  # 0: SIGEV_SIGNAL
    nanoseconds = max(1, int(seconds * 1e9))
    spec = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 10**9))  # itimerspec: once, after so long
    if libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) or libc.timer_settime(
        timer, 0, ctypes.byref(spec), None
    ):
        raise OSError(ctypes.get_errno(), "no timer")


class _AfterEngine(MetaPathFinder):
    """Finds ``hpc.engine`` as Python does, and wraps the phases once it is there: all they are made of is, too."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "hpc.engine":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        loader, execute = spec.loader, spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            for place, function in ENTERED_BY[self._fault.phase]:
                owner, attribute = function.split(".")
                part = getattr(sys.modules[place], owner)
                setattr(part, attribute, self._fault.inside(getattr(part, attribute)))

        loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def prepare(text: str) -> None:
    """Have the fault made, if this process is the rank that it is meant for."""
    asked = json.loads(text)
    if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == str(asked["rank"]):
        sys.meta_path.insert(0, _AfterEngine(Fault(asked)))
