"""What this machine and its MPI offer, found out without torch (it takes seconds to import)."""

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_CUDA: Final = 0
"""MPIX_GPU_SUPPORT_CUDA in MPICH's header."""


def cuda_devices(environ: Mapping[str, str] = os.environ) -> int:
    """The number of CUDA devices a process started here would see.

    ``CUDA_VISIBLE_DEVICES`` decides where it is set (an empty value or -1 hides all), else the driver's list.
    """
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    chosen = [entry.strip() for entry in visible.split(",")]
    shown = 0
    for entry in chosen:  # CUDA stops at the first entry that is no device
        if not entry or entry.startswith("-") or (entry.isdigit() and int(entry) >= present):
            break
        shown += 1
    return shown


def cuda_aware(library: str) -> bool:
    """Does an MPI library that runs in this process say that it takes memory of CUDA devices?

    One that has no such question has no such answer either: no.

    Args:
        library: a file that was loaded with it, mpi4py's module. What the loader looks up in that file it also finds in
            the libraries that were loaded for it: MPI's, wherever mpi4py has found it.
    """
    symbols = ctypes.CDLL(library)
    if hasattr(symbols, "MPIX_Query_cuda_support"):  # Open MPI, MPICH
        return bool(symbols.MPIX_Query_cuda_support())
    if hasattr(symbols, "MPIX_GPU_query_support"):  # those made from MPICH
        answer = ctypes.c_int(0)
        failed = symbols.MPIX_GPU_query_support(_CUDA, ctypes.byref(answer))
        return not failed and bool(answer.value)
    return False


def cpu_cores() -> int:
    """The CPU cores this process may use (on Linux a scheduler may have given it a few of many)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
