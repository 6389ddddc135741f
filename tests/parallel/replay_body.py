"""Ranks gossip and step by random updates; rank 0 compares what they end with and the product of the matrices."""

import sys
import time

import numpy as np
import torch
from torch import nn

from hpc.comm import connect
from hpc.config.training import Gossip as Section
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.gossip import Gossip
from hpc.exchange.replay import EVENT, replay

progress, seed = sys.argv[1], int(sys.argv[2])
comm = connect(60.0)
chance = np.random.default_rng([seed, comm.rank])
model = nn.Linear(5, 2, bias=False).double()
with torch.no_grad():
    model.weight.copy_(torch.from_numpy(chance.normal(size=(2, 5))))
start = model.weight.detach().flatten().tolist()
section = Section(rho=0.5, progress=progress, consensus_every=None)
gossip = Gossip(
    comm, model, torch.optim.SGD(model.parameters()), section, Agenda(40, 15, comm.size), seed=seed, deadline_s=300.0
)
gossip.events, updates, step = [], [], 0
why = None
while why is not Pause.EPOCH:
    gossip.resume(0, step)
    why = None
    while why is None:
        time.sleep(chance.uniform(0, 0.002) * (1 + comm.rank))
        update = torch.from_numpy(chance.normal(size=(2, 5)))
        with torch.no_grad():
            model.weight.add_(update)
        updates.append(update.flatten().tolist())
        step += 1
        gossip.after_step(step)
        why = gossip.pause(step, requested=False)
    gossip.quiesce()
gossip.close()
ended = model.weight.detach().flatten().tolist()
everyone = comm.gather([start, [list(map(int, event)) for event in gossip.events], updates, ended], "compare")
if comm.rank == 0:
    starts, logs, steps, ends = zip(*everyone, strict=True)
    events = np.array([tuple(event) for log in logs for event in log], EVENT)
    expected = replay(events, [np.array(rows) for rows in steps], np.array(starts))
    messages = int((events["kind"] == 2).sum())
    print("messages", messages, "difference", np.abs(expected - np.array(ends)).max())
