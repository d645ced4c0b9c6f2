"Arguments and options that fit each public loss: all that a new loss has to tell the tests that call every one of them"
import inspect

import torch

import losslab as ll

CLASSES = [o for o in vars(ll).values() if isinstance(o, type) and issubclass(o, ll.Loss) and o is not ll.Loss]
LOSSES = [o.fn for o in CLASSES]
SIGNED = {'soft_margin_loss', 'hinge_loss', 'hinge_embedding_loss'}  # their answers are -1 and 1
REAL = {'mse_loss', 'l1_loss', 'huber_loss', 'smooth_l1_loss', 'log_cosh_loss', 'quantile_loss'}  # their targets are numbers
SQUARES = {'mse_loss', 'gaussian_nll_loss', 'gaussian_kl_loss', 'elbo_loss', 'gaussian_mixture_nll_loss'}  # the square of a large float is none
WITHOUT_LABELS = REAL | SQUARES | {'kl_div', 'distillation_loss', 'soft_margin_loss'}  # for PyTorch's soft margin any number is one
PER_CLASS = {'weight', 'pos_weight'}  # options with one number per class
NUMBERS = dict(label_smoothing=.1, temperature=2., softcap=3., z_loss=.01, margin=.5, p=2, gamma=1.5, gamma_neg=3., gamma_pos=.5, clip=.1, epsilon=.5, q=.5, tau=.7,
               max_margin=.4, scale=3., delta=.5, quantile=.3)


def parameters(fn): return inspect.signature(fn).parameters
def is_over_classes(fn): return {'dim', 'ignore_index'} <= set(parameters(fn)) and fn.__name__ not in ('multilabel_soft_margin_loss', 'distillation_loss')


def arguments(fn, n=5, c=4, *, seed=0, scale=1., dtype=torch.float32, ignored=True):
    "Positional arguments of `fn` for `n` rows of `c` classes, scores up to about `scale`; some labels are ignored"
    generator = torch.Generator().manual_seed(seed)
    def scores(): return (scale*torch.randn(n, c, generator=generator, dtype=torch.float64)).to(dtype)
    def coins(*shape): return torch.rand(*shape, generator=generator) < .5
    def sometimes_ignored(t): return t.masked_fill(coins(*t.shape) & coins(*t.shape), -100) if ignored and 'ignore_index' in parameters(fn) else t
    z, first = scores(), next(iter(parameters(fn)))
    answers = coins(n, c).to(dtype)
    if fn.__name__ == 'margin_ranking_loss': return z, scores(), 2*answers - 1
    if fn.__name__ in ('multilabel_margin_loss', 'multilabel_soft_margin_loss'): return z, answers
    if fn.__name__ == 'kl_div': return z.log_softmax(1), scores().softmax(1)
    if fn.__name__ in REAL | {'distillation_loss'}: return z, scores()
    spread = scores().clamp(-8, 8)  # a log-variance
    if fn.__name__ == 'gaussian_nll_loss': return z, scores(), (spread/4).exp()
    if fn.__name__ == 'gaussian_kl_loss': return z, spread
    if fn.__name__ == 'elbo_loss': return z, answers, scores(), spread
    if fn.__name__ == 'gaussian_mixture_nll_loss': return z, scores(), spread/4, scores()[:, 0]
    if is_over_classes(fn):
        return z.log_softmax(1) if first == 'log_probs' else z, sometimes_ignored(torch.randint(c, (n,), generator=generator))
    return z.sigmoid() if first == 'probs' else z, sometimes_ignored(2*answers - 1 if fn.__name__ in SIGNED else answers)


def needed(fn, c=4):
    "Options without a default"
    steps = torch.arange(1., c+1)
    values = dict(prior=steps/(c+1 if fn.__name__.startswith('binary') else steps.sum()), counts=10*steps.long(), cost=steps + steps[:, None])
    return {k: values[k] for k, o in parameters(fn).items() if o.kind is o.KEYWORD_ONLY and o.default is o.empty}


def options(fn, c=4, *, seed=0):
    "A value for each option that is special to `fn`, and those that it needs"
    generator = torch.Generator().manual_seed(seed)
    per_class = {k: .25 + torch.rand(c, generator=generator) for k in sorted(PER_CLASS)}
    special = dict(cost=torch.rand(c, c, generator=generator)) | (dict(alpha=.3) if 'gamma' in parameters(fn) else {})
    return {**{k: v for k, v in {**NUMBERS, **per_class, **special}.items() if k in parameters(fn)}, **needed(fn, c)}


def counting(fn, args):
    "Which elements the labels alone leave in"
    shape = fn(*args, **needed(fn, args[0].shape[1]), reduction='none').shape
    target = args[-1]
    return target != -100 if target.shape == shape else torch.ones(shape, dtype=torch.bool)


def permuted_arguments(fn, args, order):
    "Arguments after a permutation of the classes, or of the components of a mixture"
    if fn.__name__ == 'gaussian_mixture_nll_loss': return [*(permuted(o, order) for o in args[:-1]), args[-1]]
    return [permuted(o, order) for o in args]


def permuted(o, order, by_pair=False):
    "Scores, answers, labels or an option after a permutation of the classes; `by_pair` both axes of a matrix"
    if not isinstance(o, torch.Tensor): return o
    if by_pair: return o[order][:, order]
    if o.is_floating_point(): return o[..., order]
    return order.argsort()[o.clamp(min=0)].where(o >= 0, o)
