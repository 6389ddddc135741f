"""Networks as sets of coupled units, and how to cut them."""

from structlearn.structure.coupling import Coupled, Place
from structlearn.structure.cut import Cut
from structlearn.structure.plan import Plan
from structlearn.structure.structure import Structure
from structlearn.structure.verify import verify

__all__ = ["Coupled", "Cut", "Place", "Plan", "Structure", "verify"]
