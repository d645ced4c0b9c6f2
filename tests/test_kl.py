"KL between Gaussians in every form against torch.distributions and high precision, the estimators by their moments, masks, transforms, wrong calls"
import math
from decimal import Decimal, localcontext

import pytest
import torch
from oracle import assert_same, value_and_grad
from torch import distributions as D

import losslab as ll
from losslab import kl

double = dict(dtype=torch.float64)
FORMS = 'standard', 'mean', 'variance', 'both'
def close(a, b, rtol=1e-10, atol=1e-13): torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
def standard_normal(like): return D.Normal(torch.zeros_like(like), torch.ones_like(like))


def gaussians(form, shape=(5, 3), seed=0):
    "Mean and log variance, and the target options of a form, in float64"
    m, v, a, b = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed), **double)
    return m, v, {**(dict(target_mu=a) if form in ('mean', 'both') else {}), **(dict(target_logvar=b) if form in ('variance', 'both') else {})}


def reference(m, v, target_mu=None, target_logvar=None):
    "What torch.distributions says, per latent"
    a, b = torch.zeros_like(m) if target_mu is None else target_mu, torch.zeros_like(v) if target_logvar is None else target_logvar
    return D.kl_divergence(D.Normal(m, (v/2).exp()), D.Normal(a, (b/2).exp()))


@pytest.mark.parametrize('x', [-700., -50., -1., -.4, -.1000001, -.0999999, -.03, -1e-3, -1e-9, 0., 1e-15, 1e-6, .0999999, .1000001, .4, 20., 700.])
def test_exp_above_tangent(x):
    "Sixty digits say what float64 should; value and derivative"
    t = torch.tensor(x, requires_grad=True, **double)
    value = kl.exp_above_tangent(t)
    slope, = torch.autograd.grad(value, t)
    with localcontext() as ctx:
        ctx.prec = 60
        d = Decimal(x)
        assert value.item() == pytest.approx(float(d.exp() - 1 - d), rel=1e-13, abs=0)
        assert slope.item() == pytest.approx(float(d.exp() - 1), rel=1e-13, abs=0)
    small = torch.tensor(x).clamp(-80, 80)
    torch.testing.assert_close(kl.exp_above_tangent(small).double(), kl.exp_above_tangent(small.double()), rtol=2e-6, atol=0)


@pytest.mark.parametrize('form', FORMS)
def test_values_and_gradients(form):
    "Per latent, per row and as a mean, with the gradient in every parameter"
    m, v, opts = gaussians(form)
    names, extra = list(opts), list(opts.values())
    def ours(m, v, *t): return ll.gaussian_kl_loss(m, v, dim=None, reduction='none', **dict(zip(names, t)))
    def theirs(m, v, *t): return reference(m, v, **dict(zip(names, t)))
    assert_same(value_and_grad(ours, m, v, *extra), value_and_grad(theirs, m, v, *extra), form, rtol=1e-10, atol=1e-13)
    each = reference(m, v, **opts).sum(1)
    close(ll.gaussian_kl_loss(m, v, reduction='none', **opts), each)
    close(ll.gaussian_kl_loss(m, v, **opts), each.mean())
    close(ll.gaussian_kl_loss(m, v, reduction='sum', **opts), each.sum())
    parts = ll.gaussian_kl_loss(m, v, reduction='parts', **opts)
    close(parts.total, each.sum())
    assert parts.count == 5


@pytest.mark.parametrize('form', FORMS)
def test_monte_carlo(form):
    "Draws agree within four standard errors, in both directions"
    m, v, opts = gaussians(form, (3,))
    a, b = opts.get('target_mu', torch.zeros(3, **double)), opts.get('target_logvar', torch.zeros(3, **double))
    q, p = D.Normal(m, (v/2).exp()), D.Normal(a, (b/2).exp())
    torch.manual_seed(1)
    for one, other, exact in (q, p, kl.gaussian_kl_values(m, v, a, b)), (p, q, kl.gaussian_kl_values(a, b, m, v)):
        z = one.sample((200_000,))
        for k in 'k1', 'k3':
            values = kl.mc_kl(one.log_prob(z), other.log_prob(z), k)
            if k == 'k3' and (other.scale**2 > 1.5*one.scale**2).any(): continue  # hardly any variance to speak of
            assert ((values.mean(0) - exact).abs() < 4*values.std(0)/len(z)**.5).all()


