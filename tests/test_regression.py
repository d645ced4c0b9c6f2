"Losses over real values: PyTorch's own samples, slow formulas in plain Python, masks, weights, quantiles, transforms, wrong calls"
import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, grid, value_and_grad

import losslab as ll
from losslab import regression as r

pytestmark = pytest.mark.xdist_group('opinfo')
SAMPLES = {'mse_loss': 6, 'l1_loss': 6, 'huber_loss': 9, 'smooth_l1_loss': 8}
CLASSES = {'MSELoss': 'mse_loss', 'L1Loss': 'l1_loss', 'HuberLoss': 'huber_loss', 'SmoothL1Loss': 'smooth_l1_loss', 'LogCoshLoss': 'log_cosh_loss', 'QuantileLoss': 'quantile_loss'}
double = dict(dtype=torch.float64)
CASES = [('mse_loss', {}), ('l1_loss', {}), ('huber_loss', {}), ('huber_loss', dict(delta=.4)), ('smooth_l1_loss', {}), ('smooth_l1_loss', dict(beta=.4)),
         ('smooth_l1_loss', dict(beta=0)), ('log_cosh_loss', {}), ('quantile_loss', {}), ('quantile_loss', dict(quantile=.9))]
every_case = pytest.mark.parametrize('name,options', CASES, ids=lambda o: o if isinstance(o, str) else '-'.join(map(str, o.values())))
QS = torch.tensor([.1, .5, .8], **double)


def close(a, b, **kw): torch.testing.assert_close(a, b, **(kw or dict(rtol=1e-10, atol=1e-13)))
def data(*shape): return 2*torch.randn(shape, **double), 2*torch.randn(shape, **double)


def slow(name, d, delta=1., beta=1., quantile=.5):
    "Price and slope of one error, in plain floats"
    if name == 'mse_loss': return d*d, 2*d
    if name == 'l1_loss' or name == 'smooth_l1_loss' and beta == 0: return abs(d), math.copysign(1, d)
    if name == 'huber_loss': return (d*d/2, d) if abs(d) < delta else (delta*abs(d) - delta*delta/2, math.copysign(delta, d))
    if name == 'smooth_l1_loss': return (d*d/2/beta, d/beta) if abs(d) < beta else (abs(d) - beta/2, math.copysign(1, d))
    if name == 'log_cosh_loss': return math.log(math.cosh(d)), math.tanh(d)
    return (quantile*-d, -quantile) if d < 0 else ((1-quantile)*d, 1-quantile)


@pytest.fixture(scope='module')
def ops():
    from torch.testing._internal.common_methods_invocations import op_db
    return {o.name.split('.')[-1]: o for o in op_db if o.name.split('.')[-1] in SAMPLES}


@pytest.mark.parametrize('name', SAMPLES)
def test_pytorchs_samples(ops, name):
    "Value and gradient, in predictions and targets"
    samples = list(ops[name].sample_inputs('cpu', torch.float64, requires_grad=True))
    assert len(samples) == SAMPLES[name]
    for s in samples: assert_same(*(value_and_grad(lambda a, b, fn=fn: fn(a, b, **s.kwargs), s.input, *s.args) for fn in (getattr(r, name), getattr(F, name))), str(s))


@pytest.mark.parametrize('name', ['mse_loss', 'l1_loss', 'huber_loss'])
def test_pytorchs_weight(name):
    "The mean of squared and of absolute errors counts it, that of Huber does not"
    (z, y), w = data(5, 4), torch.rand(5, 4, **double)
    for reduction in 'none', 'sum', 'mean':
        assert_same(*(value_and_grad(lambda a, b, w, fn=fn: fn(a, b, weight=w, reduction=reduction), z, y, w) for fn in (getattr(r, name), getattr(F, name))), reduction)
    fn, each, column = getattr(r, name), getattr(r, name)(z, y, reduction='none'), torch.tensor([1., 2., 0., 3.], **double)
    for weight in column, w, w[:, :1]:
        full = weight.expand(5, 4)
        close(fn(z, y, weight=weight, reduction='weighted_mean'), (full*each).sum()/full.sum())
        close(fn(z, y, weight=weight, reduction='element_mean'), (full*each).mean())
        close(fn(z, y, weight=weight, reduction='batchmean'), (full*each).sum()/5)
        close(fn(z, y, weight=weight, reduction='parts').mean, fn(z, y, weight=weight))


