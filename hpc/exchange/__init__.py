"""What ranks tell each other, and when: one strategy a file, over the contract in ``base``."""

from torch import nn
from torch.optim import Optimizer

from hpc.communicator import Communicator
from hpc.config.pruning import Cutting
from hpc.config.root import Config
from hpc.config.training import Downpour, Easgd, Gossip, NoExchange, PerSyn, Sync
from hpc.exchange import easgd
from hpc.exchange.agenda import Agenda as Agenda
from hpc.exchange.agenda import Pause as Pause
from hpc.exchange.base import Exchange as Exchange
from hpc.exchange.contents import running_averages as running_averages
from hpc.exchange.contents import weights_and_buffers as weights_and_buffers
from hpc.exchange.downpour import Downpour as DownpourStrategy
from hpc.exchange.gossip import Gossip as GossipStrategy
from hpc.exchange.none import NoExchange as NoneStrategy
from hpc.exchange.persyn import PerSyn as PerSynStrategy
from hpc.exchange.sync import Sync as SyncStrategy
from structlearn.alrao import Alrao


def build(config: Config, comm: Communicator, model: nn.Module, optimizer: Optimizer, agenda: Agenda) -> Exchange:
    """The strategy that a configuration asks for."""
    seed, deadline_s = config.seed, config.compute.deadline_s
    match config.exchange:
        case NoExchange(consensus_every=every):
            return NoneStrategy(comm, model, agenda, seed=seed, consensus_every=every)
        case Sync() as sync:
            beside = [module.evidence for module in model.modules() if isinstance(module, Alrao)]
            return SyncStrategy(comm, model, agenda, sync, beside)
        case PerSyn() as persyn:
            return PerSynStrategy(comm, model, optimizer, persyn, agenda, seed=seed)
        case Gossip() as gossip:
            return GossipStrategy(
                comm, model, optimizer, gossip, agenda, seed=seed, deadline_s=deadline_s,
                shrinks=isinstance(config.pruning, Cutting),
            )  # fmt: skip
        case Easgd() as elastic:
            return easgd.build(comm, model, elastic, agenda, seed=seed, deadline_s=deadline_s)
        case Downpour() as downpour:
            return DownpourStrategy(comm, model, downpour, agenda, seed=seed, deadline_s=deadline_s)