def test_the_two_formulas():
    "The formulas as they are written, each in its direction"
    m, v, _ = gaussians('standard')
    s, zero = (v/2).exp(), torch.zeros_like(m)
    close(kl.gaussian_kl_values(m, v), -s.log() + (s**2 + m**2)/2 - .5)
    close(kl.gaussian_kl_values(zero, zero, m, v), s.log() + (1 + m**2)/(2*s**2) - .5)


def test_near_the_prior():
    "Single precision keeps its digits and is never negative where the typed formula has none left"
    v = 1e-4*torch.randn(1000, generator=torch.Generator().manual_seed(0))
    got = kl.gaussian_kl_values(torch.zeros(1000), v)
    wide = v.double()
    torch.testing.assert_close(got.double(), (wide**2/2 + wide**3/6 + wide**4/24)/2, rtol=1e-6, atol=0)
    assert (got >= 0).all() and (-.5*(1 + v - v.exp()) < 0).any()
    base = torch.full((1000,), 3.)
    assert (kl.gaussian_kl_values(base, 3 + v, base, base) >= 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_range(dtype):
    "Finite wherever the variance is; half in, single out, gradient as the input"
    top = 700 if dtype == torch.float64 else 87
    v = torch.tensor([[0., 80., -80., top, -6e4]], dtype=dtype, requires_grad=True)
    m = torch.full((1, 5), 3., dtype=dtype, requires_grad=True)
    loss = ll.gaussian_kl_loss(m, v, reduction='none', dim=None)
    assert loss.isfinite().all() and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    g_m, g_v = torch.autograd.grad(loss[:, [0, 2, 4]].sum(), (m, v))
    assert g_m.isfinite().all() and g_v.isfinite().all() and g_m.dtype == g_v.dtype == dtype
    torch.testing.assert_close(loss.double(), kl.gaussian_kl_values(m.detach().double(), v.detach().double()), rtol=1e-5, atol=0)


def test_targets_that_are_sure():
    "Both variances far below 1: only their ratio and the distance in units of the target count"
    m, v, a, b = (torch.tensor([x]) for x in (1e-19, -169., 0., -170.))
    exact = kl.gaussian_kl_values(*(o.double() for o in (m, v, a, b)))
    torch.testing.assert_close(kl.gaussian_kl_values(m, v, a, b).double(), exact, rtol=1e-4, atol=0)
    m, v = torch.zeros(1, requires_grad=True), torch.full((1,), -1e4, requires_grad=True)
    loss = ll.gaussian_kl_loss(m, v, target_mu=0., target_logvar=-1e4)
    assert loss == 0 and not any(o.any() for o in torch.autograd.grad(loss, (m, v)))


@pytest.mark.parametrize('dim', [-1, 0, 1, (1, 2), (2, 0), [-1, -2], (0, 1, 2), None, ()])
def test_axes(dim):
    "Which axes add up; a mask and weights belong to what is left"
    m, v, opts = gaussians('both', (2, 3, 4))
    each = reference(m, v, **opts)
    axes = () if dim is None else tuple(o % 3 for o in (dim if isinstance(dim, (tuple, list)) else (dim,)))
    rows = each.sum(axes) if axes else each
    close(ll.gaussian_kl_loss(m, v, dim=dim, reduction='none', **opts), rows)
    keep, s = torch.rand(rows.shape) < .7, torch.rand(rows.shape, **double) + .1
    expected = (s*rows)[keep].sum()/s[keep].sum() if keep.any() else rows.new_zeros(())
    close(ll.gaussian_kl_loss(m, v, dim=dim, mask=keep, sample_weight=s, **opts), expected)


def test_mean_over_latents():
    "A mean over all entries is the loss divided by the number of latents"
    m, v, _ = gaussians('standard', (6, 7))
    close(7*ll.gaussian_kl_loss(m, v, dim=None), ll.gaussian_kl_loss(m, v))


def test_targets_broadcast():
    "A number, one per latent, one per row: the same as written out"
    m, v, _ = gaussians('standard')
    a = torch.tensor([.5, -1., 2.], **double)
    close(ll.gaussian_kl_loss(m, v, target_mu=a), ll.gaussian_kl_loss(m - a, v))
    close(ll.gaussian_kl_loss(m, v, target_logvar=.7), ll.gaussian_kl_loss(m/math.exp(.35), v - .7))
    close(ll.gaussian_kl_loss(m, v, target_mu=m[:, :1]), ll.gaussian_kl_loss(m - m[:, :1], v))
    assert ll.gaussian_kl_loss(m, v, target_mu=0, target_logvar=0) == ll.gaussian_kl_loss(m, v)


@pytest.mark.parametrize('fill', [torch.nan, torch.inf, 1e4])
def test_what_does_not_count(fill):
    "Neither a masked row nor one of weight 0 adds a value or a gradient, whatever stands in its parameters and its target"
    tensors = [o.float() for o in (*gaussians('both')[:2], *gaussians('both')[2].values())]
    out = torch.tensor([False, True, False, True, False])
    broken = [torch.where(out[:, None], fill, o).requires_grad_() for o in tensors]
    def loss(tensors, **kw): return ll.gaussian_kl_loss(*tensors[:2], target_mu=tensors[2], target_logvar=tensors[3], **kw)
    for kw in dict(mask=~out), dict(sample_weight=(~out).float()):
        got = loss(broken, **kw)
        torch.testing.assert_close(got, loss([o[~out] for o in tensors]))
        for g in torch.autograd.grad(got, broken): assert not g[out].any() and g.isfinite().all()
        none = loss(broken, reduction='none', **kw)
        assert not none[out].any() and (none[~out] > 0).all()
    assert fill == 1e4 or not loss(broken).isfinite()  # but a broken row that counts is heard


def test_weights_that_learn():
    "A weight of 0 has a gradient as long as its row has a number"
    m, v, _ = gaussians('standard')
    s = torch.tensor([0., 1., 2., 0., 1.], requires_grad=True, **double)
    g, = torch.autograd.grad(ll.gaussian_kl_loss(m, v, sample_weight=s, reduction='sum'), s)
    close(g, reference(m, v).sum(1))


def factor(n, d, seed):
    a = torch.randn(n, d, d, generator=torch.Generator().manual_seed(seed), **double)
    return torch.linalg.cholesky(a@a.mT + torch.eye(d, **double))


@pytest.mark.parametrize('d', [1, 2, 5])
@pytest.mark.parametrize('form', FORMS)
def test_full(form, d):
    "Against MultivariateNormal, values and gradients in every factor"
    m, _, opts = gaussians(form, (4, d))
    L, R = factor(4, d, 1), factor(4, d, 2)
    tensors = [m, L, *([opts['target_mu']] if 'target_mu' in opts else []), *([R] if 'target_logvar' in opts else [])]
    names = [n for n, o in (('target_mu', 'target_mu'), ('target_scale_tril', 'target_logvar')) if o in opts]
    def ours(m, L, *t): return ll.gaussian_kl_full(m, L.tril(), **{k: o.tril() if k == 'target_scale_tril' else o for k, o in zip(names, t)})
    def theirs(m, L, *t):
        given = dict(zip(names, t))
        p = D.MultivariateNormal(given.get('target_mu', torch.zeros_like(m)), scale_tril=given.get('target_scale_tril', torch.eye(d, **double).expand_as(L)).tril())
        return D.kl_divergence(D.MultivariateNormal(m, scale_tril=L.tril()), p)
    assert_same(value_and_grad(ours, *tensors), value_and_grad(theirs, *tensors), form, rtol=1e-9, atol=1e-11)


def test_full_is_diagonal_and_batched():
    "Diagonal factors are the other function; any batch shape, shared targets, no batch"
    m, v, opts = gaussians('both', (2, 3, 4))
    L, R = torch.diag_embed((v/2).exp()), torch.diag_embed((opts['target_logvar']/2).exp())
    close(ll.gaussian_kl_full(m, L, target_mu=opts['target_mu'], target_scale_tril=R), ll.gaussian_kl_loss(m, v, reduction='none', **opts))
    shared, one = factor(1, 4, 3)[0], opts['target_mu'][0, 0]
    got = ll.gaussian_kl_full(m, L, target_mu=one, target_scale_tril=shared)
    close(got, ll.gaussian_kl_full(m, L, target_mu=one.expand_as(m), target_scale_tril=shared.expand_as(L)))
    close(ll.gaussian_kl_full(m[0, 1], L[0, 1], target_mu=one, target_scale_tril=shared), got[0, 1])
    assert ll.gaussian_kl_full(m.half(), L.half()).dtype == torch.float32
    close(ll.gaussian_kl_full(m, L, target_mu=.5), ll.gaussian_kl_full(m - .5, L))


def test_full_does_not_care_about_coordinates():
    "An invertible map of the space changes no divergence"
    m, _, opts = gaussians('mean', (4, 3))
    L, R, A = factor(4, 3, 1), factor(4, 3, 2), torch.randn(3, 3, **double)
    L2, R2 = (torch.linalg.cholesky(A@o@o.mT@A.T) for o in (L, R))
    close(ll.gaussian_kl_full(m@A.T, L2, target_mu=opts['target_mu']@A.T, target_scale_tril=R2),
          ll.gaussian_kl_full(m, L, target_mu=opts['target_mu'], target_scale_tril=R), rtol=1e-8)


@pytest.mark.parametrize('name', ['loss', 'full', 'mc'])
def test_transforms(name):
    "compile, vmap, jvp, and derivatives of first and second order"
    m, v, opts = gaussians('both', (3, 2))
    L, R = factor(3, 2, 1), factor(3, 2, 2)
    fn, args = dict(loss=(lambda m, v, a, b: ll.gaussian_kl_loss(m, v, target_mu=a, target_logvar=b, reduction='none'), (m, v, *opts.values())),
                    full=(lambda m, L, a, R: ll.gaussian_kl_full(m, L.tril(), target_mu=a, target_scale_tril=R.tril()), (m, L, opts['target_mu'], R)),
                    mc=(lambda q, p: ll.mc_kl(q, p, 'k3'), (m, v/20)))[name]
    expected = fn(*args)
    close(torch.compile(fn, fullgraph=True, backend='eager')(*args), expected)
    close(torch.func.vmap(fn)(*args), expected)
    tangents = tuple(torch.randn_like(o) for o in args)
    _, forwards = torch.func.jvp(fn, args, tangents)
    leaves = [o.clone().requires_grad_() for o in args]
    backwards = sum((g*t).sum() for g, t in zip(torch.autograd.grad(fn(*leaves).sum(), leaves), tangents))
    close(forwards.sum(), backwards)
    for check in torch.autograd.gradcheck, torch.autograd.gradgradcheck: assert check(fn, leaves)


def test_compiled_with_everything():
    "Masks, weights and targets in one graph"
    m, v, opts = gaussians('both')
    extra = dict(mask=torch.rand(5) < .5, sample_weight=torch.rand(5, **double).round(), dim=(1,), **opts)
    close(torch.compile(ll.gaussian_kl_loss, fullgraph=True, backend='eager')(m, v, **extra), ll.gaussian_kl_loss(m, v, **extra))


@pytest.mark.parametrize('k', ['k1', 'k2', 'k3'])
def test_estimators(k):
    "Each draw by its formula; moments by the theory of two shifted bells"
    d = torch.linspace(-3, 3, 13, **double)
    by_hand = dict(k1=-d, k2=d**2/2, k3=d.exp() - 1 - d)[k]
    close(ll.mc_kl(torch.zeros(13, **double), d, k), by_hand)
    close(ll.mc_kl(-d, torch.zeros(13, **double), k), by_hand)
    K, n = .2, 400_000
    q, p = D.Normal(torch.tensor(0., **double), 1.), D.Normal(torch.tensor((2*K)**.5, **double), 1.)
    torch.manual_seed(3)
    z = q.sample((n,))
    values = ll.mc_kl(q.log_prob(z), p.log_prob(z), k)
    mean = K + (K**2/2 if k == 'k2' else 0)
    variance = dict(k1=2*K, k2=2*K**2 + 2*K**3, k3=math.expm1(2*K) - 2*K)[k]
    assert abs(values.mean() - mean) < 4*(variance/n)**.5
    assert values.var().item() == pytest.approx(variance, rel=.05)
    assert k == 'k1' or (values >= 0).all()
    assert ll.mc_kl(z.half(), z.half(), k).dtype == torch.float32


@pytest.mark.parametrize('k,constant,expected', [('k1', True, 0.), ('k2', True, .5/.64), ('k3', True, .5), ('k1', False, .5/.64), ('k3', False, .5/.64)])
def test_gradients_of_estimators(k, constant, expected):
    "Whose gradient it is: nobody's, the divergence's, or the other direction's"
    torch.manual_seed(0)
    m = torch.tensor(.5, requires_grad=True, **double)
    q, p = D.Normal(m, 1.), D.Normal(torch.tensor(0., **double), .8)
    z = (q.sample if constant else q.rsample)((200_000,))
    g, = torch.autograd.grad(ll.mc_kl(q.log_prob(z), p.log_prob(z), k).mean(), m)
    assert abs(g - expected) < .02


PAIRS = {'normal': (D.Normal(torch.tensor([0., 1.]), 1.), D.Normal(torch.tensor([1., 0.]), 2.)),
         'beta': (D.Beta(torch.tensor(2.), 3.), D.Beta(torch.tensor(1.), 1.)),
         'categorical': (D.Categorical(torch.tensor([.2, .3, .5])), D.Categorical(torch.tensor([.6, .2, .2]))),
         'dirichlet': (D.Dirichlet(torch.tensor([1., 2., 3.])), D.Dirichlet(torch.ones(3)))}


@pytest.mark.parametrize('name', PAIRS)
def test_formulas_of_distributions(name):
    "Where PyTorch knows a formula, that is the answer, and no chance is used"
    q, p = PAIRS[name]
    state = torch.get_rng_state()
    got = ll.kl_of_distributions(q, p, n_samples=10)
    assert torch.equal(got.value, D.kl_divergence(q, p)) and got.n_samples == 0
    assert got.standard_error.shape == got.value.shape and not got.standard_error.any()
    assert torch.equal(state, torch.get_rng_state())


def mixture(centres): return D.MixtureSameFamily(D.Categorical(torch.tensor([.3, .7], **double)), D.Laplace(centres, torch.tensor([.5, .8], **double)))


@pytest.mark.parametrize('k', ['k1', 'k3'])
@pytest.mark.parametrize('draws', ['constant', 'with a gradient'])
def test_no_formula(draws, k):
    "Value within four standard errors of a grid, and the gradient of both distributions, whether or not the draws carry it"
    c = torch.tensor([-1., 2.], requires_grad=True, **double)
    s = torch.tensor(1.5, requires_grad=True, **double)
    q = mixture(c) if draws == 'constant' else D.StudentT(torch.tensor(5., **double), c.sum(), .8)
    p = D.Normal(c.sum()/2, s) if draws == 'constant' else D.Laplace(c[0], s)  # tails as light as those of q, or k3 has no variance
    grid = torch.linspace(-200, 200, 200_001, **double)
    log_q, log_p = q.log_prob(grid), p.log_prob(grid)
    truth = (log_q.exp()*(log_q - log_p)).sum()*(grid[1] - grid[0])
    got = ll.kl_of_distributions(q, p, n_samples=200_000, estimator=k, generator=torch.Generator().manual_seed(5))
    assert abs(got.value - truth) < 4*got.standard_error < .1 and got.n_samples == 200_000 and not got.standard_error.requires_grad
    for a, b in zip(*(torch.autograd.grad(o, (c, s), retain_graph=True) for o in (got.value, truth))): assert ((a - b).abs() < .05).all()


def test_standard_error():
    "The reported error is the spread of repeated estimates"
    q, p = D.Laplace(torch.zeros((), **double), 1.), D.StudentT(torch.tensor(4., **double))
    runs = [ll.kl_of_distributions(q, p, n_samples=400, generator=torch.Generator().manual_seed(i)) for i in range(300)]
    spread = torch.stack([o.value for o in runs]).std()
    assert .85 < spread/runs[0].standard_error < 1.15


def test_generator():
    "The same seed gives the same number, in any state of the global one, which is left alone"
    q, p = D.Laplace(torch.zeros(2), 1.), D.StudentT(torch.tensor(4.))
    def estimate(seed): return ll.kl_of_distributions(q, p, n_samples=50, generator=None if seed is None else torch.Generator().manual_seed(seed)).value
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = estimate(7)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, estimate(7)) and not torch.equal(first, estimate(8))
    torch.manual_seed(1)
    a = estimate(None)
    torch.manual_seed(1)
    assert torch.equal(a, estimate(None)) and not torch.equal(a, estimate(None))
    g = torch.Generator().manual_seed(7)
    values = [ll.kl_of_distributions(q, p, n_samples=50, generator=g).value for _ in range(2)]
    assert not torch.equal(*values)  # a generator moves on


