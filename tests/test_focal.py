"Focal losses against mpmath, cross entropy and slow formulas: values, gradients at any logit, weights, masks, transforms"
import math

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from oracle import REDUCTIONS, assert_same, grid, make_target, value_and_grad

import losslab as ll
from losslab.core import implements
from losslab.focal import answer_weights, focal_loss, focused, sigmoid_focal_loss, split_log_probs

GAMMAS = 0, .3, 1, 2, 5
W = torch.tensor([.5, 2., .25, 1.5], dtype=torch.float64)
ROWS = [[0., 0, 0], [.1, -.2, .3], [5, 0, -1], [40, 0, 1], [37, 37, 0], [300, 0, 0], [-300, 1, 2], [1e4, 0, -3], [-1e4, 1e4, 1e4], [1e4, -1e4, 0], [-1e4, 0, 1e4]]
SCORES = [0., .5, -.5, 5, -5, 17, -17, 40, -40, 300, -300, 1e4, -1e4]
double = dict(dtype=torch.float64)


def exact(z, y, gamma):
    "Value and gradient of one row in 60 digits: everything from the shares that are left, so that nothing is subtracted from 1"
    with mp.workdps(60):
        e = [mp.exp(mp.mpf(o)) for o in z]
        total, left = mp.fsum(e), mp.fsum(e[:y] + e[y+1:])
        p, r = e[y]/total, left/total
        log_p = mp.log1p(-r) if r < .5 else mp.log(p)
        focus = mp.mpf(1) if gamma == 0 else r**mp.mpf(gamma)
        slope = focus/r*(r - (gamma*p*log_p if gamma else 0))  # minus the derivative in the own logit, over 1-p
        others = [o/left for o in e]
        return float(-focus*log_p), [float(-slope*r if j == y else slope*r*others[j]) for j in range(len(z))]


