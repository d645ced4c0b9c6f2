"Smoothed labels against PyTorch and Keras, both conventions, and distillation against the formula with `F.kl_div`"
import math
import os

import pytest
import torch
import torch.nn.functional as F
from oracle import TIGHT, assert_same, make_logits, make_target, value_and_grad
from torch.func import grad, jvp, vmap

from losslab.categorical import cross_entropy
from losslab.smoothing import DistillationLoss, convert_smoothing, distillation_loss, smooth_labels, smoothing_floor
from losslab.targets import one_hot

EPS = 0., .1, .5, 1.
W = torch.tensor([.5, 2., 1., 1.5], dtype=torch.float64)
LAYOUTS = [((4,), 1), ((5, 4), 1), ((2, 4, 3), 1), ((2, 3, 4), -1), ((4, 5), 0)]


def close(a, b): torch.testing.assert_close(a, b, **TIGHT)


def by_hand(target, n, eps, convention):
    "One row in plain floats"
    rest = eps/n if convention == 'all' else eps/(n-1)
    label = 1 - eps + rest if convention == 'all' else 1 - eps
    return [label if c == target else rest for c in range(n)]


@pytest.mark.parametrize('convention', ['all', 'others'])
@pytest.mark.parametrize('eps', EPS)
def test_shares_by_hand(eps, convention):
    "Every class of every row, for every integer dtype, and the same from rows"
    target = torch.tensor([0, 2, 3, 1, 2])
    expected = torch.tensor([by_hand(t, 4, eps, convention) for t in target.tolist()], dtype=torch.float64)
    options = dict(label_smoothing=eps, convention=convention)
    for dtype in torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64:
        close(smooth_labels(target.to(dtype), 4, dtype=torch.float64, **options), expected)
    for dtype in torch.bool, torch.float32, torch.float64:
        close(smooth_labels(one_hot(target, 4, dtype=dtype), 4, dtype=torch.float64, **options), expected)
    close(expected.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize('weight', [None, W])
@pytest.mark.parametrize('eps', EPS)
@pytest.mark.parametrize('shape,dim', LAYOUTS)
def test_pytorch_label_smoothing(shape, dim, eps, weight):
    "Value and gradient of `F.cross_entropy(label_smoothing=)`, in its three reductions; classes anywhere"
    logits, target = make_logits(shape), make_target('index', shape, dim)
    axis = 0 if len(shape) == 1 else dim % len(shape)
    shares = smooth_labels(target, 4, label_smoothing=eps, weight=weight, dim=dim, dtype=torch.float64)
    assert shares.shape == logits.shape
    count = target.numel() if weight is None else weight[target].sum()
    theirs = lambda z, r: F.cross_entropy(z if z.ndim == 1 else z.movedim(axis, 1), target, weight=weight, label_smoothing=eps, reduction=r)
    for reduction in 'none', 'sum', 'mean':
        options = dict(reduction=reduction) if reduction != 'mean' else dict(normalizer=count)
        expected = value_and_grad(lambda z: theirs(z, reduction), logits)
        assert_same(value_and_grad(lambda z: cross_entropy(z, shares, dim=dim, **options), logits), expected, (shape, eps, reduction))
        unweighted = smooth_labels(target, 4, label_smoothing=eps, dim=dim, dtype=torch.float64)
        assert_same(value_and_grad(lambda z: cross_entropy(z, unweighted, weight=weight, dim=dim, **options), logits), expected, reduction)


def test_weighting_by_label():
    "A row times the weight of its label is a sample weight, and differs from PyTorch's"
    logits, target = make_logits((5, 4)), make_target('index', (5, 4), 1)
    rows = smooth_labels(target, 4, label_smoothing=.2, weight=W, weighting='label', dtype=torch.float64)
    close(cross_entropy(logits, rows, reduction='none'), W[target]*cross_entropy(logits, target, label_smoothing=.2, reduction='none'))
    close(cross_entropy(logits, rows, reduction='weighted_mean'), cross_entropy(logits, target, sample_weight=W[target], label_smoothing=.2))
    assert not torch.allclose(rows, smooth_labels(target, 4, label_smoothing=.2, weight=W, dtype=torch.float64))
    soft = make_target('shares', (5, 4), 1)
    close(smooth_labels(soft, 4, label_smoothing=.2, weight=W, weighting='label'), (soft*W).sum(1, keepdim=True)*(.8*soft + .05))


@pytest.mark.parametrize('n', [2, 3, 10, 1000])
@pytest.mark.parametrize('eps', [0., .05, .1, .4])
def test_conversion(n, eps):
    "The converted number makes the same shares, and converts back"
    target = torch.arange(n)[:7]
    others, over_all = (convert_smoothing(eps, n, to=o) for o in ('others', 'all'))
    make = lambda e, c: smooth_labels(target, n, label_smoothing=e, convention=c, dtype=torch.float64)
    close(make(eps, 'all'), make(others, 'others'))
    close(make(eps, 'others'), make(over_all, 'all'))
    assert math.isclose(convert_smoothing(others, n, to='all'), eps) and math.isclose(convert_smoothing(over_all, n, to='others'), eps)
    assert math.isclose(others, eps*(n-1)/n)
    logits = make_logits((len(target), n))
    close(cross_entropy(logits, make(eps, 'others')), F.cross_entropy(logits, target, label_smoothing=over_all))


def test_conversion_has_an_end():
    for n in 2, 4, 7: assert convert_smoothing((n-1)/n, n, to='all') == 1
    with pytest.raises(ValueError, match='use at most 0.75'): convert_smoothing(.8, 4, to='all')
    with pytest.raises(ValueError, match='there are no others'): convert_smoothing(.1, 1, to='all')
    with pytest.raises(ValueError, match="to is 'rest'"): convert_smoothing(.1, 4, to='rest')


@pytest.mark.parametrize('convention', ['all', 'others'])
@pytest.mark.parametrize('n', [2, 5, 100])
@pytest.mark.parametrize('eps', [.01, .1, .5, .9])
def test_floor(eps, n, convention):
    "No logits go below it, and the logarithms of the shares reach it"
    target = torch.zeros(1, dtype=torch.long)
    shares = smooth_labels(target, n, label_smoothing=eps, convention=convention, dtype=torch.float64)
    floor = smoothing_floor(eps, n, convention=convention)
    assert isinstance(floor, float) and math.isclose(cross_entropy(shares.log(), shares).item(), floor, rel_tol=1e-12)
    for _ in range(20): assert cross_entropy(shares.log() + .1*torch.randn(1, n), shares) > floor
    by_sum = -math.fsum(q*math.log(q) for q in by_hand(0, n, eps, convention))
    assert math.isclose(floor, by_sum, rel_tol=1e-12)


def test_floor_at_its_ends():
    assert smoothing_floor(0., 10) == 0 and smoothing_floor(.5, 1) == 0
    assert math.isclose(smoothing_floor(1., 10), math.log(10)) and math.isclose(smoothing_floor(.9, 10, convention='others'), math.log(10))
    assert math.isclose(smoothing_floor(1., 10, convention='others'), math.log(9))


def test_ignored_labels_get_no_share():
    "A row of zeros stays one, however it was spelled; the rest of the batch is smoothed"
    target = torch.tensor([0, -100, 3, 255])
    for convention in 'all', 'others':
        rows = smooth_labels(target, 4, label_smoothing=.2, convention=convention, ignore_index=(-100, 255), weight=W.float())
        assert (rows[[1, 3]] == 0).all() and (rows[[0, 2]] > 0).all()
        close(smooth_labels(one_hot(target, 4, ignore_index=(-100, 255)), 4, label_smoothing=.2, convention=convention, weight=W.float()), rows)
    logits = make_logits((4, 4))
    plain = smooth_labels(target, 4, label_smoothing=.2, ignore_index=(-100, 255), dtype=torch.float64)
    close(cross_entropy(logits, plain, reduction='weighted_mean'), F.cross_entropy(logits[[0, 2]], target[[0, 2]], label_smoothing=.2))


def test_shares_transform_and_differentiate():
    "vmap, grad, compile, and gradients into soft targets and weights"
    target, soft = make_target('index', (5, 4), 1), make_target('shares', (5, 4), 1).requires_grad_()
    fn = lambda t: smooth_labels(t, 4, label_smoothing=.3, convention='others')
    close(vmap(fn)(target), fn(target))
    close(vmap(fn)(soft.detach()), fn(soft.detach()))
    assert vmap(fn)(torch.tensor([0, 9, 1])).isnan().all(1).tolist() == [False, True, False]
    torch._dynamo.reset()
    close(torch.compile(fn, fullgraph=True, backend='eager')(target), fn(target))
    weight = W.clone().requires_grad_()
    for weighting in 'class', 'label':
        torch.autograd.gradcheck(lambda q, w: smooth_labels(q, 4, label_smoothing=.3, weight=w, weighting=weighting), (soft, weight))


@pytest.mark.parametrize('args,options,error,text', [
    ((torch.tensor([0, 4]), 4), {}, ValueError, r'target\[1\] is 4'),
    ((torch.tensor([0.]), 4), {}, ValueError, 'for class indices use target.long'),
    ((torch.rand(2, 3), 4), {}, ValueError, 'has 3 entries on axis 1 for 4 classes'),
    ((-torch.rand(2, 4), 4), {}, ValueError, 'shares cannot be negative'),
    (([0], 4), {}, TypeError, 'target is a list'), ((torch.tensor([0]), 4.), {}, TypeError, 'num_classes is 4.0'),
    ((torch.tensor([0]), 0), {}, ValueError, 'num_classes is 0'), ((torch.tensor([0]), True), {}, TypeError, 'num_classes is True'),
    ((torch.tensor([0]), 4), dict(label_smoothing=1.1), ValueError, 'label_smoothing is 1.1; it must be between 0 and 1'),
    ((torch.tensor([0]), 4), dict(label_smoothing='a'), TypeError, 'label_smoothing'),
    ((torch.tensor([0]), 4), dict(convention='rest'), ValueError, "convention is 'rest'"),
    ((torch.tensor([0]), 4), dict(weighting='row'), ValueError, "weighting is 'row'"),
    ((torch.tensor([0]), 4), dict(weight=torch.ones(3)), ValueError, 'weight has shape'),
    ((torch.tensor([0]), 4), dict(dim=3), ValueError, 'dim is 3')])
def test_bad_labels_get_a_sentence(args, options, error, text):
    with pytest.raises(error, match=text): smooth_labels(*args, **{'label_smoothing': .1, **options})


def test_keras_label_smoothing():
    "Keras spreads over all classes, and its class weights are sample weights"
    os.environ['KERAS_BACKEND'] = 'torch'
    keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
    if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend')
    logits, target = make_logits((6, 4)), make_target('index', (6, 4), 1)
    hot = one_hot(target, 4, dtype=torch.float64)
    for eps in .1, .5:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=eps, reduction=None, dtype='float64')
        shares = smooth_labels(target, 4, label_smoothing=eps, dtype=torch.float64)
        close(cross_entropy(logits, shares, reduction='none'), loss(hot, logits))
        rows = smooth_labels(target, 4, label_smoothing=eps, weight=W, weighting='label', dtype=torch.float64)
        close(cross_entropy(logits, rows, reduction='none'), loss(hot, logits, sample_weight=W[target].clone()))


