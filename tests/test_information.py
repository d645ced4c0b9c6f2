"Entropy, divergences, `kl_div` and `interpret`: PyTorch's numbers, exact gradients, masks, transforms, and sentences for wrong calls"
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle import REDUCTIONS, TIGHT, assert_same, grid, value_and_grad
from torch.distributions import Categorical, kl_divergence as torch_kl
from torch.func import grad, hessian, jvp, vmap

from losslab.core import LossParts
from losslab.information import (Interpretation, KLDivLoss, bits, cross_entropy_between, entropy, interpret, js_divergence, kl_div, kl_divergence,
                                 log_twice_sigmoid, perplexity)

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean'")
INF, T = math.inf, torch.tensor
PAIRS = {'kl': kl_divergence, 'js': js_divergence, 'ce': cross_entropy_between}
FORMS = {'logits': lambda z, d: z, 'probs': lambda z, d: z.softmax(d), 'log_probs': lambda z, d: z.log_softmax(d)}
SLOW = {'kl': lambda p, q: math.fsum(a*math.log(a/b) for a, b in zip(p, q) if a), 'ce': lambda p, q: math.fsum(-a*math.log(b) for a, b in zip(p, q) if a)}
SLOW['js'] = lambda p, q: (SLOW['kl'](p, m := [(a+b)/2 for a, b in zip(p, q)]) + SLOW['kl'](q, m))/2


def close(a, b, **tolerance): torch.testing.assert_close(a, b, **(tolerance or TIGHT))
def scores(*shape): return 2*torch.randn(shape, dtype=torch.float64)
def rows(z, dim): return z.softmax(dim).movedim(dim, -1).reshape(-1, z.shape[dim]).tolist()


# kl_div against PyTorch

def test_kl_div_on_pytorchs_samples():
    "Value, gradients in both arguments, and second derivatives"
    from torch.testing._internal.common_methods_invocations import op_db
    n = 0
    for op in (o for o in op_db if o.name == 'nn.functional.kl_div'):
        for sample in op.sample_inputs('cpu', torch.float64, requires_grad=True):
            tensors = sample.input, sample.args[0]
            got, expected = (value_and_grad(lambda a, b: fn(a, b, **sample.kwargs), *tensors) for fn in (kl_div, F.kl_div))
            assert_same(got, expected, str(sample))
            fn = lambda a, b: kl_div(a, b, **sample.kwargs)
            leaves = [o.detach().requires_grad_() for o in tensors]
            assert torch.autograd.gradcheck(fn, leaves, check_forward_ad=True) and torch.autograd.gradgradcheck(fn, leaves)
            n += 1
    assert n >= 16


@pytest.mark.parametrize('shape', [(), (4,), (3, 4), (2, 3, 4), (2, 4, 3, 2)])
@pytest.mark.parametrize('log_target', [False, True])
def test_kl_div_of_any_shape(shape, log_target):
    "Every entry is a value; entries need not add up to one"
    a, b = -torch.rand(2, *shape, dtype=torch.float64)*5
    b = b if log_target else b.exp()
    for r in 'none', 'sum', 'mean', 'batchmean':
        assert_same(value_and_grad(lambda a, b: kl_div(a, b, log_target=log_target, reduction=r), a, b),
                    value_and_grad(lambda a, b: F.kl_div(a, b, log_target=log_target, reduction=r), a, b), r)
    close(kl_div(input=a, target=b, log_target=log_target), F.kl_div(input=a, target=b, log_target=log_target))
    close(KLDivLoss(log_target=log_target)(a, b), torch.nn.KLDivLoss(log_target=log_target)(a, b))


def test_kl_div_is_silent():
    "PyTorch warns about its mean; a loss that is asked for a named mean does as told"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        kl_div(T([-1.]), T([.5]))


