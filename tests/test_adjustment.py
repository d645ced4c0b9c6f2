"Logit adjustment, balanced softmax and LDAM against the papers' formulas in plain Python and numpy, degenerate input, transforms, wrong calls"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import REDUCTIONS, TIGHT, grid, make_logits, make_target, oracle, value_and_grad
from torch.func import grad, jvp, vmap

from losslab import adjustment as a

double = dict(dtype=torch.float64)
COUNTS = torch.tensor([700, 200, 90, 10])
PRIOR = torch.tensor([.7, .2, .09, .01], **double)
W = torch.tensor([.5, 2., 1., 1.5], **double)
LAYOUTS = [((4,), 1), ((5, 4), 1), ((2, 4, 3), 1), ((2, 3, 4), -1), ((4, 5), 0)]
KINDS = 'index', 'onehot', 'bool', 'shares'
INF, NAN = math.inf, math.nan


def close(a, b, **kw): torch.testing.assert_close(a, b, **(kw or TIGHT))
def axis_of(shape, dim): return 0 if len(shape) == 1 else dim % len(shape)
def as_rows(values, shape, dim): return values.view([4 if i == axis_of(shape, dim) else 1 for i in range(len(shape))])


def la(z, y, **kw): return a.logit_adjusted_loss(z, y, prior=PRIOR, **kw)
def bs(z, y, **kw): return a.balanced_softmax_loss(z, y, counts=COUNTS, **kw)
def ldam(z, y, **kw): return a.ldam_loss(z, y, counts=COUNTS, **kw)
def binary(z, y, **kw): return a.binary_logit_adjusted_loss(z, y, prior=.1, **kw)


LOSSES = {'logit_adjusted': la, 'balanced_softmax': bs, 'ldam': ldam}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape,dim', LAYOUTS)
def test_logit_adjusted_against_the_oracle(shape, dim, kind):
    "Value and gradient for every reduction, weight, mask, smoothing and tau: plain Python floats on moved logits"
    logits, target = make_logits(shape), make_target(kind, shape, dim)
    elements = logits.select(axis_of(shape, dim), 0).shape
    s, m = torch.rand(elements, **double) + .5, torch.rand(elements) < .7
    for o in grid(reduction=REDUCTIONS, weight=(None, W), label_smoothing=(0., .1), mask=(None, m)):
        o['sample_weight'] = None if o['mask'] is None else s
        for tau in (.7,) if o['label_smoothing'] else (0., 2.5):
            moved = logits + as_rows(tau*PRIOR.log(), shape, dim)
            value, g = value_and_grad(lambda z: la(z, target, tau=tau, dim=dim, **o), logits)
            expected = oracle(moved, target, dim=dim, **o)
            close(value, expected[0].to(value))
            if o['reduction'] == 'none': continue
            close(g, expected[-1].to(g))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape,dim', LAYOUTS)
def test_ldam_against_the_oracle(shape, dim, kind):
    "The margin of the label leaves its logit, then everything is multiplied, then cross entropy"
    logits, target = make_logits(shape).tanh(), make_target(kind, shape, dim)
    axis = axis_of(shape, dim)
    share = target if kind != 'index' else F.one_hot(target, 4).movedim(-1, axis)
    delta = torch.tensor(.4*(10/COUNTS.numpy())**.25)
    lowered = 7.*(logits - share.double()*as_rows(delta, shape, dim))
    for o in grid(reduction=REDUCTIONS, weight=(None, W), label_smoothing=(0., .1)):
        value, g = value_and_grad(lambda z: ldam(z, target, max_margin=.4, scale=7., dim=dim, **o), logits)
        expected = oracle(lowered, target, dim=dim, **o)
        close(value, expected[0].to(value))
        if o['reduction'] != 'none': close(g, 7.*expected[-1].to(g))


def papers_ldam(z, y, counts, max_m, s, weight):
    "As the paper's authors compute it, in numpy"
    m = 1/np.sqrt(np.sqrt(counts))
    m = m*(max_m/m.max())
    z = z.copy()
    z[np.arange(len(y)), y] -= m[y]
    z = s*z
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    each = -log_p[np.arange(len(y)), y]*weight[y]
    return each.sum()/weight[y].sum()


def papers_weights(counts, beta):
    w = (1 - beta)/(1 - np.power(beta, counts.astype(float)))
    return w/w.sum()*len(counts)


