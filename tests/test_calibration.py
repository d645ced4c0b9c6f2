"Calibration errors against loops over bins, and temperatures against a fine grid"
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from losslab.calibration import (ReliabilityBins, binary_calibration_error, binary_reliability, calibration_error,
                                 fit_temperature, plot_reliability, reliability)
from losslab.categorical import cross_entropy

T = torch.tensor
NORMS = 'expected', 'maximum', 'rms'


def close(ours, theirs, atol=1e-12): torch.testing.assert_close(torch.as_tensor(ours).double(), torch.as_tensor(theirs, dtype=torch.float64), rtol=0, atol=atol, equal_nan=True)


def by_hand(p, y, w, n_bins):
    "Each case in the one bin with low < p <= high, by comparing fractions; errors of the three norms"
    bins = {}
    for a, b, c in zip(p, y, w):
        k = next(k for k in range(n_bins) if a <= (k + 1)/n_bins or k == n_bins - 1)
        n, said, true = bins.get(k, (0., 0., 0.))
        bins[k] = n + c, said + c*a, true + c*b
    gaps = [(n, abs(true - said)/n) for n, said, true in bins.values() if n]
    total = sum(n for n, _ in gaps)
    if not total: return dict.fromkeys(NORMS, 0.)
    return {'expected': sum(n*g for n, g in gaps)/total, 'maximum': max(g for _, g in gaps), 'rms': math.sqrt(sum(n*g*g for n, g in gaps)/total)}


CASES = st.lists(st.tuples(st.sampled_from([0., .1, .2, .3, .5, .6, .7, .9, 1.]) | st.floats(0, 1), st.sampled_from([0., 1., .25]), st.integers(0, 3)), min_size=1, max_size=20)


@given(CASES, st.sampled_from([1, 2, 3, 10, 15]))
def test_binary_by_hand(cases, n_bins):
    "Edges belong to the bin below, in float64; weights; soft answers; copies"
    p, y, w = (T(o, dtype=torch.float64) for o in zip(*cases))
    want = by_hand(p.tolist(), y.tolist(), w.tolist(), n_bins)
    k = w.long()
    for norm in NORMS:
        o = dict(n_bins=n_bins, from_logits=False)
        close(binary_calibration_error(p, y, norm, sample_weight=w, **o), want[norm])
        close(binary_calibration_error(p.repeat_interleave(k), y.repeat_interleave(k), norm, **o), want[norm])
        close(binary_calibration_error(p[w > 0], y[w > 0], norm, **o), by_hand(p[w > 0].tolist(), y[w > 0].tolist(), [1.]*int((w > 0).sum()), n_bins)[norm])


def test_edges():
    "A forecast that is written like an edge belongs to the bin that ends there, in every dtype"
    for dtype in torch.float32, torch.float64:
        for n in 3, 7, 10, 15, 20, 49:
            p = T([k/n for k in range(n + 1)], dtype=dtype)
            count = binary_reliability(p, torch.ones(n + 1), n_bins=n, from_logits=False).count
            assert count.tolist() == [2.] + [1.]*(n - 1)
    own = binary_reliability(T([0., .2, .25, .7, 1.]), torch.ones(5), edges=T([0., .2, .7, 1.]), from_logits=False)
    assert own.count.tolist() == [2, 2, 1]
    close(own.edges, T([0., .2, .7, 1.]).double())


def test_equal_mass():
    "The same number in each bin, for each row of its own, whatever is masked; ties stay together"
    z, y = torch.randn(120, 3), torch.randint(2, (120, 3))
    for n_bins in 2, 4, 8:
        b = binary_reliability(z, y, n_bins=n_bins, binning='mass', per_class=True)
        assert (b.count == 120/n_bins).all() and b.edges.shape == (3, n_bins + 1)
        m = torch.zeros(120, 3).bool()
        for k, n in enumerate((40, 80, 120)): m[:n, k] = True
        b = binary_reliability(z.masked_fill(~m, math.nan), y, n_bins=n_bins, binning='mass', per_class=True, mask=m)
        assert (b.count == m.sum(0)[:, None]/n_bins).all()
        one = binary_reliability(z[:40, 0], y[:40, 0], n_bins=n_bins, binning='mass')
        for a, c in zip(b, one): close(a[0], c)
        close(b.edges[0], torch.quantile(z[:40, 0].double().sigmoid(), torch.linspace(0, 1, n_bins + 1).double()))
    tied = binary_reliability(T([.2, .2, .2, .2, .7]), torch.ones(5), n_bins=5, binning='mass', from_logits=False)
    assert sorted(tied.count.tolist()) == [0, 0, 0, 1, 4]
    w = torch.rand(120)
    a, b = (binary_reliability(z[:, 0], y[:, 0], binning='mass', sample_weight=o) for o in (None, w))
    close(a.edges, b.edges)
    assert binary_calibration_error(torch.zeros(0), torch.zeros(0), binning='mass') == 0


