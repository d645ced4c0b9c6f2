"scikit-learn's log_loss gives the same numbers"
import pytest
import torch
from oracle import grid

import losslab as ll

metrics = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
SIZES = [(20, 2), (20, 5)]


def close(a, b): torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('n,c', SIZES)
def test_log_loss(n, c):
    "Mean and sum, with and without sample weights, from logits and from log-probabilities"
    z, target, s = torch.randn(n, c, dtype=torch.float64), torch.arange(n) % c, torch.rand(n, dtype=torch.float64)
    p = z.softmax(1)
    for o in grid(normalize=(True, False), sample_weight=(None, s)):
        weights = o['sample_weight']
        expected = metrics.log_loss(target.numpy(), p.numpy(), normalize=o['normalize'], sample_weight=None if weights is None else weights.numpy(), labels=range(c))
        options = dict(reduction='mean' if o['normalize'] else 'sum', sample_weight=weights)
        close(ll.cross_entropy(z, target, **options), expected)
        close(ll.nll_loss(p.log(), target, **options), expected)


def test_log_loss_of_two_classes():
    "One column of probabilities: binary cross entropy, from logits, from probabilities, and with labels -1 and 1"
    z, target, s = torch.randn(20, dtype=torch.float64), torch.arange(20) % 2, torch.rand(20, dtype=torch.float64)
    p = z.sigmoid()
    for o in grid(normalize=(True, False), sample_weight=(None, s)):
        weights = o['sample_weight']
        expected = metrics.log_loss(target.numpy(), p.numpy(), normalize=o['normalize'], sample_weight=None if weights is None else weights.numpy())
        options = dict(reduction='mean' if o['normalize'] else 'sum', sample_weight=weights)
        close(ll.binary_cross_entropy_with_logits(z, target, **options), expected)
        close(ll.binary_cross_entropy(p, target, **options), expected)
        close(ll.soft_margin_loss(z, 2*target - 1, **options), expected)


def test_log_loss_of_one_hot_rows():
    "scikit-learn's label indicator is our one-hot row"
    z, target = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
    hot = torch.nn.functional.one_hot(target, 3)
    close(ll.cross_entropy(z, hot), metrics.log_loss(hot.numpy(), z.softmax(1).numpy()))


def test_balanced_class_weights():
    "Its balanced class weights, given as weights of the classes or of the samples, are one loss"
    utils = pytest.importorskip('sklearn.utils.class_weight')
    z, target = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0]*7 + [1]*3 + [2]*2)
    w = torch.from_numpy(utils.compute_class_weight('balanced', classes=torch.arange(3).numpy(), y=target.numpy()))
    expected = metrics.log_loss(target.numpy(), z.softmax(1).numpy(), sample_weight=utils.compute_sample_weight('balanced', target.numpy()))
    close(ll.cross_entropy(z, target, weight=w), expected)
    close(ll.cross_entropy(z, target, sample_weight=w[target]), expected)


def test_gradient_of_logistic_regression():
    "At the optimum that scikit-learn finds without a penalty, the gradient of our loss is 0"
    linear = pytest.importorskip('sklearn.linear_model')
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, dtype=torch.float64, generator=generator)
    target = (x[:, 0] + torch.randn(60, dtype=torch.float64, generator=generator) > 0).long() + (x[:, 1] + torch.randn(60, generator=generator) > 1)
    fitted = linear.LogisticRegression(C=float('inf'), tol=1e-10, max_iter=10_000).fit(x.numpy(), target.numpy())
    coef = torch.from_numpy(fitted.coef_).requires_grad_()
    bias = torch.from_numpy(fitted.intercept_).requires_grad_()
    for g in torch.autograd.grad(ll.cross_entropy(x @ coef.T + bias, target), (coef, bias)):
        torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-6)
