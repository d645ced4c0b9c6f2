"scikit-learn's and Keras' scores of decisions, with ties, weights and batches of one class"
import os
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losslab import decisions as ld

os.environ['KERAS_BACKEND'] = 'torch'
sk = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
N, C = 60, 4
AVERAGES = {'none': None, 'macro': 'macro', 'micro': 'micro', 'weighted': 'weighted'}


def close(a, b, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(np.asarray(b, dtype=float)), rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def batches():
    "Ties everywhere; then batches in which only one class is true, or said, or both"
    z = torch.randint(3, (N, C)).float()
    one, other = torch.zeros(N).long(), torch.full((N,), C-1)
    yield z, torch.randint(C, (N,))
    yield z, one
    yield F.one_hot(other, C).float(), torch.randint(C, (N,))
    yield F.one_hot(one, C).float(), one
    yield F.one_hot(one, C).float(), other


def weights(shape=(N,)):
    yield {}, {}
    w = torch.rand(shape).double()
    yield {'sample_weight': w}, {'sample_weight': w.numpy()}
    w = w*(torch.rand(shape) < .5)
    yield {'sample_weight': w}, {'sample_weight': w.numpy()}


@pytest.mark.parametrize('zero', [0., 1., np.nan])
def test_classes(zero):
    "confusion_matrix, multilabel_confusion_matrix and precision_recall_fscore_support for classes"
    for z, y in batches():
        said = z.argmax(1)
        for ours, theirs in weights():
            M = ld.confusion_matrix(z, y, rule='argmax', **ours)
            close(M.counts, sk.confusion_matrix(y, said, labels=range(C), **theirs))
            close(M.one_vs_rest().counts, sk.multilabel_confusion_matrix(y, said, labels=range(C), **theirs))
            for name in 'true', 'said', 'all':
                close(M.normalize(name), sk.confusion_matrix(y, said, labels=range(C), normalize={'said': 'pred'}.get(name, name), **theirs))
            for (name, average), beta in ((a, b) for a in AVERAGES.items() for b in (0., .5, 1., 2., np.inf)):
                want = sk.precision_recall_fscore_support(y, said, labels=range(C), beta=beta, average=average, zero_division=zero, **theirs)
                close(M.precision(name, zero), want[0])
                close(M.recall(name, zero), want[1])
                close(M.f_score(beta, name, zero), want[2])


def test_whole_tables():
    "accuracy_score, balanced_accuracy_score and matthews_corrcoef, for classes and for one question"
    for z, y in batches():
        for ours, theirs in weights():
            for M, t, s in ((ld.confusion_matrix(z, y, rule='argmax', **ours), y, z.argmax(1)),
                            (ld.confusion_matrix(z[:, 1] - .5, y > 1, rule='threshold', **ours), y > 1, z[:, 1] > .5)):
                close(M.accuracy(), sk.accuracy_score(t, s, **theirs))
                close(M.balanced_accuracy(), sk.balanced_accuracy_score(t, s, **theirs))
                degenerate = min(len(t[ours.get('sample_weight', torch.ones(N)) != 0].unique()), len(s[ours.get('sample_weight', torch.ones(N)) != 0].unique())) < 2
                if degenerate: assert M.matthews() == 0  # where rounding of weights leaves scikit-learn a residue
                else: close(M.matthews(), sk.matthews_corrcoef(t, s, **theirs), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('zero', [0., 1., np.nan])
def test_one_question(zero):
    "average='binary' there is the default here"
    for z, y in batches():
        yes, said = (y > 1).long(), (z[:, 1] > .5).long()
        for ours, theirs in weights():
            M = ld.confusion_matrix(z[:, 1] - .5, yes, rule='threshold', **ours)
            close(M.counts, sk.confusion_matrix(yes, said, labels=[0, 1], **theirs))
            want = sk.precision_recall_fscore_support(yes, said, beta=2, average='binary', zero_division=zero, **theirs)
            for a, b in zip((M.precision(zero_division=zero), M.recall(zero_division=zero), M.f_score(2., zero_division=zero)), want[:3], strict=True): close(a, b)


@pytest.mark.parametrize('zero', [0., 1., np.nan])
def test_labels(zero):
    "Multi-label tables, with a weight per row as there; a label nobody has and one nobody says"
    z, y = torch.randint(-1, 3, (N, C)).float(), torch.randint(2, (N, C))
    y[:, 0], z[:, 1] = 0, -1.
    for target, s in ((y, z), (y*0, z), (y, z*0)):
        said = (s > 0).long()
        for ours, theirs in weights():
            if ours: ours = {'sample_weight': ours['sample_weight'][:, None].expand(N, C)}
            M = ld.confusion_matrix(s, target, rule='labels', **ours)
            close(M.counts, sk.multilabel_confusion_matrix(target, said, **theirs))
            for name, average in AVERAGES.items():
                want = sk.precision_recall_fscore_support(target, said, beta=.5, average=average, zero_division=zero, **theirs)
                for a, b in zip((M.precision(name, zero), M.recall(name, zero), M.f_score(.5, name, zero)), want[:3], strict=True): close(a, b)


def test_curves():
    "precision_recall_curve and roc_curve are the counts at every threshold"
    for ours, theirs in weights():
        s, y = torch.randint(8, (N,)).float(), torch.randint(2, (N,))
        if ours and (ours['sample_weight'] == 0).any(): continue  # they keep thresholds at which nothing weighs
        t, M = ld.threshold_curve(s, y, **ours)
        fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False, **theirs)
        close(M.recall(), tpr)
        close(1 - M.specificity(), fpr, atol=1e-12)
        p, r, _ = sk.precision_recall_curve(y, s, **theirs)
        close(M.precision().flip(0)[:-1], p[:-1])
        close(M.recall().flip(0)[:-1], r[:-1])


def test_search_beats_every_grid():
    "Nothing that scikit-learn's scores can reach at any score is better than what the search found"
    s, y = torch.randn(N).double().round(decimals=1), torch.randint(2, (N,))
    scorers = {'f_score': sk.f1_score, 'accuracy': sk.accuracy_score, 'balanced_accuracy': sk.balanced_accuracy_score, 'matthews': sk.matthews_corrcoef}
    for name, score in scorers.items():
        t, value = ld.optimal_threshold(s, y, metric=name)
        grid = [score(y, s > o) for o in [-np.inf, *s.unique().tolist()]]
        close(value, max(grid))
        close(value, score(y, s > t))


@pytest.fixture(scope='module')
def keras():
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    return keras.metrics


def test_keras(keras):
    "Precision, Recall, F1Score, FBetaScore in batches; its epsilon costs the seventh digit"
    p, y = torch.rand(N, C), F.one_hot(torch.randint(C, (N,)), C)
    near = dict(rtol=2e-6, atol=2e-6)
    for cut in .3, .5:
        for ours, theirs in (('precision', keras.Precision(cut)), ('recall', keras.Recall(cut))):
            for a, b in zip(y.split(25), p.split(25), strict=True): theirs.update_state(a, b)
            total = sum(ld.confusion_matrix(b, a, rule='threshold', threshold=cut, from_logits=False) for a, b in zip(y.split(25), p.split(25), strict=True))
            close(getattr(total, ours)(), theirs.result().item(), **near)
        for name, average in AVERAGES.items():
            for beta in 1., 2.:
                theirs = keras.FBetaScore(average=average, beta=beta, threshold=cut)
                theirs.update_state(y.float(), p)
                close(ld.f_score(p, y, rule='labels', from_logits=False, threshold=cut, average=name, beta=beta), theirs.result().cpu().numpy(), **near)
    for name, average in AVERAGES.items():
        theirs = keras.F1Score(average=average)
        theirs.update_state(y.float(), p)
        close(ld.f_score(p, y, rule='argmax', average=name), theirs.result().cpu().numpy(), **near)
    theirs = keras.Precision(class_id=2)
    theirs.update_state(y, p)
    close(ld.precision(p, y, rule='labels', from_logits=False)[2], theirs.result().item(), **near)
