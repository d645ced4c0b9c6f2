"SciPy and Keras compute the same entropies and divergences"
import math
import os

import pytest
import torch
from oracle import TIGHT

from losslab.information import cross_entropy_between, entropy, js_divergence, kl_div, kl_divergence


def close(a, b, **tolerance): torch.testing.assert_close(a, b, **(tolerance or TIGHT))


def pair(*shape):
    "Two distributions, with a class that both rule out and one that only the first does"
    p, q = torch.rand(2, *shape, dtype=torch.float64)
    p[..., 0] = q[..., 0] = p[..., 1] = 0
    return p/p.sum(-1, keepdim=True), q/q.sum(-1, keepdim=True)


@pytest.mark.parametrize('shape', [(5,), (7, 5), (2, 3, 5)])
def test_scipy(shape):
    "`scipy.stats.entropy` is the entropy and the divergence, `scipy.special` its entries, `jensenshannon` the root"
    stats, special, distance = (pytest.importorskip(f'scipy.{o}') for o in ('stats', 'special', 'spatial.distance'))
    p, q = pair(*shape)
    a, b = p.numpy(), q.numpy()
    for base in None, 2:
        unit = math.log(base or math.e)
        close(entropy(probs=p, dim=-1)/unit, torch.as_tensor(stats.entropy(a, axis=-1, base=base)))
        close(kl_divergence(p_probs=p, q_probs=q, dim=-1)/unit, torch.as_tensor(stats.entropy(a, b, axis=-1, base=base)))
        close((js_divergence(p_probs=p, q_probs=q, dim=-1)/unit).sqrt(), torch.as_tensor(distance.jensenshannon(a, b, axis=-1, base=base)))
    close(kl_div(q.log(), p, reduction='none'), torch.as_tensor(special.rel_entr(a, b)))
    close(kl_divergence(p_probs=p, q_probs=q, dim=-1), torch.as_tensor(special.kl_div(a, b).sum(-1)))
    assert math.isinf(kl_div(p.log(), q, reduction='sum')) and special.rel_entr(b, a).max() == math.inf


@pytest.mark.xdist_group('keras')
@pytest.mark.parametrize('shape', [(6, 4), (2, 3, 4)])
def test_keras(shape):
    "`KLDivergence` takes (truth, model) as probabilities on the last axis, and means over the distributions"
    os.environ['KERAS_BACKEND'] = 'torch'
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    p, q = torch.rand(2, *shape, dtype=torch.float64).add(.1)
    p, q = p/p.sum(-1, keepdim=True), q/q.sum(-1, keepdim=True)
    w = torch.rand(shape[:-1], dtype=torch.float64)
    rounded = dict(rtol=3e-7, atol=1e-9)  # Keras divides in float32
    for theirs, ours in (None, 'none'), ('sum', 'sum'), ('sum_over_batch_size', 'mean'), ('mean_with_sample_weight', 'weighted_mean'):
        loss = keras.losses.KLDivergence(reduction=theirs, dtype='float64')
        close(kl_div(q.log(), p, dim=-1, reduction=ours), loss(p, q).double(), **rounded)
        ours = 'element_mean' if ours == 'mean' else ours
        close(kl_div(q.log(), p, dim=-1, reduction=ours, sample_weight=w), loss(p, q, sample_weight=w.clone()).double(), **rounded)
    close(cross_entropy_between(p_probs=p, q_probs=q, dim=-1), keras.losses.categorical_crossentropy(p, q).double(), **rounded)
