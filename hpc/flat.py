"""Many tensors as one flat buffer on the host: one message instead of hundreds."""

from collections.abc import Sequence

import torch


class FlatBuffer:
    """A flat host buffer in the shape of a list of tensors.

    On the CPU the tensors are copied straight into it. On a CUDA device they are gathered on the device first
    and cross in one transfer to pinned memory.

    Args:
        like: the tensors whose values will be packed, all on one device. float64 where one of them is.
    """

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        device = like[0].device if like else torch.device("cpu")
        wide = any(tensor.dtype == torch.float64 for tensor in like)
        total = sum(tensor.numel() for tensor in like)
        self.host = torch.empty(total, dtype=torch.float64 if wide else torch.float32, pin_memory=device.type == "cuda")
        self._staging = self.host if device.type == "cpu" else torch.empty_like(self.host, device=device)
        parts = self._staging.split([tensor.numel() for tensor in like])
        self._views = [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def pack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Copy the tensors in; the host buffer, ready to be sent."""
        copy_all(self._views, tensors)
        if self._staging is not self.host:
            self.host.copy_(self._staging)  # waits for the device: the host reads it next
        return self.host

    def unpack(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy the buffer back out into the tensors."""
        if self._staging is not self.host:
            self._staging.copy_(self.host, non_blocking=True)
        copy_all(tensors, self._views)


def copy_all(into: Sequence[torch.Tensor], source: Sequence[torch.Tensor]) -> None:
    """Copy each tensor into its partner; gradients do not see it."""
    if into or source:  # torch refuses to copy nothing
        torch._foreach_copy_(list(into), list(source))