def test_supports_and_batches():
    "Infinite where the other rules a draw out, half a bell exactly one bit, batches broadcast"
    half, whole = D.HalfNormal(torch.tensor(1., **double)), D.Normal(torch.tensor([0., 0., 5.], **double), 1.)
    up = ll.kl_of_distributions(half, whole, n_samples=20_000)
    assert up.value.shape == up.standard_error.shape == (3,)
    close(up.value[:2], torch.full((2,), math.log(2), **double))
    assert up.value[2] > 5
    down = ll.kl_of_distributions(whole, half, n_samples=50)
    assert down.value[:2].isinf().all() and not down.standard_error[:2].any()
    m = torch.tensor(0., requires_grad=True)
    ruled_out = ll.kl_of_distributions(D.MixtureSameFamily(D.Categorical(torch.ones(2)), D.Normal(m.expand(2), 1.)), D.Gamma(torch.tensor(1.), 1.))
    assert ruled_out.value.isinf()
    dirichlet = D.Dirichlet(torch.ones(2, 3))
    plane = D.Independent(D.Laplace(torch.zeros(3), 1.), 1)
    got = ll.kl_of_distributions(dirichlet, plane, n_samples=4000)
    exact = 4*math.log(2) + 1  # log 2 is the density of the simplex, 3 log 2 + 1 the price of coordinates that add up to 1
    assert got.value.shape == (2,) and ((got.value - exact).abs() < 1e-3).all()
    assert ll.kl_of_distributions(plane, D.Dirichlet(torch.ones(3))).value == torch.inf


