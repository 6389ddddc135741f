"""C files of ours, compiled by the machine's own compiler when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import os
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

FLAGS: Final = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
"""No -ffast-math: linking with it makes some compilers flush denormal numbers to zero in the whole process."""

_LIMIT_S: Final = 60

_log = logging.getLogger(__name__)


@functools.cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """A C file as a library; None where there is no compiler (`CC`, or cc), or where it fails.

    It is for passes over large arrays that torch would make a dozen of: whoever calls has torch's as well. It takes a
    tenth of a second, once a process, and is kept nowhere: a cluster's nodes need code of their own each, and a folder
    that all processes of all users load code from would have to be trusted. (Rejected: torch.compile, whose loops over
    more than one sum are a third as fast on a CPU as these, and take seconds to compile; wheels for each platform.)
    """
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        with tempfile.TemporaryDirectory(prefix="structlearn-", ignore_cleanup_errors=True) as folder:
            made = Path(folder, source.with_suffix(".so").name)
            subprocess.run(
                [*compiler, *FLAGS, "-o", made, source],
                check=True, capture_output=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            return ctypes.CDLL(str(made))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        _log.info("%s is not compiled (%s), torch does its work: %s", source.name, error, said[-500:])
        return None


def over_threads(function: Any, count: int, threads: int) -> None:
    """Call a C function with (first, last) such that `threads` of them share the range of `count`."""
    edges = [count * number // threads for number in range(threads + 1)]
    ranges = [(first, last) for first, last in itertools.pairwise(edges) if last > first]
    if len(ranges) < 2:
        for each in ranges:
            function(*each)
    else:
        for done in [_pool(threads).submit(function, *each) for each in ranges]:
            done.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "structlearn-native")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads are not there in a child
