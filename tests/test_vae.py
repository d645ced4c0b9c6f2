"The bound and its parts: slow formulas in plain Python, exact models, masks and weights, transforms, wrong calls"
import math

import pytest
import torch
from oracle import grid
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

import losslab as ll
from losslab import vae

double = dict(dtype=torch.float64)
TIGHT = dict(rtol=1e-10, atol=1e-12)
LIKELIHOODS = 'bernoulli', 'gaussian', 'categorical'
def close(a, b): torch.testing.assert_close(a, b if isinstance(b, torch.Tensor) else torch.tensor(b, **double), **TIGHT)


def data(likelihood, n=5, seed=0):
    "Decoder output, target, and the parameters of two latents"
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, **double)
    wide = (n, 3, 2, 2) if likelihood == 'categorical' else (n, 2, 2)
    target = torch.randint(3, (n, 2, 2), generator=g) if likelihood == 'categorical' else torch.rand(n, 2, 2, generator=g, **double)
    return draw(*wide), target, draw(n, 3), draw(n, 3)


def slow_pixel(likelihood, o, t, sigma):
    "Surprise of one pixel, in floats"
    if likelihood == 'gaussian': return .5*math.log(2*math.pi*sigma**2) + (t - o)**2/(2*sigma**2)
    if likelihood == 'categorical': return math.log(sum(math.exp(v) for v in o)) - o[t]
    p = 1/(1 + math.exp(-o))
    return -t*math.log(p) - (1-t)*math.log(1-p)


def slow_kl(m, s, pm=0., ps=0.): return .5*(ps - s - 1 + (math.exp(s) + (m - pm)**2)/math.exp(ps))


def slow(likelihood, output, target, mu, logvar, i, sigma=1., beta=1., free_bits=0., capacity=None, prior=(0., 0.)):
    "The loss of example `i`"
    o = (output[i].flatten(1).T if likelihood == 'categorical' else output[i].flatten()).tolist()
    nll = math.fsum(slow_pixel(likelihood, a, b, sigma) for a, b in zip(o, target[i].flatten().tolist(), strict=True))
    kl = math.fsum(max(free_bits, slow_kl(m, s, *prior)) for m, s in zip(mu[i].tolist(), logvar[i].tolist(), strict=True))
    return nll + beta*(kl if capacity is None else abs(kl - capacity))


GRID = list(grid(likelihood=LIKELIHOODS, beta=(1., .3), free_bits=(0., .4), capacity=(None, 1.5)))


