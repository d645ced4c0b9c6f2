"ROC AUC and average precision against pairs that are counted one by one in rational numbers"
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from losslab.ranking import (average_precision, one_vs_rest, precision_recall_curve, read_ranking, roc_auc, roc_curve,
                             weight_above)

T = torch.tensor
METRICS = {'auc': roc_auc, 'ap': average_precision}
EXACT = dict(rtol=0, atol=1e-12)
SCORES = st.sampled_from([-math.inf, -1e30, -3., -1., -0., 0., .5, 1., 1e4, math.inf])
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=14)


def pairs_by_hand(s, y, w):
    "Exact share of right pairs, or None"
    pos, neg = ([(a, Fraction(c)) for a, b, c in zip(s, y, w) if b == side] for side in (1, 0))
    total = sum(c for _, c in pos)*sum(c for _, c in neg)
    if not total: return math.nan
    return float(sum(c*d*(Fraction(a > b) + Fraction(a == b, 2)) for a, c in pos for b, d in neg)/total)


def precision_by_hand(s, y, w):
    "Exact sum of precision times step of recall, threshold by threshold"
    total = sum(Fraction(c) for b, c in zip(y, w) if b)
    if not total: return 0.
    area = before = Fraction(0)
    for t in sorted(set(s), reverse=True):
        hits = sum(Fraction(c) for a, b, c in zip(s, y, w) if b and a >= t)
        seen = sum(Fraction(c) for a, c in zip(s, w) if a >= t)
        if seen: area += (hits - before)/total * hits/seen
        before = hits
    return float(area)


BY_HAND = {'auc': pairs_by_hand, 'ap': precision_by_hand}


def close(ours, theirs): torch.testing.assert_close(torch.as_tensor(ours).double(), torch.as_tensor(theirs, dtype=torch.float64), equal_nan=True, **EXACT)


def data(n=200, c=4, decimals=1): return torch.randn(n, c, dtype=torch.double).round(decimals=decimals), torch.randint(c, (n,)), torch.rand(n, dtype=torch.double)


@pytest.mark.parametrize('name', METRICS)
@given(ROWS)
def test_one_question(name, rows):
    "Ties, infinite scores, integer weights with zeros, and one class, against exact arithmetic"
    s, y, w = zip(*rows)
    for dtype in torch.float32, torch.float64:
        z = T(s, dtype=dtype)
        close(METRICS[name](z, T(y), sample_weight=T(w).float()), BY_HAND[name](s, y, w))
        close(METRICS[name](z, T(y).bool()), BY_HAND[name](s, y, [1]*len(s)))
    curve = (roc_curve if name == 'auc' else precision_recall_curve)(z, T(y), sample_weight=T(w).double())
    expected = BY_HAND[name](s, y, w)
    if sum(b*c for b, c in zip(y, w)) and not math.isnan(expected): close(curve.area, expected)


@given(ROWS)
def test_properties(rows):
    "Any increasing map changes nothing; a flip of the labels or of the sign gives 1 - AUC; copies are weights; the order of rows is free"
    s, y, w = (T(o) for o in zip(*rows))
    s, v = s.clamp(-40, 40).double(), w.double()
    base = {k: f(s, y, sample_weight=v) for k, f in METRICS.items()}
    order = torch.randperm(len(s))
    for name, f in METRICS.items():
        for g in torch.sigmoid, lambda z: 3*z - 7, torch.exp, torch.atan:
            if len(g(s).unique()) == len(s.unique()): close(f(g(s), y, sample_weight=v), base[name])
        close(f(s.repeat_interleave(w), y.repeat_interleave(w)), base[name])
        close(f(s[order], y[order], sample_weight=v[order]), base[name])
        close(f(s, y, sample_weight=v*1e-9), base[name])
    close(roc_auc(-s, y, sample_weight=v), 1 - base['auc'])
    close(roc_auc(s, 1 - y, sample_weight=v), 1 - base['auc'])