@every_case
def test_values(name, options):
    "Price and slope of every error, by an independent formula"
    z, y = data(5, 4)
    got = value_and_grad(lambda z: getattr(r, name)(z, y, reduction='sum', **options), z)
    expected = [slow(name, d, **options) for d in (z - y).flatten().tolist()]
    close(got[0], torch.tensor(math.fsum(o[0] for o in expected), **double))
    close(got[1].flatten(), torch.tensor([o[1] for o in expected], **double))


@every_case
def test_masks_and_weights(name, options):
    "NaN targets under a mask leave sum, count and gradient; sample weights are counted by every mean but two"
    (z, y), fn = data(5, 4), getattr(r, name)
    each = fn(z, y, reduction='none', **options)
    keep, s = torch.rand(5, 4) < .6, torch.rand(5, 4, **double)
    for fill in torch.nan, torch.inf:
        missing = y.masked_fill(~keep, fill)
        value, g = value_and_grad(lambda z: fn(z, missing, mask=~missing.isnan() & missing.isfinite(), sample_weight=s, **options), z)
        close(value, (s*each)[keep].sum()/s[keep].sum())
        assert not g[~keep].any() and g[keep].all()
    broken = torch.where(keep, z, torch.nan)
    for reduction, count in {'element_mean': keep.sum(), 'batchmean': 5, 'sum': 1}.items():
        close(fn(broken, y, mask=keep, sample_weight=s, reduction=reduction, **options), (s*each)[keep].sum()/count)
    assert not fn(broken, y, mask=keep, reduction='none', **options)[~keep].any()
    assert fn(z, y, mask=keep & False, **options) == 0 and fn(z[:0], y[:0], **options) == 0
    close(fn(z, y, normalizer=7, **options), each.sum()/7)
    a, b = (fn(z[i], y[i], reduction='parts', **options) for i in (slice(0, 2), slice(2, 5)))
    close((a + b).mean, each.mean())
    assert fn(z, torch.where(keep, y, torch.nan), **options).isnan()


@pytest.mark.parametrize('name', ['mse_loss', 'l1_loss', 'huber_loss'])
def test_a_weight_of_0_is_silent(name):
    "Also where the prediction is broken; a weight still gets its gradient where it is 0"
    (z, y), w = data(6), torch.tensor([1., 0., 2., 0., 1., 0.], **double)
    bad = z.index_put((torch.tensor([1, 3]),), torch.tensor([torch.nan, torch.inf], **double))
    for option in 'weight', 'sample_weight':
        value, g = value_and_grad(lambda z: getattr(r, name)(z, y, **{option: w}), bad)
        expected, of_kept = value_and_grad(lambda z: getattr(r, name)(z, y, **{option: w}), z)
        close(value, expected)
        close(g, of_kept)
        assert not g[w == 0].any()
    g = value_and_grad(lambda w: getattr(r, name)(z, y, sample_weight=w, reduction='sum'), w)[1]
    close(g, getattr(r, name)(z, y, reduction='none'))


def test_log_cosh_keeps_its_digits():
    "In float32 to the last digits of float64, from 1e-18 to 1e30, and its slope too"
    d = torch.cat([10**torch.linspace(-18, 30, 200), torch.linspace(.9, 1.1, 50)])
    d = torch.cat([d, -d])
    got = value_and_grad(lambda d: r.log_cosh_loss(d, 0*d, reduction='sum'), d)
    far = d.double().abs().clamp(min=.5)
    small, exact = d.double(), far + torch.log1p(torch.expm1(-2*far)/2)
    series = small**2/2 - small**4/12 + small**6/45 - 17*small**8/2520 + 31*small**10/14175
    exact = torch.where(small.abs() < .1, series, torch.where(small.abs() < .5, small.clamp(-1, 1).cosh().log(), exact))
    close(r.log_cosh_loss(d, 0*d, reduction='none').double(), exact, rtol=1e-6, atol=0)
    close(got[1], d.tanh(), rtol=1e-6, atol=0)


