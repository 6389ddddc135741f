"""Regularisers that act from within a network while it is trained."""

from structlearn.regularizers.regularizer import Regularizer as Regularizer
from structlearn.regularizers.shade import Shade as Shade