def test_weights_of_all_sizes():
    "A sum that is subtracted from another would lose the small weights at the top"
    s, y = torch.arange(8., 0, -1), T([1, 0, 1, 0, 1, 0, 1, 0])
    w = 10.**torch.arange(-14., 18, 4).double()
    for name, f in METRICS.items():
        got, want = f(s, y, sample_weight=w), BY_HAND[name](s.tolist(), y.tolist(), w.tolist())
        torch.testing.assert_close(got, T(want, dtype=torch.float64), rtol=1e-12, atol=0)


def test_many():
    "A count that float32 cannot hold"
    w = T([1., 2**25, 1, 2**25, 1]).double()
    s, y = T([3., 2, 2, 1, 0]), T([1, 1, 0, 0, 1])
    close(roc_auc(s, y, sample_weight=w), pairs_by_hand(s.tolist(), y.tolist(), w.tolist()))
    n = 2**18
    s, y = torch.zeros(n), torch.arange(n) % 2 == 0
    s[0] = 1
    close(roc_auc(s, y), .5 + 1/n)


@pytest.mark.parametrize('metric', METRICS.values(), ids=METRICS)
def test_who_counts(metric):
    "Masks, ignored labels and weights of 0 remove elements of every kind of target, whatever their scores"
    z, y, w = data()
    many = (torch.rand(200, 4) < .3).long()
    m = torch.rand(200) < .6
    cells = torch.rand(200, 4) < .6
    spoilt, spoilt_cells = z.clone(), z.masked_fill(~cells, math.nan)
    spoilt[~m] = math.nan
    want = metric(z[m], y[m])
    for o in dict(mask=m), dict(sample_weight=m.double()): close(metric(spoilt, y, **o), want)
    for o in -100, 7, -1: close(metric(spoilt, y.where(m, o), ignore_index=o), want)
    close(metric(z, y, ignore_index=(1, 2), average='micro'), metric(z[(y == 0) | (y == 3)], y[(y == 0) | (y == 3)], average='micro'))
    close(metric(spoilt, y, mask=m, sample_weight=w), metric(z[m], y[m], sample_weight=w[m]))
    each = torch.stack([metric(z[:, k][cells[:, k]], many[:, k][cells[:, k]]) for k in range(4)])
    for o in dict(mask=cells), dict(sample_weight=cells.double()): close(metric(spoilt_cells, many, average='none', **o), each)
    close(metric(spoilt_cells, many.where(cells, -100), average='none'), each)
    close(metric(spoilt_cells, many, mask=cells), each.mean())
    close(metric(spoilt_cells[cells], many[cells]), metric(spoilt_cells, many, mask=cells, average='micro'))
    assert metric(spoilt, y).isnan()
    broken = metric(spoilt_cells.masked_fill(torch.arange(4) != 2, 0.), many, average='none')
    assert broken.isnan().tolist() == [False, False, True, False]
    assert metric(spoilt, y, mask=m, sample_weight=w.where(m, math.nan)).isfinite()


@pytest.mark.parametrize('metric', METRICS.values(), ids=METRICS)
def test_averages(metric):
    "Macro, by the weight of the positives, pooled, apart"
    z, y, w = data()
    p = z.softmax(1)
    each = torch.stack([metric(p[:, k], y == k, sample_weight=w) for k in range(4)])
    support = torch.stack([w[y == k].sum() for k in range(4)])
    o = dict(sample_weight=w, from_logits=False)
    close(metric(p, y, average='none', **o), each)
    close(metric(p, y, **o), each.mean())
    close(metric(p, y, average='weighted', **o), (each*support).sum()/support.sum())
    close(metric(p, y, average='micro', **o), metric(p.flatten(), F.one_hot(y, 4).flatten(), sample_weight=w[:, None].expand(200, 4).flatten()))
    close(metric(p, F.one_hot(y, 4).bool(), sample_weight=w[:, None].expand(200, 4)), each.mean())


