"""ScaLa: a fixed scaling before each layer makes learning rate 1 suit networks of any width (W 3.3).

:func:`adopt` converts any network::

    net = adopt(net, scaling="sqrt_log", batch_norm=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    ...
    plain = unscaled(net)

With a scaling that falls, `sqrt_log` or `inverse`, early units learn faster than late ones; with a penalty on the
scaled weights that is ScaLP (W 3.4).
"""

from structlearn.scala.layers import SCALED as SCALED
from structlearn.scala.layers import Scaled as Scaled
from structlearn.scala.layers import ScaledConv1d as ScaledConv1d
from structlearn.scala.layers import ScaledConv2d as ScaledConv2d
from structlearn.scala.layers import ScaledConv3d as ScaledConv3d
from structlearn.scala.layers import ScaledLinear as ScaledLinear
from structlearn.scala.layers import rescale as rescale
from structlearn.scala.network import adopt as adopt
from structlearn.scala.network import fold as fold
from structlearn.scala.network import unscaled as unscaled
from structlearn.scala.sequences import SEQUENCES as SEQUENCES
from structlearn.scala.sequences import scaling as scaling
