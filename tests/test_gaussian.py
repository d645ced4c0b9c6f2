"Gaussian losses: PyTorch's own samples, the normal density, slow formulas, shapes of variances, masks, extremes, transforms, wrong calls"
import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, grid, value_and_grad
from torch.distributions import Normal

import losslab as ll
from losslab.gaussian import expand_variance, gaussian_nll_loss

pytestmark = pytest.mark.xdist_group('opinfo')
double = dict(dtype=torch.float64)
FORMS = 'var', 'logvar'


def close(a, b, **kw): torch.testing.assert_close(a, b, **(kw or dict(rtol=1e-10, atol=1e-13)))


def data(*shape):
    "Means, targets and log-variances"
    return torch.randn(3, *shape, **double).unbind()


def nll(form, z, y, s, **kw):
    "The loss from a log-variance in either form"
    return gaussian_nll_loss(z, y, s.exp(), **kw) if form == 'var' else gaussian_nll_loss(z, y, logvar=s, **kw)


def test_pytorchs_samples():
    "Value and the gradients in means, targets and variances, over every documented shape; targets that broadcast are refused"
    from torch.testing._internal.common_methods_invocations import op_db
    op, = (o for o in op_db if o.name == 'nn.functional.gaussian_nll_loss')
    equal = refused = 0
    for sample in op.sample_inputs('cpu', torch.float64, requires_grad=True):
        target, var = sample.args
        if target.shape != sample.input.shape:
            with pytest.raises(ValueError, match='target has shape'): gaussian_nll_loss(sample.input, target, var, **sample.kwargs)
            refused += 1
            continue
        assert_same(*(value_and_grad(lambda a, b, v, fn=fn: fn(a, b, v, **sample.kwargs), sample.input, target, var) for fn in (gaussian_nll_loss, F.gaussian_nll_loss)), str(sample))
        equal += 1
    assert equal >= 100 and refused >= 200


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('form', FORMS)
def test_normal_density(form, reduction):
    "With the constant it is minus the logarithm of the density"
    z, y, s = data(5, 4)
    expected = -Normal(z, (s/2).exp()).log_prob(y)
    close(nll(form, z, y, s, full=True, reduction=reduction), expected if reduction == 'none' else getattr(expected, reduction)())


@pytest.mark.parametrize('beta', [0., .3, .5, 1.])
@pytest.mark.parametrize('form', FORMS)
def test_beta(form, beta):
    "Values and both gradients, by an independent formula in plain floats"
    z, y, s = data(6)
    value, g_z, g_s = value_and_grad(lambda z, s: nll(form, z, y, s, beta=beta, reduction='sum'), z, s)
    total = 0.
    for i, (m, t, a) in enumerate(zip(z.tolist(), y.tolist(), s.tolist())):
        v = math.exp(a)
        total += v**beta*.5*(a + (m - t)**2/v)
        assert g_z[i].item() == pytest.approx((m - t)/v*v**beta, rel=1e-12)
        assert g_s[i].item() == pytest.approx(.5*(1 - (m - t)**2/v)*v**beta, rel=1e-10)
    assert value.item() == pytest.approx(total, rel=1e-12)


def test_beta_uses_the_lifted_variance():
    "A variance below `eps` weighs as `eps` does"
    z, y = torch.ones(1, **double), torch.zeros(1, **double)
    close(gaussian_nll_loss(z, y, 1e-9, eps=1e-4, beta=.5), 1e-2*gaussian_nll_loss(z, y, 1e-4))


@pytest.mark.parametrize('var', [1e-9, 0., 1e-3, 2e-3])
def test_lift(var):
    "The value is lifted to `eps`, the gradient ignores it, as in PyTorch"
    z, y, v = torch.tensor([.1, -.2], **double), torch.zeros(2, **double), torch.full((2,), var, **double)
    for eps in 1e-6, 1e-3: assert_same(*(value_and_grad(lambda z, v, fn=fn: fn(z, y, v, eps=eps), z, v) for fn in (gaussian_nll_loss, F.gaussian_nll_loss)), rtol=1e-9, atol=1e-12)


