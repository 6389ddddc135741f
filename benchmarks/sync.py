"""Step time of sync on two ranks, a core each, against torch's DDP over gloo, and one blocking sum of all gradients.

    mpiexec -n 2 python benchmarks/sync.py [--rounds 12]        (started by hand, it starts its ranks)
    python benchmarks/sync.py --sweep                           (sync alone, by the size of its buckets)

All sides live in the same two processes and train copies of one network on the same samples with the same update, in
turn. A round of a side is some steps; its measure is the median of theirs, for a step that another process interrupted
says nothing. DDP is as torch makes it, and with gradients as views of its buckets. "blocking" is what sync was before
it had buckets: after backward, copy all gradients into one buffer, sum it, divide it, copy it back. "none" trains both
ranks without exchange: what is left for it. ``--sweep`` compares sizes of buckets (exchange.bucket_mb) in place of
the other sides; one bucket of the largest size holds all gradients of either network.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measure import interleave, parser, publish, ratio, spread
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config.launcher import promise
from hpc.config.training import Sync as SyncConfig
from hpc.exchange.agenda import Agenda
from hpc.exchange.sync import Sync
from hpc.flat import FlatBuffer
from structlearn import models

# (name, model, options, shape of an image, batch, steps in a round)
NETWORKS: list[tuple[str, str, dict[str, Any], tuple[int, ...], int, int]] = [
    ("sFC", "mlp", {"widths": [1000, 1000, 10]}, (1, 28, 28), 64, 30),
    ("VGG19", "vgg19", {}, (3, 32, 32), 4, 5),
]
SIDES = ("sync", "sync, bfloat16", "blocking", "DDP", "DDP, views", "none")
BUCKETS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 128.0)
SWEPT = (*(f"{size:g} MiB" for size in BUCKETS), "none")
CONFIGS = {
    "sync": SyncConfig(),
    "sync, bfloat16": SyncConfig(payload="bfloat16"),
    **{name: SyncConfig(bucket_mb=size) for name, size in zip(SWEPT, BUCKETS, strict=False)},
}


class Blocking:
    """One sum of all gradients after backward."""

    def __init__(self, comm: Communicator, model: nn.Module) -> None:
        self._comm, self._parameters = comm, list(model.parameters())
        self._buffer = FlatBuffer(self._parameters)

    def after_backward(self) -> None:
        """Average the gradients."""
        gradients = [parameter.grad for parameter in self._parameters]
        flat = self._buffer.pack(gradients)
        self._comm.sum_(flat, "average gradients")
        flat.div_(self._comm.size)
        self._buffer.unpack(gradients)


def side(
    name: str, comm: Communicator, kind: str, options: dict[str, Any], shape: tuple[int, ...], batch: int, steps: int
) -> Callable[[], float]:
    """A function that trains some steps and returns their median in milliseconds."""
    torch.manual_seed(0)
    model = models.build(kind, shape, 10, **options)
    torch.manual_seed(comm.rank)
    inputs, targets = torch.randn(batch, *shape), torch.randint(10, (batch,))
    called: nn.Module = model
    after: Callable[[], None] = lambda: None  # noqa: E731
    match name:
        case "DDP":
            called = DistributedDataParallel(model)
        case "DDP, views":
            called = DistributedDataParallel(model, gradient_as_bucket_view=True)
        case "blocking":
            after = Blocking(comm, model).after_backward
        case _ if name in CONFIGS:
            after = Sync(comm, model, Agenda(10**9, None, comm.size), CONFIGS[name]).after_backward
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def train() -> float:
        seconds = []
        comm.barrier("start together")
        for _ in range(steps):
            start = time.perf_counter()
            nn.functional.cross_entropy(called(inputs), targets).backward()
            after()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
        return 1e3 * statistics.median(seconds)

    return train


def main() -> None:
    asked = parser(__doc__, 12)
    asked.add_argument("--sweep", action="store_true", help="sizes of buckets")
    asked.add_argument("--only", help="one of the networks; nothing is written to results/")
    arguments = asked.parse_args()
    rounds, chosen = arguments.rounds, [row for row in NETWORKS if arguments.only in (None, row[0])]
    if promise() is None:
        mpiexec = Path(sys.prefix) / "bin" / "mpiexec"
        root = ["--allow-run-as-root", "--bind-to", "none"] if (mpiexec.parent / "ompi_info").exists() else []
        raise SystemExit(subprocess.run([mpiexec, *root, "-n", "2", sys.executable, *sys.argv], check=False).returncode)
    torch.set_num_threads(1)
    comm = connect(300.0)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[comm.local_rank]})  # gloo's threads will follow
    port = comm.gather(20000 + int.from_bytes(os.urandom(2)) % 20000, "agree on a port")[0]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size)
    names, against = (SWEPT, ("2 MiB", "none")) if arguments.sweep else (SIDES, ("DDP", "blocking"))
    lines = [
        f"{comm.vendor}; load at the start {os.getloadavg()[0]:.1f}; {rounds} rounds", "",
        f"| network | side | ms a step | ratio to {against[0]} | ratio to {against[1]} |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for network, kind, options, shape, batch, steps in chosen:
        sides = {name: side(name, comm, kind, options, shape, batch, steps) for name in names}
        interleave(sides, 1)  # warm up
        found = interleave(sides, rounds)
        for name in names:
            ratios = " | ".join(ratio(found[name], found[other]) for other in against)
            lines.append(f"| {network}, batch {batch} | {name} | {spread(found[name])} | {ratios} |")
            if comm.rank == 0:
                print(lines[-1], flush=True)
    if comm.rank == 0 and arguments.only is None:
        lines += ["", f"Load at the end {os.getloadavg()[0]:.1f}."]
        title = "sync by the size of its buckets" if arguments.sweep else "sync"
        name = "sync-buckets" if arguments.sweep else "sync"
        publish(name, f"{title} on two ranks, a core each: median [quartiles]", lines)
    comm.barrier("end")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
