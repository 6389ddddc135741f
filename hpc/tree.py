"""Nested state (what ``state_dict`` gives) as a JSON skeleton and a flat mapping of named tensors, and back.

Only plain values come back: dicts, lists, tuples, numbers, text, None and tensors. Nothing is ever unpickled,
so a checkpoint from a stranger cannot run code.
"""

from typing import Any

import torch


def flatten(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The skeleton (JSON) of a nested state, and its tensors by path (``model/0.weight``).

    Raises:
        TypeError: the state holds something that a checkpoint cannot hold; names its path.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            name = "/".join(path) or "value"
            tensors[name] = value.detach()
            return {"tensor": name}
        if isinstance(value, dict):
            for key in value:
                if type(key) not in {str, int}:
                    raise TypeError(f"state {'/'.join(path)}: a key is {key!r}, but keys are text or integers")
            return {"dict": [[key, walk(inner, (*path, _word(key)))] for key, inner in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [walk(inner, (*path, str(place))) for place, inner in enumerate(value)]}
        if value is None or type(value) in {bool, int, float, str}:
            return {"value": value}
        raise TypeError(f"state {'/'.join(path)}: {type(value).__name__} cannot be written to a checkpoint")

    return walk(state, ()), tensors


def unflatten(skeleton: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The nested state of a skeleton and its tensors. Raises ValueError where they do not fit."""
    if not isinstance(skeleton, dict) or len(skeleton) != 1:
        raise ValueError(f"not a skeleton: {str(skeleton)[:60]}")
    ((kind, content),) = skeleton.items()
    match kind:
        case "tensor":
            if content not in tensors:
                raise ValueError(f"tensor {content} is missing")
            return tensors[content]
        case "dict":
            return {key: unflatten(inner, tensors) for key, inner in content}
        case "list":
            return [unflatten(inner, tensors) for inner in content]
        case "tuple":
            return tuple(unflatten(inner, tensors) for inner in content)
        case "value":
            return content
    raise ValueError(f"not a skeleton: unknown kind {kind!r}")


def _word(key: str | int) -> str:
    """A key as one part of an HDF5 path: no slash, no NUL, not empty, not a dot alone, no clash of 1 and "1"."""
    if isinstance(key, int):
        return f"#{key}"
    word = key.replace("%", "%25").replace("/", "%2F").replace("#", "%23").replace("\0", "%00")
    return word if word.strip(".") else word.replace(".", "%2E") or "%"