@pytest.mark.parametrize('log_target', [False, True])
@pytest.mark.parametrize('dim', [None, 1, -1, 0])
def test_kl_div_by_hand(dim, log_target):
    "Masks and weights per entry, or per row where `dim` is given; numerator and denominator of each named mean"
    z, y = scores(5, 4, 3), scores(5, 4, 3)
    d = 1 if dim is None else dim
    input, target = z.log_softmax(d), y.softmax(d)
    values = target*(target.log() - input)
    if dim is not None: values = values.sum(dim)
    mask, w = torch.rand(values.shape) < .6, torch.rand(values.shape, dtype=torch.float64) + .5
    given = target.log() if log_target else target
    for use_mask, use_weight in (0, 0), (1, 0), (0, 1), (1, 1):
        m, s = mask.double() if use_mask else torch.ones_like(values), w if use_weight else torch.ones_like(values)
        total = (values*m*s).sum()
        count = dict(none=1, sum=1, mean=(m*s).sum(), weighted_mean=(m*s).sum(), element_mean=m.sum(), batchmean=len(values))
        opts = dict(mask=mask if use_mask else None, sample_weight=w if use_weight else None, dim=dim, log_target=log_target)
        for r in REDUCTIONS:
            close(kl_div(input, given, reduction=r, **opts), values*m*s if r == 'none' else total/count[r])
        close(kl_div(input, given, normalizer=7, **opts), total/7)
        parts = kl_div(input, given, reduction='parts', **opts)
        assert isinstance(parts, LossParts)
        close(parts.total, total); close(parts.count.double(), (m*s).sum())
        halves = [kl_div(input[i], given[i], reduction='parts', **opts | {k: o[i] for k, o in opts.items() if isinstance(o, torch.Tensor)})
                  for i in (slice(0, 2), slice(2, 5))] if dim != 0 else [parts]
        close(sum(halves).mean, parts.mean)


@pytest.mark.parametrize('dim', [None, 1])
@pytest.mark.parametrize('log_target', [False, True])
def test_what_is_masked_is_gone(dim, log_target):
    "Broken entries, of either argument, that do not count change no number and get no gradient"
    x, y = scores(4, 3).log_softmax(1), scores(4, 3).softmax(1)
    y = y.log() if log_target else y
    mask = T([True, False, True, False])
    for junk in math.nan, INF, -INF, 1e30:
        for rows_of in x, y:
            broken = [o.clone() for o in (x, y)]
            broken[0 if rows_of is x else 1][~mask] = junk
            broken = [o.requires_grad_() for o in broken]
            full = mask if dim else mask[:, None].expand(4, 3)
            for opts in dict(mask=full), dict(sample_weight=full.double()), dict(mask=full, sample_weight=torch.ones_like(full, dtype=torch.float64)):
                if junk == 1e30 and 'mask' not in opts: continue
                loss = kl_div(*broken, log_target=log_target, dim=dim, reduction='sum', **opts)
                close(loss, kl_div(x[mask], y[mask], log_target=log_target, dim=dim, reduction='sum'))
                for g in torch.autograd.grad(loss, broken): assert g.isfinite().all() and not g[~mask].any() and g[mask].any()
    broken, w = x.clone(), torch.ones(4, dtype=torch.float64)
    broken[1], broken[2], w[2] = math.nan, math.nan, 0  # one is masked, the other kept with weight 0
    m, w = (mask, w) if dim else (mask[:, None].expand(4, 3), w[:, None].expand(4, 3))
    close(kl_div(broken, y, log_target=log_target, dim=dim, reduction='sum', mask=m, sample_weight=w),
          kl_div(x[:1], y[:1], log_target=log_target, dim=dim, reduction='sum'))
    nothing = torch.zeros(4, dtype=torch.bool) if dim else torch.zeros(4, 3, dtype=torch.bool)
    x.requires_grad_()
    for r in 'mean', 'sum', 'weighted_mean', 'element_mean', 'batchmean':
        loss = kl_div(x, y, mask=nothing, dim=dim, log_target=log_target, reduction=r)
        assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()


def test_a_weight_of_0_can_be_learned():
    "Its derivative is the value of its element, also beside a class that both rule out"
    x, y = T([[-.5, -2., -INF], [-1., -1., -1.1]]).double(), T([[.7, .3, 0.], [.2, .2, .6]]).double()
    for log_target in False, True:
        s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        t = y.log() if log_target else y
        got, = torch.autograd.grad(kl_div(x, t, log_target=log_target, dim=1, sample_weight=s, reduction='sum'), s)
        close(got, kl_div(x, t, log_target=log_target, dim=1, reduction='none'))
        assert got.abs().min() > .1


@pytest.mark.parametrize('log_target', [False, True])
def test_impossible_outcomes(log_target):
    "0 log 0 is 0 with gradient 0; what the model rules out and the truth does not costs infinity; a nan stays a nan"
    x, y = T([-INF, -2., -INF, math.nan, -.3]).double().requires_grad_(), T([0., 0., .5, .5, .5]).double()
    t = (y.log() if log_target else y).requires_grad_()
    loss = kl_div(x, t, log_target=log_target, reduction='none')
    assert loss[0] == loss[1] == 0 and loss[2] == INF and loss[3].isnan()
    gx, gt = torch.autograd.grad(loss[[0, 1, 4]].sum(), (x, t))
    close(gx[[0, 1, 4]], T([0., 0., -.5]).double())
    assert gt[[0, 1, 4]].isfinite().all()
    assert kl_div(T([math.nan, -1.]), T([0., 1.])).isnan()