def test_huge_and_tiny_thresholds():
    "An infinite threshold leaves half the square; a tiny one the absolute value; far errors stay finite"
    z, y = data(9)
    close(r.huber_loss(z, y, delta=torch.inf), r.mse_loss(z, y)/2)
    close(r.smooth_l1_loss(z, y, beta=1e-300), r.l1_loss(z, y))
    far = torch.tensor([1e30, -1e30])
    for name in 'l1_loss', 'huber_loss', 'smooth_l1_loss', 'log_cosh_loss', 'quantile_loss':
        for o in value_and_grad(lambda z, name=name: getattr(r, name)(z, -z.detach()), far): assert o.isfinite().all()


def test_corners():
    "Slopes and curvatures at an error of exactly 0 and at the threshold, like PyTorch's"
    zero = torch.zeros(1, **double)
    for name, o in (('l1_loss', {}), ('huber_loss', {}), ('smooth_l1_loss', {}), ('smooth_l1_loss', dict(beta=0))):
        for at in 0., 1., -1.: assert_same(*(value_and_grad(lambda z, fn=fn: fn(z, zero, **o), zero + at) for fn in (getattr(r, name), getattr(F, name))), name)
    for name, expected in {'huber_loss': 1, 'smooth_l1_loss': 1, 'log_cosh_loss': 1, 'mse_loss': 2}.items():
        hessian = torch.autograd.functional.hessian(lambda z, name=name: getattr(r, name)(z, zero, reduction='sum'), zero)
        close(hessian, torch.full((1, 1), expected, **double))
    assert value_and_grad(lambda z: r.quantile_loss(z, zero, quantile=.9), zero)[1].item() == pytest.approx(-.4)


@pytest.mark.parametrize('shape', [(7,), (2, 3), ()])
def test_several_quantiles(shape):
    "A column for each: the mean of the losses one by one, with the mask and the weights of the rows"
    z, y = torch.randn(*shape, 3, **double), torch.randn(shape, **double)
    keep, s = torch.rand(shape) < .6, torch.rand(shape, **double)
    one = lambda **kw: torch.stack([r.quantile_loss(z[..., i], y, quantile=q.item(), reduction='none', **kw) for i, q in enumerate(QS)], -1).mean(-1)
    close(r.quantile_loss(z, y, quantile=QS, reduction='none'), one())
    close(r.quantile_loss(z, y, quantile=QS.float()), one().mean(), rtol=1e-6, atol=1e-8)
    missing = y.masked_fill(~keep, torch.nan)
    value, g = value_and_grad(lambda z: r.quantile_loss(z, missing, quantile=QS, mask=keep, sample_weight=s), z)
    total, weights = (s*one())[keep].sum(), s[keep].sum()
    close(value, total/weights if keep.any() else torch.tensor(0., **double))
    assert not g[~keep].any()
    close(r.quantile_loss(z, y, quantile=QS, reduction='batchmean', sample_weight=s), (s*one()).sum()/(shape[0] if shape else 1))
    assert ll.QuantileLoss(quantile=QS).state_dict()['quantile'] is not None
    close(ll.QuantileLoss(quantile=QS)(z, y), one().mean())
    close(r.quantile_loss(z[..., 0], y, quantile=torch.tensor(.3)), r.quantile_loss(z[..., 0], y, quantile=.3), rtol=1e-6, atol=1e-8)


