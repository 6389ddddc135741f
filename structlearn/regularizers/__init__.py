"""Regularisers that act from within a network while it is trained."""

from structlearn.regularizers.dropconnect import DropConnect as DropConnect
from structlearn.regularizers.dropout import Dropout as Dropout
from structlearn.regularizers.noise import InputNoise as InputNoise
from structlearn.regularizers.noise import LabelNoise as LabelNoise
from structlearn.regularizers.noise import WeightNoise as WeightNoise
from structlearn.regularizers.regularizer import Regularizer as Regularizer
from structlearn.regularizers.reve import Reve as Reve
from structlearn.regularizers.shade import Shade as Shade
