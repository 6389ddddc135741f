"""The state that torch keeps in its own places: a model's, an optimiser's, the random generators'."""

import torch
from torch import nn
from torch.optim import Optimizer


def split(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model's state as (parameters, buffers)."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = model.state_dict()
    parameters = {name: value for name, value in state.items() if name in names}
    return parameters, {name: value for name, value in state.items() if name not in names}


def on_host(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in host memory, of its own."""
    return {name: value.to("cpu", copy=True) for name, value in state.items()}


def lay_out_alike(optimizer: Optimizer) -> None:
    """Give running averages their parameters' strides.

    A file keeps values, not strides, and torch's fused kernels walk parameter and average through raw memory: with
    channels last, unlike strides would pair the wrong numbers.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators, on the CPU and on the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Take back what :func:`random_state` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
