"scikit-learn's hinge_loss and brier_score_loss give the same numbers"
import pytest
import torch

from losslab import margin as m

metrics = pytest.importorskip('sklearn.metrics', reason='scikit-learn is in the dev extra')
WEIGHTED = pytest.mark.parametrize('weighted', [False, True])
def close(a, b): torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def data(weighted, c=None):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, *([] if c is None else [c]), dtype=torch.float64, generator=g)
    s = torch.rand(30, dtype=torch.float64, generator=g) if weighted else None
    return z, torch.arange(30) % (c or 2), s, None if s is None else s.numpy()


@WEIGHTED
def test_hinge(weighted):
    "Two classes with signs"
    z, y, s, sw = data(weighted)
    close(m.hinge_loss(z, 2*y - 1, sample_weight=s), metrics.hinge_loss(y.numpy(), z.numpy(), sample_weight=sw))


@WEIGHTED
def test_hinge_with_one_rival(weighted):
    "Its hinge for several classes looks at the best rival: with two classes, twice PyTorch's mean over them"
    z, y, s, sw = data(weighted, 2)
    close(2*m.multi_margin_loss(z, y, sample_weight=s), metrics.hinge_loss(y.numpy(), (z[:, 1] - z[:, 0]).numpy(), sample_weight=sw))


@WEIGHTED
def test_binary_brier(weighted):
    "The squared difference of one probability"
    z, y, s, sw = data(weighted)
    close(m.binary_brier_loss(z, y, sample_weight=s), metrics.brier_score_loss(y.numpy(), z.sigmoid().numpy(), sample_weight=sw))


@WEIGHTED
@pytest.mark.parametrize('c', [2, 5])
def test_brier(c, weighted):
    "The sum over the classes"
    z, y, s, sw = data(weighted, c)
    try: expected = metrics.brier_score_loss(y.numpy(), z.softmax(1).numpy(), sample_weight=sw, labels=range(c), scale_by_half=False)
    except TypeError: pytest.skip('this scikit-learn scores two classes only')
    close(m.brier_loss(z, y, sample_weight=s), expected)
