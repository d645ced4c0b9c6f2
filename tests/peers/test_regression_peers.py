"Keras (on its PyTorch backend) and scikit-learn give the same numbers; Caffe's, TensorFlow 1's and Chainer's formulas written out"
import os

import pytest
import torch

from losslab import regression as r

os.environ['KERAS_BACKEND'] = 'torch'
double = dict(dtype=torch.float64)


def data(*shape): return 2*torch.randn(shape, **double), 2*torch.randn(shape, **double)
def close(a, b, rtol=1e-10): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=rtol, atol=1e-12)


@pytest.fixture(scope='module')
def losses():
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    return keras.losses


KERAS = {'MeanSquaredError': ('mse_loss', {}), 'MeanAbsoluteError': ('l1_loss', {}), 'Huber': ('huber_loss', dict(delta=.7)), 'LogCosh': ('log_cosh_loss', {})}


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['sum_over_batch_size', 'mean_with_sample_weight', 'sum', None])
@pytest.mark.parametrize('name', KERAS)
def test_keras(losses, name, reduction, weighted):
    "Keras averages over the last axis; weights belong to rows"
    (z, y), w = data(5, 4), torch.tensor([1., 0., 2., .5, 3.], **double) if weighted else None
    ours, options = KERAS[name]
    theirs = getattr(losses, name)(reduction=reduction, dtype='float64', **options)(y, z, sample_weight=None if w is None else w.clone())
    w = None if w is None else w[:, None].expand(5, 4)
    def here(how): return getattr(r, ours)(z, y, sample_weight=w, reduction=how, **options)
    got = {'sum_over_batch_size': lambda: here('element_mean'), 'mean_with_sample_weight': lambda: here('weighted_mean'), 'sum': lambda: here('sum')/4, None: lambda: here('none').mean(1)}
    close(got[reduction](), theirs, rtol=1e-6)


@pytest.mark.parametrize('name', KERAS)
def test_keras_gradients(losses, name):
    "The same slopes"
    (z, y), (ours, options) = data(5, 4), KERAS[name]
    grads = [torch.autograd.grad(fn(z), z)[0] for fn in (lambda z: getattr(losses, name)(dtype='float64', **options)(y, z), lambda z: getattr(r, ours)(z, y, **options)) if z.requires_grad_() is not None]
    close(grads[1], grads[0], rtol=1e-6)


@pytest.mark.parametrize('weighted', [False, True])
def test_sklearn(weighted):
    "mean_squared_error, mean_absolute_error and mean_pinball_loss, with weights by row"
    metrics = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
    (z, y), s = data(6, 2), torch.rand(6, **double) if weighted else None
    w = None if s is None else s[:, None].expand(6, 2)
    options = dict(sample_weight=None if s is None else s.numpy())
    close(r.mse_loss(z, y, sample_weight=w), metrics.mean_squared_error(y, z, **options))
    close(r.l1_loss(z, y, sample_weight=w), metrics.mean_absolute_error(y, z, **options))
    for q in 0., .1, .5, .9, 1.: close(r.quantile_loss(z, y, quantile=q, sample_weight=w), metrics.mean_pinball_loss(y, z, alpha=q, **options))
    each = metrics.mean_squared_error(y, z, multioutput='raw_values', **options)
    for i in 0, 1: close(r.mse_loss(z[:, i], y[:, i], sample_weight=s), each[i])


def test_caffe():
    "EuclideanLoss: half the sum over the batch; its diff over the batch is the gradient"
    z, y = data(4, 3, 2)
    diff, z = z - y, z.requires_grad_()
    loss = .5*r.mse_loss(z, y, reduction='batchmean')
    close(loss, (diff*diff).sum()/4/2)
    close(torch.autograd.grad(3*loss, z)[0], 3*diff/4)


@pytest.mark.parametrize('fn,price', [(r.mse_loss, lambda d: d**2), (r.l1_loss, abs), (r.huber_loss, lambda d: torch.where(d.abs() <= 1, d*d/2, d.abs() - .5))])
def test_tensorflow_1(fn, price):
    "tf.losses: weights that broadcast, and the mean over weights that are not 0"
    (z, y), w = data(4, 3), torch.tensor([[1.], [0.], [2.], [.5]], **double).expand(4, 3)
    total = (w*price(z - y)).sum()
    close(fn(z, y, sample_weight=w, mask=w != 0, reduction='element_mean'), total/9)  # SUM_BY_NONZERO_WEIGHTS, the default
    close(fn(z, y, sample_weight=w, reduction='element_mean'), total/12)  # SUM_OVER_BATCH_SIZE
    close(fn(z, y, sample_weight=w), total/w.sum())  # MEAN
    close(fn(z, y, sample_weight=w, reduction='sum'), total)  # SUM


def test_chainer():
    "Means over all values, and a Huber loss that is summed along the second axis"
    z, y = data(4, 3)
    close(r.mse_loss(z, y), ((z - y)**2).sum()/12)
    close(r.l1_loss(z, y), (z - y).abs().sum()/12)
    d = (z - y).abs()
    rows = torch.where(d < .5, d*d/2, .5*(d - .25)).sum(1)
    close(r.huber_loss(z, y, delta=.5, reduction='none').sum(1), rows)