@pytest.mark.parametrize('shares', [False, True])
def test_classes_by_hand(shares):
    "The answer, and each class, for indices, one-hot rows and shares, on any axis"
    z, y, w = torch.randn(90, 4).double()*2, torch.randint(4, (90,)), torch.rand(90).double()
    q = torch.randn(90, 4).double().softmax(1) if shares else F.one_hot(y, 4)
    p = z.softmax(1)
    best = p.argmax(1)
    top = by_hand(p.amax(1).tolist(), q[range(90), best].tolist(), w.tolist(), 6)
    each = [by_hand(p[:, k].tolist(), q[:, k].tolist(), w.tolist(), 6) for k in range(4)]
    for norm in NORMS:
        for target in (q,) if shares else (q, y, y.int(), q.bool()):
            o = dict(sample_weight=w, n_bins=6)
            close(calibration_error(z, target, norm, **o), top[norm])
            close(calibration_error(z, target, norm, per_class=True, **o), sum(o[norm] for o in each)/4)
            close(calibration_error(p, target, norm, from_logits=False, **o), top[norm])
            moved = target.view(9, 10, 4).movedim(-1, 1) if target.ndim == 2 else target.view(9, 10)
            o['sample_weight'] = w.view(9, 10)
            for per_class, want in (False, top[norm]), (True, sum(o[norm] for o in each)/4):
                close(calibration_error(z.view(9, 10, 4).movedim(-1, 1), moved, norm, per_class=per_class, **o), want)
                last = moved.movedim(1, -1) if target.ndim == 2 else moved
                close(calibration_error(z.view(9, 10, 4), last, norm, per_class=per_class, dim=-1, **o), want)


@pytest.mark.parametrize('per_class', [False, True])
@pytest.mark.parametrize('binning', ['width', 'mass'])
def test_who_counts(per_class, binning):
    "What is masked, ignored or weighs nothing is gone, NaN or not; what counts and is NaN shows"
    o = dict(per_class=per_class, binning=binning, n_bins=5)
    z, y, w = torch.randn(80, 3).double(), torch.randint(3, (80,)), torch.rand(80).double()
    m = torch.rand(80) < .6
    bad = z.clone()
    bad[~m] = math.nan
    for norm in NORMS:
        want = calibration_error(z[m], y[m], norm, **o)
        close(calibration_error(bad, y, norm, mask=m, **o), want)
        close(calibration_error(bad, y, norm, sample_weight=m.double(), **o), want)
        close(calibration_error(bad, y.where(m, -100), norm, **o), want)
        close(calibration_error(z, y, norm, ignore_index=(0, 2), **o), calibration_error(z[y == 1], y[y == 1], norm, **o))
        close(calibration_error(bad, y, norm, mask=m, sample_weight=w, **o), calibration_error(z[m], y[m], norm, sample_weight=w[m], **o))
        assert calibration_error(bad, y, norm, **o).isnan()
        assert calibration_error(z, y, norm, mask=m & False, **o) == 0
    q = (torch.rand(80, 3) < .5).long()
    c = torch.rand(80, 3) < .6
    bad = z.masked_fill(~c, math.nan)
    for k in range(3):
        one = binary_reliability(z[:, k][c[:, k]], q[:, k][c[:, k]], binning=binning)
        for option in dict(mask=c), dict(sample_weight=c.double()), {}:
            both = binary_reliability(bad, q if option else q.where(c, -100), per_class=True, binning=binning, **option)
            for a, b in zip(both[1:], one[1:]): close(a[k], b)
    close(binary_calibration_error(bad, q, mask=c, binning=binning), binary_calibration_error(z[c], q[c], binning=binning))
    assert binary_calibration_error(bad, q, binning=binning).isnan()


def test_batches_add_up():
    "Sums over uneven batches are those of the set, for one row and for several; other bins do not add"
    z, y = torch.randn(70, 3), torch.randint(3, (70,))
    for per_class in False, True:
        whole = reliability(z, y, per_class=per_class)
        parts = sum(reliability(a, b, per_class=per_class) for a, b in zip(z.split((40, 29, 1)), y.split((40, 29, 1))))
        assert isinstance(parts, ReliabilityBins)
        for a, b in zip(whole, parts): close(a, b)
        for norm in NORMS: close(getattr(whole, norm).mean(), calibration_error(z, y, norm, per_class=per_class))
    one = reliability(z, y)
    for other in reliability(z, y, n_bins=3), reliability(z[:20], y[:20], binning='mass'), reliability(z, y, per_class=True):
        with pytest.raises(ValueError, match='other edges'): one + other
    for other in 1, 1., 'a', torch.zeros(1):
        with pytest.raises(TypeError): one + other
    mass = reliability(z, y, binning='mass')
    close((mass + reliability(z, y, edges=mass.edges)).count, 2*mass.count)


