"""Many tensors as one flat buffer: one message instead of hundreds."""

from collections.abc import Sequence

import torch


class FlatBuffer:
    """A flat buffer in the shape of a list of tensors, where MPI can take it from.

    The tensors are gathered where they are. From a CUDA device they then cross to pinned memory in one transfer, unless
    MPI takes them from there.

    Args:
        like: the tensors whose values will be packed, all on one device. float64 where most of the numbers are.
        direct: does MPI take them from where they are? None: only if that is the host.
    """

    def __init__(self, like: Sequence[torch.Tensor], *, direct: bool | None = None) -> None:
        device = like[0].device if like else torch.device("cpu")
        total = sum(tensor.numel() for tensor in like)
        self._staging = torch.empty(total, dtype=precision(like), device=device)
        self.flat = self._staging
        """What travels."""
        if not (device.type == "cpu" if direct is None else direct):
            self.flat = torch.empty(total, dtype=self._staging.dtype, pin_memory=device.type == "cuda")
        parts = self._staging.split([tensor.numel() for tensor in like])
        self._views = [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def pack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Copy the tensors in; what travels, ready to be sent."""
        copy_all(self._views, tensors)
        if self._staging is not self.flat:
            self.flat.copy_(self._staging)  # waits for the device: the host reads it next
        elif self.flat.is_cuda:
            torch.cuda.current_stream(self.flat.device).synchronize()  # MPI reads it next, and knows of no streams
        return self.flat

    def unpack(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy the buffer back out into the tensors."""
        if self._staging is not self.flat:
            self._staging.copy_(self.flat, non_blocking=True)
        copy_all(tensors, self._views)


def precision(values: Sequence[torch.Tensor]) -> torch.dtype:
    """What many numbers travel as: float64 where most of them are, else float32."""
    wide = sum(value.numel() for value in values if value.dtype == torch.float64)
    return torch.float64 if 2 * wide > sum(value.numel() for value in values) else torch.float32


def copy_all(into: Sequence[torch.Tensor], source: Sequence[torch.Tensor]) -> None:
    """Copy each tensor into its partner; gradients do not see it."""
    if into or source:  # torch refuses to copy nothing
        torch._foreach_copy_(list(into), list(source))
