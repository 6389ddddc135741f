"""Penalties on weights, with a factor for each layer: for plain training and for pruning (W 3.4.1, 3.5.3, 4.5).

One line makes a penalty for any training loop (:func:`penalise`)::

    penalty = penalise(model, "group_lasso", strength=1 / len(training_set))
    ...
    loss.backward()
    penalty.regularise()
    optimizer.step()

:class:`Penalty` is the contract below it: of given tensors a value, a gradient in closed form, a proximal step.
"""

from structlearn.penalties.base import Penalty as Penalty
from structlearn.penalties.group_lasso import GroupLasso as GroupLasso
from structlearn.penalties.groups import Entries as Entries
from structlearn.penalties.groups import Groups as Groups
from structlearn.penalties.l1 import L1 as L1
from structlearn.penalties.l2 import L2 as L2
from structlearn.penalties.network import NetworkPenalty as NetworkPenalty
from structlearn.penalties.network import penalise as penalise
from structlearn.penalties.sparse_group_lasso import SparseGroupLasso as SparseGroupLasso
