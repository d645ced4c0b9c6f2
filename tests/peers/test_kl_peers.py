"The KL terms of other libraries: Keras live, Chainer and TensorFlow Probability by their documented formulas; SciPy integrates"
import os

import pytest
import torch

import losslab as ll

os.environ.setdefault('KERAS_BACKEND', 'torch')
CLOSE = dict(rtol=1e-6, atol=1e-6)


def latents(n=6, d=5, dtype=torch.float32): return torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_keras_ops():
    "The term of Keras' variational autoencoder: summed over the latents, then averaged over the batch"
    ops = pytest.importorskip('keras', reason='Keras is in the dev extra').ops
    m, v = latents()
    term = -.5*(1 + v - ops.square(m) - ops.exp(v))
    torch.testing.assert_close(ll.gaussian_kl_loss(m, v), ops.mean(ops.sum(term, axis=1)), **CLOSE)
    torch.testing.assert_close(ll.gaussian_kl_loss(m, v, dim=None), ops.mean(term), **CLOSE)  # older examples: beta divided by the latents
    torch.testing.assert_close(ll.gaussian_kl_loss(m, v, reduction='none'), ops.sum(term, axis=-1), **CLOSE)


@pytest.mark.parametrize('reduce,ours', [('sum', dict(reduction='sum')), ('mean', dict(dim=None)), ('no', dict(dim=None, reduction='none'))])
def test_chainer(reduce, ours):
    "Chainer's gaussian_kl_divergence(mean, ln_var, reduce=): sum over everything by default, never divided by the batch"
    m, v = latents(dtype=torch.float64)
    values = (m**2 + v.exp() - v - 1)*.5
    expected = dict(sum=values.sum(), mean=values.mean(), no=values)[reduce]
    torch.testing.assert_close(ll.gaussian_kl_loss(m, v, **ours), expected)
    if reduce == 'sum': torch.testing.assert_close(ll.gaussian_kl_loss(m, v, reduction='batchmean'), expected/len(m))


def test_tensorflow_probability():
    "Its Normal-Normal and MultivariateNormalTriL formulas, in float64"
    (m, v), (a, b) = latents(dtype=torch.float64), torch.randn(2, 6, 5, dtype=torch.float64)
    diff_log_scale = (v - b)/2
    normal = .5*((m - a)/(b/2).exp())**2 + .5*torch.expm1(2*diff_log_scale) - diff_log_scale
    got = ll.gaussian_kl_loss(m, v, target_mu=a, target_logvar=b, dim=None, reduction='none')
    torch.testing.assert_close(got, normal, rtol=1e-10, atol=1e-13)
    A, B = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    L, R = (torch.linalg.cholesky(o@o.mT + torch.eye(5)) for o in (A, B))
    solved, shift = torch.linalg.inv(R)@L, (torch.linalg.inv(R)@(a - m)[..., None])[..., 0]
    full = R.logdet() - L.logdet() + .5*(-5 + solved.pow(2).sum((-2, -1)) + shift.pow(2).sum(-1))
    torch.testing.assert_close(ll.gaussian_kl_full(m, L, target_mu=a, target_scale_tril=R), full, rtol=1e-9, atol=1e-11)


def test_scipy_integral():
    "The definition, integrated"
    integrate = pytest.importorskip('scipy.integrate', reason='SciPy comes with scikit-learn')
    norm = pytest.importorskip('scipy.stats').norm
    for m, s, a, t in (.3, .5, 0., 1.), (-1., 2., .5, .7), (2., .1, 0., 3.):
        value, _ = integrate.quad(lambda z: norm.pdf(z, m, s)*(norm.logpdf(z, m, s) - norm.logpdf(z, a, t)), m - 12*s, m + 12*s, epsabs=1e-12, limit=200)
        m_, v, a_, b = (torch.tensor(o, dtype=torch.float64) for o in (m, s, a, t))
        got = ll.gaussian_kl_loss(m_, 2*v.log(), target_mu=a_, target_logvar=2*b.log(), dim=None)
        torch.testing.assert_close(got.item(), value, rtol=1e-8, atol=1e-10)


def test_sklearn_histograms():
    "mutual information of a correlated pair is the divergence that a diagonal Gaussian cannot say"
    feature_selection = pytest.importorskip('sklearn.feature_selection', reason='scikit-learn is in the dev extra')
    factor = torch.linalg.cholesky(torch.tensor([[1., .8], [.8, 1.]], dtype=torch.float64))
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)@factor.T
    measured = feature_selection.mutual_info_regression(z[:, :1].numpy(), z[:, 1].numpy(), random_state=0)[0]
    assert abs(ll.gaussian_kl_full(torch.zeros(2, dtype=torch.float64), factor) - measured) < .05