# distillation

MASK = torch.tensor([True, False, True, True, False])
S = torch.tensor([1., .5, 0., 2., 1.], dtype=torch.float64)
CASES = {'plain': {}, 'hot': dict(temperature=3.), 'cold': dict(temperature=.5), 'mask': dict(temperature=2., mask=MASK), 'weight': dict(temperature=2., sample_weight=S),
         'none': dict(reduction='none', mask=MASK), 'normalizer': dict(normalizer=3., temperature=2.), 'labels': dict(alpha=.3, temperature=2.),
         'labels only': dict(alpha=1.), 'all of it': dict(alpha=.3, temperature=2., mask=MASK, sample_weight=S, ignore_index=(-100, 1))}


def formula(s, t, target=None, *, temperature=1., alpha=0., sample_weight=None, mask=None, ignore_index=(-100,), reduction='mean', normalizer=None):
    "What PyTorch users write, for (N, C)"
    each = temperature**2 * F.kl_div((s/temperature).log_softmax(1), (t/temperature).softmax(1), reduction='none').sum(1)
    counts = torch.ones(len(s), dtype=torch.bool) if mask is None else mask
    if target is not None:
        counts = counts & ~torch.isin(target, torch.tensor(ignore_index))
        each = (1-alpha)*each + alpha*F.cross_entropy(s, target, reduction='none')
    w = counts.double() if sample_weight is None else counts*sample_weight
    if reduction == 'none': return w*each
    return (w*each).sum()/(w.sum() if normalizer is None else normalizer)


