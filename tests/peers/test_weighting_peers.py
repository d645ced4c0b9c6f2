"scikit-learn's class weights, Keras' class_weight in fit, and the documented formulas of TensorFlow and Chainer"
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losslab as ll

COUNTS = [198, 436, 710, 272]
LABELS = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
double = dict(dtype=torch.float64)
def close(a, b, **kw): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **(kw or dict(rtol=1e-10, atol=1e-12)))


@pytest.mark.parametrize('labels', [LABELS, torch.tensor([0, 0, 2]), torch.tensor([3, 1, 1, 1])], ids=['issue', 'gap', 'unsorted'])
def test_balanced(labels):
    "compute_class_weight and compute_sample_weight, which know only the classes that occur"
    utils = pytest.importorskip('sklearn.utils.class_weight')
    n = ll.class_counts(labels, 4).double()
    here = ll.class_weights(n)
    classes = labels.unique()
    close(here[classes], utils.compute_class_weight('balanced', classes=classes.numpy(), y=labels.numpy()))
    close(here[labels], utils.compute_sample_weight('balanced', labels.numpy()))
    close(here[n == 0], torch.ones(int((n == 0).sum())))


def fitted(x, y, **options):
    linear = pytest.importorskip('sklearn.linear_model')
    sk = linear.LogisticRegression(C=5., tol=1e-12, max_iter=10_000, solver='newton-cholesky', **options).fit(x.numpy(), y.numpy())
    return torch.from_numpy(sk.coef_).requires_grad_(), torch.from_numpy(sk.intercept_).requires_grad_()


@pytest.mark.parametrize('given', ['balanced', {0: 1., 1: 2.5, 2: .3, 3: 4.}], ids=['balanced', 'dict'])
def test_logistic_regression(given):
    "At its optimum our weighted loss, with its penalty, has no gradient; without the weights it has one"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(len(LABELS), 3, generator=g, **double) + LABELS[:, None]*torch.tensor([.5, -.3, .2])
    coef, bias = fitted(x, LABELS, class_weight=given)
    w = ll.class_weights(torch.tensor(COUNTS, **double)) if given == 'balanced' else torch.tensor(list(given.values()), **double)
    def gradient(weight):
        loss = 5*ll.cross_entropy(x @ coef.T + bias, LABELS, weight=weight, reduction='sum') + coef.square().sum()/2
        return max(o.abs().max().item() for o in torch.autograd.grad(loss, (coef, bias)))
    assert gradient(w) < 1e-4 < 1 < gradient(None)
    cost = w[:, None]*(1 - torch.eye(4))
    by_cost = ll.cost_sensitive_cross_entropy(x @ coef.T + bias, LABELS, cost=cost, reduction='sum')
    close(by_cost, ll.cross_entropy(x @ coef.T + bias, LABELS, weight=w, reduction='sum').detach())


def test_binary_logistic_regression():
    "Two classes: its class weights are pos_weight, and undoing them gives the odds of the plain fit where the model is saturated"
    x = torch.eye(3, **double).repeat_interleave(torch.tensor([40, 50, 60]), 0)
    y = torch.cat([torch.arange(n) < k for n, k in ((40, 4), (50, 20), (60, 50))]).long()
    linear = pytest.importorskip('sklearn.linear_model')
    sk = linear.LogisticRegression(C=1e8, tol=1e-12, max_iter=10_000, fit_intercept=False, class_weight={0: 1, 1: 7.}).fit(x.numpy(), y.numpy())
    z = torch.from_numpy(sk.coef_[0])
    close(z, ll.undo_pos_weight(z, torch.tensor(7.)) + torch.tensor(7., **double).log())
    close(ll.undo_pos_weight(z, torch.tensor(7., **double)).sigmoid(), [4/40, 20/50, 50/60], rtol=1e-4, atol=0)
    assert ((z > 0) == (torch.tensor([4/40, 20/50, 50/60]) > ll.threshold_of_weight(7.))).all()


def test_costs_of_a_confusion_matrix():
    "The total cost of answers is the product of two tables with the true class in the rows"
    metrics = pytest.importorskip('sklearn.metrics')
    g = torch.Generator().manual_seed(0)
    z, y, cost = torch.randn(90, 4, generator=g), torch.arange(90) % 4, torch.rand(4, 4, generator=g)
    a = ll.cheapest_answer(z, cost)
    table = torch.from_numpy(metrics.confusion_matrix(y.numpy(), a.numpy(), labels=range(4)))
    close((table*cost).sum(), cost[y, a].sum(), rtol=1e-5, atol=0)
    assert cost[y, a].numel() == 90 and (ll.expected_cost(z, cost).amin(1) == ll.expected_cost(z, cost).gather(1, a[:, None])[:, 0]).all()


@pytest.mark.xdist_group('keras')
def test_keras_class_weight():
    "`fit(class_weight=)` is weight with the mean over elements: its loss, and the step that it takes"
    os.environ['KERAS_BACKEND'] = 'torch'
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    g = torch.Generator().manual_seed(0)
    x, y, w = torch.randn(12, 3, generator=g), torch.arange(12) % 4, ll.class_weights([5, 1, 2, 4])
    model = keras.Sequential([keras.layers.Dense(4, kernel_initializer='zeros')])
    model.compile(keras.optimizers.SGD(.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x.numpy(), y.numpy(), batch_size=12, class_weight=dict(enumerate(w.tolist())), verbose=0)
    kernel, bias = torch.zeros(3, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = ll.cross_entropy(x @ kernel + bias, y, weight=w, reduction='element_mean')
    close(loss.detach(), history.history['loss'][0], rtol=1e-5, atol=0)
    for theirs, ours, grad in zip(model.get_weights(), (kernel, bias), torch.autograd.grad(loss, (kernel, bias))):
        close((ours - .5*grad).detach(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('normalize', [True, False])
def test_chainer(normalize):
    "softmax_cross_entropy(class_weight=, normalize=, ignore_label=): weighted log-probabilities, divided by the labels that count or by the batch"
    g = torch.Generator().manual_seed(0)
    z, t, w = torch.randn(3, 4, 5, generator=g, **double), torch.randint(-1, 4, (3, 5), generator=g), torch.rand(4, generator=g, **double)
    log_y = z.log_softmax(1).numpy()*w.numpy()[None, :, None]
    picked = np.take_along_axis(log_y, t.clamp(min=0).numpy()[:, None], 1)[:, 0]*(t != -1).numpy()
    expected = -picked.sum()/max((t != -1).sum().item() if normalize else len(t), 1)
    close(ll.cross_entropy(z, t, weight=w, ignore_index=-1, reduction='element_mean' if normalize else 'batchmean'), expected)


def test_tensorflow_weighted_cross_entropy():
    "weighted_cross_entropy_with_logits: (1-y) z + (1 + (q-1) y) (log(1 + exp(-|z|)) + max(-z, 0)), with q from the counts"
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(50, 3, generator=g, **double), (torch.rand(50, 3, generator=g) < torch.tensor([.1, .5, .9])).double()
    q = ll.pos_weights(ll.answer_counts(y)).double()
    theirs = (1 - y)*z + (1 + (q - 1)*y)*((-z.abs()).exp().log1p() + F.relu(-z))
    close(ll.binary_cross_entropy_with_logits(z, y, pos_weight=q, reduction='none'), theirs)
    close((q*y).sum(0), (1 - y).sum(0), rtol=1e-5, atol=0)