SHAPES = {(5, 4): [(5, 4), (5, 1), (1, 4), (5,), ()], (2, 3, 4): [(2, 3, 4), (2, 3, 1), (2, 1, 4), (1, 3, 4), (2, 3), ()], (4,): [(4,), (1,), ()], (): [()], (3, 3): [(3,)]}
REFUSED = {(5, 4): [(4,), (1, 1), (5, 4, 1), (1, 5, 4), (4, 5), (4, 4), (5, 2)], (2, 3, 4): [(2,), (3, 4), (1, 1, 4), (2, 4)], (4,): [(4, 1), (1, 4), (3,)], (4, 1): [(4, 4), (1, 4)], (): [(1,)]}


@pytest.mark.parametrize('shape,given', [(a, b) for a, o in SHAPES.items() for b in o])
@pytest.mark.parametrize('form', FORMS)
def test_documented_shapes(form, shape, given):
    "A shared variance is the variance of each, and its gradient the sum over them"
    z, y = torch.randn(2, *shape, **double).unbind()
    s = torch.randn(given, **double)
    whole = lambda s: (s.unsqueeze(-1) if given == shape[:-1] and given else s).expand(shape)
    assert_same(*(value_and_grad(fn, z, s) for fn in (lambda z, s: nll(form, z, y, s, reduction='none'), lambda z, s: nll(form, z, y, whole(s), reduction='none'))))
    if form == 'var' and (given or len(shape) < 2): close(gaussian_nll_loss(z, y, s.exp(), reduction='none'), F.gaussian_nll_loss(z, y, s.exp(), reduction='none'))


@pytest.mark.parametrize('shape,given', [(a, b) for a, o in REFUSED.items() for b in o])
@pytest.mark.parametrize('form', FORMS)
def test_undocumented_shapes(form, shape, given):
    "Everything else is refused, with both shapes"
    z, y = torch.randn(2, *shape).unbind()
    with pytest.raises(ValueError, match=f'{form} has shape ') as caught: gaussian_nll_loss(z, y, **{form: torch.ones(given)})
    assert f'{form} has shape {given} and input has shape {shape}' in str(caught.value)


def test_numbers():
    "A Python number is one variance for all"
    z, y, _ = data(3, 2)
    for v in .5, 2, 1.: close(gaussian_nll_loss(z, y, v), F.gaussian_nll_loss(z, y, float(v)))
    close(gaussian_nll_loss(z, y, logvar=0), gaussian_nll_loss(z, y, 1))
    assert expand_variance('var', 1, torch.zeros(2, requires_grad=True)).requires_grad is False


@pytest.mark.parametrize('form', FORMS)
def test_masks_and_weights(form):
    "Missing targets with broken means and variances leave sum, count and all gradients"
    z, y, s = data(5, 4)
    each, keep, w = nll(form, z, y, s, reduction='none', full=True, beta=.5), torch.rand(5, 4) < .6, torch.rand(5, 4, **double)
    for fill in torch.nan, torch.inf, -torch.inf:
        value, *grads = value_and_grad(lambda z, s: gaussian_nll_loss(z, y.masked_fill(~keep, torch.nan), **{form: s}, mask=keep, sample_weight=w, full=True, beta=.5),
                                       z.masked_fill(~keep, fill), (s.exp() if form == 'var' else s).masked_fill(~keep, fill))
        close(value, (w*each)[keep].sum()/w[keep].sum())
        for g in grads: assert not g[~keep].any() and g[keep].all()
    for reduction, count in {'element_mean': keep.sum(), 'batchmean': 5, 'sum': 1}.items():
        close(nll(form, z, y, s, mask=keep, sample_weight=w, reduction=reduction, full=True, beta=.5), (w*each)[keep].sum()/count)
    assert nll(form, z, y, s, mask=keep & False) == 0 and nll(form, z[:0], y[:0], s[:0]) == 0
    assert gaussian_nll_loss(z, y, torch.zeros(5, 4), eps=0., mask=keep & False) == 0
    close(nll(form, z, y, s, normalizer=7, full=True, beta=.5), each.sum()/7)
    a, b = (nll(form, z[i], y[i], s[i], reduction='parts', full=True, beta=.5) for i in (slice(0, 2), slice(2, 5)))
    close((a + b).mean, each.mean())


