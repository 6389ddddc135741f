"""Pruning: penalties that make units useless during training, and rules that say which of them go.

Each method is a :class:`Pruner` over the structure of a network; :class:`Pruner` has the training loop.

| method | what it pushes to zero | what it cuts |
|---|---|---|
| :class:`ScaLP` | w~ of scaled layers, units far back in the sequence most | by outgoing weights, averaged |
| :class:`Norm` | weights, or groups of them | by incoming weights (reversed group Lasso: outgoing) |
| :class:`BnLasso` | scales of BatchNorm layers | by those |
"""

from structlearn.pruning.bn_lasso import BnLasso as BnLasso
from structlearn.pruning.norm import Norm as Norm
from structlearn.pruning.phases import Phase as Phase
from structlearn.pruning.pruner import Judgement as Judgement
from structlearn.pruning.pruner import Pruner as Pruner
from structlearn.pruning.pruner import Verdict as Verdict
from structlearn.pruning.scalp import ScaLP as ScaLP
