"Large logits, impossible classes, nan under a mask, nothing at all: finite, exact, and zero where nothing counts"
import math
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from oracle import grid, make_target, oracle

import losslab as ll

INF, NAN = math.inf, math.nan
EXTREMES = [(torch.float32, 1e4), (torch.float32, 1e30), (torch.bfloat16, 1e4), (torch.float16, 6e4), (torch.float64, 1e300)]
KINDS = 'index', 'onehot', 'shares'
LAYOUTS = [((6, 4), 1), ((2, 3, 4), -1), ((2, 4, 2, 2), 1)]
W = torch.tensor([.5, 2., .25, 1.5])


def run(logits, target, **options):
    "Value and gradient, on a leaf of its own"
    logits = logits.detach().clone().requires_grad_()
    out = ll.cross_entropy(logits, target, **options)
    grad, = torch.autograd.grad(out.sum(), logits)
    return out.detach(), grad


def elements(shape, dim): return torch.Size(n for i, n in enumerate(shape) if i != dim % len(shape))
def row_mask(mask, logits, dim): return mask.unsqueeze(dim).expand_as(logits)


@pytest.mark.parametrize('backend', ['reference', 'fused'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype,size', EXTREMES, ids=str)
def test_large_logits(dtype, size, kind, backend):
    "Finite logits of any size: finite loss, finite gradient that sums to 0 over the classes, and the loss is the margin"
    logits = torch.tensor([[1., -1, 0, .5], [-1, 1, 1, -1], [0, 0, 0, 1], [1, 1, 1, 1], [-1, -1, -1, -1]], dtype=torch.float64).mul(size).to(dtype)
    index = torch.tensor([1, 1, 0, 2, 3])
    target = index if kind == 'index' else F.one_hot(index, 4).to(torch.float64 if kind == 'shares' else torch.long)
    with ll.backend(backend):
        for o in grid(reduction=('none', 'mean'), label_smoothing=(0., .1), weight=(None, W), softcap=(None, 30.), temperature=(1., torch.tensor(2.))):
            value, grad = run(logits, target, **o)
            assert value.isfinite().all() and grad.isfinite().all(), o
            if not o['softcap']: torch.testing.assert_close(grad.double().sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=2e-2 if grad.dtype.itemsize == 2 else 1e-6)
        value, _ = run(logits, target, reduction='none')
        z = logits.to(value.dtype)
        torch.testing.assert_close(value, z.amax(1) - z.gather(1, index[:, None])[:, 0] + torch.tensor([1, 2, 1, 4, 4]).log())


def test_accuracy_against_decimals():
    "float64 losses agree with 50-digit arithmetic, float32 losses with float64, on confident and on wrong predictions"
    rows = [[0., 0, 0], [30, 0, -30], [0, 30, 29.9], [-40, -41, -42], [1e-9, 0, -1e-9], [500, -500, 499], [1000.5, 1000.25, 1000]]
    with localcontext() as context:
        context.prec = 50
        exact = [[float(sum((Decimal(o) - Decimal(z[k])).exp() for o in z).ln()) for k in range(3)] for z in rows]
    for k in range(3):
        target = torch.full((len(rows),), k)
        expected = torch.tensor([o[k] for o in exact], dtype=torch.float64)
        z = torch.tensor(rows, dtype=torch.float64)
        for backend in 'reference', 'fused':
            with ll.backend(backend):
                torch.testing.assert_close(ll.cross_entropy(z, target, reduction='none'), expected, rtol=1e-13, atol=1e-15)
                small = z[:5].float()
                torch.testing.assert_close(ll.cross_entropy(small, target[:5], reduction='none').double(),
                                           ll.cross_entropy(small.double(), target[:5], reduction='none'), rtol=1e-6, atol=1.2e-7)


def test_float32_stays_close_to_float64_on_many_classes():
    "A sum over many classes and rows loses few digits"
    z, target = torch.randn(64, 30_000)*10, torch.randint(30_000, (64,))
    value, grad = run(z, target)
    expected, exact = run(z.double(), target)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('kind,backend', [('index', 'reference'), ('index', 'fused'), ('onehot', 'auto'), ('shares', 'fused')])
def test_impossible_classes(kind, backend):
    "A logit of -inf is a class that is not there: the loss is that of the others, its gradient is 0"
    z = torch.randn(6, 4, dtype=torch.float64)
    target = make_target(kind, (6, 3), 1)
    wide = target if kind == 'index' else F.pad(target, (0, 1))
    out = torch.cat([z[:, :3], torch.full((6, 1), -INF)], 1)
    s, m = torch.rand(6, dtype=torch.float64), torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    with ll.backend(backend):
        for o in grid(reduction=('none', 'weighted_mean'), label_smoothing=(0., .2, 1.), weight=(None, W.double()), rows=({}, dict(sample_weight=s, mask=m)),
                      temperature=(1., .5), softcap=(None, 5.), z_loss=(0., .1)):
            o |= o.pop('rows')
            narrow = o | dict(weight=o['weight'][:3] if o['weight'] is not None else None)
            value, grad = run(out, wide, **o)
            expected, kept = run(z[:, :3], target, **narrow)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(grad, F.pad(kept, (0, 1)), rtol=1e-12, atol=1e-14)


def test_impossible_classes_differ_between_rows():
    "Smoothing spreads over the classes that are possible in this row, against the slow oracle"
    z = torch.randn(5, 4, dtype=torch.float64)
    z[0, 1] = z[0, 3] = z[2, 0] = z[4, 2] = -INF
    index = torch.tensor([0, 1, 3, 2, 0])
    hot = F.one_hot(index, 4)
    for o in grid(label_smoothing=(0., .3), weight=(None, W.double()), reduction=('mean', 'weighted_mean')):
        for target in index, hot, hot.double():
            value, grad = run(z, target, **o)
            expected = oracle(z, target, **o)
            torch.testing.assert_close((value, grad), expected, rtol=1e-12, atol=1e-14)
            lp = z.log_softmax(1).requires_grad_()
            got = ll.nll_loss(lp, target, **o)
            torch.testing.assert_close((got.detach(), torch.autograd.grad(got, lp)[0]), oracle(lp, target, log_probs=True, **o), rtol=1e-12, atol=1e-14)


def test_weights_learn_beside_impossible_classes():
    "Class weights, sample weights and shares get the gradients they would get without the impossible class"
    z, shares, index = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64).softmax(1), torch.tensor([0, 2, 1, 0])
    wide, w, s = F.pad(z, (0, 1), value=-INF), torch.rand(3, dtype=torch.float64) + .5, torch.rand(4, dtype=torch.float64) + .5
    loss = lambda z, q, w, s: ll.cross_entropy(z, q, weight=w, sample_weight=s, reduction='weighted_mean', label_smoothing=.1)
    for target in shares, index:
        leaves = [o.clone().requires_grad_() for o in ((w, s, target) if target is shares else (w, s))]
        pad = lambda t: F.pad(t, (0, 1))
        q = lambda f: f(leaves[2]) if target is shares else index
        expected = torch.autograd.grad(loss(z, q(lambda t: t), *leaves[:2]), leaves)
        got = torch.autograd.grad(loss(wide, q(pad), F.pad(leaves[0], (0, 1), value=1.), leaves[1]), leaves)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_the_impossible_happened():
    "A label on an impossible class costs inf, unless its weight is 0"
    z, target = torch.tensor([[0., -INF], [0., 1.]]), torch.tensor([1, 0])
    no = torch.tensor([1., 0.])
    for labels in target, F.one_hot(target, 2), F.one_hot(target, 2).float():
        for o in {}, dict(weight=1 + no), dict(sample_weight=1 + no), dict(label_smoothing=.1):
            value, grad = run(z, labels, reduction='none', **o)
            assert value[0] == INF and value[1].isfinite() and not grad.isnan().any(), o
        value, grad = run(z, labels, weight=no, reduction='none')
        assert value.isfinite().all() and value[0] == 0 and not grad[0].isnan().any()
        value, grad = run(z, labels, sample_weight=torch.tensor([0., 1.]))
        torch.testing.assert_close(value, ll.cross_entropy(z[1:], target[1:]))
        assert not grad[0].any() and grad.isfinite().all()


@pytest.mark.parametrize('fill', [NAN, INF, -INF])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape,dim', LAYOUTS, ids=str)
def test_what_is_masked_may_be_anything(shape, dim, kind, fill):
    "nan and inf under a mask, an ignored label or a sample weight of 0: value and gradient as if the rows were removed"
    torch.manual_seed(1)
    size = elements(shape, dim)
    z, target, mask = torch.randn(shape, dtype=torch.float64), make_target(kind, shape, dim), torch.rand(size) < .6
    s = torch.rand(size, dtype=torch.float64) + .1
    bad = z.masked_fill(~row_mask(mask, z, dim), fill)
    last, label = (lambda t: t.movedim(dim, -1)[mask]), (lambda t: t[mask] if kind == 'index' else t.movedim(dim, -1)[mask])
    for o in grid(label_smoothing=(0., .1), weight=(None, W.double()), reduction=('mean', 'weighted_mean', 'element_mean'), z_loss=(0., .1), softcap=(None, 3.)):
        expected, kept = run(last(z), label(target), sample_weight=s[mask], **o)
        ways = [dict(mask=mask, sample_weight=s)]
        if o['reduction'] != 'element_mean': ways.append(dict(sample_weight=s*mask))
        if kind == 'index': ways.append(dict(ignore_index=(-7,), sample_weight=s))
        for way in ways:
            labels = target.masked_fill(~mask, -7) if 'ignore_index' in way else target
            value, grad = run(bad, labels, dim=dim, **way, **o)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(last(grad), kept, rtol=1e-12, atol=1e-14)
            assert not grad[~row_mask(mask, z, dim)].any()
        each = ll.cross_entropy(bad, target, dim=dim, mask=mask, **(o | dict(reduction='none')))
        assert not each[~mask].any()
        lp, options = bad.log_softmax(dim), {k: v for k, v in o.items() if k not in ('z_loss', 'softcap')}
        torch.testing.assert_close(ll.nll_loss(lp, target, dim=dim, mask=mask, **options), ll.cross_entropy(bad, target, dim=dim, mask=mask, **options))


def test_nan_in_labels_and_weights_under_a_mask():
    "Soft labels and sample weights that are nan, and labels that are out of range, count for nothing under the mask"
    z, mask = torch.randn(4, 3), torch.tensor([True, False, True, False])
    shares, s, index = torch.rand(4, 3).softmax(1), torch.tensor([1., NAN, 2., INF]), torch.tensor([0, 99, 2, -5])
    shares[1], shares[3] = NAN, -1.
    value, grad = run(z, shares, mask=mask, sample_weight=s)
    expected, kept = run(z[mask], shares[mask], sample_weight=s[mask])
    torch.testing.assert_close((value, grad[mask]), (expected, kept))
    assert not grad[~mask].any()
    torch.testing.assert_close(run(z, index, mask=mask)[0], run(z[mask], index[mask])[0])
    q = shares.clone().requires_grad_()
    g, = torch.autograd.grad(ll.cross_entropy(z, q, mask=mask), q)
    assert not g[~mask].any() and g.isfinite().all()


def test_nan_under_a_mask_and_learned_class_weights():
    "A masked nan among the sample weights does not reach the gradient of the class weights through the denominator"
    z, mask, s = torch.randn(3, 3), torch.tensor([True, False, True]), torch.tensor([1., NAN, 2.])
    w, shares = torch.ones(3, requires_grad=True), torch.tensor([[1., 0, 0], [NAN, 1, NAN], [0, .5, .5]])
    for target in torch.tensor([0, 1, 2]), shares:
        for reduction in 'mean', 'weighted_mean':
            g, = torch.autograd.grad(ll.cross_entropy(z, target, mask=mask, sample_weight=s, weight=w, reduction=reduction), w)
            assert g.isfinite().all()


def test_a_row_without_shares_is_not_an_ignored_row():
    "Shares that are all 0 cost nothing but count; a row is ignored only if it has a share, and all of it on ignored classes"
    z, q = torch.randn(3, 3, dtype=torch.float64), torch.tensor([[0, 0, 0], [0, 1, 0], [.5, .5, 0]], dtype=torch.float64)
    each = ll.cross_entropy(z, q, ignore_index=1, reduction='none')
    assert each[0] == 0 and each[1] == 0 and each[2] > 0
    assert ll.cross_entropy(z, q, ignore_index=1, reduction='parts').count == 2
    assert ll.cross_entropy(z, q, ignore_index=(0, 1), reduction='parts').count == 1


@pytest.mark.parametrize('reduction', ['mean', 'weighted_mean', 'element_mean', 'batchmean', 'sum', 'none'])
@pytest.mark.parametrize('kind', KINDS)
def test_nothing_counts(kind, reduction):
    "All ignored, all masked, all of weight 0, or no element at all: 0 with a gradient of 0"
    z = torch.randn(3, 4, dtype=torch.float64)
    z[0], z[1] = NAN, INF
    target = make_target(kind, (3, 4), 1)
    ways = [dict(mask=torch.zeros(3, dtype=torch.bool)), dict(sample_weight=torch.zeros(3))]
    if kind == 'index': ways += [dict(ignore_index=(0, 1, 2, 3)), dict(ignore_index=range(4), mask=torch.ones(3, dtype=torch.bool))]
    for way, o in [(w, o) for w in ways for o in grid(weight=(None, W), label_smoothing=(0., .1), z_loss=(0., .1))]:
        value, grad = run(z, target, reduction=reduction, **way, **o)
        assert not value.any() and not grad.any(), (way, o)
        parts = ll.cross_entropy(z, target, reduction='parts', **way, **o)
        assert parts.total == 0 and parts.count == 0 and parts.mean == 0
    empty, none = z[:0], target[:0]
    value, grad = run(empty, none, reduction=reduction, weight=W)
    assert not value.any() and grad.shape == (0, 4) and value.shape == ((0,) if reduction == 'none' else ())


def test_class_weights_of_0_alone():
    "Where every class that occurs has weight 0 the mean is 0, as where nothing counts"
    value, grad = run(torch.randn(3, 2), torch.zeros(3, dtype=torch.long), weight=torch.tensor([0., 1.]))
    assert value == 0 and not grad.any()


@pytest.mark.parametrize('kind', KINDS)
def test_one_class(kind):
    "With one class there is nothing to learn"
    for shape in (3, 1), (1,), (2, 1, 3):
        value, grad = run(torch.randn(shape), make_target(kind, shape, 1), label_smoothing=.1, reduction='none')
        assert not value.any() and not grad.any()


def test_half_precision_labels():
    "Soft labels in bf16 and fp16 are read exactly; the logits keep their own precision"
    z = torch.randn(5, 4)
    for dtype in torch.bfloat16, torch.float16:
        shares = torch.rand(5, 4).softmax(1).to(dtype)
        for logits in z, z.to(dtype):
            value = ll.cross_entropy(logits, shares)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, ll.cross_entropy(logits.float(), shares.float()), rtol=0, atol=0)
    assert ll.cross_entropy(z.double(), shares).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_have_a_float32_loss(dtype):
    "The loss of the same numbers in float32, also for a short call, whose labels are checked as ever"
    z, target = torch.randn(6, 4).to(dtype).requires_grad_(), torch.tensor([0, 1, 2, 3, -100, 0])
    for labels in target[:4], target:
        for reduction in 'mean', 'sum', 'none', 'batchmean':
            loss, = ll.cross_entropy(z[:len(labels)], labels, reduction=reduction).reshape(1, -1)
            expected, = ll.cross_entropy(z[:len(labels)].float(), labels, reduction=reduction).reshape(1, -1)
            assert loss.dtype == torch.float32 and torch.equal(loss, expected)
            found, known = (torch.autograd.grad(o.sum(), z, retain_graph=True)[0] for o in (loss, expected))
            assert found.dtype == dtype and torch.equal(found, known)
    with pytest.raises(ValueError, match='4 classes'): ll.cross_entropy(z, target + 1, ignore_index=-99)