@pytest.mark.parametrize('form', FORMS)
def test_a_weight_of_0_is_silent(form):
    "Also where mean and variance are broken"
    z, y, s = data(4)
    w, off = torch.tensor([1., 0., 2., 0.], **double), torch.tensor([False, True, False, True])
    for fill in torch.nan, torch.inf:
        value, *grads = value_and_grad(lambda z, v: gaussian_nll_loss(z, y, sample_weight=w, **{form: v}), z.masked_fill(off, fill), (s.exp() if form == 'var' else s).masked_fill(off, fill))
        close(value, nll(form, z, y, s, sample_weight=w))
        for g in grads: assert g.isfinite().all() and not g[off].any()
    close(value_and_grad(lambda w: nll(form, z, y, s, sample_weight=w, reduction='sum'), w)[1], nll(form, z, y, s, reduction='none'))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_logvar(dtype):
    "No log-variance gives NaN or infinity, in value or gradient; one that is too low is pushed up"
    s = torch.tensor([0., 50., 1e4, -50., -1e4, -6e4, 6e4, -300.]).to(dtype)
    for d in 0., 1., 1000.:
        value, g_z, g_s = value_and_grad(lambda z, s: gaussian_nll_loss(z, 0*z.detach(), logvar=s, reduction='sum'), torch.full((8,), d).to(dtype), s)
        assert value.isfinite()
        if dtype not in (torch.float16,): assert g_z.isfinite().all() and g_s.isfinite().all()
        if d: assert (g_s[s < -40] < 0).all()
        assert (g_s[s > 40] > 0).all()
        if not d: assert (g_s > 0).all()