@pytest.mark.parametrize('gamma', GAMMAS)
def test_classes_equal_60_digits(gamma):
    "Values and gradients up to 1e4, with all their digits where the formula keeps them (at gamma = 0 it is cross entropy, to float64)"
    for row in ROWS:
        for y in range(3):
            value, grad = value_and_grad(lambda z, y=y: focal_loss(z, torch.tensor([y]), gamma=gamma, reduction='sum'), torch.tensor([row], **double))
            v, g = exact(row, y, gamma)
            tight = dict(rtol=1e-10, atol=1e-15 if gamma == 0 else 1e-300)
            torch.testing.assert_close(value, torch.tensor(v, **double), **tight)
            torch.testing.assert_close(grad[0], torch.tensor(g, **double), **tight | dict(atol=1e-15 if gamma == 0 else 1e-200))


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('yes', [0, 1])
def test_answers_equal_60_digits(gamma, yes):
    "One question is a row of two classes"
    for s in SCORES:
        z = torch.tensor([s], **double)
        value, grad = value_and_grad(lambda z: sigmoid_focal_loss(z, torch.tensor([yes]), alpha=None, gamma=gamma, reduction='sum'), z)
        v, g = exact([0., s], yes, gamma)
        torch.testing.assert_close(value, torch.tensor(v, **double), rtol=1e-10, atol=1e-300)
        torch.testing.assert_close(grad[0], torch.tensor(g[1], **double), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize('dtype,size', [(torch.float16, 6e4), (torch.bfloat16, 1e30), (torch.float32, 1e30), (torch.float64, 1e300)])
@pytest.mark.parametrize('gamma', GAMMAS)
def test_any_finite_logit(gamma, dtype, size):
    "Finite values and gradients, in float32 for half precision, gradients in the dtype of the logits"
    z = torch.tensor([[1., -1, 0, .5], [-1, 1, 1, -1], [0, 0, 0, 1], [1, 1, 1, 1]], **double).mul(size).to(dtype)
    y = torch.tensor([1, 1, 0, 2])
    for target in y, F.one_hot(y, 4).float():
        for o in grid(label_smoothing=(0., .1), weight=(None, W), alpha=(None, W)):
            value, grad = value_and_grad(lambda z: focal_loss(z, target, gamma=gamma, **o), z)
            assert value.isfinite() and grad.isfinite().all() and grad.dtype == dtype
            assert value.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
    for target in torch.zeros_like(z), torch.ones_like(z), torch.full_like(z, .3):
        value, grad = value_and_grad(lambda z: sigmoid_focal_loss(z, target, gamma=gamma, label_smoothing=.1), z)
        assert value.isfinite() and grad.isfinite().all() and grad.dtype == dtype


@pytest.mark.parametrize('kind', ['index', 'onehot', 'bool', 'shares'])
@pytest.mark.parametrize('shape,dim', [((4,), 1), ((5, 4), 1), ((2, 3, 4), -1), ((2, 4, 3, 2), 1)])
def test_gamma_0_is_cross_entropy(shape, dim, kind):
    "Under every weight, mask, smoothing and reduction, in value and gradient; `alpha` is a weight that only one mean counts"
    z = torch.randn(shape, **double)
    target = make_target(kind, shape, dim, (-100,) if kind == 'index' and len(shape) > 1 else ())
    size = z.select(0 if len(shape) == 1 else dim, 0).shape
    rows = dict(mask=torch.rand(size) < .7, sample_weight=torch.rand(size, **double))
    for o in grid(weight=(None, W), label_smoothing=(0., .2), rows=({}, rows), reduction=REDUCTIONS, temperature=(1., 2.)):
        o |= dict(dim=dim) | o.pop('rows')
        got, expected = (value_and_grad(lambda z, fn=fn, o=o: fn(z, target, **o), z) for fn in (lambda *a, **k: focal_loss(*a, gamma=0, **k), ll.cross_entropy))
        assert_same(got, expected, o)
        parts = focal_loss(z, target, gamma=0, **o | dict(reduction='parts')), ll.cross_entropy(z, target, **o | dict(reduction='parts'))
        assert_same(*parts, o)
        if o['weight'] is None:
            by_class = focal_loss(z, target, gamma=0, alpha=W, **o)
            values = ll.cross_entropy(z, target, **o | dict(weight=W))
            if o['reduction'] in ('none', 'sum', 'weighted_mean', 'batchmean', 'element_mean'): torch.testing.assert_close(by_class, values)
            else: torch.testing.assert_close(by_class, ll.cross_entropy(z, target, **o | dict(weight=W, reduction='sum'))/parts[0].count.clamp(min=1e-300))
            torch.testing.assert_close(focal_loss(z, target, gamma=0, alpha=3., **o), ll.cross_entropy(z, target, **o)*(1 if o['reduction'] == 'weighted_mean' else 3))


def test_gamma_0_is_binary_cross_entropy():
    "Under every weight, mask, smoothing and reduction; alpha is a pos_weight and a factor"
    z, y = torch.randn(6, 4, **double), torch.rand(6, 4, **double)
    for target in y, y.round(), torch.where(y < .2, -100., y.round()):
        for o in grid(weight=(None, W), pos_weight=(None, W.flip(0)), label_smoothing=(0., .2), sample_weight=(None, torch.rand(6, 4, **double)),
                      mask=(None, y > .3), reduction=(*REDUCTIONS, 'parts'), temperature=(1., 2.)):
            fn = lambda z, loss, **k: (r := loss(z, target, **o | k), r.total/2 + r.count/3 if o['reduction'] == 'parts' else r)[1]
            got = value_and_grad(lambda z: fn(z, sigmoid_focal_loss, alpha=None, gamma=0), z)
            assert_same(got, value_and_grad(lambda z: fn(z, ll.binary_cross_entropy_with_logits), z), o)
    bce = ll.binary_cross_entropy_with_logits
    for r in REDUCTIONS:
        pos = torch.tensor(.3/.7, **double)
        expected = bce(z, y, pos_weight=pos, reduction=r)*(1 if r == 'weighted_mean' else .7)
        for alpha in .3, torch.tensor(.3), torch.full((4,), .3): torch.testing.assert_close(sigmoid_focal_loss(z, y, alpha=alpha, gamma=0, reduction=r), expected, rtol=1e-6, atol=0)


def slow(z, q, gamma, alpha, weight):
    "The focal loss of one row in plain floats"
    top = max(z)
    e = [math.exp(o - top) for o in z]
    p = [o/sum(e) for o in e]
    return -sum(a*w*s*(1-o)**gamma*math.log(o) for a, w, s, o in zip(alpha, weight, q, p) if s)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_values_and_means(gamma):
    "Per element by plain floats; what each mean divides by, with weights, alpha, soft labels, sample weights and ignored labels"
    z, s = torch.randn(6, 4, **double), torch.rand(6, **double)
    y, alpha = torch.tensor([0, 1, -100, 3, 3, 2]), torch.tensor([.2, .4, 3., .9], **double)
    counts = y >= 0
    soft = torch.rand(6, 4, **double).softmax(1)
    for target, q in (y, F.one_hot(y.clamp(min=0), 4).double()), (soft, soft):
        c = counts if target is y else torch.ones(6, dtype=torch.bool)
        each = torch.tensor([slow(a, b, gamma, alpha.tolist(), W.tolist()) for a, b in zip(z.tolist(), q.tolist())], **double)*c
        opts = dict(gamma=gamma, alpha=alpha, weight=W)
        torch.testing.assert_close(focal_loss(z, target, reduction='none', **opts), each)
        total, carried = (s*each).sum(), (q*W).sum(1)
        of_mean = (s*carried)[c].sum() if target is y else s.sum()
        expected = dict(sum=1, mean=of_mean, weighted_mean=(s*(q*W*alpha).sum(1))[c].sum(), element_mean=c.sum(), batchmean=6)
        for r, count in expected.items(): torch.testing.assert_close(focal_loss(z, target, sample_weight=s, reduction=r, **opts), total/count)
        assert focal_loss(z, target, normalizer=7, **opts).isclose(each.sum()/7)
    a, b = focal_loss(z[:2], y[:2], reduction='parts', **opts), focal_loss(z[2:], y[2:], reduction='parts', **opts)
    torch.testing.assert_close((a + b).mean, focal_loss(z, y, **opts))


@pytest.mark.parametrize('gamma', GAMMAS)
def test_answers_and_means(gamma):
    "alpha and the weights multiply values; only `weighted_mean` counts them"
    z, y, pos, w = torch.randn(5, 3, **double), torch.rand(5, 3, **double), torch.tensor([1., 2., 3.], **double), torch.tensor([[.5], [1], [2], [3], [1]], **double)
    p, a = z.sigmoid(), torch.tensor([.2, .5, .9], **double)
    yes, no = a*pos*y, (1-a)*(1-y)
    each = -w*(yes*(1-p)**gamma*p.log() + no*p**gamma*(1-p).log())
    opts = dict(alpha=a, gamma=gamma, pos_weight=pos, weight=w)
    torch.testing.assert_close(sigmoid_focal_loss(z, y, reduction='none', **opts), each)
    torch.testing.assert_close(sigmoid_focal_loss(z, y, **opts), each.mean())
    torch.testing.assert_close(sigmoid_focal_loss(z, y, reduction='weighted_mean', **opts), each.sum()/(w*(yes + no)).sum())
    torch.testing.assert_close(sigmoid_focal_loss(z, y, reduction='batchmean', **opts), each.sum()/5)
    keep, s = torch.rand(5, 3) < .5, torch.rand(5, 3, **double)
    got = sigmoid_focal_loss(z.where(keep, torch.nan).requires_grad_(), y.where(keep, 9.), mask=keep, sample_weight=s, **opts)
    torch.testing.assert_close(got, (s*each)[keep].sum()/s[keep].sum())
    torch.testing.assert_close(sigmoid_focal_loss(z, y, label_smoothing=.2, **opts), sigmoid_focal_loss(z, .8*y + .1, **opts))
    torch.testing.assert_close(sigmoid_focal_loss(z, y, temperature=3., **opts), sigmoid_focal_loss(z/3, y, **opts))


def torchvision_formula(inputs, targets, alpha=.25, gamma=2., reduction='none'):
    "torchvision.ops.sigmoid_focal_loss, from its documentation and the paper"
    p = torch.sigmoid(inputs)
    p_t = torch.where(targets == 1, p, 1 - p)
    loss = (1 - p_t)**gamma*F.binary_cross_entropy_with_logits(inputs, targets, reduction='none')
    if alpha >= 0: loss = loss*(alpha*targets + (1 - alpha)*(1 - targets))
    return {'none': loss, 'mean': loss.mean(), 'sum': loss.sum()}[reduction]


@pytest.mark.parametrize('alpha', [-1, 0., .25, .58, 1.])
@pytest.mark.parametrize('gamma', [0, .5, 2, 3])
def test_torchvision(gamma, alpha):
    "Its ranges of probabilities, near 0, near 1 and between, with answers no, yes and both; value and gradient"
    for low, high in (0., .2), (.8, 1.), (0., 1.):
        z = (torch.rand(20, 3, **double)*(high - low) + low).clamp(1e-4, 1-1e-4).logit()
        for y in torch.zeros_like(z), torch.ones_like(z), torch.rand_like(z).round():
            for r in 'none', 'mean', 'sum':
                got, expected = (value_and_grad(lambda z, fn=fn: fn(z, y, alpha=alpha, gamma=gamma, reduction=r), z) for fn in (sigmoid_focal_loss, torchvision_formula))
                assert_same(got, expected, rtol=1e-9, atol=1e-14)
                if alpha < 0: torch.testing.assert_close(sigmoid_focal_loss(z, y, alpha=None, gamma=gamma, reduction=r), expected[0])
    assert sigmoid_focal_loss.__kwdefaults__['alpha'] == .25 and sigmoid_focal_loss.__kwdefaults__['gamma'] == 2


@pytest.mark.parametrize('gamma', GAMMAS)
def test_two_classes_are_one_question(gamma):
    "With alpha, class weights and soft labels"
    z, share = torch.randn(9, 2, **double)*20, torch.rand(9, **double)
    for q in share, share.round():
        one = value_and_grad(lambda z: sigmoid_focal_loss(z[:, 1] - z[:, 0], q, alpha=.3, gamma=gamma, pos_weight=torch.tensor(2.), reduction='weighted_mean'), z)
        two = value_and_grad(lambda z: focal_loss(z, torch.stack([1-q, q], 1), alpha=torch.tensor([.7, .3]), weight=torch.tensor([1., 2.]), gamma=gamma, reduction='weighted_mean'), z)
        assert_same(two, one, rtol=1e-6, atol=1e-12)


def test_a_weight_never_changes_the_focus():
    "Doubling a weight doubles the loss"
    z, y = torch.randn(5, 4, **double), torch.tensor([0, 1, 2, 3, 0])
    each = focal_loss(z, y, reduction='none')
    for o in dict(weight=2*torch.ones(4)), dict(alpha=2.), dict(alpha=2*torch.ones(4)), dict(sample_weight=2*torch.ones(5)): torch.testing.assert_close(focal_loss(z, y, reduction='none', **o), 2*each)
    torch.testing.assert_close(sigmoid_focal_loss(z, z > 0, pos_weight=torch.tensor(2.), reduction='none'), sigmoid_focal_loss(z, z > 0, reduction='none')*(1 + (z > 0)))


def test_split_log_probs():
    "Both logarithms to the last digits, whichever class is above one half, on any axis"
    for row in ROWS[:8]:
        lp = torch.tensor(row, **double).log_softmax(0)
        for axis, view in (0, lp), (1, lp[None]), (0, lp[:, None]):
            log_p, log_rest = (o.flatten().tolist() for o in split_log_probs(view, axis))
            for y in range(3):
                with mp.workdps(60):
                    e = [mp.exp(mp.mpf(o)) for o in row]
                    p, rest = e[y]/mp.fsum(e), mp.fsum(e[:y] + e[y+1:])/mp.fsum(e)
                    expected = [float(mp.log1p(-b) if b < .5 else mp.log(a)) for a, b in ((p, rest), (rest, p))]
                assert math.isclose(log_p[y], expected[0], rel_tol=1e-12, abs_tol=1e-300)
                assert math.isclose(log_rest[y], expected[1], rel_tol=1e-12, abs_tol=1e-200)
    z = torch.stack([torch.linspace(1, 6.9, 200), torch.zeros(200)], 1)  # float32: the one above one half has the digits of the others
    for a, b in zip(split_log_probs(z.log_softmax(1), 1), split_log_probs(z.double().log_softmax(1), 1)): torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)
    even = torch.full((3, 2), .5, **double).log()
    torch.testing.assert_close(split_log_probs(even, 1), (even, even))
    many = torch.zeros(1, 30000).log_softmax(1)
    assert torch.equal(split_log_probs(many, 1)[0], many)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_impossible_classes(gamma):
    "-inf is a class that is not there: value, gradient and second derivative; alone, nothing is left to learn; as a label it costs inf"
    z = torch.randn(5, 3, **double)
    wide = F.pad(z, (0, 1), value=-torch.inf)
    y = torch.tensor([0, 1, 2, 0, 1])
    for target in y, F.one_hot(y, 3).double(), torch.rand(5, 3, **double).softmax(1):
        padded = target if target is y else F.pad(target, (0, 1))
        for o in grid(label_smoothing=(0., .2), alpha=(None, W)):
            narrow = o | dict(alpha=None if o['alpha'] is None else W[:3])
            (value, grad), (v, g) = value_and_grad(lambda z: focal_loss(z, padded, gamma=gamma, **o), wide), value_and_grad(lambda z: focal_loss(z, target, gamma=gamma, **narrow), z)
            assert_same((value, grad), (v, F.pad(g, (0, 1))))
        leaf = wide.clone().requires_grad_()
        first, = torch.autograd.grad(focal_loss(leaf, padded, gamma=gamma, label_smoothing=.1), leaf, create_graph=True)
        assert torch.autograd.grad(first[:, 0].sum(), leaf)[0].isfinite().all()
    for one in torch.tensor([[2.]]), torch.tensor([[2., -torch.inf, -torch.inf]]):
        value, grad = value_and_grad(lambda z: focal_loss(z, torch.tensor([0]), gamma=gamma), one)
        assert value == 0 and not grad.any()
    value, grad = value_and_grad(lambda z: focal_loss(z, torch.tensor([3]), gamma=gamma), wide[:1])
    assert value == torch.inf and not grad.isnan().any()
    assert focal_loss(wide[:1], torch.tensor([3]), gamma=gamma, weight=torch.tensor([1., 1, 1, 0]), reduction='sum') == 0
    sure = torch.tensor([torch.inf, -torch.inf])
    value, grad = value_and_grad(lambda z: sigmoid_focal_loss(z, torch.tensor([1., 0.]), gamma=gamma), sure)
    assert value == 0 and not grad.any()
    value, grad = value_and_grad(lambda z: sigmoid_focal_loss(z, torch.tensor([0., 1.]), gamma=gamma, alpha=None, reduction='none'), sure)
    assert value.isinf().all() and not grad.isnan().any()