def test_ldam_with_deferred_weights_of_the_paper():
    z, y = make_logits((50, 4)).tanh(), make_target('index', (50, 4), 1)
    n = COUNTS.numpy()
    for epoch, beta in (0, 0.), (159, 0.), (160, .9999), (199, .9999):
        ours = a.ldam_loss(z, y, counts=COUNTS, weight=a.deferred_weights(COUNTS.double(), epoch, start=160))
        close(ours, torch.tensor(papers_ldam(z.numpy(), y.numpy(), n, .5, 30, papers_weights(n, beta))), rtol=1e-9, atol=0)


def test_balanced_softmax_of_the_paper():
    "Each exponential times its count, and the same as logit adjustment with tau 1, whatever the scale of the counts"
    z, y = make_logits((50, 4)), make_target('index', (50, 4), 1)
    weighted = COUNTS*z.exp()
    expected = -(weighted[range(50), y]/weighted.sum(1)).log()
    for counts in COUNTS, COUNTS.int(), COUNTS.double()*1e-3, COUNTS.double()*1e6:
        close(a.balanced_softmax_loss(z, y, counts=counts, reduction='none'), expected)
    close(bs(z, y, reduction='none'), la(z, y, reduction='none'))
    close(bs(z.T, y, dim=0), bs(z, y))
    close(bs(z.view(5, 10, 4), y.view(5, 10), dim=-1), bs(z, y))
    for o in grid(reduction=REDUCTIONS, weight=(None, W), label_smoothing=(0., .2)): close(bs(z, y, **o), la(z, y, **o))


@pytest.mark.parametrize('prior', [.1, .9, torch.tensor(.3, **double), torch.tensor([.1, .5, .9, .01], **double), torch.linspace(.1, .9, 5, **double)[:, None]], ids=['rare', 'common', 'tensor', 'per class', 'per row'])
def test_binary_against_two_classes(prior):
    "One logit is the difference of two; pos_weight, weight, masks and smoothing are those of binary cross entropy"
    z, y = torch.randn(5, 4, **double), torch.randint(2, (5, 4))
    p = torch.as_tensor(prior, **double).expand(5, 4)
    for tau in 0., 1., .4:
        ours = a.binary_logit_adjusted_loss(z, y, prior=prior, tau=tau, reduction='none')
        two = [a.logit_adjusted_loss(torch.tensor([[0., z[i, j]]], **double), y[i, j][None], tau=tau, prior=torch.stack([1 - p[i, j], p[i, j]])) for i in range(5) for j in range(4)]
        close(ours.flatten(), torch.stack(two))
        moved, w = z + tau*(p.log() - (1-p).log()), torch.rand(4, **double)
        options = dict(weight=w, pos_weight=2*w, sample_weight=torch.rand(5, 4, **double), mask=torch.rand(5, 4) < .7, label_smoothing=.1)
        soft = y.double()*(1-.1) + .05
        each = options['sample_weight']*w*-(2*w*soft*F.logsigmoid(moved) + (1-soft)*F.logsigmoid(-moved))
        kept = (options['mask']*options['sample_weight']).sum()
        close(a.binary_logit_adjusted_loss(z, y, prior=prior, tau=tau, **options), (each*options['mask']).sum()/kept)
    ignored = y.clone()
    ignored[0, 1], ignored[2, 2] = -1, 7
    close(a.binary_logit_adjusted_loss(z, ignored, prior=prior, ignore_index=(-1, 7), normalizer=3.),
          a.binary_logit_adjusted_loss(z, y, prior=prior, mask=(ignored == y), reduction='sum')/3)


def test_post_hoc_is_the_inverse():
    z = make_logits((3, 4, 2))
    for tau in 0., .5, 1.:
        up, down = a.add_prior(z, PRIOR, tau=tau), a.subtract_prior(z, PRIOR, tau=tau)
        close(up, z + tau*PRIOR.log()[:, None])
        close(down, z - tau*PRIOR.log()[:, None])
    close(a.subtract_prior(a.add_prior(z.movedim(1, -1), PRIOR, dim=-1), PRIOR, dim=-1), z.movedim(1, -1))
    close(a.add_prior(z[0, :, 0], PRIOR), z[0, :, 0] + PRIOR.log())


