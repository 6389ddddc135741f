"""Penalties as priors: which prior a penalty stands for, and how strong it should therefore be (W ch. 4).

A penalty r on the parameters of a posterior may be the KL divergence from a prior, up to a constant: Theorem 1 says
whether it is. :func:`prior_of` gives an :class:`Answer`: yes or no, why, the :class:`Prior`, a :class:`Check` of it.

| posterior | what it is |
|---|---|
| :class:`Dirac` | weights as usual; the prior is exp(-r) |
| :class:`Gaussian` | of fixed or of learned variance |
| :class:`ByCharacteristicFunction` | any other of one weight |

| penalty | what comes out |
|---|---|
| :class:`Polynomial`, or a function that is one | exact |
| any other function, Dirac posterior | exact, integrals by quadrature |
| any other function, other posteriors | outside the conditions; a regularised candidate, with what it lacks |

:func:`glorot_strength` gives the factor of any penalty under which its prior is like Glorot's initialisation.
"""

from structlearn.priors.answer import Answer as Answer
from structlearn.priors.check import Check as Check
from structlearn.priors.density import Prior as Prior
from structlearn.priors.glorot import glorot_strength as glorot_strength
from structlearn.priors.polynomials import Polynomial as Polynomial
from structlearn.priors.posteriors import ByCharacteristicFunction as ByCharacteristicFunction
from structlearn.priors.posteriors import Dirac as Dirac
from structlearn.priors.posteriors import Gaussian as Gaussian
from structlearn.priors.theorem import prior_of as prior_of