def test_wrong_calls():
    "Every mistake has its sentence"
    m = torch.zeros(4, 3)
    for fn, error, text in [
            (lambda: ll.gaussian_kl_loss(m, m[:, :1]), ValueError, r'logvar has shape \(4, 1\) and mu has shape \(4, 3\)'),
            (lambda: ll.gaussian_kl_loss(m.long(), m), TypeError, 'mu has dtype torch.int64'),
            (lambda: ll.gaussian_kl_loss(m, m.bool()), TypeError, 'logvar has dtype torch.bool'),
            (lambda: ll.gaussian_kl_loss(m, m, m), TypeError, 'positional'),
            (lambda: ll.gaussian_kl_loss(m, m, target_mu=torch.zeros(4)), ValueError, r'target_mu has shape \(4,\), which does not expand to that of mu, \(4, 3\)'),
            (lambda: ll.gaussian_kl_loss(m, m, target_logvar=torch.zeros(5, 4, 3)), ValueError, 'target_logvar has shape'),
            (lambda: ll.gaussian_kl_loss(m, m, target_mu=True), TypeError, 'target_mu is a bool'),
            (lambda: ll.gaussian_kl_loss(m, m, target_mu=torch.zeros(3).long()), TypeError, 'target_mu has dtype'),
            (lambda: ll.gaussian_kl_loss(m, m, dim=2), ValueError, r'dim is 2, but mu has shape \(4, 3\), so axes 0 to 1'),
            (lambda: ll.gaussian_kl_loss(m, m, dim=-3), ValueError, 'dim is -3'),
            (lambda: ll.gaussian_kl_loss(m, m, dim=(1, -1)), ValueError, 'twice'),
            (lambda: ll.gaussian_kl_loss(m, m, dim=1.), TypeError, 'dim is 1.0'),
            (lambda: ll.gaussian_kl_loss(m, m, dim=(True,)), TypeError, 'dim is'),
            (lambda: ll.gaussian_kl_loss(m[0, 0], m[0, 0]), ValueError, 'use dim=None'),
            (lambda: ll.gaussian_kl_loss(m, m, mask=m > 0), ValueError, r'mask has shape \(4, 3\)'),
            (lambda: ll.gaussian_kl_loss(m, m, sample_weight=torch.ones(3)), ValueError, 'sample_weight has shape'),
            (lambda: ll.gaussian_kl_full(m, m), ValueError, r'scale_tril has shape \(4, 3\) and mu has shape \(4, 3\)'),
            (lambda: ll.gaussian_kl_full(m[0, 0], m), ValueError, 'scale_tril has shape'),
            (lambda: ll.gaussian_kl_full(m[0], torch.eye(3).long()), TypeError, 'scale_tril has dtype'),
            (lambda: ll.gaussian_kl_full(m[0], torch.ones(3, 3)), ValueError, 'scale_tril has entries above'),
            (lambda: ll.gaussian_kl_full(m[0], -torch.eye(3)), ValueError, 'not positive'),
            (lambda: ll.gaussian_kl_full(m[0], torch.eye(3), target_scale_tril=torch.ones(3, 3)), ValueError, 'target_scale_tril has entries above'),
            (lambda: ll.gaussian_kl_full(m[0], torch.eye(3), target_scale_tril=torch.eye(2)), ValueError, 'that of scale_tril'),
            (lambda: ll.mc_kl(m, m, 'k4'), ValueError, "estimator is 'k4'"),
            (lambda: ll.mc_kl(m, m[0]), ValueError, 'log_p has shape'),
            (lambda: ll.mc_kl(m.long(), m), TypeError, 'log_q has dtype'),
            (lambda: ll.kl_of_distributions(D.Normal(m, 1.), D.Independent(D.Normal(m, 1.), 1)), ValueError, r'events of shape \(\) and p of shape \(3,\)'),
            (lambda: ll.kl_of_distributions(D.Normal(m, 1.), D.Normal(torch.zeros(2), 1.)), ValueError, 'batch'),
            (lambda: ll.kl_of_distributions(D.Laplace(m, 1.), D.StudentT(2.), n_samples=1), ValueError, 'n_samples is 1'),
            (lambda: ll.kl_of_distributions(D.Laplace(m, 1.), D.StudentT(2.), n_samples=True), ValueError, 'n_samples is True'),
            (lambda: ll.kl_of_distributions(D.Laplace(m, 1.), D.StudentT(2.), estimator='k0'), ValueError, "estimator is 'k0'")]:
        with pytest.raises(error, match=text): fn()


def test_a_fused_path_is_asked():
    "A registered implementation serves the loss, with the axes it has to add"
    from losslab import core
    seen = []
    def fast(mu, logvar, target_mu, target_logvar, axes):
        seen.append(axes)
        return kl.gaussian_kl_values(mu, logvar, target_mu, target_logvar, axes)
    core.implements('gaussian_kl', lambda *args: True)(fast)
    try:
        m, v, _ = gaussians('standard')
        close(ll.gaussian_kl_loss(m, v), reference(m, v).sum(1).mean())
        with core.backend('reference'): ll.gaussian_kl_loss(m, v)
    finally: core._fast.pop('gaussian_kl')
    assert seen == [(1,)]