@pytest.mark.parametrize('metric', METRICS.values(), ids=METRICS)
def test_axes(metric):
    "The classes on any axis, for indices and for answers, alone or with pixels"
    z, y = torch.randn(5, 3, 6, 4), torch.randint(4, (5, 3, 6))
    rows, many = z.reshape(-1, 4), (torch.rand(5, 3, 6, 4) < .4).long()
    for average in 'macro', 'micro', 'none', 'weighted':
        want, want_many = metric(rows, y.flatten(), average=average), metric(rows, many.reshape(-1, 4), average=average)
        for dim in 0, 1, 2, 3, -1, -3:
            moved = z.movedim(-1, dim)
            close(metric(moved, y, dim=dim, average=average), want)
            close(metric(moved, many.movedim(-1, dim), dim=dim, average=average), want_many)


def test_two_columns():
    "Index targets with two columns rank the difference of the logits, also where the softmax is rounded"
    z, y = torch.randn(300, 2)*3, torch.randint(2, (300,))
    d = z[:, 1] - z[:, 0]
    assert torch.equal(read_ranking(z.double(), y).scores[0], z[:, 1].double() - z[:, 0].double())
    for f in METRICS.values():
        for o in {}, dict(average='micro'), dict(average='none'), dict(average='weighted'): assert f(z, y, **o) == f(d.double(), y) and f(z, y, **o).shape == ()
        close(f(z.double().softmax(1), y, from_logits=False), f(d, y))
        close(f(z.T, y, dim=0), f(d, y))
        close(f(z.flip(1), 1 - y), f(-d, 1 - y))
    assert roc_auc(z, y, multi_class='ovo') == roc_auc(z, y)
    extreme = T([[0., 800.], [0., 900.], [0., 1000.]])
    assert roc_auc(extreme, T([0, 1, 1])) == 1 and roc_auc(extreme.softmax(1), T([0, 1, 1]), from_logits=False) == .5
    close(roc_curve(z, y).area, roc_auc(z, y))


def test_log_odds():
    "One class against all others, in rows of every size, with impossible classes"
    for c in 2, 3, 7:
        z = torch.randn(20, c, dtype=torch.double)*4
        want = torch.stack([z[:, k] - torch.cat([z[:, :k], z[:, k+1:]], 1).logsumexp(1) for k in range(c)], 1)
        torch.testing.assert_close(one_vs_rest(z), want)
        torch.testing.assert_close(one_vs_rest(z.T, 0), want.T)
    inf = math.inf
    assert one_vs_rest(T([[1., -inf, -inf], [-inf, 2., 0.]])).tolist() == [[inf, -inf, -inf], [-inf, 2., -2.]]
    big = one_vs_rest(T([[1e30, 0., -1e30], [1e4, 9e3, 0.]]))
    assert big.isfinite().all() and big[1, 0] == 1000 and big[0, 2] == -2e30


def test_pairs_of_classes():
    "Hand and Till's matrix, entry by entry, with weights; its averages; one-vs-rest as its mean by class sizes"
    z, y, w = data(decimals=0)
    p = z.softmax(1)
    o = dict(multi_class='ovo', from_logits=False, sample_weight=w)
    A = roc_auc(p, y, average='none', **o)
    n = torch.stack([w[y == k].sum() for k in range(4)])
    for a, b in itertools.product(range(4), repeat=2):
        m = (y == a) | (y == b)
        if a == b: assert A[a, b].isnan()
        else: close(A[a, b], roc_auc(p[m, a], y[m] == a, sample_weight=w[m]))
    both = [(A[a, b] + A[b, a])/2 for a, b in itertools.combinations(range(4), 2)]
    share = [n[a] + n[b] for a, b in itertools.combinations(range(4), 2)]
    close(roc_auc(p, y, **o), sum(both)/6)
    close(roc_auc(p, y, average='weighted', **o), sum(s*v for s, v in zip(share, both))/sum(share))
    close((A.nan_to_num(0)*n).sum(1)/(n.sum() - n), roc_auc(p, y, average='none', sample_weight=w, from_logits=False))
    gone = roc_auc(p, y.clamp(max=2), average='none', **o)
    assert gone.isnan().tolist() == [[a == b or 3 in (a, b) for b in range(4)] for a in range(4)]
    assert roc_auc(p, y.clamp(max=2), **o).isnan()
    close(roc_auc(p, y.clamp(max=2), undefined=.5, **o), (gone[:3, :3].nan_to_num(0).sum() + 3)/12)