def networks(case):
    torch.manual_seed(0)
    return (make_logits((5, 4)), make_logits((5, 4))), (torch.tensor([0, 2, 3, 1, 2]) if CASES[case].get('alpha') else None)


@pytest.mark.parametrize('case', CASES)
def test_distillation_formula(case):
    "Value and the student's gradient in float64; function and module alike"
    (s, t), target = networks(case)
    options = CASES[case]
    expected = value_and_grad(lambda s: formula(s, t, target, **options), s)
    for fn in distillation_loss, DistillationLoss():
        assert_same(value_and_grad(lambda s: fn(s, t, target, **options), s), expected, case)
    assert_same(value_and_grad(lambda s: DistillationLoss(**options)(s, t, target), s), expected, case)


@pytest.mark.parametrize('case', CASES)
def test_distillation_derivatives(case):
    "Finite differences, forward mode, vmap, and one compiled graph"
    (s, t), target = networks(case)
    options = CASES[case]
    fn = lambda s, t: distillation_loss(s, t, target, detach_teacher=False, **options)
    leaves = s.clone().requires_grad_(), t.clone().requires_grad_()
    torch.autograd.gradcheck(fn, leaves, check_forward_ad=True)
    torch.autograd.gradgradcheck(fn, leaves)
    direction = torch.randn_like(s), torch.randn_like(t)
    if fn(s, t).ndim == 0:
        g = grad(fn, (0, 1))(s, t)
        close(jvp(fn, (s, t), direction)[1], sum((a*b).sum() for a, b in zip(g, direction)))
    batch = torch.stack([s, 2*s]), torch.stack([t, t - s])
    close(vmap(fn)(*batch), torch.stack([fn(*o) for o in zip(*batch)]))
    torch._dynamo.reset()
    close(torch.compile(fn, fullgraph=True, backend='aot_eager')(s, t), fn(s, t))