@pytest.mark.parametrize('case', GRID, ids=str)
def test_values(case):
    "Every option, mean, weight and mask against the slow formula"
    likelihood, case = case['likelihood'], {k: v for k, v in case.items() if k != 'likelihood'}
    args, sigma = data(likelihood), .7 if likelihood == 'gaussian' else 1.
    each = [slow(likelihood, *args, i, sigma=sigma, **case) for i in range(5)]
    w, keep = torch.tensor([.5, 2., 0., 1., 3.], **double), torch.tensor([True, True, True, False, True])
    def loss(**kw): return ll.elbo_loss(*args, likelihood=likelihood, sigma=sigma, **case, **kw)
    close(loss(reduction='none'), each)
    close(loss(), sum(each)/5)
    close(loss(reduction='sum'), sum(each))
    close(loss(normalizer=7), sum(each)/7)
    kept = [0, 1, 2, 4]
    total = sum(w[i].item()*each[i] for i in kept)
    close(loss(sample_weight=w, mask=keep), total/5.5)
    close(loss(sample_weight=w, mask=keep, reduction='element_mean'), total/4)
    close(loss(sample_weight=w, mask=keep, reduction='batchmean'), total/5)
    nll = [slow(likelihood, *args, i, sigma=sigma, beta=0.) for i in range(5)]
    parts = ll.elbo_parts(*args, likelihood=likelihood, sigma=sigma)
    close(parts.reconstruction, nll)
    close(parts.kl, [sum(map(slow_kl, args[2][i].tolist(), args[3][i].tolist())) for i in range(5)])
    close(parts.negative_elbo, parts.reconstruction + parts.kl)
    close(ll.reconstruction_loss(*args[:2], likelihood=likelihood, sigma=sigma, sample_weight=w), sum(w[i].item()*nll[i] for i in range(5))/6.5)


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
def test_gradients_are_those_of_distributions(likelihood):
    "Value and gradient in all inputs, with a prior that learns"
    output, target, mu, logvar = data(likelihood)
    prior = [torch.randn(5, 3, **double), torch.randn(3, **double)]
    inputs = [o.requires_grad_() for o in (output, mu, logvar, *prior)]
    got = ll.elbo_loss(output, target, mu, logvar, likelihood=likelihood, target_mu=prior[0], target_logvar=prior[1], reduction='none')
    if likelihood == 'categorical': log_p = Categorical(logits=output.movedim(1, -1)).log_prob(target)
    elif likelihood == 'gaussian': log_p = Normal(output, 1.).log_prob(target)
    else: log_p = target*output.sigmoid().log() + (1-target)*(-output).sigmoid().log()
    kl = kl_divergence(Normal(mu, (logvar/2).exp()), Normal(prior[0], (prior[1]/2).exp())).sum(1)
    expected = kl - log_p.flatten(1).sum(1)
    close(got, expected)
    v = torch.linspace(1, 2, 5, **double)
    for a, b in zip(torch.autograd.grad((v*got).sum(), inputs), torch.autograd.grad((v*expected).sum(), inputs)): close(a, b)
    parts = ll.elbo_parts(output, target, mu, logvar, likelihood=likelihood, target_mu=prior[0], target_logvar=prior[1])
    close(parts.kl, kl)


def test_noise_is_given_in_three_ways():
    "A number, a tensor that learns, the log-variance of every pixel or one for each column"
    output, target, mu, logvar = data('gaussian')
    s = torch.tensor([.4], **double, requires_grad=True)
    each = -Normal(output, .4).log_prob(target).flatten(1).sum(1)
    for options in dict(sigma=.4), dict(sigma=s), dict(sigma=torch.tensor(.4, **double)), dict(output_logvar=2*s.log()), dict(output_logvar=(2*s.log()).expand(2)), \
            dict(output_logvar=(2*s.log()).expand(5, 2, 2)):
        close(ll.reconstruction_loss(output, target, likelihood='gaussian', reduction='none', **options), each)
        close(ll.elbo_loss(output, target, mu*0, logvar*0, likelihood='gaussian', reduction='none', **options), each)
    slope, = torch.autograd.grad(ll.reconstruction_loss(output, target, likelihood='gaussian', sigma=s, reduction='sum'), s)
    close(slope, (20/s - ((target - output)**2).sum()/s**3).detach())
    lv = torch.randn(5, 2, 2, **double)
    close(ll.elbo_parts(output, target, mu, logvar, likelihood='gaussian', output_logvar=lv).reconstruction,
          -Normal(output, (lv/2).exp()).log_prob(target).flatten(1).sum(1))


