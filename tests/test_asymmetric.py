"Asymmetric, polynomial and generalised cross entropy against mpmath, the authors' formulas and cross entropy"
import math

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from oracle import REDUCTIONS, assert_same, grid, make_target, value_and_grad

import losslab as ll
from losslab import core
from losslab.asymmetric import asymmetric_loss, box_cox, generalized_cross_entropy, poly_loss, shifted_logs
from losslab.core import implements

GAMMAS = 0, .3, 1, 2, 5
QS = 0, 1e-6, .3, .7, 1.
EPSILONS = 0., 1., -1., (.5, -.25, 2.)
W = torch.tensor([.5, 2., .25, 1.5], dtype=torch.float64)
ROWS = [[0., 0, 0], [.1, -.2, .3], [5, 0, -1], [40, 0, 1], [37, 37, 0], [300, 0, 0], [-300, 1, 2], [1e4, 0, -3], [-1e4, 1e4, 1e4], [1e4, -1e4, 0]]
SCORES = [0., .5, -.5, -2.9, -3, 5, -5, 17, -17, 40, -40, 300, -300, 1e4, -1e4]
double = dict(dtype=torch.float64)


def shares(row, y):
    "Share of class `y`, its logarithm, what is left, and how the others divide that, in 60 digits"
    e = [mp.exp(mp.mpf(o)) for o in row]
    left, total = mp.fsum(e[:y] + e[y+1:]), mp.fsum(e)
    p, r = e[y]/total, left/total
    return p, mp.log1p(-r) if r < .5 else mp.log(p), r, [o/left for o in e]


def gradient(slope, p, r, others, y):
    "The gradient in the logits of a loss with the derivative `slope` in `log p`"
    return torch.tensor([float(slope*r if j == y else -slope*r*others[j]) for j in range(len(others))], **double)


