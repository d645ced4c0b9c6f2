"Keras 3, on its PyTorch backend, gives the same numbers and the same gradients"
import os

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same

import losslab as ll

os.environ['KERAS_BACKEND'] = 'torch'
keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend', allow_module_level=True)
pytestmark = pytest.mark.xdist_group('keras')
REDUCTIONS = {'sum': 'sum', None: 'none'}


def both(theirs, ours, z, rounded=False):
    "Value and gradient of a Keras loss and of ours; `rounded` if Keras takes a mean, which it does in float32 whatever the dtype"
    results = []
    for fn in theirs, ours:
        leaf = z.clone().requires_grad_()
        out = fn(leaf)
        results.append((out.detach(), torch.autograd.grad((out*torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum(), leaf)[0]))
    (value, grad), ours = results
    rounded = rounded or value.dtype == torch.float32
    assert_same(ours, (value.double(), grad), rtol=2e-7 if rounded else 1e-10, atol=1e-12)


def copied(weights): return None if weights is None else weights.clone()  # Keras multiplies its mask into the caller's tensor


def data(*shape):
    z = torch.randn(*shape, dtype=torch.float64)
    return z, torch.randint(shape[-1], shape[:-1]), torch.rand(shape[:-1], dtype=torch.float64)


@pytest.mark.parametrize('shape', [(6, 4), (2, 3, 4)])
def test_sparse_categorical_crossentropy(shape):
    "All reductions, with sample weights, classes last"
    z, target, s = data(*shape)
    for weights in None, s:
        for theirs, ours in {**REDUCTIONS, 'sum_over_batch_size': 'element_mean', 'mean_with_sample_weight': 'mean'}.items():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=theirs, dtype='float64')
            both(lambda z: loss(target, z, sample_weight=copied(weights)), lambda z: ll.cross_entropy(z, target, dim=-1, sample_weight=weights, reduction=ours), z)


@pytest.mark.parametrize('label_smoothing', [0., .2])
@pytest.mark.parametrize('kind', ['onehot', 'shares'])
def test_categorical_crossentropy(kind, label_smoothing):
    "One-hot rows and shares, with label smoothing, from logits and from probabilities"
    z, target, s = data(6, 4)
    target = F.one_hot(target, 4).double() if kind == 'onehot' else torch.rand(6, 4, dtype=torch.float64).softmax(1)
    for weights in None, s:
        for theirs, ours in {**REDUCTIONS, 'sum_over_batch_size': 'element_mean', 'mean_with_sample_weight': 'mean'}.items():
            loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing, reduction=theirs, dtype='float64')
            options = dict(sample_weight=weights, label_smoothing=label_smoothing, reduction=ours)
            both(lambda z: loss(target, z, sample_weight=copied(weights)), lambda z: ll.cross_entropy(z, target, **options), z)
            of_probs = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing, reduction=theirs, dtype='float64')
            both(lambda z: of_probs(target, z.softmax(1), sample_weight=copied(weights)), lambda z: ll.nll_loss(z.log_softmax(1), target, **options), z)


def test_ignore_class():
    "`ignore_class` is `ignore_index`"
    z, target, s = data(3, 5, 4)
    target[0, :3], target[2, 1] = 255, 255
    for weights in None, s:
        for theirs, ours in {'sum': dict(reduction='sum'), None: dict(reduction='none'), 'mean_with_sample_weight': dict(reduction='mean'),
                             'sum_over_batch_size': dict(reduction='element_mean')}.items():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255, reduction=theirs, dtype='float64')
            both(lambda z: loss(target, z, sample_weight=copied(weights)), lambda z: ll.cross_entropy(z, target, dim=-1, ignore_index=255, sample_weight=weights, **ours), z)


def test_channels_first():
    "`axis=1` is `dim=1`"
    z, target, _ = data(2, 3, 5, 4)
    hot = F.one_hot(target, 4).double()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, axis=1, reduction=None, dtype='float64')
    both(lambda z: loss(hot.movedim(-1, 1), z.movedim(-1, 1)), lambda z: ll.cross_entropy(z.movedim(-1, 1), target, reduction='none'), z)


@pytest.mark.parametrize('shape', [(6, 4), (2, 3, 4)])
@pytest.mark.parametrize('label_smoothing', [0., .2])
def test_binary_crossentropy(shape, label_smoothing):
    "All reductions, from logits and from probabilities; a weight there belongs to the mean of the last axis"
    z, _, s = data(*shape)
    target = (torch.rand(shape) < .3).double()
    for weights in None, s:
        per_answer = None if weights is None else weights[..., None].expand(shape)
        for theirs, ours in {'sum_over_batch_size': 'element_mean', 'mean_with_sample_weight': 'mean', 'sum': 'sum'}.items():
            loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing, reduction=theirs, dtype='float64')
            options = dict(sample_weight=per_answer, label_smoothing=label_smoothing, reduction=ours)
            scale = 1/shape[-1] if ours == 'sum' else 1
            both(lambda z: loss(target, z, sample_weight=copied(weights)), lambda z: scale*ll.binary_cross_entropy_with_logits(z, target, **options), z, rounded=True)
            of_probs = keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing, reduction=theirs, dtype='float64')
            both(lambda z: of_probs(target, z.sigmoid(), sample_weight=copied(weights)), lambda z: scale*ll.binary_cross_entropy(z.sigmoid(), target, **options), z, rounded=True)
