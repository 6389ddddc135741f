"""Writing and reading a checkpoint of VGG19 with momentum, against torch.save and torch.load.

    python benchmarks/checkpoint.py [--rounds 15] [--folder DIR]

Both sides checksum every byte and wait until it is on the disk. Ours: crc32 of each tensor, verified on reading,
fsync, rename, fsync of the folder, manifest. Torch's: torch.save (its zip format has a crc32 of each record, made on
writing), fsync, rename, fsync of the folder; torch.load does not verify them, so the reader computes crc32 of each
tensor, as a reader that wants to know would have to.
"""

import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleave, parser, publish, ratio, spread

from hpc.alone import Alone
from hpc.checkpoint import Checkpoints
from hpc.config.folder import sync_folder
from hpc.tree import flatten
from structlearn.models import build


def state() -> dict[str, Any]:
    """VGG19 for CIFAR-10 after one step of SGD with momentum: 2 x 20,040,522 floats and the buffers."""
    model = build("vgg19", (3, 32, 32), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def sides(folder: Path, everything: dict[str, Any]) -> tuple[dict[str, Callable[[], float]], ...]:
    """(writers, readers): each returns seconds."""
    ours = Checkpoints(folder / "ours", Alone(), "benchmark", keep=2, tell=print)
    theirs = folder / "theirs.pt"
    steps = iter(range(1, 1_000_000))

    def write_ours() -> float:
        start = time.perf_counter()
        ours.save(next(steps), 0, everything, {})
        return time.perf_counter() - start

    def write_torch() -> float:
        start = time.perf_counter()
        temporary = theirs.with_suffix(".tmp")
        torch.save(everything, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(theirs)
        sync_folder(folder)
        return time.perf_counter() - start

    def read_ours() -> float:
        start = time.perf_counter()
        loaded = ours.load()
        assert loaded is not None
        return time.perf_counter() - start

    def read_torch() -> float:
        start = time.perf_counter()
        _, tensors = flatten(torch.load(theirs, weights_only=True))
        for tensor in tensors.values():
            zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return time.perf_counter() - start

    return {"ours": write_ours, "torch": write_torch}, {"ours": read_ours, "torch": read_torch}


def main() -> None:
    options = parser(__doc__, 15)
    options.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    everything = state()
    _, tensors = flatten(everything)
    megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    lines = [
        f"{megabytes:.1f} MB a checkpoint. Throughput ratio: ours over torch's, above 1 is faster.",
        "",
        "| | ours, MB/s | torch, MB/s | throughput ratio |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (Path(folder) / "ours").mkdir()
        for name, both in zip(("write", "read"), sides(Path(folder), everything), strict=True):
            interleave(both, 2)  # warm up
            found = interleave(both, arguments.rounds)
            ours, theirs = ([megabytes / seconds for seconds in found[side]] for side in ("ours", "torch"))
            lines.append(f"| {name} | {spread(ours)} | {spread(theirs)} | {ratio(ours, theirs)} |")
    publish("checkpoint", "Checkpoint of VGG19 with momentum: median [quartiles]", lines)


if __name__ == "__main__":
    main()