def test_one_class():
    "Nothing to compare gives `undefined`, nothing raises"
    z = torch.randn(6)
    for y, auc, ap in ((torch.zeros(6), math.nan, 0.), (torch.ones(6), math.nan, 1.)):
        close(roc_auc(z, y), auc)
        close(average_precision(z, y), ap)
        assert roc_auc(z, y, undefined=.25) == .25
    assert average_precision(z, torch.zeros(6), undefined=math.nan).isnan() and average_precision(z, torch.zeros(6), undefined=.3) == .3
    for s, y in ((torch.zeros(0), torch.zeros(0)), (torch.zeros(0, 3), torch.zeros(0).long()), (torch.zeros(0, 3), torch.zeros(0, 3))):
        assert roc_auc(s, y).isnan() and average_precision(s, y) == 0
        assert roc_auc(s, y, undefined=.5, average='none').eq(.5).all()
    assert roc_auc(torch.randn(1, 3), T([1])).isnan() and roc_auc(torch.randn(3), T(1)).isnan()
    scores, many = torch.randn(6, 2), T([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]])
    first = roc_auc(scores[:, 0], many[:, 0])
    close(roc_auc(scores, many, average='none'), T([first, math.nan]))
    assert roc_auc(scores, many).isnan()
    close(roc_auc(scores, many, average='weighted'), first)
    close(average_precision(scores, many), average_precision(scores[:, 0], many[:, 0])/2)
    for f in METRICS.values(): assert f(scores, many*0, average='weighted').isnan()
    for c in roc_curve(torch.zeros(0), torch.zeros(0)), precision_recall_curve(torch.zeros(0), torch.zeros(0)): assert c.threshold.tolist() == [math.inf]


def test_curves():
    "Every distinct score is a point, from the highest to the lowest, and masks hold"
    s, y, w = T([3., 1., 1., 2., 3.]), T([1, 0, 1, 0, 1]), T([1., 2., 3., 0., 1.])
    c = roc_curve(s, y)
    assert [o.tolist() for o in c] == [[0, 0, .5, 1], [0, 2/3, 2/3, 1], [math.inf, 3, 2, 1]]
    c = precision_recall_curve(s, y, sample_weight=w)
    assert [o.tolist() for o in c] == [[1, 1, 5/7], [0, 2/5, 1], [math.inf, 3, 1]]
    assert precision_recall_curve(s, y, mask=w > 0).threshold.tolist() == [math.inf, 3, 1]
    assert roc_curve(s, y.where(w > 0, -100)).fpr.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match='a curve is drawn for one'): roc_curve(torch.randn(5, 3), T([0, 1, 2, 1, 0]))


def test_half_precision():
    "Computed from the numbers as they are, and returned in float64"
    z, y, _ = data()
    for dtype in torch.float16, torch.bfloat16, torch.float32:
        for f in METRICS.values():
            assert f(z[:, 0].to(dtype), y > 1).dtype == torch.float64
            close(f(z[:, 0].to(dtype), y > 1), f(z[:, 0].to(dtype).double(), y > 1))
            close(f(z.to(dtype), y), f(z.to(dtype).double(), y))
    assert not roc_auc(z.requires_grad_(), y).requires_grad


def test_integer_targets_of_every_kind():
    "The spelling of a label never matters"
    z, y, _ = data()
    for f in METRICS.values():
        for dtype in torch.uint8, torch.int32, torch.int16: close(f(z, y.to(dtype)), f(z, y))
        for dtype in torch.bool, torch.uint8, torch.float16, torch.float64: close(f(z[:, 0], (y > 1).to(dtype)), f(z[:, 0], y > 1))


