"""The network that a run has ended with, as one file that needs nothing of this package.

Scaling layers, switches, heads and BatchNorms are folded away first: what is written are plain torch layers, as small
as the run has made them.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from hpc import alrao, cutting, network, regularizers
from hpc.alone import Alone
from hpc.checkpoint import Checkpoints
from hpc.config.folder import CHECKPOINTS, frozen, read_status, write_atomically
from hpc.config.read import run_id
from hpc.config.root import Config
from hpc.errors import ConfigError, RunError
from structlearn import __version__
from structlearn.alrao import Alrao
from structlearn.merge import merge_batch_norms
from structlearn.scala import unscaled
from structlearn.shrinknets import fold
from structlearn.structure import Plan, Structure

METADATA: Final = "structlearn"
"""Under this name each format holds what a user of the network has to know, as JSON (pt2: with the ending .json)."""


class Exported(NamedTuple):
    """What was written."""

    bytes: int
    parameters: int
    passed_over: tuple[str, ...]
    """Checkpoints that were damaged, one sentence each: an older one was taken."""


class Answer(NamedTuple):
    """The network that a run has ended with, of plain layers, on the CPU, in evaluation."""

    model: nn.Module
    example: Tensor
    """(2, *input_shape): a batch of zeros."""
    about: dict[str, Any]
    """Model and data: the metadata."""
    passed_over: tuple[str, ...]


def export(run_dir: Path, kind: str, out: Path) -> Exported:
    """Write the network that a run has ended with.

    Args:
        run_dir: the run's folder; nothing in it is changed.
        kind: a key of WRITERS.
        out: the file; one that is there is replaced.

    Raises:
        RunError: the run has not ended, its checkpoints are damaged, or the file cannot be written.
        ConfigError: there is no run.
    """
    answer = load(run_dir)
    with quiet():
        content = WRITERS[kind](answer, json.dumps(answer.about))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, content)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or error}); choose another --out") from None
    parameters = sum(parameter.numel() for parameter in answer.model.parameters())
    return Exported(len(content), parameters, answer.passed_over)


def load(run_dir: Path) -> Answer:
    """The network of a run's newest good checkpoint, made plain. Raises as :func:`export`."""
    config = frozen(run_dir)
    if config is None:
        raise ConfigError(f"{run_dir}: holds no run (no config.yaml); give the folder that a run was trained in")
    checkpoints = Checkpoints(run_dir / CHECKPOINTS, Alone(), run_id(config), config.checkpoint.keep, lambda _: None)
    found = checkpoints.read_shared()
    if found is None:
        if read_status(run_dir).get("state") == "done":
            raise RunError(
                f"{run_dir}: the run is done, but its last checkpoint was removed, and the network with it; train it "
                f"anew in another run_dir"
            )
        raise RunError(f"{run_dir}: the run has not begun (it has no checkpoint); train it first")
    shared, passed_over = found
    if shared["answer"] is None:
        damaged = "".join(f"\n  {text}" for text in passed_over)
        raise RunError(
            f"{run_dir}: the run has not ended (its checkpoint is of epoch {shared['place']['epoch']} of "
            f"{config.epochs}), so there is no network that it ended with; run the same structlearn train again to go "
            f"on{damaged}"
        )
    data = shared["data"]
    model = merge_batch_norms(plain(built(config, shared)).eval(), _example(data))
    about = {
        "version": __version__,
        "run_id": run_id(config),
        "model": asdict(config.model),
        "widths": widths(model),
        "data": data,
    }
    return Answer(model, _example(data), about, passed_over)


def plain(model: nn.Module) -> nn.Module:
    """The same function of plain torch layers. Of an Alrao network, that of its best head."""
    if isinstance(model, Alrao):
        model = model.best()
    model = unscaled(fold(model))
    ours = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module).__module__.startswith("structlearn.")
        and next(iter([*module.parameters(recurse=False), *module.buffers(recurse=False)]), None) is not None
    ]
    assert not ours, f"not folded: {ours}"
    return model


def widths(model: nn.Module) -> dict[str, int]:
    """How many units each layer of a network has, by its name."""
    sizes = ("out_features", "out_channels", "hidden_size")
    return {
        name: int(getattr(module, size))
        for name, module in model.named_modules()
        for size in sizes
        if isinstance(getattr(module, size, None), int)
    }


def built(config: Config, shared: Mapping[str, Any]) -> nn.Module:
    """The network that a run has ended with, as it was trained.

    Args:
        config: of the run.
        shared: what its ranks held alike, from a checkpoint of the end.
    """
    data = shared["data"]
    sizes = SimpleNamespace(input_shape=tuple(data["input_shape"]), outputs=data["outputs"])
    model = cutting.wrap(config.pruning, network.build(config.model, sizes, config.seed), _example(data), config.seed)
    model = alrao.wrap(config.optimizer, model, data["task"], config.seed)
    attached = regularizers.attach(config.regularizers, model, _example(data), data["task"], 1)
    if plan := Plan.from_dict(shared["pruning"].get("plan", {})):
        Structure(model, _example(data)).apply(plan)
    model.load_state_dict(shared["answer"])
    attached.remove()
    return model


def _example(data: Mapping[str, Any]) -> Tensor:
    return torch.zeros(2, *data["input_shape"], dtype=torch.int64 if data["task"] == "sequence" else torch.float32)


# --- formats -------------------------------------------------------------------------------------------


def pt2(answer: Answer, about: str) -> bytes:
    """A program of torch.export, for batches of any size: `torch.export.load(FILE).module()(x)`."""
    file = io.BytesIO()
    torch.export.save(_program(answer), file, extra_files={f"{METADATA}.json": about})
    return file.getvalue()


def onnx(answer: Answer, about: str) -> bytes:
    """An ONNX model; `input` (batch, ...) and `output` (batch, ...)."""
    program = torch.onnx.export(
        _program(answer),
        (),
        dynamo=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = about
    content: bytes = program.model_proto.SerializeToString()
    return content


def safetensors(answer: Answer, about: str) -> bytes:
    """Parameters and buffers by their names, and how they are put together as metadata."""
    from safetensors.torch import save

    tensors = {name: value.detach().clone().contiguous() for name, value in answer.model.state_dict().items()}
    return save(tensors, {METADATA: about})


WRITERS: Final[Mapping[str, Callable[[Answer, str], bytes]]] = {
    "pt2": pt2,
    "onnx": onnx,
    "safetensors": safetensors,
}


def _program(answer: Answer) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(answer.model, (answer.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            f"torch.export cannot follow this network's forward pass for batches of any size ({reason}); "
            f"take --format safetensors, which holds the weights alone"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what torch says of its own doings while it exports."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