def test_numbers():
    "Half precision in, float64 out; extreme logits; no gradient; impossible classes"
    z, y = torch.randn(50, 4), torch.randint(4, (50,))
    for dtype in torch.float16, torch.bfloat16: close(calibration_error(z.to(dtype), y), calibration_error(z.to(dtype).double(), y))
    out = calibration_error(z.clone().requires_grad_(), y)
    assert out.dtype == torch.float64 and not out.requires_grad
    sure = 1e30*F.one_hot(y, 4)
    assert calibration_error(sure, y) == 0 and calibration_error(-sure, y) > 0
    assert binary_calibration_error(T([1e30, -1e30, math.inf]), T([1., 0., 1.])) == 0
    close(calibration_error(torch.cat([z, torch.full((50, 1), -math.inf)], 1), y), calibration_error(z, y))
    slack = T([1 + 5e-4, -5e-4])
    close(binary_calibration_error(slack, T([1., 0.]), from_logits=False), 0.)
    assert calibration_error(z, y, norm='maximum', n_bins=1) == calibration_error(z, y, norm='rms', n_bins=1) == calibration_error(z, y, n_bins=1)


def test_bad_input():
    "One sentence each"
    z, y = torch.randn(10, 3), torch.randint(3, (10,))
    for call, text in ((lambda: calibration_error(z[:, 0], y.float()), 'use the binary_ function'), (lambda: calibration_error(z[:, :1], y*0), 'use the binary_ function'),
                       (lambda: calibration_error(z*3, y, from_logits=False), 'is no probability'), (lambda: binary_calibration_error(z*3, z > 0, from_logits=False), 'is no probability'),
                       (lambda: binary_calibration_error(z, y), 'shape'), (lambda: calibration_error(z, y, norm='l2'), "norm is 'l2'"),
                       (lambda: calibration_error(z, y, binning='x'), "binning is 'x'"), (lambda: calibration_error(z, y, n_bins=0), 'n_bins is 0'),
                       (lambda: calibration_error(z, y, edges=T([.5])), 'at least two'), (lambda: calibration_error(z, y, edges=T([.5, .2, 1.])), 'ascending'),
                       (lambda: calibration_error(z, y, from_logits=2), 'from_logits is 2'), (lambda: calibration_error(z, y, sample_weight=-torch.ones(10)), 'at least 0'),
                       (lambda: calibration_error(z, y, sample_weight=torch.ones(1)), 'sample_weight has shape'), (lambda: calibration_error(z, y + 1), '3 classes'),
                       (lambda: fit_temperature(z, y, low=2., high=1.), 'high is 1'), (lambda: fit_temperature(z, y, low=0.), 'low is 0'), (lambda: fit_temperature(z[:, :1], y*0), 'binary_')):
        y[:3] = torch.arange(3)
        with pytest.raises(ValueError, match=text): call()
    with pytest.raises(TypeError, match='n_bins'): calibration_error(z, y, n_bins=True)


def test_without_reading():
    "Compiled, where values cannot be read: the same numbers, and NaN for what cannot be right"
    z, y = torch.randn(20, 3), torch.randint(3, (20,))
    def run(f, *args, **o):
        torch._dynamo.reset()
        return torch.compile(lambda *a: f(*a, **o), fullgraph=True, backend='eager')(*args)
    close(run(calibration_error, z, y), calibration_error(z, y))
    close(run(calibration_error, z, y, per_class=True, binning='mass'), calibration_error(z, y, per_class=True, binning='mass'))
    assert run(calibration_error, z, y + 5).isnan()
    assert run(calibration_error, z, y, from_logits=False).isnan()
    assert run(binary_calibration_error, z, z > 0, from_logits=False).isnan()


def grid(z, y, **o):
    "The best of many temperatures"
    ts = torch.logspace(-3, 3, 2001).double()
    losses = torch.stack([cross_entropy(z/t, y, **o) for t in ts])
    return ts[losses.argmin()].item()


def is_lowest(z, y, t, **o):
    "Is the slope 0, beside that of a temperature that is one per cent off?"
    def slope(b): return torch.autograd.grad(cross_entropy(b*z, y, reduction='sum', **o), b)[0].abs()
    return slope((1/t).requires_grad_()) < 1e-7*slope((1.01/t).requires_grad_())


