"Mixtures that others fit and evaluate: scikit-learn live, and a mixture density head as it is written for Keras"
import math

import pytest
import torch

from losslab.mixture import gaussian_mixture_nll_loss, mixture_mean, mixture_responsibilities


def close(a, b): torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def groups():
    g = torch.Generator().manual_seed(0)
    return torch.cat([torch.randn(150, 2, generator=g) - 2, .5*torch.randn(100, 2, generator=g) + 1]).double()


@pytest.mark.parametrize('kind,k', [('diag', 1), ('diag', 3), ('spherical', 3)])
def test_sklearn(kind, k):
    "At the parameters that scikit-learn fits: its scores, their mean, and its responsibilities"
    x = groups()
    em = pytest.importorskip('sklearn.mixture').GaussianMixture(k, covariance_type=kind, random_state=0).fit(x)
    a, m, v = (torch.as_tensor(o).expand(250, *o.shape) for o in (em.weights_, em.means_, em.covariances_))
    mixture = a.log(), m, (v if kind == 'diag' else v[..., None].expand_as(m)).log()/2
    close(-gaussian_mixture_nll_loss(*mixture, x, reduction='none'), torch.as_tensor(em.score_samples(x)))
    close(-gaussian_mixture_nll_loss(*mixture, x), torch.tensor(em.score(x), dtype=torch.float64))
    close(mixture_responsibilities(*mixture, x), torch.as_tensor(em.predict_proba(x)))
    close(mixture_mean(a.log(), m)[0], x.mean(0))  # a fit by maximum likelihood keeps the mean


@pytest.mark.parametrize('d', [1, 3])
def test_keras_formula(d):
    "Weights, densities and sum in the open, then the logarithm, values and gradients"
    g = torch.Generator().manual_seed(1)
    a, m, s, y = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (5, 3, d), (5, 3, d), (5, d)))
    def theirs(a, m, s):
        z = (y[:, None] - m)/s.exp()
        return -(a.softmax(1)*(-z.square().sum(-1)/2).exp()/(s.exp().prod(-1)*(2*math.pi)**(d/2))).sum(1).log().mean()
    args = [o.requires_grad_() for o in (a, m, s)]
    ours = gaussian_mixture_nll_loss(*args, y)
    close(ours, theirs(*args))
    for p, q in zip(torch.autograd.grad(ours, args), torch.autograd.grad(theirs(*args), args)): close(p, q)
