"""Loss functions for PyTorch, each derived in the notebook that implements it

Every loss here is derived once, in a notebook. That notebook *is* the source of the PyTorch function you import, of its `nn.Module`, of the tests that run on it, and of the page that teaches it. Nothing is copied, so the formula you read is the formula you run.

Use it as a library, because the names and the numbers are PyTorch's and the edges are taken care of. Read it as a book, because every equation has a cell beside it that checks the equation.

Modules:

- `losslab.accuracy`: An accuracy is a rule and a mean: name the rule, keep the sums, and say how far off the mean may be
- `losslab.adjustment`: Rarity is one number per class: add its logarithm in training, and the scores compete as equals
- `losslab.asymmetric`: The shape of the logarithm decides which answers a model is allowed to give up
- `losslab.binary`: One question with two answers, asked as often as you like
- `losslab.calibration`: A probability is a promise about many cases, and bins are how you check it
- `losslab.categorical`: Why the loss of a classifier is the logarithm of one number
- `losslab.costs`: Costs belong to decisions: fit probabilities, then take the cheapest answer
- `losslab.decisions`: Every score of a decision is a ratio of four counts, and the threshold is where you choose between two mistakes
- `losslab.focal`: An easy example costs little, and a thousand of them cost more than the one that matters
- `losslab.gaussian`: A network that predicts its own error is paid for knowing when it is wrong
- `losslab.infonce`: Contrastive learning is classification whose classes are the other rows of the batch
- `losslab.information`: A loss is a number of bits: what they count, and what yours says
- `losslab.kl`: A wrong mean costs a square, a wrong variance costs e^x - 1 - x, and the direction decides who pays
- `losslab.linear_ce`: The logits are the largest tensor of a language model, and nobody needs all of them at once
- `losslab.logits`: A classifier speaks in log-odds; probabilities are a change of units
- `losslab.lovasz`: Sort the errors, and the Jaccard index gets a slope
- `losslab.margin`: A hinge stops at enough, squared error stops where it is most wrong
- `losslab.masking`: What does not count must leave the sum, the count and the gradient, and sometimes the softmax
- `losslab.mixture`: When a question has several right answers, their average is wrong: predict a density
- `losslab.overlap`: A ratio of overlaps never sees the empty background, and forgives a confident mistake
- `losslab.parallel`: Split the rows, and the mean needs one count; split the classes, and the softmax needs two numbers per row
- `losslab.ranking`: Ranking asks who comes first, never how sure you are
- `losslab.regression`: The slope of a loss decides which average you predict
- `losslab.sampled`: A few classes stand for all of them, if each is divided by how often you expect to draw it
- `losslab.smoothing`: A label that admits doubt gives the loss a floor, and the logits a place to stop
- `losslab.targets`: The spelling of a label never changes its loss, only what the mean divides by
- `losslab.vae`: The bound is a sum of two sums, and a mean in the wrong place trains another model
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
from losslab.adjustment import (BalancedSoftmaxLoss, BinaryLogitAdjustedLoss, LDAMLoss, LogitAdjustedLoss,
                                add_prior, balanced_softmax_loss, binary_logit_adjusted_loss, class_priors,
                                deferred_weights, ldam_loss, ldam_margins, logit_adjusted_loss, subtract_prior)
from losslab.focal import FocalLoss, SigmoidFocalLoss, focal_loss, sigmoid_focal_loss
from losslab.weighting import (answer_counts, class_counts, class_weights, pos_weights, threshold_of_weight,
                               undo_pos_weight, undo_weights, weight_of_threshold)
from losslab.costs import (CostSensitiveCrossEntropyLoss, ExpectedCostLoss, cheapest_answer,
                           cost_sensitive_cross_entropy, expected_cost, expected_cost_loss, threshold_of_cost)
from losslab.decisions import (ConfusionMatrix, bayes_threshold, confusion_matrix, optimal_threshold,
                               threshold_curve)
from losslab.calibration import fit_temperature
from losslab.asymmetric import (AsymmetricLoss, GeneralizedCrossEntropyLoss, PolyLoss, asymmetric_loss,
                                generalized_cross_entropy, poly_loss)
from losslab.kl import (GaussianKLLoss, KLEstimate, gaussian_kl_full, gaussian_kl_loss, kl_of_distributions,
                        mc_kl)
from losslab.schedules import (ConstantSchedule, CosineSchedule, CyclicalSchedule, LinearSchedule, Schedule,
                               Scheduled, SigmoidSchedule, TableSchedule)
from losslab.regression import (HuberLoss, L1Loss, LogCoshLoss, MSELoss, QuantileLoss, SmoothL1Loss, huber_loss,
                                l1_loss, log_cosh_loss, mse_loss, quantile_loss, smooth_l1_loss)
from losslab.vae import (ELBOLoss, ELBOParts, LatentSummary, ReconstructionLoss, active_units, elbo_loss,
                         elbo_parts, iwae_bound, latent_summary, optimal_sigma, reconstruction_loss,
                         reparameterize)
from losslab.gaussian import GaussianNLLLoss, gaussian_nll_loss
from losslab.multitask import FixedWeight, MultiLoss, MultiLossOutput, UncertaintyWeight
from losslab.mixture import (GaussianMixtureNLLLoss, gaussian_mixture_nll_loss, mixture_mean, mixture_mode,
                             mixture_responsibilities, sample_mixture, split_mixture)
from losslab.balancing import DynamicWeightAverage, GradNorm, pcgrad
from losslab.lovasz import LovaszHingeLoss, LovaszSoftmaxLoss, lovasz_hinge_loss, lovasz_softmax_loss
from losslab.infonce import (ClipLoss, InfoNCELoss, NTXentLoss, SigLipLoss, SupConLoss, clip_loss,
                             info_nce_loss, nt_xent_loss, siglip_loss, supcon_loss)
from losslab.parallel import (VocabParallelCrossEntropyLoss, copy_to_shards, ddp_mean, ddp_normalizer,
                              sum_shards, vocab_parallel_cross_entropy)
from losslab.sampled import (FrequencySampler, LogUniformSampler, NCELoss, Sampled, SampledSoftmaxLoss, Sampler,
                             UniformSampler, nce_loss, sampled_softmax_loss)
from losslab.overlap import (DiceLoss, FocalTverskyLoss, GeneralizedDiceLoss, JaccardLoss, LogCoshDiceLoss,
                             TverskyLoss, dice_loss, focal_tversky_loss, generalized_dice_loss, jaccard_loss,
                             log_cosh_dice_loss, tversky_loss)
from losslab.kernels import compile_kernels
from losslab.pairs import (BatchTripletLoss, ContrastiveLoss, CosineEmbeddingLoss, MarginLoss,
                           TripletMarginLoss, TripletMarginWithDistanceLoss, batch_triplet_loss,
                           contrastive_loss, cosine_embedding_loss, distance_matrix, margin_loss, pair_distance,
                           triplet_margin_loss, triplet_margin_with_distance_loss)
from losslab.gpu import has_gpu_kernels
from losslab.linear_ce import LinearCrossEntropyLoss, LinearStats, linear_cross_entropy, plan_blocks
from losslab.cpp import has_cpp_kernel