def test_the_minimum_is_the_likelihood():
    "Trained to the end on a table of counts, the scores are log p(x|y), and their argmax the best balanced answer"
    seen = torch.tensor([[600., 10, 1], [250, 30, 2], [45, 42, 3], [5, 8, 4]], **double)
    z = torch.zeros(4, 3, **double, requires_grad=True)
    opt = torch.optim.LBFGS([z], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn='strong_wolfe')
    shares, prior = seen/seen.sum(1, keepdim=True), seen.sum(0)/seen.sum()

    def closure():
        opt.zero_grad()
        loss = a.logit_adjusted_loss(z, shares, prior=prior, sample_weight=seen.sum(1))
        loss.backward()
        return loss
    opt.step(closure)
    close(z.detach().softmax(1), (seen/seen.sum(0)).div((seen/seen.sum(0)).sum(1, keepdim=True)), rtol=0, atol=1e-4)


@pytest.mark.parametrize('fn', LOSSES.values(), ids=LOSSES)
def test_labels_that_do_not_count(fn):
    "Ignored (several), masked, weight 0: out of value, count and gradient, also beside NaN; nothing left gives 0"
    z, y = make_logits((6, 4)), torch.tensor([0, 1, 2, 3, 1, 0])
    keep = torch.tensor([True, False, True, False, False, True])
    marked = y.masked_fill(~keep, -100)
    marked[3] = 255
    expected = fn(z[keep], y[keep])
    broken = z.clone()
    broken[~keep] = torch.tensor([[NAN]*4, [INF, 0, -INF, 1], [-INF]*4], **double)
    for target, options in (marked, dict(ignore_index=(-100, 255))), (y, dict(mask=keep)), (y, dict(mask=keep, label_smoothing=.1)):
        value, g = value_and_grad(lambda z: fn(z, target, **options), broken)
        if 'label_smoothing' not in options: close(value, expected)
        assert (g[~keep] == 0).all() and g.isfinite().all() and (g[keep] != 0).any(1).all()
    close(fn(broken, y, sample_weight=keep.double()), expected)
    close(fn(z, y.masked_fill(~keep, 99), mask=keep), expected)
    assert fn(z, torch.full((6,), -100)) == 0 and fn(z[:0], y[:0]) == 0
    total, count = fn(z, y, mask=keep, reduction='parts')
    close(total/count, expected)
    close(fn(z, y, mask=keep, normalizer=2.), total/2)


@pytest.mark.parametrize('size', [1e4, 1e30])
@pytest.mark.parametrize('fn', LOSSES.values(), ids=LOSSES)
def test_large_logits_and_impossible_classes(fn, size):
    z = (torch.tensor([[1., -1, 0, .5], [-1, 1, 1, -1], [0, 0, 0, 1]])*size).requires_grad_()
    value = fn(z, torch.tensor([1, 1, 3]), reduction='none')
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), z)[0].isfinite().all()
    z = make_logits((3, 4))
    z[:, 2] = -INF
    z.requires_grad_()
    for smoothing in 0., .2:
        value = fn(z, torch.tensor([1, 1, 3]), label_smoothing=smoothing)
        g, = torch.autograd.grad(value, z)
        assert value.isfinite() and g.isfinite().all() and (g[:, 2] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('fn', [*LOSSES.values(), binary], ids=[*LOSSES, 'binary'])
def test_half(fn, dtype):
    "Computed and returned in float32, gradients in the dtype of the logits"
    z = torch.randn(5, 4).to(dtype).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0]) if fn is not binary else torch.randint(2, (5, 4))
    value = fn(z, y, reduction='none')
    assert value.dtype == torch.float32 and torch.autograd.grad(value.sum(), z)[0].dtype == dtype
    close(value, fn(z.detach().double(), y, reduction='none').float(), rtol=1e-5, atol=1e-5)


def test_precision_of_the_prior():
    "A float64 prior moves float32 logits by its own logarithm, counts do not round in float64, a half prior is read"
    tiny = torch.tensor([1 - 1e-60, 1e-60], **double)
    close(a.add_prior(torch.zeros(1, 2), tiny), torch.tensor([[0., -60*math.log(10)]]), rtol=1e-6, atol=1e-6)
    z, y = make_logits((5, 4)), make_target('index', (5, 4), 1)
    counts = torch.tensor([123456789, 7, 3, 999])
    close(a.balanced_softmax_loss(z, y, counts=counts), a.logit_adjusted_loss(z, y, prior=a.class_priors(counts.double())))
    assert a.class_priors(counts).dtype == torch.float32 and a.class_priors(counts.double()).dtype == torch.float64
    assert a.add_prior(torch.zeros(1, 4).bfloat16(), PRIOR.bfloat16()).dtype == torch.float32
    close(a.add_prior(torch.zeros(4), PRIOR.half()), PRIOR.half().float().log(), rtol=1e-6, atol=1e-6)
    many = torch.full((1000,), 1/1000)
    assert a.add_prior(torch.zeros(1, 1000), many.bfloat16()).isfinite().all()


