"""The versions of everything that decides a result."""

import platform
from importlib import metadata


def versions(mpi: str) -> dict[str, str]:
    """Versions of Python, of the libraries a run uses, and of the MPI library."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "mpi": mpi}
    for name in ("structlearn", "torch", "numpy", "h5py", "mpi4py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