BAD = {'answers 0 or 1': (lambda z, y: (z[:, 0], y/4)), 'a single class': lambda z, y: (z[:, :1], y), 'answers lie between': lambda z, y: (z[:, 0], y - 1.),
       'there are 4 classes': lambda z, y: (z, y + 1), 'target has shape': lambda z, y: (z[:, 0], y[:5])}


@pytest.mark.parametrize('text', BAD)
def test_bad_input(text):
    "A sentence, and the same from every function"
    z, y, _ = data(20)
    y[:4] = torch.arange(4)
    for f in METRICS.values():
        with pytest.raises(ValueError, match=text): f(*BAD[text](z, y))


def test_bad_options():
    "Unknown names, weights below 0, integer scores, weights that would broadcast"
    z, y, w = data(20)
    for f in METRICS.values():
        for o, text in ((dict(average='all'), 'average is'), (dict(sample_weight=-w), 'at least 0'), (dict(sample_weight=w[:3]), 'sample_weight has shape'),
                        (dict(mask=w[:3] > 0), 'mask has shape'), (dict(from_logits=3), 'from_logits is 3'), (dict(dim=2), 'dim is 2')):
            with pytest.raises(ValueError, match=text): f(z, y, **o)
        with pytest.raises(TypeError, match='must be floating point'): f(y, y)
        with pytest.raises(ValueError, match='average is'): f(z[:, 0], y > 1, average='all')
        with pytest.raises(ValueError, match='sample_weight has shape'): f(z, F.one_hot(y, 4), sample_weight=w)
    for o, text in ((dict(multi_class='x'), 'multi_class is'), (dict(multi_class='ovo', average='micro'), "use multi_class='ovr'"), (dict(multi_class='ovo', average='x'), 'average is')):
        with pytest.raises(ValueError, match=text): roc_auc(z, y, **o)
    with pytest.raises(ValueError, match='needs class indices'): roc_auc(z, F.one_hot(y, 4), multi_class='ovo')


def test_without_reading():
    "Where values cannot be read, a wrong label or a soft answer makes the result NaN"
    z, y, _ = data(20)
    def compiled(f): return torch.compile(f, fullgraph=True, backend='eager')
    for f in METRICS.values():
        torch._dynamo.reset()
        close(compiled(f)(z, y), f(z, y))
        assert compiled(f)(z, y + 1).isnan()
        assert compiled(f)(z[:, 0], y/4).isnan()
        close(compiled(f)(z[:, 0], (y > 1).double()), f(z[:, 0], y > 1))


def test_weight_above_in_batches():
    "Any leading axes, also of the weights alone"
    s, w = torch.randint(3, (2, 5)).double(), torch.rand(3, 2, 5).double()
    above, at = weight_above(s, w)
    for i, j, k in itertools.product(range(3), range(2), range(5)):
        close(above[i, j, k], w[i, j][s[j] > s[j, k]].sum())
        close(at[i, j, k], w[i, j][s[j] >= s[j, k]].sum())


def test_the_plots():
    "The area of what is drawn is the metric"
    import matplotlib.pyplot as plt
    from losslab.ranking import plot_precision_recall, plot_roc
    z, y, _ = data()
    a = plot_roc({'a': roc_curve(z[:, 0], y > 1)})
    x, v = (np.asarray(o) for o in a.lines[-1].get_data())
    close(((v[1:] + v[:-1])/2*np.diff(x)).sum(), roc_auc(z[:, 0], y > 1))
    b = plot_precision_recall({'a': precision_recall_curve(z[:, 0], y > 1)})
    x, v = (np.asarray(o) for o in b.lines[-1].get_data())
    assert b.lines[-1].get_drawstyle() == 'steps-pre'  # the height of a step is that of its right end
    close((v[1:]*np.diff(x)).sum(), average_precision(z[:, 0], y > 1))
    close(b.lines[0].get_ydata()[0], (y > 1).double().mean())
    plt.close('all')