def test_a_class_with_prior_0():
    "Deleted, in both directions; as if it were not there, for value and gradient; back with pseudo_count and with tau=0"
    prior, z, y = torch.tensor([.8, .2, 0.], **double), torch.randn(5, 3, **double), torch.tensor([0, 1, 1, 0, 1])
    for o in grid(label_smoothing=(0., .3), reduction=('none', 'mean'), weight=(None, W[:3])):
        value, g = value_and_grad(lambda z: a.logit_adjusted_loss(z, y, prior=prior, **o), z)
        two = {**o, 'weight': None if o['weight'] is None else W[:2]}
        expected, ge = value_and_grad(lambda z: a.logit_adjusted_loss(z, y, prior=prior[:2], **two), z[:, :2])
        close(value, expected)
        close(g, F.pad(ge, (0, 1)))
    for fn in a.add_prior, a.subtract_prior:
        assert (fn(z, prior)[:, 2] == -INF).all() and fn(z, prior)[:, :2].isfinite().all()
        close(fn(z, prior, tau=0.), z)
        close(fn(z, prior, tau=torch.tensor(0.)), z)
    assert a.logit_adjusted_loss(z, torch.tensor([2]*5), prior=prior) == INF
    zero = torch.tensor([80, 20, 0])
    close(a.balanced_softmax_loss(z, y, counts=zero), a.logit_adjusted_loss(z, y, prior=prior))
    close(a.class_priors(zero, pseudo_count=1.), torch.tensor([81, 21, 1])/103, rtol=1e-6, atol=0)
    close(a.ldam_loss(z, y, counts=zero), a.ldam_loss(z, y, counts=torch.tensor([80, 20, 20])))


def test_gradients_reach_tau_prior_and_scale():
    "Also with a class of prior 0 and rows that do not count"
    z, y = torch.randn(4, 3, **double).requires_grad_(), torch.tensor([0, 1, -100, 1])
    tau, scale = torch.tensor(.7, **double, requires_grad=True), torch.tensor([4.], **double, requires_grad=True)
    free = torch.tensor([.3, .5, .2], **double).log().requires_grad_()
    torch.autograd.gradcheck(lambda z, t, p: a.logit_adjusted_loss(z, y, prior=p.softmax(0), tau=t), (z, tau, free))
    torch.autograd.gradcheck(lambda z, t: a.logit_adjusted_loss(z, y, prior=torch.tensor([.8, .2, 0.], **double), tau=t), (z, tau))
    torch.autograd.gradcheck(lambda z, s: a.ldam_loss(z, y, counts=COUNTS[:3], scale=s), (z, scale))
    torch.autograd.gradcheck(lambda z, t: a.subtract_prior(z, PRIOR[:3]/PRIOR[:3].sum(), tau=t), (z, tau))
    torch.autograd.gradcheck(lambda z, t, p: a.binary_logit_adjusted_loss(z, (y == 1)[:, None].expand(4, 3), prior=p.sigmoid(), tau=t), (z, tau, free))


@pytest.mark.parametrize('kind', ['index', 'shares'])
@pytest.mark.parametrize('fn', LOSSES.values(), ids=LOSSES)
def test_transforms(fn, kind):
    "Double backward, grad, jvp, vmap and compile"
    z, y = make_logits((5, 4)), make_target(kind, (5, 4), 1)
    options = dict(weight=W, label_smoothing=.1, mask=torch.tensor([True]*4 + [False]))
    torch.autograd.gradgradcheck(lambda z: fn(z, y, **options), z.requires_grad_())
    z = z.detach()
    plain = lambda z: fn(z, y, **options)
    value, g = value_and_grad(plain, z)
    close(grad(plain)(z), g)
    close(jvp(plain, (z,), (g,))[1], (g*g).sum())
    zs = torch.stack([z, z.flip(0)])
    close(vmap(plain)(zs), torch.stack([plain(o) for o in zs]))
    ys = torch.stack([y, y.flip(0)])
    close(vmap(lambda z, y: fn(z, y))(zs, ys), torch.stack([fn(z, y) for z, y in zip(zs, ys)]))
    torch._dynamo.reset()
    close(torch.compile(plain, fullgraph=True, backend='eager')(z), value)