def test_the_teacher_is_detached_unless_asked():
    (s, t), _ = networks('plain')
    s.requires_grad_(), t.requires_grad_()
    own, teachers = torch.autograd.grad(distillation_loss(s, t, temperature=2.), (s, t), allow_unused=True)
    assert teachers is None and own.abs().sum() > 0
    both = torch.autograd.grad(distillation_loss(s, t, temperature=2., detach_teacher=False), (s, t))
    close(both[0], own)
    assert both[1].abs().sum() > 0


def test_the_factor_keeps_the_gradient():
    "For large T the gradient is the difference of the centred logits, over C and N"
    (s, t), _ = networks('plain')
    g, = torch.autograd.grad(distillation_loss(s.requires_grad_(), t, temperature=1e5), s)
    centred = lambda o: o - o.mean(1, keepdim=True)
    torch.testing.assert_close(g, (centred(s) - centred(t)).detach()/4/5, rtol=1e-3, atol=1e-5)


def test_distillation_masks_are_deleted_rows():
    "NaN and inf in what does not count change nothing, in value and gradient; nothing left is 0"
    (s, t), target = networks('labels')
    for name, out in dict(student=(s.clone(), t), teacher=(s, t.clone())).items():
        for bad in torch.nan, torch.inf, -torch.inf:
            pair = [o.clone() for o in out]
            pair[name == 'teacher'][~MASK] = bad
            for args, kept in (((), ()), ((target,), (target[MASK],))):
                options = dict(temperature=2., alpha=.3 if args else 0., reduction='mean')
                expected = distillation_loss(s[MASK], t[MASK], *kept, **options)
                weight = dict(sample_weight=MASK.double())
                for how in dict(mask=MASK), weight if bad != -torch.inf else dict(mask=MASK):
                    leaf = pair[0].clone().requires_grad_()
                    loss = distillation_loss(leaf, pair[1], *args, **options, **how)
                    close(loss, expected)
                    g, = torch.autograd.grad(loss, leaf)
                    assert (g[~MASK] == 0).all() and g.isfinite().all()
    nothing = distillation_loss(s.requires_grad_(), t, mask=~MASK & MASK)
    assert nothing == 0 and (torch.autograd.grad(nothing, s)[0] == 0).all()


