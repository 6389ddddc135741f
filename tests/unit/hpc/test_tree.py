"""Nested state to a skeleton and named tensors, and back."""

import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpc.tree import flatten, unflatten

AWKWARD = ["", ".", "..", "...", "a/b", "/", "#1", "1", "%", "%2F", "%25", "%00", "%2E", "\0", "\0a", " ", "é", "a.b"]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip

tensors = st.builds(
    lambda dtype, shape: torch.arange(int(np.prod(shape))).reshape(shape).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.sampled_from(AWKWARD) | st.integers() | st.text(max_size=5)
states = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in content and in every type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return [(type(key), key) for key in one] == [(type(key), key) for key in other] and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(states)
def test_a_state_comes_back_with_every_type_and_order(state):
    skeleton, found = flatten(state)
    assert same(unflatten(json.loads(json.dumps(skeleton)), found), state)


@given(states)
def test_every_name_is_a_path_that_hdf5_can_hold(state):
    for name in flatten(state)[1]:
        assert "\0" not in name
        assert all(part.strip(".") for part in name.split("/"))


def test_no_two_keys_share_a_name():
    keys = [*AWKWARD, 1, 0, -1, 2]
    _, found = flatten({key: torch.tensor(place) for place, key in enumerate(keys)})
    assert len(found) == len(keys)
    assert [int(value) for value in found.values()] == list(range(len(keys)))


def test_a_slash_in_a_key_is_no_nesting():
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2), "": {"b": torch.tensor(3)}}, "a//b": torch.tensor(4)}
    skeleton, found = flatten(state)
    assert len(found) == 4
    assert same(unflatten(skeleton, found), state)


def test_names_are_readable_paths():
    _, found = flatten({"model": {"0.weight": torch.zeros(1)}, "states": [torch.zeros(1)], 3: torch.zeros(1)})
    assert list(found) == ["model/0.weight", "states/0", "#3"]


def test_a_lone_tensor_is_a_state():
    skeleton, found = flatten(torch.tensor(3))
    assert list(found) == ["value"]
    assert unflatten(skeleton, found) == torch.tensor(3)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), -0.0, 5e-324, 2**80, 0.1])
def test_a_number_survives_json_exactly(value):
    skeleton, found = flatten([value])
    assert repr(unflatten(json.loads(json.dumps(skeleton)), found)) == repr([value])


def test_not_a_number_survives_json():
    skeleton, found = flatten({"best": float("nan")})
    assert math.isnan(unflatten(json.loads(json.dumps(skeleton)), found)["best"])


def test_gradients_are_left_behind():
    _, found = flatten({"w": torch.nn.Parameter(torch.ones(2))})
    assert type(found["w"]) is torch.Tensor
    assert not found["w"].requires_grad


def test_an_ordered_dict_comes_back_as_a_dict_in_its_order():
    skeleton, found = flatten(OrderedDict(b=1, a=2))
    assert list(unflatten(skeleton, found).items()) == [("b", 1), ("a", 2)]


class Foreign:
    """Something that would need pickling."""


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Foreign(), "Foreign"),
        (np.float64(1.0), "float64"),
        (np.zeros(2), "ndarray"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (1j, "complex"),
        (print, "builtin_function_or_method"),
    ],
)
def test_an_unsupported_value_names_its_path_and_type(value, kind):
    with pytest.raises(TypeError, match=f"state optimizer/groups/1/lr: {kind} cannot be written"):
        flatten({"optimizer": {"groups": [{}, {"lr": value}]}})


@pytest.mark.parametrize("key", [True, 1.5, None, ("a",), b"a", np.int64(1)])
def test_an_unsupported_key_names_its_path(key):
    with pytest.raises(TypeError, match=r"state optimizer/state: a key is .*keys are text or integers"):
        flatten({"optimizer": {"state": {key: 1}}})


def test_a_missing_tensor_is_named():
    skeleton, found = flatten({"a": {"b": torch.zeros(1)}})
    found.clear()
    with pytest.raises(ValueError, match="tensor a/b is missing"):
        unflatten(skeleton, found)


@pytest.mark.parametrize("skeleton", [None, [], {}, "text", {"list": [], "dict": []}, {"pickle": "x"}, {"list": [3]}])
def test_what_is_no_skeleton_is_refused(skeleton):
    with pytest.raises(ValueError, match="not a skeleton"):
        unflatten(skeleton, {})