def test_transforms_of_the_binary_form():
    z, y = torch.randn(5, 4, **double), torch.randint(2, (5, 4))
    plain = lambda z: a.binary_logit_adjusted_loss(z, y, prior=PRIOR, weight=W)
    value, g = value_and_grad(plain, z)
    close(grad(plain)(z), g)
    torch.autograd.gradgradcheck(plain, z.clone().requires_grad_())
    close(vmap(plain)(torch.stack([z, -z])), torch.stack([plain(z), plain(-z)]))
    torch._dynamo.reset()
    close(torch.compile(plain, fullgraph=True, backend='eager')(z), value)
    torch._dynamo.reset()
    close(torch.compile(lambda z: binary(z, y), fullgraph=True, backend='eager')(z), binary(z, y))


def test_priors_and_margins_by_hand():
    close(a.class_priors(torch.tensor([3., 0., 1.], **double)), torch.tensor([.75, 0., .25], **double))
    close(a.class_priors(torch.tensor([0, 0]), pseudo_count=2.), torch.tensor([.5, .5]))
    close(a.ldam_margins(torch.tensor([160_000., 10_000., 16., 0.], **double), max_margin=.8), torch.tensor([.08, .16, .8, .8], **double))
    assert (a.ldam_margins(COUNTS, max_margin=0.) == 0).all() and a.ldam_margins(COUNTS).argmax() == 3


def test_deferred_weights():
    n = torch.tensor([5000, 50, 5])
    assert (a.deferred_weights(n, 0, start=1) == 1).all() and (a.deferred_weights(n, .9, start=1) == 1).all()
    for beta in 0., .9, .999, .9999, 1 - 1e-9:
        close(a.deferred_weights(n.double(), 7, start=7, beta=beta).numpy(), papers_weights(n.numpy(), beta), rtol=1e-6, atol=0)
    close(a.deferred_weights(n.double(), 7, start=0, beta=1.), (1/n.double())/(1/n.double()).mean())
    assert a.deferred_weights(n, 0, start=0).dtype == a.deferred_weights(n, 0, start=9).dtype == torch.float32


