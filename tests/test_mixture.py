"Mixtures of Gaussians: an oracle in plain floats, PyTorch's own mixtures, the far ends, what does not count, and the helpers of a head"
import math

import pytest
import torch
from oracle import TIGHT, value_and_grad
from torch import distributions as td

import losslab as ll
from losslab.mixture import (GaussianMixtureNLLLoss, gaussian_mixture_nll_loss, mixture_mean, mixture_mode, mixture_responsibilities,
                             sample_mixture, split_mixture)

SHAPES = {'numbers': ((6, 3), (6, 3)), 'vectors': ((6, 3), (6, 3, 4)), 'sequences': ((2, 5, 3), (2, 5, 3, 2)), 'one row': ((3,), (3,)), 'one component': ((6, 1), (6, 1, 2))}
every_shape = pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)


def close(a, b, **tolerance): torch.testing.assert_close(a, b, **(tolerance or TIGHT))


def data(logits, mu, seed=0, dtype=torch.float64, sigma=1.):
    g = torch.Generator().manual_seed(seed)
    def normal(*shape): return torch.randn(shape, generator=g, dtype=torch.float64)
    a, m, s = normal(*logits), normal(*mu), math.log(sigma) + .4*normal(*mu)
    t = normal(*m.select(len(logits) - 1, 0).shape)
    return tuple(o.to(dtype) for o in (a, m, s, t))


def oracle(a, m, s, t, min_sigma=0.):
    "Loss of one row in plain floats: components are lists of coordinates"
    top = max(a)
    norm = top + math.log(math.fsum(math.exp(o - top) for o in a))
    terms = []
    for ak, mk, sk in zip(a, m, s):
        log_density = 0.
        for o, log_s, x in zip(mk, sk, t):
            sd = max(math.exp(log_s), min_sigma)
            log_density -= (x - o)**2/(2*sd**2) + math.log(sd) + .5*math.log(2*math.pi)
        terms.append(ak - norm + log_density)
    top = max(terms)
    return -(top + math.log(math.fsum(math.exp(o - top) for o in terms)))


def rows_of(a, m, s, t):
    if m.ndim == a.ndim: m, s, t = m[..., None], s[..., None], t[..., None]
    flat = a.reshape(-1, a.shape[-1]), m.reshape(-1, *m.shape[-2:]), s.reshape(-1, *s.shape[-2:]), t.reshape(-1, t.shape[-1])
    return zip(*(o.tolist() for o in flat))


def torch_mixture(a, m, s):
    parts = td.Normal(m, s.exp(), validate_args=False)
    if m.ndim > a.ndim: parts = td.Independent(parts, 1)
    return td.MixtureSameFamily(td.Categorical(logits=a), parts, validate_args=False)


def none(*args, **options): return gaussian_mixture_nll_loss(*args, reduction='none', **options)


@every_shape
@pytest.mark.parametrize('min_sigma', [1e-7, .9])
def test_oracle(shapes, min_sigma):
    "One value per row, against sums in plain floats"
    args = data(*shapes)
    got = none(*args, min_sigma=min_sigma)
    assert got.shape == args[0].shape[:-1]
    expected = torch.tensor([oracle(*row, min_sigma=min_sigma) for row in rows_of(*args)], dtype=torch.float64).view(got.shape)
    close(got, expected)


