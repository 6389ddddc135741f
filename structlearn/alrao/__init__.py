"""Alrao, "all learning rates at once": every unit has a random learning rate, so that none is tuned (W ch. 2).

`Alrao` gives any network K output layers, mixed by the switch; `SGD` and `Adam` give each of its units a rate of its
own. :func:`adopt` does both::

    net, optimizer = adopt(net)
    net.loss(net(x), y).backward()
    optimizer.step()

:func:`narrow` says after training which rates a layer can do without.
"""

from typing import Any, Final

from torch import nn

from structlearn.alrao.adam import Adam as Adam
from structlearn.alrao.heads import Heads as Heads
from structlearn.alrao.losses import Task as Task
from structlearn.alrao.network import Alrao as Alrao
from structlearn.alrao.optimizer import PerUnit as PerUnit
from structlearn.alrao.prune import Kept as Kept
from structlearn.alrao.prune import narrow as narrow
from structlearn.alrao.rates import draw as draw
from structlearn.alrao.rates import grid as grid
from structlearn.alrao.sgd import SGD as SGD
from structlearn.alrao.switch import Switch as Switch
from structlearn.checks import check_choice

OPTIMIZERS: Final = {"sgd": SGD, "adam": Adam}


def adopt(model: nn.Module, *, optimizer: str = "sgd", **options: Any) -> tuple[Alrao, PerUnit]:
    """A network's Alrao version and its optimiser.

    Args:
        model: As :class:`Alrao` says; it is taken over.
        optimizer: "sgd" or "adam".
        **options: Those of :class:`Alrao` (`task`, `heads`, `head`, `theta`, `per`, `same`), and the optimiser's
            (`lr_min`, `lr_max`, `momentum`, `weight_decay`, ...).
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    own = {key: options.pop(key) for key in ("task", "heads", "head", "theta", "per", "same") if key in options}
    network = Alrao(model, **own)
    return network, OPTIMIZERS[optimizer](network, **options)