@every_case
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(name, options, dtype):
    "Computed and returned in float32, gradients in the dtype of the predictions"
    z, y = (o.to(dtype) for o in data(5, 4))
    value, g = value_and_grad(lambda z: 300*getattr(r, name)(z, y, **options), z)
    assert value.dtype == torch.float32 and g.dtype == dtype
    close(value, 300*getattr(r, name)(z.float(), y.float(), **options), rtol=1e-6, atol=0)
    assert r.mse_loss(torch.full((2,), 300., dtype=torch.half), torch.zeros(2)) == 90_000


def test_dtypes_of_targets():
    "Integers, bools and other precisions are read in the precision of the predictions"
    z = torch.randn(4)
    for t in torch.tensor([1, 0, 3, 2]), torch.tensor([True, False, True, True]), torch.rand(4, **double), torch.rand(4).half():
        out = r.mse_loss(z, t)
        assert out.dtype == torch.float32
        close(out, r.mse_loss(z, t.float()), rtol=1e-6, atol=0)


@every_case
def test_transforms(name, options):
    "vmap over the rows, derivatives forwards and twice, and one graph"
    (z, y), fn = data(5, 4), lambda z, y: getattr(r, name)(z, y, **options)
    close(torch.func.vmap(fn)(z, y), getattr(r, name)(z, y, reduction='none', **options).mean(1))
    t = torch.randn_like(z)
    close(torch.func.jvp(lambda z: fn(z, y), (z,), (t,))[1], (torch.func.grad(fn)(z, y)*t).sum())
    assert torch.autograd.gradcheck(fn, (z.clone().requires_grad_(), y.clone().requires_grad_()), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fn, (z.clone().requires_grad_(), y.clone().requires_grad_()))
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend='aot_eager')
    close(compiled(z, y), fn(z, y))


def test_several_quantiles_under_transforms():
    "The columns too"
    z, y = torch.randn(5, 3, **double), torch.randn(5, **double)
    fn = lambda z, y: r.quantile_loss(z, y, quantile=QS)
    close(torch.func.vmap(fn)(z, y), r.quantile_loss(z, y, quantile=QS, reduction='none'))
    torch._dynamo.reset()
    close(torch.compile(fn, fullgraph=True, backend='aot_eager')(z, y), fn(z, y))
    assert torch.autograd.gradcheck(fn, (z.requires_grad_(), y), check_forward_ad=True)


@pytest.mark.parametrize('options', list(grid(reduction=['none', 'mean', 'sum'])))
@pytest.mark.parametrize('cls', CLASSES)
def test_modules(cls, options):
    "A module is its function"
    z, y = data(5, 4)
    ours = getattr(ll, cls)
    close(ours(**options)(z, y), getattr(r, CLASSES[cls])(z, y, **options))
    if theirs := getattr(torch.nn, cls, None): close(ours(**options)(z, y), theirs(**options)(z, y))


def test_caffe():
    "Half the sum of squares over the batch, for any loss weight"
    z, y = data(4, 3, 2)
    value, g = value_and_grad(lambda z: .5*r.mse_loss(z, y, reduction='batchmean'), z)
    close(value, ((z - y)**2).sum()/8)
    close(g, (z - y)/4)


column, row = torch.randn(3, 1), torch.randn(3)
WRONG = {
    'column': (ValueError, r'target has shape \(3,\) and input has shape \(3, 1\); nothing is broadcast; use target.view\(\(3, 1\)\)', lambda fn: fn(column, row)),
    'one': (ValueError, r'target has shape \(1,\) and input has shape \(3,\); nothing is broadcast; use target.expand', lambda fn: fn(row, row[:1])),
    'integers': (TypeError, 'input has dtype torch.int64; it must be floating point', lambda fn: fn(row.long(), row)),
    'complex': (TypeError, 'target has dtype torch.complex64; it must be real', lambda fn: fn(row, row.to(torch.complex64))),
    'number': (TypeError, 'target is a float; it must be a tensor', lambda fn: fn(row, 1.)),
    'mask': (ValueError, r'mask has shape \(3, 1\), but the loss has one value per element, shape \(3,\)', lambda fn: fn(row, row, mask=column > 0)),
    'sample_weight': (ValueError, r'sample_weight has shape \(3,\)', lambda fn: fn(column, column, sample_weight=row)),
    'ignore_index': (TypeError, 'ignore_index', lambda fn: fn(row, row, ignore_index=-100)),
}


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('name', CLASSES.values())
def test_wrong_calls(name, wrong):
    "The error names the argument, what it got and what to do"
    error, text, call = WRONG[wrong]
    with pytest.raises(error, match=text): call(getattr(r, name))


