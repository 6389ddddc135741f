"""Make a mistake on purpose, and keep what came of it."""

import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.cli import main

HIDDEN = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "MPI_", "STRUCTLEARN_")
MODEL = "--data.train_size 96 --model.widths [8]"
TRAINED = f"train --run_dir run --epochs 2 {MODEL} --progress none"
"""The command that makes the finished run which some rows then damage."""


DIGITS = f"train {MODEL} --data.batch_size 8 --epochs 1 --progress none"
OWN = "train --data.train_size 96 --epochs 1 --progress none"
"""For a network without widths."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One mistake.

    Attributes:
        title: what is wrong, in words.
        says: pieces of the message that a user needs.
        args: what follows ``structlearn`` on the command line.
        yaml: the text of bad.yaml, where there is one.
        code: the exit code.
        env: variables of the environment.
        prepare: makes files in the current folder.
        given: how the mistake is made, where arguments, YAML and environment do not show it.
        trained: the folder ``run`` with a finished run is there.
        patched: what is replaced in the program: machines that this one is not.
        apart: needs a process of its own (MPI starts in it).
        late: it takes the data or the network to find it, so the run folder is made before.
    """

    title: str
    says: tuple[str, ...]
    args: str = "train bad.yaml"
    yaml: str = ""
    code: int = 2
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], object] | None = None
    given: str = ""
    trained: bool = False
    patched: Mapping[str, object] = field(default_factory=dict)
    apart: bool = False
    late: bool = False


def config(title: str, yaml: str, *says: str, **more: Any) -> Bad:
    """A mistake in the file."""
    return Bad(title=title, yaml=yaml, says=says, **more)


def command(title: str, args: str, *says: str, **more: Any) -> Bad:
    """A mistake on the command line, or one that a command meets."""
    return Bad(title=title, args=args, says=says, **more)


@dataclass(frozen=True)
class Outcome:
    """What came of a mistake."""

    code: int
    out: str
    err: str
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


def provoke(row: Bad, folder: Path, trained: Path | None = None) -> Outcome:
    """Make a row's mistake in an empty folder. ``trained`` is the finished run to copy where the row needs it."""
    if row.trained:
        assert trained is not None
        shutil.copytree(trained, folder / "run")
    if row.yaml:
        (folder / "bad.yaml").write_text(row.yaml, encoding="utf-8")
    with chdir(folder):
        if row.prepare is not None:
            row.prepare()
    before = content(folder)
    code, out, err = (_apart if row.apart else _here)(row, folder)
    return Outcome(code, _neutral(out, folder), _neutral(err, folder), before, content(folder))


def train(folder: Path) -> Path:
    """A finished run, made in an empty folder."""
    code, out, err = _here(Bad(title="none", says=(), args=TRAINED), folder)
    assert code == 0, out + err
    return folder / "run"


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _environment(row: Bad, folder: Path) -> dict[str, str]:
    """Nothing of this machine's launcher, data sets or devices."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)}
    ours = {"HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return plain | ours | dict(row.env)


def _here(row: Bad, folder: Path) -> tuple[int, str, str]:
    """The command in this process: torch is loaded once for all rows."""
    out, err = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(chdir(folder))
        stack.enter_context(patch.dict(os.environ, _environment(row, folder), clear=True))
        stack.enter_context(patch.object(sys, "argv", ["structlearn", *shlex.split(row.args)]))
        stack.enter_context(patch.object(sys, "path", list(sys.path)))
        for target, value in row.patched.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main() always exits")


def _apart(row: Bad, folder: Path) -> tuple[int, str, str]:
    assert not row.patched, "a process of its own cannot be patched"
    line = [sys.executable, "-m", "jobs", *shlex.split(row.args)]
    env = _environment(row, folder)
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def _neutral(text: str, folder: Path) -> str:
    """Nothing of this machine's folders in the page."""
    return text.replace(str(folder), "/here").replace(str(folder.resolve()), "/here")
