"""How many CUDA devices this machine offers, found out without torch (it takes seconds to import)."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


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


def cpu_cores() -> int:
    """The CPU cores this process may use (on Linux a scheduler may have given it a few of many)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