@pytest.mark.parametrize('scale', [.01, 1., 300.])
def test_temperature(scale):
    "The minimum of the cross entropy, for every kind of label, with weights and masks; it scales with the logits"
    z, y, w = torch.randn(150, 4).double(), torch.randint(4, (150,)), torch.rand(150).double()
    z = scale*(z + F.one_hot(y, 4))
    t = fit_temperature(z, y)
    assert abs(math.log(t/grid(z, y))) < .01
    for eps in .999, 1.001: assert cross_entropy(z/t, y) < cross_entropy(z/(t*eps), y)
    close(fit_temperature(z, F.one_hot(y, 4)), t, 1e-9*t)
    close(fit_temperature(3*z, y), 3*t, 1e-9*3*t)
    close(fit_temperature(z.T, y, dim=0), t, 1e-9*t)
    close(fit_temperature(z.view(10, 15, 4), y.view(10, 15), dim=-1), t, 1e-9*t)
    close(fit_temperature(z.float(), y), t, 1e-5*t)
    m = torch.rand(150) < .7
    bad = z.masked_fill(~m[:, None], math.nan)
    want = fit_temperature(z[m], y[m])
    for o in dict(mask=m), dict(sample_weight=m.double()): close(fit_temperature(bad, y, **o), want, 1e-9*t)
    close(fit_temperature(bad, y.where(m, -100)), want, 1e-9*t)
    assert is_lowest(z, y, t) and is_lowest(z, y, fit_temperature(z, y, sample_weight=w), sample_weight=w)
    q = (torch.randn(150, 4).double() + z/scale).softmax(1)
    assert is_lowest(z, q, fit_temperature(z, q)) and is_lowest(z, q, fit_temperature(z, q, sample_weight=w), sample_weight=w)
    unnormed = q*(torch.arange(150) % 3)[:, None]
    assert is_lowest(z, unnormed, fit_temperature(z, unnormed))


def test_temperature_at_the_ends():
    "All right, all wrong, no opinion, nothing at all, impossible classes"
    y = torch.randint(4, (30,))
    hot = F.one_hot(y, 4).double()
    for a in .01, 1., 200.: assert fit_temperature(a*hot, y) == 1e-3 and fit_temperature(a*hot, y, low=.5) == .5
    close(fit_temperature(-hot, y), 1e3, 1e-6)
    close(fit_temperature(-hot, y, low=.1, high=20.), 20., 1e-6)
    for z, t in ((hot*0, y), (hot[:0], y[:0]), (hot, y*0 - 100)): assert fit_temperature(z, t) == 1
    z = torch.randn(30, 4).double() + hot
    t = fit_temperature(z, y)
    assert t.shape == () and t.dtype == torch.float64 and not t.requires_grad
    wide = torch.cat([z, torch.full((30, 1), -math.inf)], 1)
    close(fit_temperature(wide, y), t, 1e-9)
    lost = wide.clone()
    lost[0, y[0]] = -math.inf
    close(fit_temperature(lost, y), fit_temperature(wide[1:], y[1:]), 1e-9)
    assert abs(fit_temperature(z, y, low=2*t.item()) - 2*t) < 1e-6 and abs(fit_temperature(z, y, high=t.item()/2) - t/2) < 1e-6
    far = T([[1e4, 0.], [1e4, 0.], [0., 1e4]]).double()
    close(fit_temperature(far, T([0, 1, 1]), high=1e6), 1e4/math.log(2), 1e-3)


def test_temperature_of_two_columns():
    "Yes-or-no logits as (0, z)"
    z, y = torch.randn(100).double()*3, torch.rand(100) < .5
    y = (z + torch.randn(100)*3 > 0).long()
    t = fit_temperature(torch.stack([0*z, z], 1), y)
    ts = torch.logspace(-1, 1, 2001).double()
    best = ts[torch.stack([F.binary_cross_entropy_with_logits(z/o, y.double()) for o in ts]).argmin()]
    assert abs(math.log(t/best)) < .01


def test_the_plot():
    "Dots at what was said and what happened, for the bins that hold something"
    import matplotlib.pyplot as plt
    p, y = T([.1, .15, .85]), T([0., 1., 1.])
    bins = binary_reliability(p, y, n_bins=4, from_logits=False)
    ax = plot_reliability(bins)
    dots = ax.collections[-1]
    close(T(dots.get_offsets().data), T([[.125, .5], [.85, 1.]]), 1e-6)
    assert dots.get_sizes()[0] > dots.get_sizes()[1]
    plt.close('all')


def test_three_norms_are_ordered():
    "Expected <= rms <= maximum"
    for _ in range(20):
        z, y = torch.randn(60, 3), torch.randint(3, (60,))
        e, r, m = (calibration_error(z, y, o) for o in ('expected', 'rms', 'maximum'))
        assert e <= r <= m
    assert all(calibration_error(z, y, a) <= calibration_error(z, y, b) for a, b in itertools.pairwise(('expected', 'rms', 'maximum')))
