"""Regularisers that act from within a network while it is trained.

Each is a :class:`Regularizer`, attached to a network in one line; :class:`Regularizer` has the training loop.

| method | what it does |
|---|---|
| :class:`Shade` | units say no more than whether they have found their pattern |
| :class:`Reve` | what the output layer sees of its input says little beside the class |
| :class:`Dropout`, :class:`DropConnect` | units, or weights, are left out at random |
| :class:`InputNoise`, :class:`WeightNoise`, :class:`LabelNoise` | noise in training |
| :class:`Variational` | weights are distributions: variational inference |
"""

from structlearn.regularizers.dropconnect import DropConnect as DropConnect
from structlearn.regularizers.dropout import Dropout as Dropout
from structlearn.regularizers.noise import InputNoise as InputNoise
from structlearn.regularizers.noise import LabelNoise as LabelNoise
from structlearn.regularizers.noise import WeightNoise as WeightNoise
from structlearn.regularizers.regularizer import Regularizer as Regularizer
from structlearn.regularizers.reve import Reve as Reve
from structlearn.regularizers.shade import Shade as Shade
from structlearn.regularizers.variational import Variational as Variational