@every_shape
@pytest.mark.parametrize('sigma', [1., 1e-6])
@pytest.mark.parametrize('far', [0., 1., 50., -50.])
def test_torch_distributions(shapes, sigma, far):
    "`MixtureSameFamily`, values and gradients in all four arguments, from the peak to fifty standard deviations"
    a, m, s, _ = data(*shapes, sigma=sigma)
    axis = a.ndim - 1
    t = m.select(axis, 0) + far*s.select(axis, 0).exp()
    ours = value_and_grad(lambda *z: none(*z, min_sigma=1e-9), a, m, s, t)
    theirs = value_and_grad(lambda a, m, s, t: -torch_mixture(a, m, s).log_prob(t), a, m, s, t)
    for x, y in zip(ours, theirs):
        assert x.isfinite().all()
        close(x, y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_fifty_standard_deviations_in_every_precision(dtype):
    "sigma 1e-6 and 50 standard deviations: the exact number, with the default floor"
    for d in 1, 7:
        m, s, t = torch.zeros(1, 2, d, dtype=dtype), torch.full((1, 2, d), math.log(1e-6), dtype=dtype), torch.full((1, d), 50e-6, dtype=dtype)
        value, g_logits, g_mu, g_s, g_t = value_and_grad(none, torch.zeros(1, 2, dtype=dtype), m, s, t)
        expected = d*(1250 + math.log(1e-6) + math.log(2*math.pi)/2)
        tolerance = dict(rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=0)
        close(value, torch.tensor([expected], dtype=dtype), **tolerance)
        close(g_mu, torch.full_like(m, -50/1e-6/2), **tolerance)
        close(g_t, torch.full_like(t, 50/1e-6), **tolerance)
        close(g_s, torch.full_like(s, (1 - 2500)/2), **tolerance)
        assert not g_logits.any()


@pytest.mark.parametrize('dtype,size', [(torch.float32, 1e4), (torch.float32, 1e30), (torch.float32, 3e38), (torch.float64, 1e30), (torch.float64, 1e300),
                                        (torch.float16, 6e4), (torch.bfloat16, 1e30)], ids=str)
@pytest.mark.parametrize('which', range(4))
def test_large_input(dtype, size, which):
    "Finite numbers of any size in any argument: finite loss; finite gradients where the dtype can hold them"
    for sign in 1, -1:
        for log_s in 0., -12.:
            args = [torch.zeros(2, 3), torch.zeros(2, 3), torch.full((2, 3), log_s), torch.ones(2)]
            args[which] = args[which] + sign*size*torch.tensor([1., .5, 0.] if which < 3 else [1., .5]).double()
            args = [o.double().clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype) for o in args]
            value, *grads = value_and_grad(none, *args)
            assert value.isfinite().all() and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert all(g.dtype == dtype and not g.isnan().any() for g in grads)
            if dtype not in (torch.float16, torch.bfloat16): assert all(g.isfinite().all() for g in grads)


def test_shares_far_away():
    "Equal components share one pull, however far away, in float32 too"
    for far in 1e2, 1e4, 1e6, 1e8:
        m = torch.zeros(1, 4, requires_grad=True)
        g, = torch.autograd.grad(none(torch.zeros(1, 4), m, torch.zeros(1, 4), torch.tensor([far])), m)
        close(g, torch.full((1, 4), -far/4), rtol=1e-6, atol=0)


def test_far_away_still_pulls():
    "An error of 1e12 standard deviations has its gradient"
    m = torch.zeros(1, 1, requires_grad=True)
    g, = torch.autograd.grad(none(torch.zeros(1, 1), m, torch.full((1, 1), math.log(1e-7)), torch.full((1,), 1e5)), m)
    close(g, torch.tensor([[-1e19]]), rtol=1e-5, atol=0)


@every_shape
def test_gradients_by_formula(shapes):
    "Responsibilities share out the pull of each component"
    a, m, s, t = data(*shapes)
    value, *grads = value_and_grad(lambda *z: gaussian_mixture_nll_loss(*z, reduction='sum'), a, m, s, t)
    r = mixture_responsibilities(a, m, s, t)
    close(r, torch.func.grad(lambda a: -gaussian_mixture_nll_loss(a, m, s, t, reduction='sum') + torch.logsumexp(a, -1).sum()*0)(a) + a.softmax(-1))
    axis = a.ndim - 1
    z = (t.unsqueeze(axis) - m)/s.exp()
    r_full = r if m.ndim == a.ndim else r[..., None]
    close(grads[0], a.softmax(-1) - r)
    close(grads[1], -r_full*z/s.exp())
    close(grads[2], r_full*(1 - z**2))
    close(grads[3], (r_full*z/s.exp()).sum(axis))


