"scikit-learn's scores and Keras' metrics give the same accuracies, or differ where the page says so"
import os

import pytest
import torch
import torch.nn.functional as F

from losslab import metrics as lm
from losslab.categorical import cross_entropy

os.environ['KERAS_BACKEND'] = 'torch'
sk = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
N, C = 60, 5


def data(): return torch.randn(N, C), torch.randint(C, (N,)), torch.rand(N)
def close(ours, theirs): torch.testing.assert_close(torch.as_tensor(ours).double(), torch.tensor(float(theirs), dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('weighted', [False, True])
def test_sklearn_accuracies(weighted):
    "accuracy_score, normalised or counted, and top_k_accuracy_score"
    z, y, s = data()
    ours, theirs = ({'sample_weight': s}, {'sample_weight': s.numpy()}) if weighted else ({}, {})
    close(lm.sparse_categorical_accuracy(z, y, **ours), sk.accuracy_score(y, z.argmax(1), **theirs))
    close(lm.categorical_accuracy(z, F.one_hot(y, C), **ours), sk.accuracy_score(y, z.argmax(1), **theirs))
    close(lm.sparse_categorical_accuracy(z, y, reduction='sum', **ours), sk.accuracy_score(y, z.argmax(1), normalize=False, **theirs))
    close(lm.binary_accuracy(z[:, 0], y > 2, **ours), sk.accuracy_score(y > 2, z[:, 0] > 0, **theirs))
    for k in range(1, C): close(lm.top_k_accuracy(z, y, k=k, **ours), sk.top_k_accuracy_score(y, z, k=k, labels=range(C), **theirs))


def test_sklearn_balanced_accuracy():
    "Weights of one over the size of the class"
    z, y, _ = data()
    y = y.where(torch.rand(N) < .3, 0)
    w = 1/y.bincount(minlength=C).float()
    close(lm.sparse_categorical_accuracy(z, y, sample_weight=w[y]), sk.balanced_accuracy_score(y, z.argmax(1)))


def test_sklearn_ties():
    "Its top-k score lets the last of equal scores win"
    z, y = torch.randint(3, (N, C)).float(), torch.randint(C, (N,))
    for k in range(1, C): close(lm.top_k_accuracy(z, y, k=k, ties='last'), sk.top_k_accuracy_score(y, z, k=k, labels=range(C)))
    assert abs(lm.top_k_accuracy(z, y, k=2).item() - sk.top_k_accuracy_score(y, z, k=2, labels=range(C))) > 1e-3


@pytest.fixture(scope='module')
def keras():
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    return keras


def result(metric, y, z, s, weighted, cuts=(7, 50, 3)):
    "A Keras metric after three uneven batches"
    for a, b, w in zip(y.split(cuts), z.split(cuts), s.split(cuts)): metric.update_state(a, b, sample_weight=w.clone() if weighted else None)
    return metric.result().item()


def streamed(fn, y, z, s, weighted, cuts=(7, 50, 3)):
    return sum(fn(b, a, reduction='parts', sample_weight=w if weighted else None) for a, b, w in zip(y.split(cuts), z.split(cuts), s.split(cuts))).mean


@pytest.mark.xdist_group('keras')
@pytest.mark.parametrize('weighted', [False, True])
def test_keras_metrics(keras, weighted):
    "Three rules over three uneven batches, with weights; Keras compares probabilities, or logits as they are"
    z, y, s = data()
    K = keras.metrics
    hot, bits, p = F.one_hot(y, C).float(), (y > 2).float(), z[:, 0].sigmoid()
    close(streamed(lm.sparse_categorical_accuracy, y, z, s, weighted), result(K.SparseCategoricalAccuracy(), y, z, s, weighted))
    close(streamed(lm.categorical_accuracy, hot, z, s, weighted), result(K.CategoricalAccuracy(), hot, z, s, weighted))
    for t in .3, .5, .8:
        fn = lambda z, y, t=t, **o: lm.binary_accuracy(z, y, threshold=t, **o)
        theirs = result(K.BinaryAccuracy(threshold=t), bits[:, None], p[:, None], s, weighted)
        close(streamed(fn, bits, z[:, 0], s, weighted), theirs)
        close(streamed(lambda z, y, fn=fn, **o: fn(z, y, from_logits=False, **o), bits, p, s, weighted), theirs)
    for k in 1, 2, 4:
        fn = lambda z, y, k=k, **o: lm.top_k_accuracy(z, y, k=k, **o)
        close(streamed(fn, y, z, s, weighted), result(K.SparseTopKCategoricalAccuracy(k=k), y, z, s, weighted))
        close(streamed(fn, hot, z, s, weighted), result(K.TopKCategoricalAccuracy(k=k), hot, z, s, weighted))


@pytest.mark.xdist_group('keras')
def test_keras_ties(keras):
    "Its accuracy lets the first win, its top-k counts all of them; a smoothed answer is never right for its binary rule"
    z, y = torch.randint(3, (N, C)).float(), torch.randint(C, (N,))
    ones = torch.ones(N)
    close(lm.sparse_categorical_accuracy(z, y), result(keras.metrics.SparseCategoricalAccuracy(), y, z, ones, False))
    for k in 1, 2, 3: close(lm.top_k_accuracy(z, y, k=k, ties='best'), result(keras.metrics.SparseTopKCategoricalAccuracy(k=k), y, z, ones, False))
    p = torch.tensor([.5, .9])
    assert keras.ops.convert_to_numpy(keras.metrics.binary_accuracy(torch.tensor([[0.], [1.]]), p[:, None])).ravel().tolist() == [1, 1]
    assert lm.binary_accuracy(p, torch.tensor([0., 1.]), from_logits=False) == 1
    assert keras.ops.convert_to_numpy(keras.metrics.binary_accuracy(torch.tensor([[.05], [.95]]), p[:, None])).ravel().tolist() == [0, 0]
    assert lm.binary_accuracy(p, torch.tensor([.05, .95]), from_logits=False) == 1


@pytest.mark.xdist_group('keras')
def test_keras_prints_one_accuracy_of_three(keras):
    "'accuracy' is the rule that fits the shapes, and its loss holds the penalty"
    z, y, _ = data()
    layer = keras.layers.Dense(C, kernel_regularizer=keras.regularizers.L2(.05))
    model = keras.Sequential([keras.Input((C,)), layer])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'])
    said = model.evaluate(z, y, batch_size=7, verbose=0, return_dict=True)
    out = model(z).detach()
    penalty = .05*(layer.kernel.value.detach()**2).sum()
    close(lm.sparse_categorical_accuracy(out, y), said['accuracy'])
    torch.testing.assert_close(said['loss'], (cross_entropy(out, y) + penalty).item(), rtol=1e-5, atol=0)
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True), metrics=['binary_accuracy'])
    cells = model.evaluate(z, F.one_hot(y, C).float(), batch_size=7, verbose=0, return_dict=True)
    close(lm.binary_accuracy(out, F.one_hot(y, C), threshold=torch.tensor(.5).sigmoid().item()), cells['binary_accuracy'])