z3 = torch.randn(5, 3)
OPTIONS = {
    'delta 0': (ValueError, 'delta is 0; it must be larger than 0', lambda: r.huber_loss(row, row, delta=0)),
    'delta text': (TypeError, "delta is '1'", lambda: r.huber_loss(row, row, delta='1')),
    'beta': (ValueError, 'beta is -1; it must be at least 0', lambda: r.smooth_l1_loss(row, row, beta=-1)),
    'percent': (ValueError, 'quantile is 90; it must be between 0 and 1', lambda: r.quantile_loss(row, row, quantile=90)),
    'list': (TypeError, r'quantile is \[0.1, 0.9\] \(list\)', lambda: r.quantile_loss(row, row, quantile=[.1, .9])),
    'outside': (ValueError, 'quantile holds .* they must be between 0 and 1', lambda: r.quantile_loss(z3, z3[:, 0], quantile=torch.tensor([.1, .5, 90.]))),
    'nan': (ValueError, 'quantile holds', lambda: r.quantile_loss(z3, z3[:, 0], quantile=torch.tensor([.1, .5, torch.nan]))),
    'whole': (TypeError, 'quantile has dtype torch.int64', lambda: r.quantile_loss(z3, z3[:, 0], quantile=torch.tensor([0, 1, 0]))),
    'columns': (ValueError, r'quantile has shape \(2,\) and input has shape \(5, 3\)', lambda: r.quantile_loss(z3, z3[:, 0], quantile=torch.tensor([.1, .9]))),
    'matrix': (ValueError, r'quantile must be \(Q,\)', lambda: r.quantile_loss(z3, z3[:, 0], quantile=torch.rand(1, 3))),
    'no column': (ValueError, 'input has a column for each', lambda: r.quantile_loss(row, row, quantile=torch.tensor([.1, .9]))),
    'targets': (ValueError, r'target has shape \(5, 3\) and input has shape \(5, 3\); with 3 quantiles target has one value', lambda: r.quantile_loss(z3, z3, quantile=QS)),
    'rows': (ValueError, r'mask has shape \(5, 3\), but the loss has one value per element, shape \(5,\)', lambda: r.quantile_loss(z3, z3[:, 0], quantile=QS, mask=z3 > 0)),
    'weight': (ValueError, r'weight has shape \(2,\), which does not expand', lambda: r.mse_loss(z3, z3, weight=torch.ones(2))),
}


@pytest.mark.parametrize('wrong', OPTIONS)
def test_wrong_options(wrong):
    "Options out of range, and shapes of quantiles"
    error, text, call = OPTIONS[wrong]
    with pytest.raises(error, match=text): call()


def test_what_each_loss_estimates():
    "The gradient at the mean, the median and the quantile of a skewed sample is 0"
    y = torch.distributions.LogNormal(torch.tensor(0., **double), 1.).sample((1001,))
    def pull(fn, at, **o): return torch.autograd.grad(fn(z := torch.full((1001,), float(at), **double).requires_grad_(), y, **o), z)[0].sum().abs()
    assert pull(r.mse_loss, y.mean()) < 1e-12 and pull(r.l1_loss, y.median()) < 1e-12
    for q in .1, .5, .95: assert pull(r.quantile_loss, y.quantile(q), quantile=q) < 1.01/1001
    for fn in r.huber_loss, r.log_cosh_loss: assert pull(fn, y.mean()) > .01 and pull(fn, y.median()) > .01