def test_distillation_of_impossible_classes():
    "Ruled out by both: as if it were not there. By the teacher: fine. By the student alone: infinite"
    (s, t), _ = networks('plain')
    rule_out = lambda o: o.index_fill(1, torch.tensor(2), -torch.inf)
    rest = [0, 1, 3]
    both = value_and_grad(lambda s, t: distillation_loss(rule_out(s), rule_out(t), temperature=2., detach_teacher=False), s, t)
    fewer = value_and_grad(lambda s, t: distillation_loss(s[:, rest], t[:, rest], temperature=2., detach_teacher=False), s, t)
    assert_same(both, fewer)
    assert_same(value_and_grad(lambda s: distillation_loss(s, rule_out(t)), s), value_and_grad(lambda s: formula(s, rule_out(t)), s))
    assert distillation_loss(rule_out(s), t).isposinf()


def test_distillation_layouts_and_precision():
    "Sequences and images are their flattened rows; half precision comes back as float32; parts add"
    s, t = make_logits((2, 3, 4)), make_logits((2, 3, 4))
    rows = distillation_loss(s.flatten(0, 1), t.flatten(0, 1), temperature=2., reduction='none')
    close(distillation_loss(s, t, temperature=2., dim=-1, reduction='none').flatten(), rows)
    close(distillation_loss(s.movedim(-1, 1), t.movedim(-1, 1), temperature=2., reduction='none').flatten(), rows)
    close(distillation_loss(s[0, 0], t[0, 0], temperature=2.), rows[0])
    half = distillation_loss(s.bfloat16().requires_grad_(), t.half(), dim=-1)
    assert half.dtype == torch.float32 and half.isfinite()
    close(sum(distillation_loss(a, b, temperature=2., reduction='parts') for a, b in zip(s, t)).mean, rows.mean())
    T = torch.tensor(2., dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda T: distillation_loss(s, t, temperature=T, dim=-1), (T,))


@pytest.mark.parametrize('change,options,error,text', [
    (lambda s, t: (s, t[:, :1]), {}, ValueError, r'teacher_logits has shape \(5, 1\) and student_logits has shape \(5, 4\)'),
    (lambda s, t: (s, t.softmax(1) > .5), {}, TypeError, 'teacher_logits has dtype torch.bool'),
    (lambda s, t: (s, t[0]), {}, ValueError, 'teacher_logits has shape'), (lambda s, t: (s, [1.]), {}, TypeError, 'teacher_logits is a list'),
    (lambda s, t: (s, t), dict(alpha=.5), ValueError, 'there is no target'), (lambda s, t: (s, t, torch.zeros(5).long()), {}, ValueError, 'alpha=0 gives it no share'),
    (lambda s, t: (s, t), dict(alpha=1.5), ValueError, 'alpha is 1.5'), (lambda s, t: (s, t), dict(temperature=0.), ValueError, 'temperature is 0'),
    (lambda s, t: (s, t), dict(temperature=torch.ones(5, 1)), ValueError, 'temperature has shape'), (lambda s, t: (s, t), dict(mask=torch.ones(5, 1) > 0), ValueError, 'mask has shape'),
    (lambda s, t: (s, t), dict(sample_weight=torch.ones(5, 1)), ValueError, 'sample_weight has shape'), (lambda s, t: (s, t), dict(reduction='avg'), ValueError, "reduction is 'avg'"),
    (lambda s, t: (s, t), dict(dim=2), ValueError, 'dim is 2')])
def test_bad_networks_get_a_sentence(change, options, error, text):
    with pytest.raises(error, match=text): distillation_loss(*change(make_logits((5, 4)), make_logits((5, 4))), **options)