def test_invariances():
    "Logits have no zero, components no names, space no origin; a unit costs its logarithm per coordinate"
    a, m, s, t = data(*SHAPES['vectors'])
    loss, order = none(a, m, s, t), torch.tensor([2, 0, 1])
    close(none(a + 7, m, s, t), loss)
    close(none(a[:, order], m[:, order], s[:, order], t), loss)
    close(none(a, m + 3, s, t + 3), loss)
    close(none(a, 1000*m, s + math.log(1000), 1000*t), loss + 4*math.log(1000))
    doubled = [torch.cat([o, o], 1) for o in (a, m, s)]
    close(none(*doubled, t), loss)
    spread = none(a, m, s, t.flip(0))
    assert not torch.allclose(spread, loss)


def test_area_is_one():
    "A density: its integral is 1, for numbers and on a plane"
    a, m, s, _ = data((3,), (3,))
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    p = (-none(*(o.expand(len(x), 3) for o in (a, m, s)), x)).exp()
    close(torch.trapezoid(p, x), torch.tensor(1., dtype=torch.float64), rtol=1e-6, atol=0)
    a, m, s, _ = data((2,), (2, 2))
    x = torch.linspace(-12, 12, 301, dtype=torch.float64)
    plane = torch.cartesian_prod(x, x)
    p = (-none(a.expand(len(plane), 2), m.expand(len(plane), 2, 2), s.expand(len(plane), 2, 2), plane)).exp().view(301, 301)
    close(torch.trapezoid(torch.trapezoid(p, x), x), torch.tensor(1., dtype=torch.float64), rtol=1e-6, atol=0)


def test_one_component_is_a_gaussian():
    a, m, s, t = data(*SHAPES['one component'])
    theirs = torch.nn.functional.gaussian_nll_loss(m[:, 0], t, (2*s[:, 0]).exp(), full=True, eps=1e-12, reduction='none').sum(1)
    close(none(a, m, s, t), theirs)


def test_floor():
    "Below `min_sigma` the value is that of the floor and the width gets no gradient; the mean does; above it nothing changes"
    a, m, s, t = data(*SHAPES['vectors'])
    close(none(a, m, s, t, min_sigma=1e-3), none(a, m, s, t, min_sigma=0))
    floored = value_and_grad(lambda a, m, s: none(a, m, s, t, min_sigma=10.), a, m, s)
    at_floor = value_and_grad(lambda a, m: none(a, m, torch.full_like(s, math.log(10.)), t), a, m)
    for x, y in zip(floored[:3], at_floor): close(x, y)
    assert not floored[3].any()
    tiny = none(torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), -1000.), torch.zeros(1), min_sigma=0)
    assert tiny.isfinite() and tiny < -80
    close(none(torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), -1000.), torch.zeros(1)), torch.tensor([math.log(1e-7*(2*math.pi)**.5)]))
    for bad, error in ((-1., ValueError), (True, TypeError), ('a', TypeError), (math.nan, ValueError)):
        for fn in (gaussian_mixture_nll_loss, mixture_responsibilities):
            with pytest.raises(error, match='min_sigma'): fn(a, m, s, t, min_sigma=bad)
        for fn in (sample_mixture, mixture_mode):
            with pytest.raises(error, match='min_sigma'): fn(a, m, s, min_sigma=bad)


def test_components_that_are_out():
    "A logit of -inf is a component that is not there, in the loss, its gradients and all helpers"
    a, m, s, t = data(*SHAPES['vectors'])
    a[:, 1] = -torch.inf
    kept = torch.tensor([0, 2])
    value, *grads = value_and_grad(none, a, m, s, t)
    expected = value_and_grad(none, a[:, kept], m[:, kept], s[:, kept], t)
    close(value, expected[0])
    for g, e in zip(grads[:3], expected[1:4]):
        close(g[:, kept], e)
        assert not g[:, 1].any()
    close(mixture_mean(a, m), mixture_mean(a[:, kept], m[:, kept]))
    close(mixture_mode(a, m, s), mixture_mode(a[:, kept], m[:, kept], s[:, kept]))
    assert not mixture_responsibilities(a, m, s, t)[:, 1].any()
    m[:, 1] = 1e6
    assert (sample_mixture(a, m, s, 100, generator=torch.Generator().manual_seed(0)) < 1e3).all()


