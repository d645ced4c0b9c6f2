"Keras' focal losses live; MONAI's live where it installs; the formulas of MONAI and segmentation-models-pytorch, and where they differ"
import os

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, grid, value_and_grad

import losslab as ll

os.environ['KERAS_BACKEND'] = 'torch'
pytestmark = pytest.mark.xdist_group('keras')
double = dict(dtype=torch.float64)
GAMMAS = .5, 1., 2., 5.


@pytest.fixture(scope='module')
def losses():
    "Keras' losses, on its PyTorch backend"
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    return keras.losses


def close(theirs, ours, z):
    "Value and gradient, as far as Keras' clipping of probabilities at 1e-7 allows"
    assert_same(value_and_grad(ours, z), value_and_grad(lambda z: theirs(z).double(), z), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_keras_answers(losses, gamma):
    "`BinaryFocalCrossentropy`: alpha counts only with `apply_class_balancing`; its values are means over the last axis"
    z, y = torch.randn(6, 4, **double), torch.randint(2, (6, 4)).double()
    for balanced, alpha in (False, .25), (True, .25), (True, .8):
        options = dict(gamma=gamma, alpha=alpha, apply_class_balancing=balanced, dtype='float64')
        ours = dict(gamma=gamma, alpha=alpha if balanced else None)
        for r in 'sum_over_batch_size', 'none':
            theirs = losses.BinaryFocalCrossentropy(from_logits=True, reduction=r, **options)
            close(lambda z: theirs(y, z), lambda z: (lambda o: o.mean(1) if r == 'none' else o.mean())(ll.sigmoid_focal_loss(z, y, reduction='none', **ours)), z)
        theirs = losses.BinaryFocalCrossentropy(from_logits=False, **options)
        close(lambda z: theirs(y, z.sigmoid()), lambda z: ll.sigmoid_focal_loss(z, y, **ours), z)
    assert losses.BinaryFocalCrossentropy().get_config()['apply_class_balancing'] is False


@pytest.mark.parametrize('gamma', GAMMAS)
def test_keras_classes(losses, gamma):
    "`CategoricalFocalCrossentropy`: alpha is a factor, one number or one per class; soft labels and smoothing are averages, as here"
    z, hot, soft = torch.randn(6, 4, **double), F.one_hot(torch.randint(4, (6,)), 4).double(), torch.rand(6, 4, **double).softmax(1)
    for q, smoothing, alpha in [(q, s, a) for q in (hot, soft) for s in (0., .2) for a in (.25, [.1, .2, .3, .4])]:
        theirs = losses.CategoricalFocalCrossentropy(alpha=alpha, gamma=gamma, from_logits=True, label_smoothing=smoothing, dtype='float64')
        a = alpha if isinstance(alpha, float) else torch.tensor(alpha)
        close(lambda z: theirs(q, z), lambda z: ll.focal_loss(z, q, alpha=a, gamma=gamma, label_smoothing=smoothing), z)
    pixels, labels = torch.randn(2, 4, 3, 3, **double), torch.randint(4, (2, 3, 3))
    theirs = losses.CategoricalFocalCrossentropy(gamma=gamma, from_logits=True, axis=1, dtype='float64')
    close(lambda z: theirs(F.one_hot(labels, 4).movedim(-1, 1).double(), z), lambda z: ll.focal_loss(z, labels, alpha=.25, gamma=gamma), pixels)


def test_keras_on_soft_answers(losses):
    "For soft answers Keras blends the probabilities first: equal at 0 and 1, another loss between"
    z, y = torch.randn(6, 4, **double), torch.rand(6, 4, **double)
    theirs = losses.BinaryFocalCrossentropy(from_logits=True, dtype='float64')
    p = z.sigmoid()
    blended = (1 - (y*p + (1-y)*(1-p)))**2*F.binary_cross_entropy_with_logits(z, y, reduction='none')
    torch.testing.assert_close(theirs(y, z).double(), blended.mean(), rtol=1e-6, atol=1e-7)
    assert (ll.sigmoid_focal_loss(z, y, alpha=None) - blended.mean()).abs() > 1e-3


def test_keras_clips(losses):
    "A sure and wrong answer has no gradient there"
    z, no = torch.tensor([[30.]]), torch.tensor([[0.]])
    theirs = losses.BinaryFocalCrossentropy(from_logits=True)
    assert value_and_grad(lambda z: theirs(no, z), z)[1] == 0
    value, grad = value_and_grad(lambda z: ll.sigmoid_focal_loss(z, no, alpha=None), z)
    torch.testing.assert_close((value, grad), (torch.tensor(30.), torch.ones(1, 1)))


def monai_formula(z, q, gamma=2., alpha=None, use_softmax=False):
    "MONAI's FocalLoss with reduction='none': one value per class also for a softmax, a scalar alpha is for all classes but the first"
    if use_softmax:
        p = z.softmax(1)
        factor = 1. if alpha is None else torch.tensor([1-alpha] + [alpha]*(z.shape[1] - 1), **double).view(-1, *[1]*(z.ndim - 2))
        return -factor*q*(1-p)**gamma*p.log()
    p_t = torch.where(q == 1, z.sigmoid(), 1 - z.sigmoid())
    factor = 1. if alpha is None else torch.where(q == 1, alpha, 1-alpha)
    return -factor*(1-p_t)**gamma*p_t.log()


@pytest.mark.parametrize('shape', [(6, 4), (2, 4, 3, 3)])
def test_monai_formula(shape):
    "One against all is ours; its softmax divides by N times C"
    z = torch.randn(shape, **double)
    y = torch.randint(4, (shape[0], *shape[2:]))
    q = F.one_hot(y, 4).movedim(-1, 1).double()
    for o in grid(gamma=GAMMAS, alpha=(None, .25)):
        torch.testing.assert_close(ll.sigmoid_focal_loss(z, q, reduction='none', **o), monai_formula(z, q, **o), rtol=1e-6, atol=1e-9)
        a = None if o['alpha'] is None else torch.tensor([.75, .25, .25, .25])
        theirs = monai_formula(z, q, use_softmax=True, **o)
        for target in y, q:
            torch.testing.assert_close(ll.focal_loss(z, target, gamma=o['gamma'], alpha=a, reduction='none'), theirs.sum(1))
            torch.testing.assert_close(ll.focal_loss(z, target, gamma=o['gamma'], alpha=a, normalizer=q.numel()), theirs.mean())
            torch.testing.assert_close(ll.focal_loss(z, target, gamma=o['gamma'], alpha=a), 4*theirs.mean())


def test_monai():
    "MONAI itself computes the formula above (in float32)"
    monai = pytest.importorskip('monai.losses.focal_loss', reason='MONAI is not installed')
    z, q = torch.randn(6, 4), F.one_hot(torch.randint(4, (6,)), 4)
    for o in grid(gamma=GAMMAS, alpha=(None, .25), use_softmax=(False, True)):
        torch.testing.assert_close(monai.FocalLoss(reduction='none', **o)(z, q).double(), monai_formula(z.double(), q, **o), rtol=1e-4, atol=1e-6)
        if not o['use_softmax']: torch.testing.assert_close(monai.FocalLoss(**o)(z, q), ll.sigmoid_focal_loss(z, q, gamma=o['gamma'], alpha=o['alpha']), rtol=1e-5, atol=1e-6)
        elif o['alpha'] is None: torch.testing.assert_close(monai.FocalLoss(**o)(z, q), ll.focal_loss(z, q, gamma=o['gamma'], normalizer=q.numel()), rtol=1e-5, atol=1e-6)


def smp_formula(z, y, gamma=2., alpha=None):
    "segmentation-models-pytorch, modes binary and multilabel: the focus comes from exp(-cross entropy)"
    ce = F.binary_cross_entropy_with_logits(z, y, reduction='none')
    loss = (1 - (-ce).exp())**gamma*ce
    return (loss if alpha is None else loss*(alpha*y + (1-alpha)*(1-y))).mean()


def test_segmentation_models_formula():
    "Answers are ours; its mode multiclass is one against all, added over the classes, and no softmax"
    z, y = torch.randn(5, 3, 4, 4, **double), torch.randint(3, (5, 4, 4))
    hot = F.one_hot(y, 3).movedim(-1, 1).double()
    for o in grid(gamma=GAMMAS, alpha=(None, .25)):
        torch.testing.assert_close(ll.sigmoid_focal_loss(z, hot, **o), smp_formula(z, hot, **o))
        multiclass = sum(smp_formula(z[:, c], hot[:, c], **o) for c in range(3))
        torch.testing.assert_close(3*ll.sigmoid_focal_loss(z, hot, **o), multiclass)
        assert (ll.focal_loss(z, y, gamma=o['gamma']) - multiclass).abs() > 1e-3


def test_a_leaking_weight():
    "The focus from a weighted cross entropy is another loss; from a plain one it is ours"
    z, y, w = torch.randn(6, 3, **double), torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([1., 3., .5], **double)
    def from_ce(weight):
        ce = F.cross_entropy(z, y, weight=weight, reduction='none')
        return (1 - (-ce).exp())**2*ce
    torch.testing.assert_close(ll.focal_loss(z, y, reduction='none'), from_ce(None))
    ours = ll.focal_loss(z, y, weight=w, reduction='none')
    torch.testing.assert_close(ours, w[y]*from_ce(None))
    assert ((ours - from_ce(w)).abs() > 1e-3)[w[y] != 1].all()