def test_one_hot_targets_of_any_dtype():
    "Integers and bools are read, and must be one-hot"
    x, y = scores(3, 4).log_softmax(1), F.one_hot(T([0, 2, 3]), 4)
    for dtype in torch.int64, torch.uint8, torch.bool, torch.float32, torch.float16:
        close(kl_div(x, y.to(dtype), dim=1), F.nll_loss(x, T([0, 2, 3])))
    with pytest.raises(ValueError, match=r'target\[0, 0\] is 2; integers must be one-hot'): kl_div(x, 2*y)


# One value per row

@pytest.mark.parametrize('shape,dim', [((4,), 1), ((4,), -1), ((3, 4), 1), ((3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -1), ((2, 3, 4, 2), 2)])
@pytest.mark.parametrize('name', PAIRS)
def test_pairs_by_hand(name, shape, dim):
    "A loop in plain Python, for each form of each argument, on every axis"
    z, y = scores(*shape), scores(*shape)
    axis = 0 if len(shape) == 1 else dim
    expected = T([SLOW[name](p, q) for p, q in zip(rows(z, axis), rows(y, axis))], dtype=torch.float64)
    for p in FORMS:
        for q in FORMS:
            got = PAIRS[name](**{f'p_{p}': FORMS[p](z, axis), f'q_{q}': FORMS[q](y, axis)}, dim=dim)
            close(got, expected.view(z.select(axis, 0).shape))
    for p in FORMS: close(entropy(**{p: FORMS[p](z, axis)}, dim=dim).flatten(), T([SLOW['ce'](p, p) for p in rows(z, axis)], dtype=torch.float64))


def test_torch_distributions():
    z, y = scores(6, 5), scores(6, 5)
    for got, expected in zip(value_and_grad(kl_divergence, z, y), value_and_grad(lambda a, b: torch_kl(Categorical(logits=a), Categorical(logits=b)), z, y), strict=True):
        close(got, expected)
    for got, expected in zip(value_and_grad(entropy, z), value_and_grad(lambda a: Categorical(logits=a).entropy(), z), strict=True): close(got, expected)


@pytest.mark.parametrize('name', PAIRS)
def test_derivatives(name):
    "First and second order, forwards and backwards, also where both distributions are equal or nearly so"
    fn, (z, y) = PAIRS[name], scores(2, 3, 4)
    check, again = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for a, b in (z, y), (z, z), (z, z + 1e-3*y), (5*z, -5*y):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        assert check(fn, (a, b), check_forward_ad=True) and again(fn, (a, b))
        assert check(lambda a, b: fn(p_probs=a.softmax(1), q_log_probs=b.log_softmax(1)), (a, b))
        assert check(lambda a, b: fn(p_log_probs=a.log_softmax(1), q_probs=b.softmax(1)), (a, b))
    assert check(entropy, z.requires_grad_(), check_forward_ad=True) and again(entropy, z)


def test_gradients_at_the_logits():
    "Predicted minus observed, and each log-ratio against the average"
    z, y = (o.requires_grad_() for o in scores(2, 5, 4).unbind())
    p, q = z.softmax(1), y.softmax(1)
    d = kl_divergence(z, y)
    gz, gy = torch.autograd.grad(d.sum(), (z, y))
    close(gy, q - p); close(gz, p*((p/q).log() - d[:, None]))
    gz, gy = torch.autograd.grad(js_divergence(z, y).sum(), (z, y))
    m = (p + q)/2
    close(gz, p*((p/m).log() - (p*(p/m).log()).sum(1, keepdim=True))/2)
    close(gy, q*((q/m).log() - (q*(q/m).log()).sum(1, keepdim=True))/2)


@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('form', FORMS)
def test_impossible_classes(name, form):
    "A class that both rule out may as well be deleted, in value and gradient, up to the second order"
    fn = PAIRS[name]
    z, y = scores(2, 3, 4)
    def with_dead(z): return torch.cat([z[:, :2], torch.full((3, 1), -INF, dtype=z.dtype), z[:, 2:]], 1)
    def call(a, b): return fn(**{f'p_{form}': FORMS[form](a, 1), f'q_{form}': FORMS[form](b, 1)})
    got = value_and_grad(lambda a, b: call(with_dead(a), with_dead(b)), z, y)
    assert_same(got, value_and_grad(call, z, y), form)
    a, b = z.clone().requires_grad_(), y.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b: call(with_dead(a), with_dead(b)), (a, b))
    close(entropy(with_dead(z)), entropy(z))