REDUCTIONS = {'sum': lambda l, w, k: (l*w*k).sum(), 'mean': lambda l, w, k: (l*w*k).sum()/(w*k).sum(), 'weighted_mean': lambda l, w, k: (l*w*k).sum()/(w*k).sum(),
              'element_mean': lambda l, w, k: (l*w*k).sum()/k.sum(), 'batchmean': lambda l, w, k: (l*w*k).sum()/len(l), 'none': lambda l, w, k: l*w*k}


@pytest.mark.parametrize('shapes', [SHAPES['numbers'], SHAPES['vectors'], SHAPES['sequences']], ids=['numbers', 'vectors', 'sequences'])
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_reductions(shapes, reduction):
    "Each named mean over rows, with weights and a mask, also where what is masked or weighs nothing is NaN"
    args = data(*shapes)
    loss, g = none(*args), torch.Generator().manual_seed(1)
    w, k = torch.rand(loss.shape, generator=g, dtype=torch.float64) + .1, torch.rand(loss.shape, generator=g) < .6
    k.view(-1)[0], w.view(-1)[0] = True, 0.
    for weights, kept in ((w, k), (None, k), (w, None), (None, None)):
        expected = REDUCTIONS[reduction](loss, torch.ones_like(loss) if weights is None else weights, torch.ones_like(loss) if kept is None else kept.double())
        close(gaussian_mixture_nll_loss(*args, sample_weight=weights, mask=kept, reduction=reduction), expected)
        off = torch.zeros_like(k) if kept is None else ~kept
        if weights is not None: off = off | (weights == 0)
        for fill in torch.nan, torch.inf, -torch.inf:
            for which in range(4):
                dirty = [o.clone() for o in args]
                dirty[which][off] = fill
                value, *grads = value_and_grad(lambda *z: gaussian_mixture_nll_loss(*z, sample_weight=weights, mask=kept, reduction=reduction), *dirty)
                close(value, expected)
                assert all(g.isfinite().all() and not g[off].any() for g in grads)
    if reduction not in ('none', 'sum'): close(gaussian_mixture_nll_loss(*args, reduction=reduction, normalizer=4.), loss.sum()/4)


def test_nan_that_counts_is_seen():
    "What counts and is broken is NaN in its own row"
    for which in range(4):
        args = [o.clone() for o in data(*SHAPES['vectors'])]
        args[which][2] = torch.nan
        for options in {}, dict(sample_weight=torch.ones(6)), dict(mask=torch.ones(6, dtype=torch.bool)):
            assert none(*args, **options).isnan().tolist() == [i == 2 for i in range(6)]


def test_a_weight_of_0_can_be_learned():
    "The derivative in a sample weight is the loss of its row, also at 0 and with a component that is out"
    args = data(*SHAPES['vectors'])
    args[0][1, 0] = -torch.inf
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(gaussian_mixture_nll_loss(*args, sample_weight=w, reduction='sum'), w)
    close(g, none(*args))
    assert gaussian_mixture_nll_loss(*args, sample_weight=w) == 0


def test_nothing_counts():
    args = data(*SHAPES['vectors'])
    for empty, options in (([o[:0] for o in args], {}), (args, dict(mask=torch.zeros(6, dtype=torch.bool))), (args, dict(sample_weight=torch.zeros(6)))):
        value, *grads = value_and_grad(lambda *z: gaussian_mixture_nll_loss(*z, **options), *empty)
        assert value == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize('shapes', [((4, 2), (4, 2)), ((2, 2, 2), (2, 2, 2, 2))], ids=['numbers', 'sequences'])
