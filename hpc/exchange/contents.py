"""What ranks tell each other of: the tensors of a network, and its optimiser's running averages of them."""

import torch
from torch import nn
from torch.optim import Optimizer


def weights_and_buffers(model: nn.Module) -> list[torch.Tensor]:
    """What travels: parameters and floating-point buffers (BatchNorm's running statistics)."""
    return [parameter.detach() for parameter in model.parameters()] + float_buffers(model)


def float_buffers(model: nn.Module) -> list[torch.Tensor]:
    """What each rank measures by itself even where all hold the same weights: BatchNorm's running statistics."""
    return list(named_float_buffers(model).values())


def named_float_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The same, by their names. Buffers that are not in the model's state_dict are no state."""
    return {
        f"{prefix}.{name}".strip("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set  # noqa: SLF001
    }


def running_averages(optimizer: Optimizer) -> list[torch.Tensor]:
    """The optimiser's state that has the shape of its parameter: momentum, averages of squares."""
    return [value for values in averages_by_parameter(optimizer).values() for value in values]


def averages_by_parameter(optimizer: Optimizer) -> dict[int, list[torch.Tensor]]:
    """The same, by the address of the parameter in memory: what all views of it have in common."""
    return {
        parameter.data_ptr(): averages_of(optimizer, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def averages_of(optimizer: Optimizer, parameter: torch.Tensor) -> list[torch.Tensor]:
    """Those of one parameter."""
    state = optimizer.state.get(parameter, {}).values()
    averages = [value for value in state if isinstance(value, torch.Tensor) and value.shape == parameter.shape]
    return [value for value in averages if value.is_floating_point() and value.dim() > 0]


def prepare(optimizer: Optimizer) -> None:
    """Have the optimiser make its running averages, as zeros, where it has not stepped yet."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    forget(optimizer)  # weight decay and the count of steps
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def forget(optimizer: Optimizer) -> None:
    """Set all of the optimiser's state to zero, its count of steps included: Adam corrects its averages by it."""
    state = [value for parts in optimizer.state.values() for value in parts.values() if isinstance(value, torch.Tensor)]
    if state:
        torch._foreach_zero_(state)