def test_classes_that_one_rules_out():
    p, q = T([[.5, .5, 0.], [.2, .3, .5]], dtype=torch.float64), T([[.2, .3, .5], [.5, .5, 0.]], dtype=torch.float64)
    assert kl_divergence(p_probs=p, q_probs=q).isinf().tolist() == cross_entropy_between(p_probs=p, q_probs=q).isinf().tolist() == [False, True]
    close(kl_divergence(p_probs=p, q_probs=q)[0], T(SLOW['kl'](p[0].tolist(), q[0].tolist()), dtype=torch.float64))
    close(js_divergence(p_probs=p, q_probs=q), T([SLOW['js'](a, b) for a, b in zip(p.tolist(), q.tolist())], dtype=torch.float64))
    for a, b in (p, q), (q, p):
        a, b = a.log().requires_grad_(), b.log().requires_grad_()
        for g in torch.autograd.grad(js_divergence(a, b).sum(), (a, b)): assert g.isfinite().all() and g.any()
        ok = kl_divergence(a, b).isfinite()
        for g in torch.autograd.grad(kl_divergence(a[ok], b[ok]).sum(), (a, b)): assert g.isfinite().all() and g[ok].any()
    assert js_divergence(p_probs=T([1., 0.]), q_probs=T([0., 1.])).item() == pytest.approx(math.log(2), rel=1e-7)


def test_finite_scores_give_finite_answers():
    "Scores of any size, in every precision"
    for dtype in torch.float16, torch.bfloat16, torch.float32, torch.float64:
        big = torch.finfo(dtype).max/8
        z = T([[big, 0., -big], [1e-3, -1e-3, 0.], [-big, -big, big]], dtype=dtype)
        for fn in entropy, lambda z: kl_divergence(z, z.flip(1)), lambda z: js_divergence(z, z.flip(1)), lambda z: kl_divergence(z, z):
            a = z.clone().requires_grad_()
            value = fn(a)
            g, = torch.autograd.grad(value.sum(), a)
            assert value.isfinite().all() and g.isfinite().all() and g.dtype == dtype
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_half_precision_is_computed_in_single():
    z, y = scores(2, 5, 6).half()
    for fn in PAIRS.values(): close(fn(z, y), fn(z.float(), y.float()), rtol=0, atol=0)
    close(entropy(z), entropy(z.float()), rtol=0, atol=0)
    close(kl_div(z.log_softmax(1), y.softmax(1)), kl_div(z.log_softmax(1).float(), y.softmax(1).float()), rtol=0, atol=0)
    assert perplexity(T(1.).half()).dtype == torch.float32
    assert kl_div(z.log_softmax(1), F.one_hot(T([0, 1, 2, 3, 4]), 6)).dtype == torch.float32


def test_nearly_equal_distributions_keep_their_digits():
    "In float32 the formulas of the textbook lose them all; these do not, and are never negative"
    for eps in 1e-1, 1e-2, 1e-3, 1e-4:
        z = torch.randn(500, 10)
        y = z + eps*torch.randn(500, 10)
        for fn in kl_divergence, js_divergence:
            got, expected = fn(z, y), fn(z.double(), y.double())
            assert (got >= 0).all() and ((got - expected)/expected).abs().median() < 1e-7/eps + 1e-6
    assert not kl_divergence(z, z).any() and not js_divergence(z, z).any()