@pytest.mark.parametrize('q', QS)
def test_gce_equals_60_digits(q):
    "Value and gradient up to 1e4"
    for row in ROWS:
        for y in range(3):
            value, grad = value_and_grad(lambda z, y=y: generalized_cross_entropy(z, torch.tensor([y]), q=q), torch.tensor([row], **double))
            with mp.workdps(60):
                p, log_p, r, others = shares(row, y)
                v = -log_p if q == 0 else -mp.expm1(mp.mpf(q)*log_p)/mp.mpf(q)
                g = gradient(-p**mp.mpf(q) if q else mp.mpf(-1), p, r, others, y)
            torch.testing.assert_close(value, torch.tensor(float(v), **double), rtol=1e-10, atol=1e-15)
            torch.testing.assert_close(grad[0], g, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('epsilon', EPSILONS, ids=str)
def test_poly_equals_60_digits(epsilon):
    "Value and gradient up to 1e4"
    terms = list(enumerate(epsilon if isinstance(epsilon, tuple) else [epsilon], 1))
    for row in ROWS:
        for y in range(3):
            value, grad = value_and_grad(lambda z, y=y: poly_loss(z, torch.tensor([y]), epsilon=epsilon), torch.tensor([row], **double))
            with mp.workdps(60):
                p, log_p, r, others = shares(row, y)
                v = -log_p + mp.fsum(e*r**j for j, e in terms)
                g = gradient(-1 - mp.fsum(j*e*r**(j-1)*p for j, e in terms), p, r, others, y)
            torch.testing.assert_close(value, torch.tensor(float(v), **double), rtol=1e-10, atol=1e-15)
            torch.testing.assert_close(grad[0], g, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('clip', [0., .05, .4, .9, 1.])
@pytest.mark.parametrize('yes', [0, 1])
def test_asymmetric_equals_60_digits(gamma, clip, yes):
    "Value and gradient up to 1e4, with `gamma` for the answer that is given and another exponent for the other one"
    own = dict(gamma_pos=gamma, gamma_neg=9.) if yes else dict(gamma_neg=gamma, gamma_pos=9.)
    for s in SCORES:
        value, grad = value_and_grad(lambda z: asymmetric_loss(z, torch.tensor([yes]), clip=clip, reduction='sum', **own), torch.tensor([s], **double))
        with mp.workdps(60):
            p, log_p, r, _ = shares([0., s], 1)
            g = mp.mpf(gamma)
            if yes: v, slope = -r**g*log_p if gamma else -log_p, -(r**g if gamma else 1)*(r - (g*p*log_p if gamma else 0))
            else:
                u = p - mp.mpf(clip)
                rest = r + mp.mpf(clip)
                log_q = mp.log1p(-u) if 0 < u < .5 else mp.log(rest)
                v = -(u**g if gamma else 1)*log_q if u > 0 else mp.mpf(0)
                slope = p*r*((u**g if gamma else 1)/rest - (g*u**(g-1)*log_q if gamma else 0)) if u > 0 else mp.mpf(0)
        torch.testing.assert_close(value, torch.tensor(float(v), **double), rtol=1e-9, atol=1e-300)
        torch.testing.assert_close(grad[0], torch.tensor(float(slope), **double), rtol=1e-9, atol=1e-300)


def authors_formula(x, y, gamma_neg=4, gamma_pos=1, clip=.05, eps=1e-8, detach=False):
    "The values of the authors' AsymmetricLoss, which adds them up"
    yes = torch.sigmoid(x)
    no = (1 - yes + clip).clamp(max=1) if clip else 1 - yes
    loss = torch.where(y == 1, yes.clamp(min=eps).log(), no.clamp(min=eps).log())
    weight = (1 - torch.where(y == 1, yes, no))**torch.where(y == 1, float(gamma_pos), float(gamma_neg)).to(x.dtype)
    return -loss*(weight.detach() if detach else weight)


@pytest.mark.parametrize('detach', [False, True])
def test_the_authors_code(detach):
    "Where its floor is not reached: value and gradient, with and without a gradient through the weights, and its defaults"
    z = torch.linspace(-15, 15, 62, **double).view(31, 2)
    y = torch.tensor([[1., 0.]]*31, **double)
    for o in grid(gamma_neg=(1, 2, 4), gamma_pos=(0, 1, 2), clip=(0., .05, .2)):
        got, expected = (value_and_grad(fn, z) for fn in (lambda z: asymmetric_loss(z, y, detach_focus=detach, reduction='none', **o), lambda z: authors_formula(z, y, detach=detach, **o)))
        assert_same(got, expected, o, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(asymmetric_loss(z, y, reduction='sum'), authors_formula(z, y).sum())
    assert not asymmetric_loss.__kwdefaults__['detach_focus']


def test_asymmetric_at_zero_and_at_equal_exponents():
    "Binary cross entropy and the focal loss, under every option and mean"
    z, y = torch.randn(6, 4, **double)*3, torch.rand(6, 4, **double)
    for target in y, y.round(), torch.where(y < .2, -100., y.round()):
        for o in grid(weight=(None, W), pos_weight=(None, W.flip(0)), label_smoothing=(0., .2), sample_weight=(None, torch.rand(6, 4, **double)), mask=(None, y > .3), reduction=(*REDUCTIONS, 'parts')):
            run = lambda fn, o=o, **k: value_and_grad(lambda z: (r := fn(z, target, **o | k), r.total/2 + r.count/3 if o['reduction'] == 'parts' else r)[1], z)
            assert_same(run(asymmetric_loss, gamma_neg=0, gamma_pos=0, clip=0), run(ll.binary_cross_entropy_with_logits), o)
            assert_same(run(asymmetric_loss, gamma_neg=.7, gamma_pos=.7, clip=0), run(ll.sigmoid_focal_loss, gamma=.7, alpha=None), o)


@pytest.mark.parametrize('fn,plain', [(generalized_cross_entropy, dict(q=0)), (generalized_cross_entropy, dict(q=1e-12)), (poly_loss, dict(epsilon=0.)), (poly_loss, dict(epsilon=(0., 0.)))], ids=lambda o: o if isinstance(o, str) else getattr(o, '__name__', str(o)))
@pytest.mark.parametrize('kind', ['index', 'onehot', 'shares'])
def test_cross_entropy_at_zero(fn, plain, kind):
    "Under every weight, mask and reduction"
    for shape, dim in ((4,), 1), ((5, 4), 1), ((2, 3, 4), -1):
        z, target = torch.randn(shape, **double), make_target(kind, shape, dim, (-100,) if kind == 'index' and len(shape) > 1 else ())
        size = z.select(0 if len(shape) == 1 else dim, 0).shape
        rows = dict(mask=torch.rand(size) < .7, sample_weight=torch.rand(size, **double))
        for o in grid(weight=(None, W), rows=({}, rows), reduction=REDUCTIONS):
            o |= dict(dim=dim) | o.pop('rows')
            got, expected = value_and_grad(lambda z, o=o: fn(z, target, **plain, **o), z), value_and_grad(lambda z, o=o: ll.cross_entropy(z, target, **o), z)
            assert_same(got, expected, o, rtol=1e-9, atol=1e-11)
            assert_same(fn(z, target, **plain, **o | dict(reduction='parts')), ll.cross_entropy(z, target, **o | dict(reduction='parts')), o, rtol=1e-9, atol=1e-11)
    if fn is poly_loss: torch.testing.assert_close(fn(z, target, label_smoothing=.2, dim=-1, **plain), ll.cross_entropy(z, target, label_smoothing=.2, dim=-1))


@pytest.mark.parametrize('loss', ['gce', 'poly'])
def test_values_and_means(loss):
    "Plain floats; soft labels are averages; class weights multiply and are counted as in cross entropy"
    z, s, y = torch.randn(6, 4, **double), torch.rand(6, **double), torch.tensor([0, 1, -100, 3, 3, 2])
    of = {'gce': lambda p: (1 - p**.4)/.4, 'poly': lambda p: -math.log(p) + .5*(1-p) + 2*(1-p)**3}[loss]
    fn = {'gce': lambda *a, **k: generalized_cross_entropy(*a, q=.4, **k), 'poly': lambda *a, **k: poly_loss(*a, epsilon=(.5, 0, 2), **k)}[loss]
    values = torch.tensor([[of(o) for o in row] for row in z.softmax(1).tolist()], **double)
    soft = torch.rand(6, 4, **double).softmax(1)
    for target, q, c in (y, F.one_hot(y.clamp(min=0), 4).double(), y >= 0), (soft, soft, y > -999):
        each = (values*q*W).sum(1)*c
        torch.testing.assert_close(fn(z, target, weight=W, reduction='none'), each)
        of_mean = (s*(q*W).sum(1))[c].sum() if target is y else s.sum()
        for r, count in dict(sum=1, mean=of_mean, weighted_mean=(s*(q*W).sum(1))[c].sum(), element_mean=c.sum(), batchmean=6).items():
            torch.testing.assert_close(fn(z, target, weight=W, sample_weight=s, reduction=r), (s*each).sum()/count)
        keep = torch.rand(6) < .7
        bad = z.where(keep[:, None], torch.nan).requires_grad_()
        out = fn(bad, target, mask=keep, weight=W, reduction='element_mean')
        torch.testing.assert_close(out, each[keep].sum()/(keep & c).sum())
        assert not torch.autograd.grad(out, bad)[0][~keep].any()
    if loss == 'poly': torch.testing.assert_close(fn(z, y, label_smoothing=.2, reduction='none'), (values*(.8*F.one_hot(y.clamp(min=0), 4) + .05)).sum(1)*(y >= 0))


@pytest.mark.parametrize('q', [0, .5, 1.])
@pytest.mark.parametrize('truncate', [.2, .5, .9])
def test_truncated(q, truncate):
    "Constant, without gradient, where the label got less; nothing changes where it got more"
    z, y = 3*torch.randn(40, 4, **double), torch.randint(4, (40,))
    p = z.softmax(1)[range(40), y]
    plain, cut = (value_and_grad(lambda z, t=t: generalized_cross_entropy(z, y, q=q, truncate=t, reduction='none'), z) for t in (0., truncate))
    floor = -math.log(truncate) if q == 0 else (1 - truncate**q)/q
    torch.testing.assert_close(cut[0], torch.where(p > truncate, plain[0], floor))
    torch.testing.assert_close(cut[1], torch.where((p > truncate)[:, None], plain[1], 0))
    assert (p > truncate).any() and (p < truncate).any()


def test_bounds():
    "The sum over all labels: constant at q = 1, and within its bounds below"
    z = 20*torch.randn(500, 7, **double)
    total = lambda q: sum(generalized_cross_entropy(z, torch.full((500,), k), q=q, reduction='none') for k in range(7))
    torch.testing.assert_close(total(1.), torch.full((500,), 6., **double))
    for q in .2, .7: assert (7 - 7**(1-q))/q - 1e-9 <= total(q).min() and total(q).max() <= 6/q + 1e-9
    assert box_cox(torch.tensor([-torch.inf, 0.]), .5).tolist() == [-2., 0.]


def test_shifted_logs():
    "Both logarithms for shares on both sides of one half, and nothing below the margin"
    for clip in 0., 1e-6, .05, .6:
        for s in SCORES[:10]:
            log_no, log_yes = (o.item() for o in shifted_logs(torch.tensor(s, **double), clip))
            with mp.workdps(60):
                p = 1/(1 + mp.exp(-mp.mpf(s)))
                u, rest = p - mp.mpf(clip), mp.exp(-mp.mpf(s))*p + mp.mpf(clip)
                expected = (float(mp.log1p(-u) if u < .5 else mp.log(rest)), float(mp.log(u) if u < .5 else mp.log1p(-rest))) if u > 0 else (0., -math.inf)
            assert math.isclose(log_no, expected[0], rel_tol=1e-9) and math.isclose(log_yes, expected[1], rel_tol=1e-9, abs_tol=1e-15), (clip, s)
    wrong_no = shifted_logs(torch.tensor(30.), 1e-6)[0].item()  # float32: what is left of the no is the margin, to all its digits
    assert math.isclose(wrong_no, math.log(1e-6), rel_tol=1e-6)
    z = (.05 + torch.linspace(2e-6, 2e-5, 999)).logit()  # float32: a no just above the margin keeps the digits that the difference has
    exact = (-(z.double().sigmoid() - .05)).log1p()
    assert (shifted_logs(z, .05)[0]/exact - 1).abs().max() < .006


CALLS = {'poly': (poly_loss, dict(epsilon=(1., .5))), 'less': (poly_loss, dict(epsilon=-1.)), 'gce': (generalized_cross_entropy, dict(q=.7)), 'mae': (generalized_cross_entropy, dict(q=1.)), 'small': (generalized_cross_entropy, dict(q=1e-4)),
         'truncated': (generalized_cross_entropy, dict(q=.7, truncate=.3)), 'asymmetric': (asymmetric_loss, dict(gamma_neg=.5, gamma_pos=.3)), 'detached': (asymmetric_loss, dict(detach_focus=True)), 'clip': (asymmetric_loss, dict(gamma_neg=0, clip=.3))}


@pytest.mark.parametrize('dtype,size', [(torch.float16, 6e4), (torch.bfloat16, 1e30), (torch.float32, 1e30), (torch.float64, 1e300)])
@pytest.mark.parametrize('name', CALLS)
def test_any_finite_logit(name, dtype, size):
    "Finite values and gradients, in float32 for half precision, gradients in the dtype of the logits"
    fn, o = CALLS[name]
    z = torch.tensor([[1., -1, 0, .5], [-1, 1, 1, -1], [0, 0, 0, 1], [1, 1, 1, 1]], **double).mul(size).to(dtype)
    y = torch.tensor([1, 1, 0, 2])
    targets = (torch.zeros(4, 4), torch.ones(4, 4), torch.full((4, 4), .3)) if fn is asymmetric_loss else (y, F.one_hot(y, 4).float())
    for target in targets:
        value, grad = value_and_grad(lambda z: fn(z, target, **o), z)
        assert value.isfinite() and grad.isfinite().all() and grad.dtype == dtype
        assert value.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
    small = torch.randn(4, 4).to(dtype)
    torch.testing.assert_close(fn(small, targets[0], **o), fn(small.float(), targets[0], **o), check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', CALLS)
def test_transforms(name):
    "vmap, forward and reverse derivatives, twice, and one graph"
    fn, o = CALLS[name]
    z = torch.linspace(-2, 2, 20, **double)[torch.randperm(20)].view(5, 4)
    target = torch.tensor([[1., 0, .5, 0]]*5, **double) if fn is asymmetric_loss else torch.tensor([0, 1, -100, 3, 2])
    loss, tangent = lambda z: fn(z, target, weight=W, **o), torch.randn(5, 4, **double)
    g = torch.func.grad(loss)(z)
    torch.testing.assert_close(torch.func.jvp(loss, (z,), (tangent,))[1] if name != 'detached' else (g*tangent).sum(), (g*tangent).sum())
    if name != 'detached': assert torch.autograd.gradcheck(loss, z.clone().requires_grad_()) and torch.autograd.gradgradcheck(loss, z.clone().requires_grad_())
    zs = torch.stack([z, -z, 2*z])
    torch.testing.assert_close(torch.func.vmap(loss)(zs), torch.stack([loss(o) for o in zs]))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(zs), torch.stack([torch.func.grad(loss)(o) for o in zs]))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')
    assert_same(value_and_grad(compiled, z), value_and_grad(loss, z))


@pytest.mark.parametrize('name', ['poly', 'less', 'gce', 'mae', 'truncated'])
def test_impossible_classes(name):
    "-inf is a class that is not there; as a label it costs inf, or the bound of the loss"
    fn, o = CALLS[name]
    z, y = torch.randn(5, 3, **double), torch.tensor([0, 1, 2, 0, 1])
    wide = F.pad(z, (0, 1), value=-torch.inf)
    for target, padded in (y, y), (F.one_hot(y, 3), F.pad(F.one_hot(y, 3), (0, 1))), (q := torch.rand(5, 3, **double).softmax(1), F.pad(q, (0, 1))):
        v, g = value_and_grad(lambda z: fn(z, target, **o), z)
        assert_same(value_and_grad(lambda z: fn(z, padded, **o), wide), (v, F.pad(g, (0, 1))))
    if fn is poly_loss: torch.testing.assert_close(fn(wide, y, label_smoothing=.1, **o), fn(z, y, label_smoothing=.1, **o))
    value, grad = value_and_grad(lambda z: fn(z, torch.tensor([3]), **o), wide[:1])
    expected = torch.inf if fn is poly_loss else (1 - o.get('truncate', 0)**o['q'])/o['q']
    torch.testing.assert_close(value, torch.tensor(expected, **double))
    assert not grad.isnan().any()
    for one in torch.tensor([[2.]]), torch.tensor([[2., -torch.inf, -torch.inf]]):
        value, grad = value_and_grad(lambda z: fn(z, torch.tensor([0]), **o), one)
        assert value == 0 and not grad.any()


def test_infinite_answers():
    "Log-odds of inf: no loss for the right answer, the bound for a wrong no, inf for a wrong yes, and never a nan"
    for gamma in GAMMAS:
        z = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf])
        value, grad = value_and_grad(lambda z: asymmetric_loss(z, torch.tensor([1., 0, 0, 1]), gamma_neg=gamma, gamma_pos=gamma, reduction='none'), z)
        torch.testing.assert_close(value, torch.tensor([0., 0., -.95**gamma*math.log(.05), torch.inf]))
        assert not grad.isnan().any() and not grad[:3].any()


def test_another_implementation_serves():
    "The function asks the registry, with the arguments of the reference"
    z = torch.randn(3, 4)
    implements('asymmetric_loss', able=lambda *a: True)(lambda z, *a: torch.full_like(z, 7.))
    try:
        assert asymmetric_loss(z, z > 0) == 7
        with ll.backend('reference'): assert asymmetric_loss(z, z > 0) != 7
    finally: core._fast['asymmetric_loss'].pop(0)


z0, y0 = torch.randn(3, 4), torch.tensor([0, 1, 2])
WRONG = {'q': ('q is 1.5; it must be between 0 and 1', lambda: generalized_cross_entropy(z0, y0, q=1.5)), 'negative q': ('q is -1', lambda: generalized_cross_entropy(z0, y0, q=-1)),
         'truncate': ('truncate is 2', lambda: generalized_cross_entropy(z0, y0, truncate=2)), 'gamma': ('gamma_neg is -1', lambda: asymmetric_loss(z0, z0 > 0, gamma_neg=-1)),
         'other gamma': ('gamma_pos is -1', lambda: asymmetric_loss(z0, z0 > 0, gamma_pos=-1)), 'clip': ('clip is 1.1; it must be between 0 and 1', lambda: asymmetric_loss(z0, z0 > 0, clip=1.1)),
         'smoothing': ('label_smoothing is 2', lambda: asymmetric_loss(z0, z0 > 0, label_smoothing=2)), 'column': ('nothing is broadcast', lambda: asymmetric_loss(z0, y0[:, None].float())),
         'epsilon': ('epsilon is -1.5; it must be at least -1', lambda: poly_loss(z0, y0, epsilon=-1.5)), 'second': (r'epsilon\[1\] is -1; it must be at least -0.5', lambda: poly_loss(z0, y0, epsilon=(0., -1)))}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_calls(name):
    "The error names the argument and what it got"
    text, wrong = WRONG[name]
    with pytest.raises(ValueError, match=text): wrong()


def test_modules():
    "The defaults of the papers"
    o = ll.AsymmetricLoss().options
    assert (o['gamma_neg'], o['gamma_pos'], o['clip']) == (4, 1, .05) and ll.GeneralizedCrossEntropyLoss().q == .7 and ll.PolyLoss().epsilon == 1
    assert repr(ll.PolyLoss(epsilon=(1., 2.))) == 'PolyLoss(epsilon=(1.0, 2.0))'