def test_optimal_sigma():
    "Root mean squared error of what counts, and the likeliest; its gradient is that of a fixed sigma"
    output, target, *_ = data('gaussian')
    w, keep = torch.tensor([.5, 2., 0., 1., 3.], **double), torch.tensor([True, True, True, False, True])
    squares = ((output - target)**2).flatten(1).mean(1)
    close(ll.optimal_sigma(output, target), squares.mean().sqrt())
    expected = (w*squares*keep).sum()/5.5
    broken = output.masked_fill(torch.tensor([0, 0, 1, 1, 0]).bool()[:, None, None], torch.nan).requires_grad_()
    best = ll.optimal_sigma(broken, target, sample_weight=w, mask=keep)
    close(best, expected.sqrt())
    options = dict(likelihood='gaussian', sample_weight=w, mask=keep)
    loss = ll.reconstruction_loss(broken, target, sigma='optimal', **options)
    close(loss, ll.reconstruction_loss(broken, target, sigma=best, **options))
    close(loss, 2*(math.log(2*math.pi) + expected.log() + 1))
    for worse in best.detach()*.99, best.detach()*1.01: assert ll.reconstruction_loss(broken, target, sigma=worse, **options) > loss
    fixed = ll.reconstruction_loss(broken, target, sigma=best.item(), **options)
    slope = torch.autograd.grad(loss, broken)[0]
    close(slope, torch.autograd.grad(fixed, broken)[0])
    assert not slope[2:4].any() and slope[0].all()
    mu = torch.zeros(5, 1, **double)
    close(ll.elbo_loss(broken, target, mu, mu, sigma='optimal', **options), loss)
    assert ll.optimal_sigma(target, target) == 1e-6
    assert ll.reconstruction_loss(target, target, likelihood='gaussian', sigma='optimal').isfinite()