def test_log_twice_sigmoid():
    d = torch.linspace(-40, 40, 161, dtype=torch.float64).requires_grad_()
    close(log_twice_sigmoid(d), (2*d.sigmoid()).log(), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(log_twice_sigmoid, d[::7].detach().requires_grad_(), check_forward_ad=True)


def test_laws():
    "Gibbs, the chain, symmetry, bounds, the triangle of the root, invariance to shift, class order and batch order"
    z, y, x = scores(3, 300, 4)
    d, j = kl_divergence(z, y), js_divergence(z, y)
    close(cross_entropy_between(z, y), entropy(z) + d)
    assert (d > 0).all() and (j > 0).all() and (j < math.log(2)).all() and (entropy(z) < math.log(4)).all() and (kl_divergence(y, z) - d).abs().max() > .1
    close(j, js_divergence(y, z), rtol=0, atol=0)
    assert (js_divergence(z, x).sqrt() <= j.sqrt() + js_divergence(y, x).sqrt()).all()
    order = torch.randperm(4)
    for fn in PAIRS.values():
        close(fn(z + 5, y - 3), fn(z, y)); close(fn(z[:, order], y[:, order]), fn(z, y)); close(fn(z.flip(0), y.flip(0)), fn(z, y).flip(0))
    close(bits(entropy(torch.zeros(2, 8))), torch.full((2,), 3.), rtol=1e-6, atol=0)
    assert perplexity(math.log(5)) == pytest.approx(5) and bits(math.log(2)) == 1 and perplexity(2000.) == INF
    assert entropy(torch.zeros(0, 4)).shape == (0,) and kl_divergence(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), dim=-1).shape == (2, 0)
    assert str(entropy(probs=T([1., 0.])).item()) == '0.0', 'no minus before a zero'


# Transforms

def test_func_transforms():
    z, y = scores(2, 5, 4)
    for fn in PAIRS.values():
        close(vmap(fn)(z, y), fn(z, y))
        close(vmap(lambda a, b: fn(p_probs=a, q_log_probs=b))(z.softmax(1), y.log_softmax(1)), fn(z, y))
        close(vmap(grad(fn))(z, y), torch.autograd.grad(fn(a := z.clone().requires_grad_(), y).sum(), a)[0])
        t = torch.randn_like(z)
        close(jvp(lambda a: fn(a, y), (z,), (t,))[1], (vmap(grad(fn))(z, y)*t).sum(1))
        assert hessian(lambda a: fn(a, y[0]))(z[0]).isfinite().all()
    x, p = z.log_softmax(1), y.softmax(1)
    for opts in {}, dict(dim=1), dict(dim=1, reduction='none'), dict(mask=torch.arange(4) < 3):
        per_row = T([kl_div(a, b, **opts) for a, b in zip(x, p)], dtype=torch.float64) if opts.get('reduction') != 'none' else kl_div(x, p, **opts)
        close(vmap(lambda a, b: kl_div(a, b, **opts))(x, p), per_row)


def test_compile():
    "One graph, the same numbers, and gradients"
    z, y, m, s = *scores(2, 5, 4), T([True, False, True, True, True]), torch.rand(5, dtype=torch.float64)
    def everything(z, y):
        x, p = z.log_softmax(1), y.softmax(1)
        return (kl_div(x, p, dim=1, mask=m, sample_weight=s), kl_div(x, y.log_softmax(1), log_target=True), kl_divergence(z, y), js_divergence(p_probs=p, q_log_probs=x),
                cross_entropy_between(z, y), entropy(z))
    compiled = torch.compile(everything, fullgraph=True, backend='aot_eager')
    run = lambda fn: value_and_grad(lambda z, y: torch.cat([o.reshape(-1) for o in fn(z, y)]), z, y)
    assert_same(run(compiled), run(everything))


def test_modules_and_meta_tensors():
    x, p = scores(3, 4).log_softmax(1), scores(3, 4).softmax(1)
    for options in grid(dim=[None, 1], log_target=[False, True], reduction=['mean', 'none']):
        t = p.log() if options['log_target'] else p
        expected = kl_div(x, t, **options)
        for module in KLDivLoss(**options), pickle.loads(pickle.dumps(KLDivLoss(**options))): close(module(x, t), expected, rtol=0, atol=0)
        close(KLDivLoss()(x, t, **options), expected, rtol=0, atol=0)
    assert KLDivLoss(sample_weight=torch.ones(3)).state_dict().keys() == {'sample_weight'} and repr(KLDivLoss(dim=1)) == 'KLDivLoss(dim=1)'
    meta = torch.empty(3, 4, device='meta')
    assert kl_div(meta, meta, dim=1).shape == () and kl_divergence(meta, meta).shape == js_divergence(p_probs=meta, q_probs=meta).shape == (3,)


# Wrong calls

