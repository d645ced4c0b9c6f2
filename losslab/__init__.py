"""Loss functions for PyTorch, each derived in the notebook that implements it

Every loss here is derived once, in a notebook. That notebook *is* the source of the PyTorch function you import, of its `nn.Module`, of the tests that run on it, and of the page that teaches it. Nothing is copied, so the formula you read is the formula you run.

Use it as a library, because the names and the numbers are PyTorch's and the edges are taken care of. Read it as a book, because every equation has a cell beside it that checks the equation.

Modules:

- `losslab.accuracy`: An accuracy is a rule and a mean: name the rule, keep the sums, and say how far off the mean may be
- `losslab.binary`: One question with two answers, asked as often as you like
- `losslab.categorical`: Why the loss of a classifier is the logarithm of one number
- `losslab.information`: A loss is a number of bits: what they count, and what yours says
- `losslab.logits`: A classifier speaks in log-odds; probabilities are a change of units
- `losslab.margin`: A hinge stops at enough, squared error stops where it is most wrong
- `losslab.masking`: What does not count must leave the sum, the count and the gradient, and sometimes the softmax
- `losslab.smoothing`: A label that admits doubt gives the loss a floor, and the logits a place to stop
- `losslab.targets`: The spelling of a label never changes its loss, only what the mean divides by
- `losslab.viz`: A colour that always means the same thing is a sentence you need not read"""

__version__ = "0.0.1"

from losslab import metrics, viz
from losslab.core import Loss, LossParts, Reduction, backend, checks, implementation, implements, reduce_loss
from losslab.logits import log_sigmoid, log_softmax, logit, logsigmoid, logsumexp, sigmoid, softmax
from losslab.information import (KLDivLoss, bits, entropy, interpret, js_divergence, kl_div, kl_divergence,
                                 perplexity)
from losslab.categorical import CrossEntropyLoss, NLLLoss, cross_entropy, nll_loss
from losslab.targets import class_index, one_hot
from losslab.binary import (BCELoss, BCEWithLogitsLoss, SoftMarginLoss, binary_cross_entropy,
                            binary_cross_entropy_with_logits, soft_margin_loss)
from losslab.smoothing import (DistillationLoss, convert_smoothing, distillation_loss, smooth_labels,
                               smoothing_floor)
from losslab.masking import lengths_to_mask
from losslab.margin import (BinaryBrierLoss, BrierLoss, HingeEmbeddingLoss, HingeLoss, MarginRankingLoss,
                            MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss,
                            binary_brier_loss, brier_loss, hinge_embedding_loss, hinge_loss,
                            margin_ranking_loss, multi_margin_loss, multilabel_margin_loss,
                            multilabel_soft_margin_loss)
from losslab.accuracy import Moments, describe
