"Counts from tensors and loaders, the four formulas in plain Python, thresholds, and weights that are undone"
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losslab import weighting as w

METHODS = 'inverse', 'inverse_sqrt', 'median_frequency', 'effective_number'
COUNTS = [198, 436, 710, 272]
double = dict(dtype=torch.float64)
def close(a, b, rtol=1e-10): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=rtol, atol=1e-14)


def slow_counts(rows, n, ignored=(), present=False):
    "Counts of nested lists, one sample per row"
    out = [0]*n
    for row in rows:
        kept = [o for o in row if o not in ignored]
        for c in range(n): out[c] += len(kept)*(c in kept) if present else kept.count(c)
    return torch.tensor(out)


@pytest.mark.parametrize('present', [False, True])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_counts(dtype, present):
    "Any integer dtype and shape, whole or in batches, with several ignored labels"
    y = torch.randint(0, 6, (7, 3, 2), generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = y.flatten(1).tolist()
    expected = slow_counts(rows, 6, (2, 5), present)
    opts = dict(ignore_index=(2, 5), present=present)
    for labels in y, y.split(2), (o for o in y.split(3)), [(torch.zeros(1), o) for o in y.split(4)]:
        got = w.class_counts(labels, 6, **opts)
        assert got.dtype == torch.int64 and torch.equal(got, expected)
    assert torch.equal(w.class_counts(y, 9, **opts), F.pad(expected, (0, 3)))
    mask = (y != 2) & (y != 5)
    assert torch.equal(w.class_counts(y, 6, mask=mask, present=present), expected)
    pairs = [{'y': a, 'm': b} for a, b in zip(y.split(2), mask.split(2))]
    assert torch.equal(w.class_counts(pairs, 6, pick=lambda o: (o['y'], o['m']), present=present), expected)
    assert torch.equal(w.class_counts(pairs, 6, pick=lambda o: o['y'], **opts), expected)


@pytest.mark.parametrize('present', [False, True])
def test_counts_without_a_number_of_classes(present):
    "As many classes as the largest label says, whichever batch holds it"
    a, b = torch.tensor([[0, 0, 1]]), torch.tensor([[3, 0, 3]])
    for batches in [a, b], [b, a]:
        assert torch.equal(w.class_counts(batches, present=present), slow_counts([*a.tolist(), *b.tolist()], 4, (), present))
    assert torch.equal(w.class_counts([a, torch.full((1, 3), -100)], present=present), slow_counts(a.tolist(), 2, (), present))


def test_counts_of_nothing():
    "No batch, empty batches, everything ignored or masked, one label"
    zeros = torch.zeros(3, dtype=torch.long)
    none = torch.empty(0, 4, dtype=torch.long)
    for labels in [], none, [none], torch.full((2, 2), -100), [torch.full((2,), -100)]:
        for present in False, True: assert torch.equal(w.class_counts(labels, 3, present=present), zeros)
    assert torch.equal(w.class_counts(torch.tensor([1, 2]), 3, mask=torch.zeros(2, dtype=torch.bool)), zeros)
    for present in False, True: assert torch.equal(w.class_counts(torch.tensor(2), 3, present=present), torch.tensor([0, 0, 1]))
    assert len(w.class_counts([])) == 0


def test_counts_read_lists_arrays_and_pairs():
    "Plain numbers and numpy arrays, whole or in batches"
    expected = torch.tensor([1, 2, 0])
    for labels in [0, 1, 1], (1, 0, 1), np.array([[1, 1, 0]]), [np.array([1]), np.array([0, 1])], [(None, torch.tensor([1, 1, 0]))]:
        assert torch.equal(w.class_counts(labels, 3), expected)


def test_progress(monkeypatch):
    "A function wraps the batches, True shows a bar on stderr, and one tensor needs none"
    seen = []
    def bar(batches):
        for o in batches:
            seen.append(len(o))
            yield o
    y = torch.tensor([0, 1, 1, 2, 2])
    assert torch.equal(w.class_counts(y.split(2), 3, progress=bar), torch.tensor([1, 2, 2])) and seen == [2, 2, 1]
    assert torch.equal(w.class_counts(y.split(2), 3, progress=True), torch.tensor([1, 2, 2]))
    assert torch.equal(w.class_counts(y, 3, progress=bar), torch.tensor([1, 2, 2])) and seen == [2, 2, 1]
    w.answer_counts([torch.ones(2, 2), torch.ones(3, 2)], progress=bar)
    assert seen == [2, 2, 1, 2, 3]


def test_a_bar_is_shown(capsys, monkeypatch):
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    pytest.importorskip('tqdm')
    w.class_counts([torch.tensor([0])]*3, 1, progress=True)
    assert 'counting' in capsys.readouterr().err
    w.class_counts([torch.tensor([0])]*3, 1)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('labels,options,error,text', [
    (torch.tensor([0, 4]), {}, ValueError, 'labels hold 4, but must be 0 to 3'),
    (torch.tensor([0, -1]), {}, ValueError, 'use ignore_index=-1'),
    (torch.tensor([0, -1]), dict(num_classes=None), ValueError, 'labels hold -1, but must be at least 0'),
    ([torch.tensor([0]), torch.tensor([198])], {}, ValueError, 'if these are counts already'),
    (torch.tensor([0., 1.]), {}, TypeError, 'torch.float32; class indices must be integers'),
    (torch.tensor([True]), {}, TypeError, 'torch.bool'),
    ([{'a': 1}], {}, TypeError, "gave dict where a tensor of labels is expected"),
    ([(1, 2, 3)], {}, TypeError, "gave tuple where"),
    ([torch.tensor([1])], dict(mask=torch.tensor([True])), ValueError, 'mask belongs to one tensor'),
    (torch.tensor([1]), dict(mask=torch.tensor([1])), TypeError, 'mask has dtype torch.int64'),
    (torch.tensor([1]), dict(mask=torch.tensor([True, True])), ValueError, r'mask has shape \(2,\)'),
    (torch.tensor([1]), dict(num_classes=0), ValueError, 'num_classes is 0'),
    (torch.tensor([1]), dict(num_classes=True), TypeError, 'num_classes is True'),
    (torch.tensor([1]), dict(num_classes=2.), TypeError, 'num_classes is 2.0'),
])
def test_wrong_labels(labels, options, error, text):
    with pytest.raises(error, match=text): w.class_counts(labels, **{'num_classes': 4, **options})


def slow_weights(counts, method, normalize, beta, present=None, empty=1.):
    "Rational arithmetic, as far as the formula is rational"
    some = [(n, m) for n, m in zip(counts, present or [sum(counts)]*len(counts)) if n]
    freqs = sorted(Fraction(n)/m for n, m in some)
    mid = (freqs[(len(freqs)-1)//2] + freqs[len(freqs)//2])/2 if freqs else 0
    def raw(n, m):
        if method == 'inverse': return Fraction(sum(counts))/(len(some)*n)
        if method == 'inverse_sqrt': return 1/math.sqrt(n)
        if method == 'median_frequency': return mid/(Fraction(n)/m)
        return 1/math.fsum(beta**i for i in range(n))
    each = [raw(n, m) for n, m in some]
    scale = 1
    if normalize == 'samples': scale = sum(n for n, _ in some)/sum(n*o for (n, _), o in zip(some, each))
    if normalize == 'classes': scale = len(each)/sum(each)
    each = iter([float(o*scale) for o in each])
    return [next(each) if n else empty for n in counts]


@pytest.mark.parametrize('normalize', ['samples', 'classes', None])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('counts', [COUNTS, [3, 0, 5, 1, 1], [7], [1, 1], [0, 4, 0, 2]], ids=str)
def test_formulas(counts, method, normalize):
    "Weights are those of the formula"
    for beta in 0., .5, .9, .99, .9999, 1.:
        got = w.class_weights(torch.tensor(counts, **double), method, normalize=normalize, beta=beta, empty=3.)
        close(got, slow_weights(counts, method, normalize, beta, empty=3.))
    present = [2*n + 3*i + 1 for i, n in enumerate(counts)]
    got = w.class_weights(torch.tensor(counts, **double), method, normalize=normalize, present=torch.tensor(present))
    close(got, slow_weights(counts, method, normalize, .999, present))


@pytest.mark.parametrize('method', METHODS)
def test_normalisations(method):
    "The named average is 1, also with empty classes; the default is over the data, and the default method is the inverse"
    n = torch.tensor([5., 0., 20., 1.], **double)
    each = w.class_weights(n, method)
    close((n*each).sum()/n.sum(), 1.)
    close(w.class_weights(n, method, normalize='classes').sum(), 4.)
    assert each[1] == 1 and each.dtype == torch.float64
    assert each.argmax() == 3 and (each[3] >= each[0] >= each[2])
    close(w.class_weights(n), w.class_weights(n, 'inverse', normalize='samples'))


def test_weights_of_nothing_and_dtypes():
    "No sample at all gives the weight of an empty class; weights come in the default dtype, or in float64 for float64"
    assert w.class_weights(torch.zeros(3)).tolist() == [1., 1., 1.]
    assert w.class_weights(torch.zeros(3), empty=0.).tolist() == [0., 0., 0.]
    for o in COUNTS, torch.tensor(COUNTS), np.array(COUNTS), torch.tensor(COUNTS, dtype=torch.float16 if max(COUNTS) < 2**11 else torch.float32):
        got = w.class_weights(o)
        assert got.dtype == torch.float32
        close(got, [1616/(4*n) for n in COUNTS], 1e-6)
    assert not w.class_weights(torch.ones(2, requires_grad=True)).requires_grad
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    close(w.class_weights(labels.split(100), num_classes=4), w.class_weights(COUNTS))


def test_effective_numbers_keep_their_digits():
    "Nearly 1, beta loses nothing: the effective number of few samples is their number"
    n = torch.tensor([1., 10., 1000.], **double)
    close(1/w.class_weights(n, 'effective_number', normalize=None, beta=1 - 1e-13), n, 1e-3)
    close(1/w.class_weights(n, 'effective_number', normalize=None, beta=1 - 2**-40), n - n*(n-1)/2*2**-40, 1e-11)


@pytest.mark.parametrize('counts,options,error,text', [
    (torch.tensor([1, -1]), {}, ValueError, r'counts\[1\] is -1; a count is a finite number'),
    (torch.tensor([math.nan, 1]), {}, ValueError, r'counts\[0\] is nan'),
    (torch.tensor([1, math.inf]), {}, ValueError, r'counts\[1\] is inf'),
    (torch.ones(2, 2), {}, ValueError, 'to count labels, give num_classes'),
    (torch.tensor([True]), {}, ValueError, 'torch.bool'),
    (torch.ones(2), dict(method='balanced'), ValueError, "method is 'balanced'; it must be one of 'inverse'"),
    (torch.ones(2), dict(normalize='mean'), ValueError, "normalize is 'mean'"),
    (torch.ones(2), dict(beta=1.5), ValueError, 'beta is 1.5'),
    (torch.ones(2), dict(empty=-1), ValueError, 'empty is -1'),
    (torch.ones(2), dict(present=torch.ones(3)), ValueError, 'present has 3 classes, counts has 2'),
    (torch.ones(2), dict(present=torch.tensor([1., -2.])), ValueError, r'present\[1\] is -2'),
])
def test_wrong_counts(counts, options, error, text):
    with pytest.raises(error, match=text): w.class_weights(counts, **options)


@pytest.mark.parametrize('shape,dim', [((6, 3), 1), ((3, 6), 0), ((4, 3, 5), 1), ((4, 5, 3), -1), ((2, 3, 4, 2), -3)])
def test_answer_counts(shape, dim):
    "Questions on any axis, soft answers, masks and ignored answers, whole or in batches"
    g = torch.Generator().manual_seed(0)
    y, mask = torch.rand(shape, generator=g), torch.rand(shape, generator=g) < .7
    last, m = y.double().movedim(dim, -1).reshape(-1, 3), mask.movedim(dim, -1).reshape(-1, 3)
    expected = torch.stack([torch.stack([(1 - last[m[:, c], c]).sum() for c in range(3)]), torch.stack([last[m[:, c], c].sum() for c in range(3)])])
    close(w.answer_counts(y, dim=dim, mask=mask), expected)
    close(w.answer_counts(torch.where(mask, y, -1), dim=dim, ignore_index=(-1, 7)), expected)
    if dim:
        pairs = list(zip(y.split(1), mask.split(1)))
        close(w.answer_counts(pairs, dim=dim, pick=lambda o: o), expected)
    close(w.answer_counts(y, dim=None, mask=mask), expected.sum(1))
    hard = y.round().long()
    for o in hard, hard.bool(), hard.numpy(): close(w.answer_counts(o, dim=dim), w.answer_counts(hard.double(), dim=dim))


def test_pos_weights():
    "No over yes, to a power, and `empty` where one of the two never occurs"
    n = torch.tensor([[8, 3, 0, 5, 0], [2, 6, 4, 0, 0]])
    close(w.pos_weights(n), [4., .5, 1., 1., 1.])
    close(w.pos_weights(n, power=.5, empty=7.), [2., math.sqrt(.5), 7., 7., 7.], 1e-6)
    close(w.pos_weights(n, power=0.), torch.ones(5))
    assert w.pos_weights(n.double()).dtype == torch.float32
    close(w.pos_weights([95, 5]), 19.)
    assert w.pos_weights([95, 5]).shape == ()


@pytest.mark.parametrize('call,error,text', [
    (lambda: w.answer_counts(torch.ones(3)), ValueError, r'answers have shape \(3,\); for one question use dim=None'),
    (lambda: w.answer_counts(torch.full((2, 2), 2.)), ValueError, 'answers lie between 0 and 1'),
    (lambda: w.answer_counts([]), ValueError, 'answers hold no batch'),
    (lambda: w.answer_counts([torch.ones(2, 2)], mask=torch.ones(2, 2) > 0), ValueError, 'mask belongs to one tensor'),
    (lambda: w.pos_weights(torch.ones(3)), ValueError, r'counts has shape \(3,\)'),
    (lambda: w.pos_weights(torch.ones(2, 2, 2)), ValueError, r'counts has shape \(2, 2, 2\)'),
    (lambda: w.pos_weights([1, -2]), ValueError, r'counts\[1\] is -2'),
    (lambda: w.pos_weights([1, 2], power=-1), ValueError, 'power is -1'),
    (lambda: w.pos_weights([1, 2], empty=-1), ValueError, 'empty is -1'),
])
def test_wrong_answers(call, error, text):
    with pytest.raises(error, match=text): call()


def test_thresholds():
    "Both directions, numbers and tensors, exact on rationals"
    for weight in Fraction(1, 7), Fraction(1), Fraction(4), Fraction(999):
        for cut in Fraction(1, 2), Fraction(1, 5), Fraction(9, 10):
            t = w.threshold_of_weight(weight, cut)
            assert weight*t/(weight*t + 1 - t) == cut  # what the weighted model says there
            assert w.weight_of_threshold(t, cut) == weight
    assert w.threshold_of_weight(1) == .5 and w.threshold_of_weight(3) == .25
    t = torch.tensor([.1, .5], **double)
    close(w.weight_of_threshold(t), [9., 1.])
    close(w.threshold_of_weight(torch.tensor([9., 1.], **double)), t)


@pytest.mark.parametrize('fn,args,error,text', [
    (w.threshold_of_weight, (0.,), ValueError, 'weight is 0.0; it must be positive'),
    (w.threshold_of_weight, (torch.tensor([1., -1.]),), ValueError, 'it must be positive'),
    (w.threshold_of_weight, (2., 1.), ValueError, 'cut is 1.0; it must be between 0 and 1, without the ends'),
    (w.weight_of_threshold, (0.,), ValueError, 'threshold is 0.0'),
    (w.weight_of_threshold, (.5, 0.), ValueError, 'cut is 0.0'),
    (w.weight_of_threshold, (math.nan,), ValueError, 'threshold is nan'),
    (w.weight_of_threshold, ('a',), TypeError, "threshold is 'a'; it must be a number"),
    (w.weight_of_threshold, (True,), TypeError, 'threshold is True'),
])
def test_wrong_thresholds(fn, args, error, text):
    with pytest.raises(error, match=text): fn(*args)


@pytest.mark.parametrize('shape,dim', [((5, 4), 1), ((4, 5), 0), ((2, 3, 4), -1), ((2, 4, 3), 1), ((4,), 1)])
def test_undo(shape, dim):
    "Weighted probabilities go back to the plain ones, on any axis, in half precision too; impossible classes stay so"
    axis = 0 if len(shape) == 1 else dim
    p, weight = torch.rand(shape, **double).softmax(axis), torch.tensor([.1, 1., 7., 2.], **double)
    along = weight.view([4 if i == axis % len(shape) else 1 for i in range(len(shape))])
    z = (along*p).log() + 3
    close(w.undo_weights(z, weight, dim=dim).softmax(axis), p)
    close(w.undo_weights(z, weight, dim=dim), p.log() + 3)
    half = w.undo_weights(z.half(), weight.float(), dim=dim)
    assert half.dtype == torch.float32 and half.shape == z.shape
    z.select(axis, 1).fill_(-math.inf)
    assert torch.isneginf(w.undo_weights(z, weight, dim=dim).select(axis, 1)).all()


def test_undo_pos_weight():
    "For one weight, one per question, and one per element"
    p = torch.rand(5, 3, **double)
    for weight in torch.tensor(4., **double), torch.tensor([1., .2, 9.], **double), torch.rand(5, 1, **double) + .1:
        q = weight*p/(weight*p + 1 - p)
        close(w.undo_pos_weight(q.logit(), weight).sigmoid(), p)
    assert w.undo_pos_weight(p.bfloat16(), weight.float()).dtype == torch.float32
    close(w.undo_pos_weight(torch.tensor(1., **double), torch.tensor(math.e, **double)), 0.)


@pytest.mark.parametrize('fn', [w.undo_weights, w.undo_pos_weight])
def test_undo_transforms(fn):
    "One graph, vmap, and derivatives in logits and weights"
    z, weight = torch.randn(3, 4, **double), torch.rand(4, **double) + .5
    torch._dynamo.reset()
    close(torch.compile(fn, fullgraph=True, backend='eager')(z, weight), fn(z, weight))
    close(torch.func.vmap(fn, (0, None))(z, weight), fn(z, weight))
    torch.autograd.gradcheck(fn, (z.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize('call,error,text', [
    (lambda z: w.undo_weights(z, torch.tensor([1., 0.])), ValueError, r'weight\[1\] is 0; only a positive weight can be undone'),
    (lambda z: w.undo_weights(z, torch.tensor([1., math.inf])), ValueError, r'weight\[1\] is inf'),
    (lambda z: w.undo_weights(z, torch.tensor([math.nan, 1.])), ValueError, r'weight\[0\] is nan'),
    (lambda z: w.undo_weights(z, torch.ones(3)), ValueError, 'there are 2 classes'),
    (lambda z: w.undo_weights(z, [1., 2.]), TypeError, 'weight is list'),
    (lambda z: w.undo_weights(z.long(), torch.ones(2)), TypeError, 'logits has dtype torch.int64'),
    (lambda z: w.undo_pos_weight(z, torch.ones(3)), ValueError, r'pos_weight has shape \(3,\)'),
    (lambda z: w.undo_pos_weight(z, torch.tensor(-1.)), ValueError, 'pos_weight.* is -1; only a positive'),
    (lambda z: w.undo_pos_weight(z.long(), torch.ones(2)), TypeError, 'logits has dtype torch.int64'),
])
def test_undo_refuses(call, error, text):
    with pytest.raises(error, match=text): call(torch.zeros(3, 2))