@pytest.mark.parametrize('call,error,text', [
    (lambda: a.logit_adjusted_loss(torch.zeros(2, 4), torch.zeros(2).long(), prior=COUNTS), TypeError, r'prior has dtype torch.int64; .*class_priors\(counts\)'),
    (lambda: a.logit_adjusted_loss(torch.zeros(2, 4), torch.zeros(2).long(), prior=[.5, .5]), TypeError, 'prior is a list'),
    (lambda: a.logit_adjusted_loss(torch.zeros(2, 4), torch.zeros(2).long(), prior=PRIOR*2), ValueError, 'shares that sum to 1'),
    (lambda: a.add_prior(torch.zeros(2, 4), torch.tensor([1.5, -.5, 0., 0.])), ValueError, 'shares that sum to 1'),
    (lambda: a.add_prior(torch.zeros(2, 4), torch.tensor([NAN, .5, .5, 0.])), ValueError, 'shares that sum to 1'),
    (lambda: a.subtract_prior(torch.zeros(2, 4), PRIOR[:3]), ValueError, r'prior has shape \(3,\), but there are 4 classes'),
    (lambda: a.subtract_prior(torch.zeros(2, 4), PRIOR[None]), ValueError, r'prior has shape \(1, 4\)'),
    (lambda: a.add_prior(torch.zeros(2, 4), PRIOR, tau=-.5), ValueError, 'tau is -0.5; it must be at least 0'),
    (lambda: a.add_prior(torch.zeros(2, 4), PRIOR, tau=PRIOR), ValueError, r'tau has shape \(4,\); it must be one number'),
    (lambda: a.add_prior(torch.zeros(2, 4).long(), PRIOR), TypeError, 'logits has dtype torch.int64'),
    (lambda: a.balanced_softmax_loss(torch.zeros(2, 4), torch.zeros(2).long(), counts=COUNTS[:2]), ValueError, r'counts has shape \(2,\), but there are 4 classes'),
    (lambda: a.balanced_softmax_loss(torch.zeros(2, 4), torch.zeros(2).long(), counts=COUNTS*0), ValueError, 'counts are all 0'),
    (lambda: a.ldam_loss(torch.zeros(2, 4), torch.zeros(2).long(), counts=COUNTS[:2]), ValueError, r'counts has shape \(2,\), but there are 4 classes'),
    (lambda: a.ldam_loss(torch.zeros(2, 4), torch.zeros(2).long(), counts=COUNTS, scale=0), ValueError, 'scale is 0; it must be larger than 0'),
    (lambda: a.ldam_loss(torch.zeros(2, 4), torch.zeros(2).long(), counts=COUNTS, max_margin=-1), ValueError, 'max_margin is -1'),
    (lambda: a.ldam_loss(torch.zeros(2, 4), torch.tensor([0, 4]), counts=COUNTS), ValueError, r'target\[1\] is 4'),
    (lambda: la(torch.zeros(1, 5, 4), torch.zeros(5).long()), ValueError, r'target has shape \(5,\), but logits of shape \(1, 5, 4\)'),
    (lambda: bs(torch.zeros(1, 5, 4), torch.zeros(5).long()), ValueError, r'target has shape \(5,\), but logits of shape \(1, 5, 4\)'),
    (lambda: a.class_priors([1, 2]), TypeError, 'counts is a list'), (lambda: a.class_priors(torch.tensor([True])), TypeError, 'counts has dtype torch.bool'),
    (lambda: a.class_priors(torch.tensor([1., INF])), ValueError, 'it must be 0 or more, and finite'), (lambda: a.class_priors(torch.tensor(3)), ValueError, r'counts has shape \(\)'),
    (lambda: a.class_priors(torch.tensor([])), ValueError, r'counts has shape \(0,\)'), (lambda: a.class_priors(COUNTS, pseudo_count=-1), ValueError, 'pseudo_count is -1'),
    (lambda: a.ldam_margins(COUNTS*0), ValueError, 'counts are all 0'),
    (lambda: a.ldam_margins(torch.tensor([1, -1])), ValueError, 'it must be 0 or more'),
    (lambda: a.deferred_weights(COUNTS, -1, start=0), ValueError, 'epoch is -1'), (lambda: a.deferred_weights(COUNTS, 1, start=-2), ValueError, 'start is -2'),
    (lambda: a.deferred_weights(COUNTS, 1, start=0, beta=2), ValueError, 'beta is 2'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=1.), ValueError, 'both excluded'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=torch.tensor([.5, 0.])), ValueError, 'both excluded'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=1.5), ValueError, 'prior is 1.5; it must be between 0 and 1'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=torch.tensor([1, 2])), TypeError, 'prior is torch.int64'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=torch.rand(3)*.5 + .1), ValueError, r'prior has shape \(3,\), which does not expand'),
    (lambda: a.binary_logit_adjusted_loss(torch.zeros(2), torch.zeros(2), prior=.5, tau=-1), ValueError, 'tau is -1'),
])
def test_wrong_calls(call, error, text):
    with pytest.raises(error, match=text): call()


def test_modules():
    "Tensors become buffers that move with the module; a call may override"
    z, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    for cls, options in (a.LogitAdjustedLoss, dict(prior=PRIOR.float())), (a.BalancedSoftmaxLoss, dict(counts=COUNTS)), (a.LDAMLoss, dict(counts=COUNTS)):
        module = cls(**options)
        close(module(z, y), cls.fn(z, y, **options))
        assert next(iter(options)) in module.state_dict()
        with pytest.raises(TypeError, match=f'{cls.__name__} needs {next(iter(options))}='): cls()
    close(a.BinaryLogitAdjustedLoss(prior=.2)(z, (z > 0), tau=.5), a.binary_logit_adjusted_loss(z, (z > 0), prior=.2, tau=.5))
    close(a.LDAMLoss(counts=COUNTS)(z, y, weight=W.float()), a.ldam_loss(z, y, counts=COUNTS, weight=W.float()))
    close(a.BalancedSoftmaxLoss(counts=COUNTS).half()(z, y), a.balanced_softmax_loss(z, y, counts=COUNTS))
