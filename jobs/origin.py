"""Which code, in which environment, makes the runs of a sweep."""

import functools
import getpass
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


@functools.cache
def origin() -> dict[str, Any]:
    """Of a submission: code, packages, and who gave which command where.

    All packages of the environment are named, with their versions: about 3 kB.
    """
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "environment": sys.prefix,
        "packages": packages(),
        "host": socket.gethostname(),
        "user": _user(),
        "folder": str(Path.cwd()),
        "command": shlex.join(["structlearn", *sys.argv[1:]]),
    }


@functools.cache
def code_version() -> str:
    """Of structlearn: "0.1.0"; where it runs from a clone with the commit, "0.1.0+3f2a91c", "-dirty" with changes."""
    try:
        version = metadata.version("structlearn")
    except metadata.PackageNotFoundError:
        version = "not installed"
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return version
    line = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a disk that does not answer
        return version
    return f"{version}+{done.stdout.strip()}" if done.returncode == 0 else version


def packages() -> dict[str, str]:
    """Versions of all packages of the environment, by their names."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {name: found[name] for name in sorted(filter(None, found), key=str.lower)}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return ""
