"""Make trouble while a rank starts: when it first looks for torch, or for mpi4py.

EARLY="torch raise 1": rank 1 cannot load torch. Others: mpi4py, term (a signal), kill, sleep.
"""

import builtins
import os
import signal
import time

import_ = builtins.__import__


def early(name, *rest, **more):
    """Import a module; the first time that it is the one, make the trouble."""
    module, kind, rank = os.environ["EARLY"].split()
    if name == module:
        builtins.__import__ = import_
        if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == rank:
            make(kind)
    return import_(name, *rest, **more)


def make(kind):
    if kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "sleep":
        time.sleep(60)
    elif kind == "raise":
        raise ImportError("a library is missing on this node")


if "EARLY" in os.environ:
    builtins.__import__ = early
