"scikit-learn's scores to 1e-12, with ties, weights and one class; Keras' AUC, which is what its thresholds see"
import itertools
import os
import warnings

import pytest
import torch
import torch.nn.functional as F

from losslab.ranking import average_precision, precision_recall_curve, roc_auc, roc_curve

os.environ['KERAS_BACKEND'] = 'torch'
sk = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
PAIRS = {'auc': (roc_auc, sk.roc_auc_score), 'ap': (average_precision, sk.average_precision_score)}


def close(ours, theirs): torch.testing.assert_close(torch.as_tensor(ours).double(), torch.as_tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('decimals', [0, 1, 8])
@pytest.mark.parametrize('prevalence', [.5, .1, .004])
def test_binary(name, decimals, prevalence):
    "Many ties or none, any share of positives, float32 and float64, weights of any size"
    ours, theirs = PAIRS[name]
    for n, dtype in itertools.product((2, 17, 1000), (torch.float32, torch.float64)):
        y = torch.rand(n) < prevalence
        y[:2] = torch.tensor([True, False])
        z = (torch.randn(n, dtype=dtype) + y).round(decimals=decimals)
        close(ours(z, y), theirs(y, z))
        for w in torch.rand(n), torch.randint(4, (n,)).double() + (torch.arange(n) < 2), 10**torch.randn(n).double():
            close(ours(z, y, sample_weight=w), theirs(y, z, sample_weight=w))


@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('average', ['macro', 'weighted', 'micro', None])
def test_classes_and_labels(name, average):
    "One against the rest, and label by label; its weights belong to rows"
    ours, theirs = PAIRS[name]
    p, y, w = torch.randint(1, 9, (300, 5)).double(), torch.randint(5, (300,)), torch.rand(300).double()
    p = p/p.sum(1, keepdim=True)
    many = (torch.rand(300, 5) < torch.tensor([.5, .2, .02, .9, .1])).long()
    many[0] = 1
    mine = average or 'none'
    for v in None, w:
        rows = None if v is None else v[:, None].expand(300, 5)
        close(ours(p, many, average=mine, sample_weight=rows), theirs(many, p, average=average, sample_weight=v))
        if average is None and name == 'auc': continue
        o = {'multi_class': 'ovr'} if name == 'auc' else {}
        close(ours(p, y, average=mine, sample_weight=v, from_logits=False), theirs(y, p, average=average, sample_weight=v, **o))


@pytest.mark.parametrize('average', ['macro', 'weighted'])
def test_pairs_of_classes(average):
    "Hand and Till, with ties"
    p, y = torch.randint(1, 6, (200, 4)).double(), torch.randint(4, (200,))
    p = p/p.sum(1, keepdim=True)
    close(roc_auc(p, y, multi_class='ovo', average=average, from_logits=False), sk.roc_auc_score(y, p, multi_class='ovo', average=average))
    z = torch.randn(200, 4, dtype=torch.double)
    close(roc_auc(z, y, multi_class='ovo', average=average), sk.roc_auc_score(y, z.softmax(1), multi_class='ovo', average=average))


def test_logits_and_their_softmax():
    "(3) ranks as the columns of the softmax do"
    z, y = 3*torch.randn(400, 6, dtype=torch.double), torch.randint(6, (400,))
    p = z.softmax(1)
    close(roc_auc(z, y), sk.roc_auc_score(y, p, multi_class='ovr'))
    close(average_precision(z, y), sk.average_precision_score(F.one_hot(y, 6), p))


@pytest.mark.filterwarnings('ignore')
def test_one_class():
    "The same values where it warns; it gives 0 for a weighted mean without any positives, we give NaN; it skips absent classes in pairs, we do not"
    z = torch.randn(9)
    for one in torch.zeros(9).long(), torch.ones(9).long():
        for ours, theirs in PAIRS.values(): close(ours(z, one), theirs(one, z))
    p, many = torch.rand(9, 3), torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]]*3)
    for (ours, theirs), average in itertools.product(PAIRS.values(), ('macro', 'micro', 'weighted', None)):
        close(ours(p, many, average=average or 'none'), theirs(many, p, average=average))
    y = torch.arange(9) % 2
    q = p.double().softmax(1)
    close(roc_auc(q, y, from_logits=False), sk.roc_auc_score(y, q, multi_class='ovr', labels=[0, 1, 2]))
    assert sk.roc_auc_score(many*0, p, average='weighted') == 0 and roc_auc(p, many*0, average='weighted').isnan()


@pytest.mark.parametrize('decimals', [0, 2])
def test_curves(decimals):
    "All points, weights, and zero weights that leave no point"
    z, y = torch.randn(200, dtype=torch.double).round(decimals=decimals), torch.rand(200) < .3
    for w in None, torch.rand(200).double(), torch.randint(2, (200,)).double():
        theirs = sk.roc_curve(y, z, sample_weight=w, drop_intermediate=False)
        for a, b in zip(roc_curve(z, y, sample_weight=w), theirs, strict=True): close(a, b)
        precision, recall, threshold = sk.precision_recall_curve(y, z, sample_weight=w)
        ours = precision_recall_curve(z, y, sample_weight=w)
        close(ours.precision, precision[::-1].copy())
        close(ours.recall, recall[::-1].copy())
        close(ours.threshold[1:], threshold[::-1].copy())


@pytest.fixture(scope='module')
def keras():
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    return keras


@pytest.mark.xdist_group('keras')
def test_keras_auc(keras):
    "Scores between two thresholds tie there: rounded to its thresholds ours is the same, and more thresholds come closer"
    y = (torch.rand(2000) < .2).float()
    p = (torch.randn(2000) + 1.5*y - 6).sigmoid()
    def theirs(n, **o):
        m = keras.metrics.AUC(num_thresholds=n, **o)
        for a, b in zip(y.split(300), p.split(300)): m.update_state(a, b)
        return m.result().item()
    exact = roc_auc(p, y).item()
    for n in 11, 200:
        heaped = (p.double()*(n - 1)).ceil()
        torch.testing.assert_close(roc_auc(heaped, y).item(), theirs(n), rtol=0, atol=1e-5)
    gaps = [abs(theirs(n) - exact) for n in (11, 200, 5001)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-3
    z = torch.logit(p.double()).float()
    m = keras.metrics.AUC(from_logits=True)
    m.update_state(y, z)
    torch.testing.assert_close(m.result().item(), theirs(200), rtol=0, atol=1e-4)
    steps = [theirs(5001, curve='PR', summation_method=o) for o in ('minoring', 'majoring')]
    assert steps[0] - 1e-3 <= average_precision(p, y).item() <= steps[1] + 1e-3


def test_no_warnings():
    "One class warns there and not here"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        roc_auc(torch.randn(4), torch.zeros(4)), average_precision(torch.randn(4), torch.zeros(4))
        roc_auc(torch.randn(40, 3)[::2].T, torch.randint(3, (20,)), dim=0)