X, P, Z = T([[.5, .5], [.25, .75]]).log(), T([[.5, .5], [.25, .75]]), T([[1., 2.], [-3., 4.]])
WRONG = {
    'input in a list': (lambda: kl_div(X.tolist(), P), TypeError, 'input', 'torch.as_tensor(input)'),
    'input of integers': (lambda: kl_div(X.long(), P), TypeError, 'input', 'torch.int64'),
    'input of probabilities': (lambda: kl_div(P, P), ValueError, 'input[0, 0] is 0.5', 'input.log()', 'input.log_softmax(dim)'),
    'swapped': (lambda: kl_div(P, X), ValueError, 'input[0, 0] is 0.5'),
    'log-probabilities for probabilities': (lambda: kl_div(X, X), ValueError, 'target[0, 0] is -0.69', 'log_target=True'),
    'probabilities for log-probabilities': (lambda: kl_div(X, P, log_target=True), ValueError, 'target[0, 0] is 0.5', 'log_target=False'),
    'a positive number later': (lambda: kl_div(T([-1., .7]), T([.5, .5])), ValueError, 'input[1] is 0.7'),
    'a scalar': (lambda: kl_div(T(.7), T(.5)), ValueError, 'input is 0.7'),
    'target in a list': (lambda: kl_div(X, P.tolist()), TypeError, 'target', 'torch.as_tensor(target)'),
    'complex target': (lambda: kl_div(X, P.to(torch.complex64)), TypeError, 'target', 'complex64'),
    'log of integers': (lambda: kl_div(X, T([[0, 1], [1, 0]]), log_target=True), TypeError, 'target', 'torch.int64'),
    'class indices': (lambda: kl_div(X, T([0, 1])), ValueError, 'target', '(2,)', '(2, 2)', 'nll_loss'),
    '(N, 1)': (lambda: kl_div(X, P[:, :1]), ValueError, 'target', '(2, 1)', '(2, 2)', 'broadcast'),
    'one row for all': (lambda: kl_div(X, P[0]), ValueError, 'target', '(2,)', '(2, 2)'),
    '(N, 1) against (N,)': (lambda: kl_div(X[:, :1], P[:, 0]), ValueError, '(2,)', '(2, 1)'),
    'mask per row': (lambda: kl_div(X, P, mask=T([True, False])), ValueError, 'mask', '(2,)', '(2, 2)'),
    'mask per entry': (lambda: kl_div(X, P, dim=1, mask=P > 0), ValueError, 'mask', '(2, 2)', '(2,)'),
    'mask of floats': (lambda: kl_div(X, P, dim=1, mask=T([1., 0.])), TypeError, 'mask', 'mask.bool()'),
    'weights (N, 1)': (lambda: kl_div(X, P, dim=1, sample_weight=torch.ones(2, 1)), ValueError, 'sample_weight', '(2, 1)', '(2,)'),
    'no such axis': (lambda: kl_div(X, P, dim=2), ValueError, 'dim is 2', 'input'),
    'no such mean': (lambda: kl_div(X, P, reduction='average'), ValueError, 'reduction', "'average'", "'batchmean'"),
    'normalizer without mean': (lambda: kl_div(X, P, reduction='sum', normalizer=2), ValueError, 'normalizer'),
    'module with an unknown option': (lambda: KLDivLoss(weight=P), TypeError, 'KLDivLoss', "'weight'", 'log_target'),
    'no form': (lambda: entropy(), TypeError, 'exactly one of logits, probs, log_probs', 'none'),
    'two forms': (lambda: entropy(Z, probs=P), TypeError, 'got logits, probs'),
    'no second': (lambda: kl_divergence(Z), TypeError, 'q_logits, q_probs, q_log_probs', 'none'),
    'two first': (lambda: js_divergence(Z, Z, p_probs=P), TypeError, 'got p_logits, p_probs'),
    'scores as probs': (lambda: entropy(probs=Z), ValueError, 'probs at (0,) adds up to 3'),
    'negative probs': (lambda: entropy(probs=T([[.5, .5], [1.5, -.5]])), ValueError, 'probs at (1,) has -0.5 in it'),
    'counts as probs': (lambda: kl_divergence(p_probs=P*100, q_probs=P), ValueError, 'p_probs at (0,) adds up to 100', 'counts.sum(1, keepdim=True)'),
    'scores as log_probs': (lambda: kl_divergence(Z, q_log_probs=Z), ValueError, 'exp(q_log_probs) at (0,) adds up to', 'axis 1'),
    'sums on the other axis': (lambda: entropy(probs=P, dim=0), ValueError, 'probs at (0,) adds up to 0.75', 'axis 0'),
    'p (N, C), q (C,)': (lambda: kl_divergence(Z, Z[0], dim=-1), ValueError, '(2, 2)', '(2,)', 'broadcast'),
    'p (N, C), q (N, 1)': (lambda: js_divergence(Z, Z[:, :1]), ValueError, '(2, 2)', '(2, 1)'),
    'p (1, C)': (lambda: cross_entropy_between(Z[:1], Z), ValueError, '(1, 2)', '(2, 2)'),
    'logits in numpy': (lambda: entropy(Z.numpy()), TypeError, 'logits', 'ndarray'),
    'logits of integers': (lambda: kl_divergence(Z, Z.long()), TypeError, 'q_logits', 'torch.int64'),
    'a number of logits': (lambda: entropy(T(1.)), ValueError, 'logits', 'single number'),
    'no such axis of p': (lambda: kl_divergence(Z, Z, dim=3), ValueError, 'dim is 3', 'p_logits'),
    'negative loss': (lambda: interpret(-.1), ValueError, 'loss is -0.1', 'at least 0'),
    'nan loss': (lambda: interpret(math.nan), ValueError, 'loss is nan'),
    'loss in words': (lambda: interpret('0.1'), TypeError, 'loss', 'str'),
    'losses': (lambda: interpret(torch.ones(3)), ValueError, '(3,)', 'loss.mean()'),
    'no classes': (lambda: interpret(1., num_classes=0), ValueError, 'num_classes is 0'),
    'half a class': (lambda: interpret(1., num_classes=2.5), ValueError, 'num_classes is 2.5'),
    'True classes': (lambda: interpret(1., num_classes=True), ValueError, 'num_classes is True'),
    'other counts': (lambda: interpret(1., num_classes=3, class_counts=[1, 2]), ValueError, 'num_classes is 3', '2 entries'),
    'negative counts': (lambda: interpret(1., class_counts=[1, -2]), ValueError, 'class_counts', '[1, -2]'),
    'counts of nothing': (lambda: interpret(1., class_counts=[0, 0]), ValueError, 'not all 0'),
    'table of counts': (lambda: interpret(1., class_counts=[[1, 2]]), ValueError, '(C,)'),
    'smoothing above 1': (lambda: interpret(1., num_classes=3, label_smoothing=1.5), ValueError, 'label_smoothing is 1.5'),
    'smoothing of what': (lambda: interpret(1., label_smoothing=.1), ValueError, 'label_smoothing is 0.1', 'num_classes'),
    'binary of what': (lambda: interpret(1., binary=True), ValueError, 'binary is True', 'class_counts'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_calls_get_a_sentence(name):
    call, kind, *pieces = WRONG[name]
    with pytest.raises(kind) as error: call()
    for piece in pieces: assert piece in str(error.value)


def test_rounding_is_no_error():
    "What half precision and thirds leave over passes"
    entropy(probs=T([.333, .333, .333])); entropy(probs=torch.randn(50, 100).softmax(1).bfloat16())
    kl_div(T([1e-6, -1.]), T([1., -1e-7]))


# interpret

def h(p): return -p*math.log(p) - (1-p)*math.log(1-p)


def test_interpret_numbers():
    "Q13: 0.16 is a probability of 0.85 if the loss was categorical, and half of what knowing nothing costs if it was binary"
    o = interpret(.16, num_classes=10)
    assert o.probability == pytest.approx(.8521, abs=1e-4) and o.bits == pytest.approx(.16/math.log(2)) and o.perplexity == pytest.approx(math.exp(.16))
    assert o.baselines == {'even guess': pytest.approx(math.log(10))} and o.floor == 0 and o.outputs is None
    o = interpret(.16, num_classes=10, binary=True)
    assert o.baselines == {'1/2 for each': pytest.approx(math.log(2)), '1/10 for each': pytest.approx(h(.1))} and o.outputs == 10 and o.floor == 0
    guess = F.binary_cross_entropy(torch.full((1, 10), .1).double(), torch.eye(10)[:1].double()).item()
    assert o.baselines['1/10 for each'] == pytest.approx(guess) == pytest.approx(.3251, abs=1e-4)
    assert interpret(2.3, num_classes=10).probability == pytest.approx(.1, abs=1e-3)
    assert interpret(1.).baselines == {}


def test_interpret_baselines_are_scores_of_constant_answers():
    "Each baseline is what that answer scores on data with these counts, and no constant answer scores less than the frequencies"
    counts, eps = T([5, 3, 2]), .2
    y = torch.arange(3).repeat_interleave(counts)
    freqs = (counts/10).double()
    for eps in 0., .2:
        o = interpret(1., class_counts=counts, label_smoothing=eps)
        best = (1-eps)*freqs + eps/3
        score = lambda p: F.cross_entropy(p.log().expand(10, 3), y, label_smoothing=eps).item()
        assert o.baselines == {'even guess': pytest.approx(score(torch.full((3,), 1/3).double())), 'class frequencies': pytest.approx(score(best))}
        assert all(score(scores(3).softmax(0)) > o.baselines['class frequencies'] for _ in range(50))
        label = (1-eps)*torch.eye(3).double() + eps/3
        assert o.floor == pytest.approx(F.cross_entropy(label.clamp(min=1e-300).log()[y], y, label_smoothing=eps).item(), abs=1e-12)
        o = interpret(1., class_counts=counts.tolist(), label_smoothing=eps, binary=True)
        hot = (1-eps)*F.one_hot(y, 3).double() + eps/2
        score = lambda p: F.binary_cross_entropy(p.expand(10, 3), hot).item()
        assert o.baselines == {'1/2 for each': pytest.approx(score(torch.full((3,), .5).double())),
                               '1/3 for each': pytest.approx(score(torch.full((3,), (1-eps)/3 + eps/2).double())),
                               'class frequencies': pytest.approx(score((1-eps)*freqs + eps/2))}
        assert o.floor == pytest.approx(score(hot), abs=1e-12)


def test_interpret_reads_any_number():
    for loss in .5, T(.5), T([.5]).half(), T(.5, requires_grad=True), LossParts(T(1.), T(2)): assert interpret(loss, num_classes=2) == interpret(.5, num_classes=2)
    assert interpret(1, num_classes=2).loss == 1 and interpret(INF).probability == 0 and interpret(INF).perplexity == INF
    assert interpret(.5, class_counts=T([3, 1])) == interpret(.5, class_counts=[3., 1.], num_classes=2)


def test_interpret_says():
    "Whole sentences, with the numbers in them"
    assert str(interpret(.16, num_classes=10)).splitlines() == [
        'Loss 0.16: as if the true class had probability 0.852 each time (geometric mean).',
        'That is 0.231 bits, or perplexity 1.17: as unsure as a fair choice among 1.17 outcomes.',
        'Without training, even guess: 2.303. This loss is 93% lower.']
    assert 'This loss is the same, to one percent.' in str(interpret(2.3, num_classes=10))
    assert 'class frequencies: 0.3944. This loss is 6% higher.' in str(interpret(.42, class_counts=[900, 50, 50]))
    binary = str(interpret(.16, num_classes=10, binary=True))
    assert 'each of 10 yes-or-no answers' in binary and '1/10 for each: 0.3251. This loss is 51% lower.' in binary and 'true class had' not in binary
    smooth = str(interpret(.6, num_classes=10, label_smoothing=.1))
    assert 'No model gets below 0.5003' in smooth and '20% higher' in smooth and 'true class had' not in smooth
    assert 'higher' in str(interpret(.1, num_classes=1)) and str(interpret(0., num_classes=1)) and str(interpret(INF, num_classes=3))


def test_interpret_draws():
    "The loss on the curve, a line for each baseline and the floor, and names for both"
    plt = pytest.importorskip('matplotlib.pyplot')
    for o in interpret(.6, class_counts=[3, 1], label_smoothing=.1), interpret(.16, num_classes=10, binary=True), interpret(0.), interpret(INF, num_classes=4):
        assert isinstance(o, Interpretation)
        ax = o.plot()
        names = [line.get_label() for line in ax.get_lines() if not line.get_label().startswith('_')]
        assert names == [*o.baselines, *['floor']*bool(o.floor), *[f'loss {o.loss:.3g}']*math.isfinite(o.loss)]
        heights = {line.get_label(): line.get_ydata()[0] for line in ax.get_lines()}
        assert all(heights[k] == v for k, v in o.baselines.items())
        if math.isfinite(o.loss):
            dot, = [line for line in ax.get_lines() if line.get_label() == f'loss {o.loss:.3g}']
            assert dot.get_xydata().tolist() == [[o.probability, o.loss]] and ax.get_ylim()[1] > max([o.loss, *o.baselines.values()])
        assert ax.get_xlabel().startswith('probability of') and ax.get_ylabel() == 'loss (nats)'
        same = plt.figure().gca()
        assert o.plot(same) is same
        plt.close('all')
