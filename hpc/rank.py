"""One rank, from its first line to its exit code. Light until the ranks have met: only then is torch imported.

python -m hpc.rank RUN_DIR     joins the ranks of a launcher and trains the run frozen in a folder

Whatever is missing or broken on one rank (torch, a driver, the data) is then found where this rank can still end
all others with its message. Before, they would wait for it in MPI's start.
"""

import argparse
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.alone import Alone
from hpc.comm import connect
from hpc.config.folder import frozen
from hpc.config.launcher import OUR_LAUNCHER
from hpc.config.root import Config
from hpc.errors import ConfigError, RunError
from hpc.failure import end_all
from hpc.lock import alone_in
from hpc.mpi import Mpi
from hpc.signals import StopRequest, end_with_parent
from hpc.ulfm import Ulfm

if TYPE_CHECKING:
    from hpc.communicator import Communicator


def train(config: Config, stop: StopRequest, *, progress: str = "auto", as_json: bool = False) -> int:
    """Train one run on the ranks that this process belongs to. Collective over them.

    Args:
        config: the run. Its folder is made where it does not exist; a folder with checkpoints is resumed.
        stop: set by signals, also those that came before.
        progress: auto, bar, plain or none.
        as_json: end with one JSON object on standard output; everything else goes to standard error.

    Returns:
        The exit code: 0 done, 75 stopped and resumable. Errors end all ranks with 1 (or 2, or 75) at once.
    """
    comm: Communicator = Alone()
    holding = False
    try:
        comm = connect(config.compute.deadline_s, kind=_kind(config))
        with alone_in(Path(config.run_dir), comm):
            holding = True
            from hpc.run import run

            code = run(config, comm, stop, progress=progress, as_json=as_json)
        comm.leave()
        return code
    except BaseException as error:  # noqa: BLE001 - whatever ends one rank must end all of them
        return end_all(error, config, comm, holding=holding)


def refuse(error: Exception) -> int:
    """End the ranks of a launcher for what one of them found before it joined the others.

    The others may be waiting in MPI's start for this one: join them, then end all with this rank's message.
    """
    comm: Communicator = Alone()
    with contextlib.suppress(RunError):  # MPI does not load, or finds no others
        comm = connect(Config().compute.deadline_s, f"structlearn: {error}\n")
    return end_all(error, Config(), comm, holding=False)


def main() -> int:
    """The command line of a rank."""
    parser = argparse.ArgumentParser(prog="python -m hpc.rank", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--progress", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if OUR_LAUNCHER in os.environ:  # these ranks must not outlive the command that started them
        end_with_parent()
    with StopRequest(last=True) as stop:
        try:
            config = _frozen_in(arguments.run_dir)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
            return refuse(error)
        return train(config, stop, progress=arguments.progress, as_json=arguments.json)


def _kind(config: Config) -> type[Mpi]:
    """What the ranks are when one is lost: ended by the launcher, or fewer."""
    return Ulfm if config.compute.fault_tolerance == "shrink" else Mpi


def _frozen_in(run_dir: Path) -> Config:
    """The folder's configuration; the folder may lie elsewhere than when it was made."""
    config = frozen(run_dir)
    if config is None:
        raise ConfigError(f"{run_dir}: holds no config.yaml; start with structlearn train CONFIG.yaml")
    return replace(config, run_dir=str(run_dir))


if __name__ == "__main__":
    sys.exit(main())