def test_derivatives_and_transforms(shapes):
    args = [o.requires_grad_() for o in data(*shapes)]
    shape = args[0].shape[:-1]
    w, k = torch.linspace(0, 1, shape.numel(), dtype=torch.float64).view(shape), (torch.arange(shape.numel()) % 3 > 0).view(shape)
    fn = lambda *z: gaussian_mixture_nll_loss(*z, sample_weight=w, mask=k, min_sigma=.01)
    torch.autograd.gradcheck(fn, args, check_forward_ad=True)
    torch.autograd.gradgradcheck(fn, args)
    args = [o.detach() for o in args]
    close(torch.compile(fn, fullgraph=True, backend='eager')(*args), fn(*args))
    close(torch.func.vmap(lambda *z: gaussian_mixture_nll_loss(*z))(*args), none(*args) if len(shape) == 1 else none(*args).mean(1))
    one = torch.func.grad(lambda a, *rest: gaussian_mixture_nll_loss(a, *rest))
    close(torch.func.vmap(one)(*args)*(1 if len(shape) == 1 else shape[1]), value_and_grad(lambda a: gaussian_mixture_nll_loss(a, *args[1:], reduction='sum'), args[0])[1])


def test_helpers_compile():
    a, m, s, t = data(*SHAPES['vectors'])
    for fn, args in ((mixture_mean, (a, m)), (mixture_mode, (a, m, s)), (mixture_responsibilities, (a, m, s, t)), (split_mixture, (torch.randn(4, 9), 3))):
        torch.testing.assert_close(torch.compile(fn, fullgraph=True, backend='eager')(*args), fn(*args))
    torch.compile(sample_mixture, fullgraph=True, backend='eager')(a, m, s, 3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(dtype):
    "Half input is computed and returned in float32, in all functions"
    args = data(*SHAPES['vectors'], dtype=dtype)
    close(none(*args), none(*(o.float() for o in args)), rtol=0, atol=0)
    assert value_and_grad(none, *args)[1].dtype == dtype
    assert all(o.dtype == torch.float32 for o in (mixture_mean(*args[:2]), mixture_mode(*args[:3]), sample_mixture(*args[:3]), mixture_responsibilities(*args)))


def test_targets_of_another_dtype():
    a, m, s, t = data(*SHAPES['vectors'], dtype=torch.float32)
    assert none(a, m, s, t.double()).dtype == torch.float32
    close(none(a, m, s, t.double()), none(a, m, s, t), rtol=1e-6, atol=1e-6)
    close(none(a.double(), m.double(), s.double(), t), none(a.double(), m.double(), s.double(), t.double()))


BAD = {'column': lambda t: t[..., None], 'first': lambda t: t[:1], 'row': lambda t: t[None], 'one': lambda t: t[0]}


@pytest.mark.parametrize('shapes', [SHAPES['numbers'], SHAPES['vectors']], ids=['numbers', 'vectors'])
@pytest.mark.parametrize('change', BAD.values(), ids=BAD)
def test_nothing_broadcasts(shapes, change):
    "Shapes that do not belong together are refused, and all four are named"
    args = data(*shapes)
    for i in range(4):
        bad = [change(o) if j == i else o for j, o in enumerate(args)]
        with pytest.raises(ValueError, match='nothing is broadcast') as caught: gaussian_mixture_nll_loss(*bad)
        for name, o in zip(('logits', 'mu', 'log_sigma', 'target'), bad): assert f'{name} has shape {tuple(o.shape)}' in str(caught.value)
        with pytest.raises(ValueError): mixture_responsibilities(*bad)
        if i < 3:
            with pytest.raises(ValueError): mixture_mode(*bad[:3])
            with pytest.raises(ValueError): sample_mixture(*bad[:3])
        if i < 2 and bad[1].ndim != bad[0].ndim + 1:  # a number is a vector of length 1
            with pytest.raises(ValueError): mixture_mean(*bad[:2])


def test_errors():
    a, m, s, t = data(*SHAPES['vectors'])
    for i, name in enumerate(('logits', 'mu', 'log_sigma', 'target')):
        for wrong, text in ((args := [a, m, s, t])[i].long(), 'torch.int64'), (args[i].tolist(), 'list'):
            with pytest.raises(TypeError, match=f'{name} .*{text}'): gaussian_mixture_nll_loss(*[wrong if j == i else o for j, o in enumerate(args)])
    with pytest.raises(ValueError, match='expected'): gaussian_mixture_nll_loss(a[:, :0], m[:, :0], s[:, :0], t)
    with pytest.raises(ValueError, match='logits has shape'): gaussian_mixture_nll_loss(a.sum(), m.sum(), s.sum(), t.sum())
    with pytest.raises(ValueError, match='mask has shape'): gaussian_mixture_nll_loss(a, m, s, t, mask=torch.ones(6, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match='mask has dtype'): gaussian_mixture_nll_loss(a, m, s, t, mask=torch.ones(6))
    with pytest.raises(ValueError, match='sample_weight has shape'): gaussian_mixture_nll_loss(a, m, s, t, sample_weight=torch.ones(6, 4))
    with pytest.raises(ValueError, match="reduction is 'avg'"): gaussian_mixture_nll_loss(a, m, s, t, reduction='avg')
    with pytest.raises(TypeError): gaussian_mixture_nll_loss(a, m, s, t, .1)
    with pytest.raises(TypeError, match='GaussianMixtureNLLLoss has no option'): GaussianMixtureNLLLoss(sigma=1)
    for bad in -1, 'a':
        with pytest.raises((ValueError, TypeError), match='n_samples'): sample_mixture(a, m, s, bad)
        with pytest.raises((ValueError, TypeError), match='steps'): mixture_mode(a, m, s, steps=bad)


@pytest.mark.parametrize('lead', [(), (5,), (2, 5)], ids=str)
def test_split(lead):
    "Logits, then means by component, then log standard deviations"
    output = torch.arange(math.prod(lead)*3*(1 + 2*2), dtype=torch.float32).view(*lead, 15)
    a, m, s = split_mixture(output, 3, 2)
    assert a.shape == (*lead, 3) and m.shape == s.shape == (*lead, 3, 2)
    assert torch.equal(torch.cat([a, m.flatten(-2), s.flatten(-2)], -1), output)
    assert torch.equal(m[..., 1, 0], output[..., 5]) and torch.equal(s[..., 0, 1], output[..., 10])
    a, m, s = split_mixture(output, 5)
    assert a.shape == m.shape == s.shape == (*lead, 5) and torch.equal(torch.cat([a, m, s], -1), output)
    assert split_mixture(output, 5, 1)[1].shape == (*lead, 5, 1)
    gaussian_mixture_nll_loss(*split_mixture(output, 3, 2), torch.zeros(*lead, 2))
    gaussian_mixture_nll_loss(*split_mixture(output, 5), torch.zeros(lead))
    for wrong, text in ((dict(n_components=4), 'a last axis of'), (dict(n_components=0), 'n_components'), (dict(n_components=3, n_outputs=-2), 'n_outputs'),
                        (dict(n_components=3, n_outputs=0), 'n_outputs'), (dict(n_components=2.5), 'components')):
        with pytest.raises((ValueError, TypeError), match=text): split_mixture(output, **wrong)


def test_samples():
    "Shares, means and spreads of many samples; the same generator gives the same numbers"
    a, m, s = torch.tensor([.2, .5, .3]).log()[None] + 3, torch.tensor([[[-9., 0.], [0., 5.], [9., 0.]]]), torch.tensor([[[.1, 1.], [.2, 2.], [.3, 1.]]]).log()
    x = sample_mixture(a, m, s, 20_000, generator=torch.Generator().manual_seed(3))
    assert x.shape == (20_000, 1, 2) and torch.equal(x, sample_mixture(a, m, s, 20_000, generator=torch.Generator().manual_seed(3)))
    which = (x[:, 0, :1] - m[0, :, 0]).abs().argmin(1)
    close(which.bincount()/20_000, torch.tensor([.2, .5, .3]), rtol=0, atol=.015)
    for k in range(3):
        own = x[which == k, 0]
        close(own.mean(0), m[0, k], rtol=0, atol=.08)
        close(own.std(0), s[0, k].exp(), rtol=.04, atol=0)
    close(mixture_mean(a, m)[0], x.mean((0, 1)), rtol=0, atol=.15)
    floored = sample_mixture(a[:, :1], m[:, :1], s[:, :1] - 50, 5000, min_sigma=.5, generator=torch.Generator().manual_seed(4))
    close(floored.std(0), torch.full((1, 2), .5), rtol=.05, atol=0)
    assert sample_mixture(a, m[..., 0], s[..., 0], 4).shape == (4, 1) and sample_mixture(a[0], m[0], s[0], 4).shape == (4, 2) and sample_mixture(a, m, s).shape == (1, 1, 2)
    rng = torch.get_rng_state()
    sample_mixture(a, m, s, 3, generator=torch.Generator())
    assert torch.equal(rng, torch.get_rng_state())


def test_rows_are_sampled_apart():
    "Each row draws from its own mixture"
    a, m, s = torch.tensor([[50., 0.], [0., 50.]]), torch.tensor([[1., 2.], [3., 4.]]), torch.full((2, 2), -8.)
    close(sample_mixture(a, m, s, 5), torch.tensor([1., 4.]).expand(5, 2), rtol=0, atol=.01)


def test_mean():
    a, m, _, _ = data(*SHAPES['sequences'])
    close(mixture_mean(a, m), torch_mixture(a, m, torch.zeros_like(m)).mean)
    close(mixture_mean(a, m[..., 0]), mixture_mean(a, m)[..., 0])


@pytest.mark.parametrize('seed', range(6))
def test_mode(seed):
    "No place of a fine grid is more likely than the mode; more steps never hurt"
    a, m, s, _ = data((4, 3), (4, 3), seed=seed, sigma=.5)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    best = (-none(*(o[:, None].expand(4, 4001, 3) for o in (a, m, s)), grid.expand(4, 4001))).amax(1)
    heights = [-none(a, m, s, mixture_mode(a, m, s, steps=n)) for n in (0, 5, 30, 300)]
    assert (heights[-1] > best - 1e-6).all()
    assert all((after >= before - 1e-12).all() for before, after in zip(heights, heights[1:]))
    mode = mixture_mode(a, m, s, steps=300).requires_grad_()
    g, = torch.autograd.grad(none(a, m, s, mode).sum(), mode)
    assert g.abs().max() < 1e-2


def test_mode_of_vectors():
    "Each coordinate is weighed by its own precision"
    a, m, s = torch.zeros(1, 2).double(), torch.tensor([[[0., 0.], [1., 1.]]]).double(), torch.tensor([[[1., .2], [.2, 1.]]]).double().log()
    mode = mixture_mode(a, m, s, steps=2000).requires_grad_()
    g, = torch.autograd.grad(none(a, m, s, mode).sum(), mode)
    assert g.abs().max() < 1e-6
    assert mixture_mode(*data(*SHAPES['sequences'])[:3]).shape == (2, 5, 2) and mixture_mode(*data(*SHAPES['one row'])[:3]).shape == ()
    far = mixture_mode(torch.tensor([[.6, .4]]).log(), torch.tensor([[0., 100.]]), torch.tensor([[1e-30, 1.]]).log())
    assert far == 0  # the floor keeps it finite
    high = torch.tensor([[-1., 1.]]).log_softmax(-1)
    close(mixture_mode(high, torch.tensor([[0., 9.]]), torch.zeros(1, 2)), torch.tensor([9.]), rtol=0, atol=1e-4)
    wide = mixture_mode(high, torch.tensor([[0., 9.]]), torch.tensor([[-5., -4.]]), min_sigma=1.)
    close(wide, torch.tensor([9.]), rtol=0, atol=1e-4)


def test_module():
    args = data(*SHAPES['vectors'])
    loss_fn = GaussianMixtureNLLLoss(min_sigma=.5, reduction='sum')
    close(loss_fn(*args), gaussian_mixture_nll_loss(*args, min_sigma=.5, reduction='sum'))
    close(loss_fn(*args, min_sigma=1e-7), gaussian_mixture_nll_loss(*args, reduction='sum'))
    assert 'min_sigma=0.5' in repr(loss_fn) and ll.Loss in GaussianMixtureNLLLoss.__mro__
    parts = GaussianMixtureNLLLoss(reduction='parts')(*args)
    close(parts.mean, gaussian_mixture_nll_loss(*args))
