"""What ranks tell each other, and when: one strategy a file, over the contract in ``base``."""

from torch import nn
from torch.optim import Optimizer

from hpc.comm import Communicator
from hpc.config.training import ExchangeConfig, NoExchange, PerSyn, Sync
from hpc.exchange.base import Exchange as Exchange
from hpc.exchange.none import NoExchange as NoneStrategy
from hpc.exchange.persyn import PerSyn as PerSynStrategy
from hpc.exchange.sync import Sync as SyncStrategy


def build(config: ExchangeConfig, comm: Communicator, model: nn.Module, optimizer: Optimizer) -> Exchange:
    """The strategy that a configuration asks for."""
    match config:
        case NoExchange():
            return NoneStrategy(comm, model)
        case Sync():
            return SyncStrategy(comm, model)
        case PerSyn():
            return PerSynStrategy(comm, model, optimizer, config.tau, config.momentum)