TRANSFORMS = {'classes': (lambda z, t: focal_loss(z, t, gamma=.5, weight=W, label_smoothing=.1), torch.tensor([0, 1, -100, 3, 2])),
              'shares': (lambda z, t: focal_loss(z, t, gamma=2, alpha=W), torch.tensor([[.5, .5, 0, 0], [0, 1, 0, 0], [.1, .2, .3, .4], [1, 0, 0, 0], [0, 0, 0, 1]], **double)),
              'answers': (lambda z, t: sigmoid_focal_loss(z, t, gamma=.5, pos_weight=W), torch.tensor([[1., 0, .5, 0]]*5, **double))}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms(name):
    "vmap, forward and reverse derivatives, twice, and one graph"
    fn, target = TRANSFORMS[name]
    z = 3*torch.randn(5, 4, **double)
    loss, tangent = lambda z: fn(z, target), torch.randn(5, 4, **double)
    g = torch.func.grad(loss)(z)
    torch.testing.assert_close(torch.func.jvp(loss, (z,), (tangent,))[1], (g*tangent).sum())
    assert torch.autograd.gradgradcheck(loss, z.clone().requires_grad_())
    zs = torch.stack([z, -z, 2*z])
    torch.testing.assert_close(torch.func.vmap(loss)(zs), torch.stack([loss(o) for o in zs]))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(zs), torch.stack([torch.func.grad(loss)(o) for o in zs]))
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend='aot_eager')
    assert_same(value_and_grad(lambda z: compiled(z, target), z), value_and_grad(loss, z))


