"""MaxMin in the place of ReLU, in any network (B ch. 3)."""

from structlearn.maxmin.conversion import Conversion, convert
from structlearn.models.activations import MaxMin

__all__ = ["Conversion", "MaxMin", "convert"]
