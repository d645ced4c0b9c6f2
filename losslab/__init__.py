__version__ = "0.0.1"

from losslab import viz
from losslab.core import Loss, LossParts, Reduction, backend, checks, implementation, implements, reduce_loss
from losslab.categorical import CrossEntropyLoss, NLLLoss, cross_entropy, nll_loss