def test_large_errors():
    "The inverse deviation stands inside of the square"
    z, y = torch.full((2,), 1e25), torch.zeros(2)
    close(gaussian_nll_loss(z, y, 1e30), torch.tensor(.5*(math.log(1e30) + 1e20)), rtol=1e-6, atol=0)
    close(gaussian_nll_loss(z, y, logvar=math.log(1e30)), torch.tensor(.5*(math.log(1e30) + 1e20)), rtol=1e-4, atol=0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(form, dtype):
    "Computed and returned in float32; gradients in the dtype of each input"
    z, y, s = (o.to(dtype) for o in data(5, 4))
    v = s.exp() if form == 'var' else s
    value, *grads = value_and_grad(lambda z, v: gaussian_nll_loss(z, y, **{form: v}), z, v)
    assert value.dtype == torch.float32 and {g.dtype for g in grads} == {dtype}
    close(value, gaussian_nll_loss(z.float(), y.float(), **{form: v.float()}), rtol=1e-6, atol=0)


@pytest.mark.parametrize('options', list(grid(form=FORMS, beta=[0., .5], full=[False, True])), ids=str)
def test_transforms(options):
    "vmap over rows, derivatives forwards and twice, and one graph"
    z, y, s = data(4, 3)
    fn = lambda z, y, s: nll(s=s, z=z, y=y, **options)
    close(torch.func.vmap(fn)(z, y, s), nll(z=z, y=y, s=s, reduction='none', **options).mean(1))
    t = torch.randn_like(z)
    close(torch.func.jvp(lambda z: fn(z, y, s), (z,), (t,))[1], (torch.func.grad(fn)(z, y, s)*t).sum())
    leaves = [o.clone().requires_grad_() for o in ((z, y) if options['beta'] else (z, y, s))]
    both = lambda *a: fn(*a, *([s] if options['beta'] else []))
    assert torch.autograd.gradcheck(both, leaves, check_forward_ad=True) and torch.autograd.gradgradcheck(both, leaves)
    torch._dynamo.reset()
    close(torch.compile(fn, fullgraph=True, backend='aot_eager')(z, y, s), fn(z, y, s))


def test_variances_that_nobody_could_read():
    "Where values cannot be looked at, a negative variance is NaN in its own element"
    z, y, _ = data(4)
    v = torch.tensor([1., -1., 2., .5], **double)
    torch._dynamo.reset()
    got = torch.compile(gaussian_nll_loss, fullgraph=True, backend='aot_eager')(z, y, v, reduction='none')
    assert got.isnan().tolist() == [False, True, False, False]
    each = torch.func.vmap(gaussian_nll_loss)(z, y, v)
    assert each.isnan().tolist() == [False, True, False, False]


def test_module():
    "The constructor's options, and the variance in the call"
    z, y, s = data(5, 4)
    for o in grid(full=[False, True], eps=[1e-6, .5], reduction=['none', 'mean', 'sum']):
        close(ll.GaussianNLLLoss(**o)(z, y, s.exp()), torch.nn.GaussianNLLLoss(**o)(z, y, s.exp()))
    close(ll.GaussianNLLLoss(beta=.5)(z, y, logvar=s), gaussian_nll_loss(z, y, logvar=s, beta=.5))
    close(ll.GaussianNLLLoss(logvar=torch.zeros(5, 4))(z, y), gaussian_nll_loss(z, y, 1.))


z, y, v = torch.randn(3), torch.randn(3), torch.ones(3)
WRONG = {
    'neither': (TypeError, 'neither of var and logvar given; give one', lambda: gaussian_nll_loss(z, y)),
    'both': (TypeError, 'both of var and logvar given', lambda: gaussian_nll_loss(z, y, v, logvar=v)),
    'negative': (ValueError, r'var\[1\] is -2, but a variance is not negative; if the network predicts its logarithm, use logvar=', lambda: gaussian_nll_loss(z, y, torch.tensor([1., -2., 3.]))),
    'negative number': (ValueError, 'is -1, but a variance', lambda: gaussian_nll_loss(z, y, -1.)),
    'scalar': (ValueError, '^var is -3, but', lambda: gaussian_nll_loss(z[0], y[0], torch.tensor(-3.))),
    'integers': (TypeError, 'var has dtype torch.int64', lambda: gaussian_nll_loss(z, y, v.long())),
    'text': (TypeError, "logvar is a str; it must be a tensor", lambda: gaussian_nll_loss(z, y, logvar='0')),
    'bool': (TypeError, "var is a bool", lambda: gaussian_nll_loss(z, y, True)),
    'target': (ValueError, r'target has shape \(3, 1\) and input has shape \(3,\); nothing is broadcast', lambda: gaussian_nll_loss(z, y[:, None], v)),
    'one target': (ValueError, r'target has shape \(1,\) and input has shape \(3,\)', lambda: gaussian_nll_loss(z, y[:1], v)),
    'eps': (ValueError, 'eps is -0.1; it must be at least 0', lambda: gaussian_nll_loss(z, y, v, eps=-.1)),
    'beta': (ValueError, 'beta is 1.5; it must be between 0 and 1', lambda: gaussian_nll_loss(z, y, v, beta=1.5)),
    'mask': (ValueError, r'mask has shape \(2,\)', lambda: gaussian_nll_loss(z, y, v, mask=torch.ones(2).bool())),
    'weights': (ValueError, r'sample_weight has shape \(2,\)', lambda: gaussian_nll_loss(z, y, v, sample_weight=torch.ones(2))),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_calls(wrong):
    "The error names the argument, what it got and what to do"
    error, text, call = WRONG[wrong]
    with pytest.raises(error, match=text): call()