def test_float32_sums_in_many_elements():
    "A mean over a million elements is right to float32's precision"
    z, target = torch.randn(1_000_000, 2), torch.randint(2, (1_000_000,))
    torch.testing.assert_close(ll.cross_entropy(z, target).double(), ll.cross_entropy(z.double(), target), rtol=1e-6, atol=0)
    torch.testing.assert_close(ll.cross_entropy(z.half(), target, reduction='batchmean').double(), ll.cross_entropy(z.half().double(), target), rtol=1e-6, atol=0)


def test_infinite_softcap_is_no_softcap():
    "Either refused or the identity, never nan"
    z, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    try: out = ll.cross_entropy(z, target, softcap=INF)
    except ValueError: return
    torch.testing.assert_close(out, ll.cross_entropy(z, target))


def test_smoothing_of_1():
    "All of the label is spread: the label's own class may be impossible"
    z = torch.tensor([[0., 1., -INF]])
    torch.testing.assert_close(ll.cross_entropy(z, torch.tensor([2]), label_smoothing=1.), -z[:, :2].log_softmax(1).mean())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_losses_do_not_stop_at_extreme_temperatures(dtype):
    "A division by a small temperature keeps the loss finite for logits of ordinary size"
    value, grad = run(torch.tensor([[100., -100., 3.]], dtype=dtype), torch.tensor([1]), temperature=1e-4)
    assert value.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize('target', [[-100, -100, -100], [0, -100, 2]], ids=['all', 'one'])
def test_ignored_labels_of_the_plain_float32_call(target):
    "Nothing is set and nothing counts, or the row that does not count is nan: the same rules as with options"
    z = torch.randn(3, 4)
    z[1] = NAN
    z.requires_grad_()
    loss = ll.cross_entropy(z, torch.tensor(target))
    grad, = torch.autograd.grad(loss, z)
    kept = [i for i, t in enumerate(target) if t >= 0]
    expected = F.cross_entropy(z[kept], torch.tensor(target)[kept]) if kept else torch.tensor(0.)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert grad.isfinite().all() and (grad[1] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_mean_that_is_larger_as_a_sum(dtype):
    "The mean of many numbers, and its gradient: one number, seen as many where nothing is rounded"
    loss, seen = torch.full((70_000,), 2., dtype=dtype, requires_grad=True), []
    values = loss*1
    values.register_hook(lambda g: seen.append((g.stride(), g.dtype)))
    mean = ll.reduce_loss(values)
    assert mean.dtype == dtype and mean == 2
    mean.backward()
    assert seen == [((0,) if dtype.itemsize > 2 else (1,), dtype)]
    torch.testing.assert_close(loss.grad, torch.full_like(loss, 1/70_000))
