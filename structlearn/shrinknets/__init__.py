"""ShrinkNets: a learned switch on every channel, which the penalty turns off for good (S; later Smallify).

model = adopt(model, images[:2])                     # switches, from here on random factors
structure = Structure(model, images[:2])
pruner = ShrinkNets(structure, strength=1e-4, weight_strength=1e-4)
...                                                  # the training loop of structlearn.pruning.Pruner
fold(model)                                          # the same function, without switches
"""

from structlearn.shrinknets.fold import fold as fold
from structlearn.shrinknets.killing import RULES as RULES
from structlearn.shrinknets.killing import Rule as Rule
from structlearn.shrinknets.killing import rule as rule
from structlearn.shrinknets.place import adopt as adopt
from structlearn.shrinknets.pruner import ShrinkNets as ShrinkNets
from structlearn.shrinknets.switch import Switch as Switch