def test_detached_focus():
    "`focused` can keep gradients away from the weight"
    z = torch.randn(5, **double)
    value, grad = value_and_grad(lambda z: focused(F.logsigmoid(z), F.logsigmoid(-z), 3, detach=True), z)
    torch.testing.assert_close(value, (1-z.sigmoid())**3*z.sigmoid().log())
    torch.testing.assert_close(grad, (1-z.sigmoid())**4*torch.linspace(1, 2, 5, **double))


def test_another_implementation_serves():
    "The functions ask the registry, with the arguments of the reference"
    from losslab import core
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for name, call in ('focal_loss', lambda: focal_loss(z, y)), ('sigmoid_focal_loss', lambda: sigmoid_focal_loss(z, z > 0)):
        implements(name, able=lambda *a: True)(lambda z, *a: torch.full(z.shape[:1] if name == 'focal_loss' else z.shape, 7.))
        try:
            assert call() == 7
            with ll.backend('reference'): assert call() != 7
        finally: core._fast[name].pop(0)


WRONG = {'gamma': (ValueError, 'gamma is -1; it must be at least 0', lambda: focal_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), gamma=-1)),
         'text': (TypeError, "gamma is '2'", lambda: sigmoid_focal_loss(torch.randn(3), torch.ones(3), gamma='2')),
         'alpha of classes': (ValueError, r'alpha has shape \(3,\), but there are 4 classes', lambda: focal_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), alpha=torch.ones(3))),
         'negative alpha': (ValueError, 'alpha is -1', lambda: focal_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), alpha=-1)),
         'list': (TypeError, 'alpha is', lambda: focal_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), alpha=[1, 1, 1, 1])),
         'large alpha': (ValueError, 'alpha is 25; it must be between', lambda: sigmoid_focal_loss(torch.randn(3), torch.ones(3), alpha=25)),
         'alphas': (ValueError, r'alpha is \[0.5, 2.0, 1.0\]; all must be', lambda: sigmoid_focal_loss(torch.randn(3), torch.ones(3), alpha=torch.tensor([.5, 2, 1]))),
         'alpha that does not expand': (ValueError, r'alpha has shape \(2,\), which does not expand', lambda: sigmoid_focal_loss(torch.randn(3), torch.ones(3), alpha=torch.tensor([.5, .5]))),
         'answers': (ValueError, 'answers lie between 0 and 1', lambda: sigmoid_focal_loss(torch.randn(3), torch.tensor([0., 1, 2]))),
         'smoothing': (ValueError, 'label_smoothing is 2', lambda: sigmoid_focal_loss(torch.randn(3), torch.ones(3), label_smoothing=2)),
         'column': (ValueError, 'nothing is broadcast', lambda: sigmoid_focal_loss(torch.randn(3, 1), torch.ones(3)))}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_calls(name):
    "The error names the argument and what it got"
    error, text, wrong = WRONG[name]
    with pytest.raises(error, match=text): wrong()


def test_alpha_of_answers():
    "A number, a tensor, None, or negative for none"
    z = torch.randn(2, 3)
    assert answer_weights(None, None, z) == answer_weights(-1., None, z) == (None, None) and answer_weights(.2, None, z) == (.2, .8)
    yes, no = answer_weights(torch.tensor([.1, .2, 1.]), torch.tensor(2.), z)
    torch.testing.assert_close((yes, no), (torch.tensor([.2, .4, 2.]).expand(2, 3), torch.tensor([.9, .8, 0.]).expand(2, 3)))


def test_modules_have_their_options():
    "The defaults of the papers"
    assert repr(ll.FocalLoss()) == 'FocalLoss()' and ll.SigmoidFocalLoss().alpha == .25 and ll.FocalLoss().gamma == 2 and ll.FocalLoss().alpha is None
    assert list(ll.FocalLoss(alpha=W).state_dict()) == ['alpha']
