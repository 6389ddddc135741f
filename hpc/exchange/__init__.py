"""What ranks tell each other, and when: one strategy a file, over the contract in ``base``."""

from torch import nn
from torch.optim import Optimizer

from hpc.comm import Communicator
from hpc.config.root import Config
from hpc.config.training import Downpour, Easgd, Gossip, NoExchange, PerSyn, Sync
from hpc.exchange import easgd
from hpc.exchange.agenda import Agenda as Agenda
from hpc.exchange.agenda import Pause as Pause
from hpc.exchange.base import Exchange as Exchange
from hpc.exchange.base import running_averages as running_averages
from hpc.exchange.base import weights_and_buffers as weights_and_buffers
from hpc.exchange.downpour import Downpour as DownpourStrategy
from hpc.exchange.gossip import Gossip as GossipStrategy
from hpc.exchange.none import NoExchange as NoneStrategy
from hpc.exchange.persyn import PerSyn as PerSynStrategy
from hpc.exchange.sync import Sync as SyncStrategy
from hpc.exchange.wire import cut as cut


def build(config: Config, comm: Communicator, model: nn.Module, optimizer: Optimizer, agenda: Agenda) -> Exchange:
    """The strategy that a configuration asks for."""
    match config.exchange:
        case NoExchange():
            return NoneStrategy(comm, model, agenda)
        case Sync() as sync:
            return SyncStrategy(comm, model, agenda, sync)
        case PerSyn(tau=tau, momentum=momentum):
            return PerSynStrategy(comm, model, optimizer, tau, momentum, agenda)
        case Gossip() as gossip:
            deadline_s = config.compute.deadline_s
            return GossipStrategy(comm, model, optimizer, gossip, agenda, seed=config.seed, deadline_s=deadline_s)
        case Easgd() as elastic:
            return easgd.build(comm, model, elastic, agenda, deadline_s=config.compute.deadline_s)
        case Downpour() as downpour:
            return DownpourStrategy(comm, model, downpour, agenda, deadline_s=config.compute.deadline_s)