@pytest.mark.parametrize('alpha', [0., .8, 1.])
def test_balance(alpha):
    "Equal values; the share alpha of the divergence's gradient for the prior, the rest for the posterior, the reconstruction's untouched"
    output, target, mu, logvar = data('bernoulli')
    prior = [torch.randn(5, 3, **double) for _ in range(2)]
    ends = [o.requires_grad_() for o in (output, mu, logvar, *prior)]
    def loss(a): return ll.elbo_loss(output, target, mu, logvar, target_mu=prior[0], target_logvar=prior[1], kl_balance=a, free_bits=.2, beta=.5)
    close(loss(alpha), loss(None))
    for share, a, b in zip((1., 1-alpha, 1-alpha, alpha, alpha), torch.autograd.grad(loss(alpha), ends), torch.autograd.grad(loss(None), ends)): close(a, share*b)


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
@pytest.mark.parametrize('fill', [torch.nan, torch.inf, -torch.inf, 1e300])
def test_broken_rows(likelihood, fill):
    "What is masked or weighs nothing may be anything, in every input; it changes nothing and gets no gradient"
    output, target, mu, logvar = data(likelihood)
    off = torch.tensor([False, True, False, True, False])
    options = dict(likelihood=likelihood, target_mu=torch.zeros(5, 3, **double), target_logvar=torch.zeros(5, 3, **double))
    if likelihood == 'gaussian': options['output_logvar'] = torch.zeros(5, 2, 2, **double)
    def spoil(o): return o.masked_fill(off.reshape(-1, *[1]*(o.ndim-1)), fill)
    dirty = {k: spoil(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    leaves = [spoil(o).requires_grad_() for o in (output, mu, logvar)]
    bad = spoil(target) if likelihood != 'categorical' else target.masked_fill(off[:, None, None], 77)
    expected = [o[~off] for o in (output, target, mu, logvar)]
    clean = ll.elbo_loss(*expected, **{k: v[~off] if isinstance(v, torch.Tensor) else v for k, v in options.items()})
    w = (~off).double()
    for chosen, t in (dict(mask=~off), bad), (dict(mask=~off, sample_weight=torch.where(off, torch.nan, 1.)), bad), (dict(sample_weight=w), target):
        loss = ll.elbo_loss(leaves[0], t, *leaves[1:], **(dirty if 'mask' in chosen else options), **chosen)
        close(loss, clean)
        for g in torch.autograd.grad(loss, leaves): assert g.isfinite().all() and not g[off].any() and g[~off].any()
    parts = ll.elbo_parts(leaves[0], bad, *leaves[1:], mask=~off, **dirty)
    for o in parts: assert o.isfinite().all() and not o[off].any()


def test_a_weight_of_0_keeps_its_gradient():
    "Where the loss of the row is a number, the weight itself has a derivative"
    args, w = data('bernoulli'), torch.tensor([0., 1., 1., 0., 1.], **double, requires_grad=True)
    slope, = torch.autograd.grad(ll.elbo_loss(*args, sample_weight=w, reduction='sum'), w)
    close(slope, ll.elbo_loss(*args, reduction='none'))


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
def test_shapes_do_not_matter(likelihood):
    "Flat or spatial, the loss adds what belongs to an example; order within an example is nothing"
    output, target, mu, logvar = data(likelihood)
    loss = ll.elbo_loss(output, target, mu, logvar, likelihood=likelihood, reduction='none')
    flat = output.flatten(-2), target.flatten(1) if likelihood == 'categorical' else target.flatten(-2), mu[:, :, None], logvar[:, :, None]
    close(ll.elbo_loss(*flat, likelihood=likelihood, reduction='none'), loss)
    close(ll.elbo_loss(output.flip(-1), target.flip(-1), mu.flip(1), logvar.flip(1), likelihood=likelihood, reduction='none'), loss)
    if likelihood == 'categorical': close(ll.elbo_loss(output.movedim(1, -1), target, mu, logvar, likelihood=likelihood, dim=-1, reduction='none'), loss)
    one = [o.select(-1, 0).select(-1, 0) for o in (output, target)]
    assert ll.reconstruction_loss(*one, likelihood=likelihood, reduction='none').shape == (5,)


def test_missing_pixels_and_labels_of_any_kind():
    "A target of -100 leaves its example; bools, bytes and one-hot rows are targets"
    output, target, *_ = data('bernoulli')
    each = torch.nn.functional.binary_cross_entropy_with_logits(output, target, reduction='none')
    holes = target.clone()
    holes[1, 0] = -100
    each[1, 0] = 0
    close(ll.reconstruction_loss(output, holes, reduction='none'), each.flatten(1).sum(1))
    close(ll.reconstruction_loss(output, target > .5), ll.reconstruction_loss(output, (target > .5).double()))
    pixels = torch.randint(256, (5, 2, 2)).byte()
    close(ll.reconstruction_loss(output, pixels, likelihood='gaussian'), ll.reconstruction_loss(output, pixels.double(), likelihood='gaussian'))
    output, target, *_ = data('categorical')
    hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    for keep in None, torch.tensor([True, False, True, True, False]):
        expected = ll.reconstruction_loss(output, target, likelihood='categorical', mask=keep)
        for t in hot, hot.bool(), hot.double(), target.byte(): close(ll.reconstruction_loss(output, t, likelihood='categorical', mask=keep), expected)


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
def test_split_batches(likelihood):
    "Parts of two halves add up, with every option that is per example"
    args, w = data(likelihood), torch.rand(5, **double)
    options = dict(likelihood=likelihood, free_bits=.3, capacity=2., beta=1.5)
    def loss(s, **kw): return ll.elbo_loss(*(o[s] for o in args), sample_weight=w[s], **options, **kw)
    close((loss(slice(0, 2), reduction='parts') + loss(slice(2, 5), reduction='parts')).mean, loss(slice(None)))


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
def test_transforms(likelihood):
    "compile, vmap over models with a weight each, grad of grad, forward mode"
    args, options = data(likelihood), dict(likelihood=likelihood, free_bits=.1, mask=torch.tensor([True, False, True, True, True]))
    if likelihood == 'gaussian': options['sigma'] = 'optimal'
    value = ll.elbo_loss(*args, **options)
    for extra in {}, dict(sample_weight=torch.tensor([1., 0., 1., 0., 1.])):
        close(torch.compile(ll.elbo_loss, fullgraph=True, backend='eager')(*args, **options, **extra), ll.elbo_loss(*args, **options, **extra))
    betas = torch.tensor([.5, 2.], **double)
    stacked = [torch.stack([o, o.flip(0)]) for o in args]
    got = torch.func.vmap(lambda b, *a: ll.elbo_loss(*a, beta=b, capacity=b, **options))(betas, *stacked)
    close(got, torch.stack([ll.elbo_loss(*(o[i] for o in stacked), beta=betas[i].item(), capacity=betas[i].item(), **options) for i in range(2)]))
    args, options['mask'] = data(likelihood, 2), torch.tensor([True, False])
    f = lambda o, m, s: ll.elbo_loss(o, args[1], m, s, **options)
    leaves = [args[i].requires_grad_() for i in (0, 2, 3)]
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True) and torch.autograd.gradgradcheck(f, leaves)
    assert value.dtype == torch.float64


@pytest.mark.parametrize('likelihood', LIKELIHOODS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(likelihood, dtype):
    "Computed and returned in float32, gradients in half; 60 000 pixels add up"
    output, target, mu, logvar = (o.to(dtype) if o.is_floating_point() else o for o in data(likelihood))
    output.requires_grad_()
    for options in {}, dict(sigma='optimal') if likelihood == 'gaussian' else {}:
        loss = ll.elbo_loss(output, target, mu, logvar, likelihood=likelihood, **options)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, ll.elbo_loss(output.float(), target.float() if target.is_floating_point() else target, mu.float(), logvar.float(), likelihood=likelihood, **options))
        assert torch.autograd.grad(loss, output)[0].dtype == dtype
    big = torch.zeros(1, 60_000, dtype=dtype)
    torch.testing.assert_close(ll.reconstruction_loss(big, big), torch.tensor(60_000*math.log(2)))
    assert ll.reparameterize(mu, logvar).dtype == dtype and ll.latent_summary(mu, logvar).kl.dtype == torch.float32


def test_reparameterize():
    "The noise that is given, the generator's, a draw for each sample; moments and slopes"
    mu, logvar = (torch.randn(4, 3, **double, requires_grad=True) for _ in range(2))
    e = torch.randn(4, 3, **double)
    z = ll.reparameterize(mu, logvar, noise=e)
    close(z, mu + torch.sqrt(torch.exp(logvar))*e)
    slopes = torch.autograd.grad(z.sum(), (mu, logvar))
    close(slopes[0], torch.ones(4, 3, **double))
    close(slopes[1], (e*(logvar/2).exp()/2).detach())
    draw = lambda **kw: ll.reparameterize(mu, logvar, generator=torch.Generator().manual_seed(3), **kw)
    close(draw(), draw())
    many = draw(n_samples=50_000)
    assert many.shape == (50_000, 4, 3)
    torch.testing.assert_close(many.var(0), logvar.exp(), rtol=.05, atol=0)
    torch.testing.assert_close(many.mean(0), mu, rtol=0, atol=.05)
    assert (torch.corrcoef(many.detach().flatten(1).T) - torch.eye(12)).abs().max() < .02
    close(ll.reparameterize(mu, logvar, n_samples=2, noise=torch.stack([e, -e])).mean(0), mu)


def test_importance_weights():
    "A linear Gaussian model knows its evidence: one draw is the ELBO on average, many draws the evidence, and the exact posterior has no gap"
    g = torch.Generator().manual_seed(0)
    a, x, s2 = torch.randn(3, 2, generator=g, **double), torch.randn(4, 3, generator=g, **double), .5
    evidence = MultivariateNormal(torch.zeros(3, **double), a@a.T + s2*torch.eye(3, **double)).log_prob(x)
    precision = a.T@a/s2 + torch.eye(2, **double)
    mu, logvar = x@a@torch.linalg.inv(precision)/s2 + .1, .2 - precision.diagonal().log().expand(4, 2)
    def bound(k, n, mu=mu, logvar=logvar, a=a):
        z = ll.reparameterize(mu.repeat(n, 1), logvar.repeat(n, 1), n_samples=k, generator=g)
        nll = -Independent(Normal(z@a.T, s2**.5), 1).log_prob(x.repeat(n, 1))
        return ll.iwae_bound(nll, z, mu.repeat(n, 1), logvar.repeat(n, 1)).view(n, 4).mean(0)
    bounds = torch.stack([bound(k, 5000) for k in (1, 5, 50)])
    assert (bounds.diff(dim=0) > 0).all() and (bounds[-1] < evidence + .01).all()
    torch.testing.assert_close(bounds[-1], evidence, rtol=0, atol=.05)
    expected_nll = ((x - mu@a.T)**2/(2*s2)).sum(1) + 1.5*math.log(2*math.pi*s2) + (logvar.exp()@(a**2).T/(2*s2)).sum(1)
    torch.testing.assert_close(-bounds[0], expected_nll + ll.gaussian_kl_loss(mu, logvar, reduction='none'), rtol=0, atol=.05)
    alone = torch.diag(a[0])  # latents that do not mix: the posterior is exactly Gaussian, and every draw gives the evidence
    x = x[:, :2]
    precision = alone.diagonal()**2/s2 + 1
    mu = x*alone.diagonal()/s2/precision
    close(bound(3, 1, mu, -precision.log().expand(4, 2), alone), Independent(Normal(torch.zeros(4, 2, **double), (alone.diagonal()**2 + s2).sqrt()), 1).log_prob(x))


def test_signs_of_collapse():
    "The formulas in plain numbers; masked examples are not looked at"
    mu, logvar = torch.randn(7, 2, 3, **double), torch.randn(7, 2, 3, **double)
    mu[:, 0, 0] = 3 + .05*torch.arange(7)  # variance .01 exactly, for 0.05 steps: (0.05^2)*4
    keep = torch.tensor([True]*5 + [False]*2)
    mu[5:], logvar[5:] = torch.nan, torch.inf
    got = ll.latent_summary(mu, logvar, mask=keep)
    m, s = mu[:5], logvar[:5]
    close(got.kl, kl_divergence(Normal(m, (s/2).exp()), Normal(0., 1.)).mean(0))
    close(got.variance_of_mean, m.var(0, correction=0))
    close(got.mean_of_variance, s.exp().mean(0))
    assert torch.equal(got.active, m.var(0, correction=0) > .01) and not got.active[0, 0]
    assert torch.equal(ll.active_units(mu, mask=keep), got.active)
    assert torch.equal(ll.active_units(m), got.active) and ll.active_units(m, .004)[0, 0]
    assert torch.equal(ll.active_units(mu, 1e9, mask=keep), torch.zeros(2, 3).bool())
    pair = torch.tensor([[1.], [-1.]])
    assert not ll.active_units(pair, 1.) and ll.active_units(pair, .999)
    dead = ll.latent_summary(torch.zeros(4, 2), torch.zeros(4, 2))
    assert not dead.kl.any() and not dead.variance_of_mean.any() and (dead.mean_of_variance == 1).all() and not dead.active.any()


@pytest.mark.parametrize('likelihood', LIKELIHOODS[::2])
def test_confident_outputs_stay_finite(likelihood):
    "Logits of any size, in every precision"
    output, target, mu, logvar = data(likelihood)
    for scale in 1e4, 1e30:
        big = (scale*output.float()).requires_grad_()
        loss = ll.elbo_loss(big, target.float() if likelihood == 'bernoulli' else target, mu.float(), logvar.float(), likelihood=likelihood)
        assert loss.isfinite() and torch.autograd.grad(loss, big)[0].isfinite().all()


WRONG = {
    "likelihood is 'poisson'": dict(likelihood='poisson'),
    'sigma is -1': dict(likelihood='gaussian', sigma=-1),
    "sigma is 'best'": dict(likelihood='gaussian', sigma='best'),
    'sigma and output_logvar are both given': dict(likelihood='gaussian', sigma=2., output_logvar=torch.zeros(1)),
    "describe a Gaussian, and likelihood is 'bernoulli'": dict(output_logvar=torch.zeros(1)),
    'sigma and output_logvar describe a Gaussian': dict(sigma='optimal'),
    r'output_logvar has shape \(3,\), which does not expand to that of output, \(5, 2, 2\)': dict(likelihood='gaussian', output_logvar=torch.zeros(3)),
    'beta is -1': dict(beta=-1), 'free_bits is -1': dict(free_bits=-1), 'capacity is -1': dict(capacity=-1),
    'kl_balance is 2': dict(kl_balance=2, target_mu=torch.zeros(3), target_logvar=torch.zeros(3)),
    'kl_balance shares a gradient with the prior': dict(kl_balance=.8, target_mu=torch.zeros(3)),
    r'target_mu has shape \(2,\)': dict(target_mu=torch.zeros(2)),
    r'mask has shape \(3,\)': dict(mask=torch.ones(3).bool()), r'sample_weight has shape \(5, 2\)': dict(sample_weight=torch.ones(5, 2)),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_options(message):
    "A sentence with the name and the value"
    with pytest.raises(ValueError, match=message): ll.elbo_loss(*data('bernoulli'), **WRONG[message])


def test_wrong_shapes():
    "Both shapes are named, whichever argument is wrong"
    output, target, mu, logvar = data('bernoulli')
    for bad, message in [((output[0], target, mu, logvar), r'target has shape \(5, 2, 2\) and output has shape \(2, 2\)'),
                         ((output, target, mu[:1], logvar[:1]), r'mu has shape \(1, 3\) and logvar \(1, 3\), but output has shape \(5, 2, 2\)'),
                         ((output, target, mu, logvar[:, :1]), r'logvar has shape \(5, 1\) and mu has shape \(5, 3\)'),
                         ((output, target, mu[0, 0], logvar[0, 0]), r'mu has shape \(\)'),
                         ((output[0, 0, 0], target, mu, logvar), 'output is a single number')]:
        with pytest.raises(ValueError, match=message): ll.elbo_loss(*bad)
    with pytest.raises(ValueError, match='classes on axis 0'): ll.reconstruction_loss(output, target[0].long(), likelihood='categorical', dim=0)
    with pytest.raises(ValueError, match='but logits of shape'): ll.reconstruction_loss(output, target[:, 0, 0].long(), likelihood='categorical')
    with pytest.raises(TypeError, match='complex'): ll.reconstruction_loss(output, target.cfloat(), likelihood='gaussian')
    with pytest.raises(TypeError, match='mu has dtype torch.int64'): ll.elbo_loss(output, target, mu.long(), logvar)
    with pytest.raises(ValueError, match=r'expected \(2, 5, 3\)'): ll.reparameterize(mu, logvar, n_samples=2, noise=mu)
    with pytest.raises(ValueError, match=r'expected \(K, N\)'): ll.iwae_bound(torch.zeros(5), mu, mu, logvar)
    with pytest.raises(ValueError, match='reduction'): ll.elbo_loss(output, target, mu, logvar, reduction='pixels')


def test_the_modules():
    "Options once, tensors as buffers, a scheduled weight by call"
    args = data('gaussian')
    module = ll.ELBOLoss(likelihood='gaussian', sigma=.3, beta=torch.tensor(2.))
    assert 'beta' in module.state_dict()
    close(module(*args), ll.elbo_loss(*args, likelihood='gaussian', sigma=.3, beta=2.))
    close(module(*args, beta=0.), ll.ReconstructionLoss(likelihood='gaussian', sigma=.3)(*args[:2]))
    one = torch.ones(1, **double)  # a number in a tensor of any shape and precision changes no dtype
    single = [o.float() for o in data('bernoulli')]
    torch.testing.assert_close(ll.elbo_loss(*single, beta=one, free_bits=one, capacity=one), ll.elbo_loss(*single, free_bits=1., capacity=1.))
    assert set(vae.__all__) >= {'reduce_examples', 'read_penalty'}
