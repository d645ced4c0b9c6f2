"Margin losses and Brier scores: PyTorch's own samples, slow formulas in plain Python, masks, transforms, wrong calls"
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, grid, value_and_grad

from losslab import margin as m

pytestmark = pytest.mark.xdist_group('opinfo')
SAMPLES = {'multi_margin_loss': 9, 'multilabel_margin_loss': 5, 'multilabel_soft_margin_loss': 4, 'margin_ranking_loss': 24, 'hinge_embedding_loss': 10}
CLASSES = {'MultiMarginLoss': 'multi_margin_loss', 'MultiLabelMarginLoss': 'multilabel_margin_loss', 'MultiLabelSoftMarginLoss': 'multilabel_soft_margin_loss',
           'MarginRankingLoss': 'margin_ranking_loss', 'HingeEmbeddingLoss': 'hinge_embedding_loss'}
double = dict(dtype=torch.float64)


@pytest.fixture(scope='module')
def ops():
    from torch.testing._internal.common_methods_invocations import op_db
    return {o.name.split('.')[-1]: o for o in op_db if o.name.split('.')[-1] in SAMPLES}


def with_meaning(name, sample):
    "PyTorch draws some of its targets at random: give them the values that its documentation asks for"
    *others, target = sample.args
    if name == 'multilabel_soft_margin_loss': target = target.detach().sigmoid()
    if name in ('margin_ranking_loss', 'hinge_embedding_loss'): target = torch.where(target.detach() > 0, 1., -1.).to(target.dtype)
    if name == 'multi_margin_loss': target = target.reshape(sample.input.shape[:-1])
    return sample.input, *others, target


@pytest.mark.parametrize('name', SAMPLES)
def test_pytorchs_samples(ops, name):
    "Value and gradient, in every input that has one"
    n = 0
    for sample in ops[name].sample_inputs('cpu', torch.float64, requires_grad=True):
        if sample.input.ndim == 0 and name.startswith('multi'): continue  # no axis of classes
        *inputs, target = with_meaning(name, sample)
        got, expected = (value_and_grad(lambda *a, fn=fn: fn(*a, target, **sample.kwargs), *inputs) for fn in (getattr(m, name), getattr(F, name)))
        assert_same(got, expected, f'{name} {sample}')
        n += 1
    assert n == SAMPLES[name]


def cases():
    "Name, inputs, target and options of every loss, on a batch of 5 with 4 classes"
    g = torch.Generator().manual_seed(3)
    z, z2 = torch.randn(2, 5, 4, generator=g, **double)
    y = torch.tensor([0, 3, 1, 1, 2])
    sign = torch.randint(0, 2, (5, 4), generator=g)*2 - 1
    q = torch.rand(5, 4, generator=g, **double)
    lists = torch.tensor([[3, 0, -1, 1], [2, -1, 0, 0], [-1, 2, 2, 2], [0, 1, 2, 3], [1, 1, 3, -1]])
    yield 'multi_margin_loss', (z,), y, dict(p=2, margin=.4)
    yield 'multi_margin_loss', (z,), q/q.sum(1, keepdim=True), dict(p=1, weight=torch.tensor([1., 2., .5, 3.], **double))
    yield 'multilabel_margin_loss', (z,), lists, {}
    yield 'multilabel_margin_loss', (z,), q > .5, {}
    yield 'multilabel_soft_margin_loss', (z,), q, dict(weight=torch.tensor([1., 2., .5, 3.], **double))
    yield 'hinge_loss', (z,), sign, dict(p=2, margin=.7)
    yield 'margin_ranking_loss', (z, z2), sign, dict(margin=.3)
    yield 'hinge_embedding_loss', (z**2,), sign, dict(margin=.8)
    yield 'brier_loss', (z,), y, dict(weight=torch.tensor([1., 2., .5, 3.], **double))
    yield 'brier_loss', (z,), q/q.sum(1, keepdim=True), {}
    yield 'binary_brier_loss', (z,), q, dict(weight=torch.rand(5, 4, generator=g, **double))


def slow(name, inputs, target, i, p=1, margin=None, weight=None):
    "The loss of row `i` in plain floats: one number, or one per entry"
    row = [o[i].tolist() for o in inputs]
    z, w, t = row[0], [1.]*4 if weight is None else weight.tolist(), target[i].tolist()
    margin = {'margin_ranking_loss': 0.}.get(name, 1.) if margin is None else margin
    sig = [1/(1 + 2.718281828459045**-o) for o in z]
    log = lambda o: torch.tensor(o, **double).log().item()
    def against(k, rivals): return sum(max(0., margin - z[k] + z[j])**p for j in rivals)/4
    if name in ('multi_margin_loss', 'brier_loss'):
        e = [2.718281828459045**o for o in z]
        shares = t if isinstance(t, list) else [float(k == t) for k in range(4)]
        if name == 'brier_loss': return sum((e[k]/sum(e) - shares[k])**2 for k in range(4))*sum(a*b for a, b in zip(shares, w))
        return sum(shares[k]*w[k]*against(k, [j for j in range(4) if j != k]) for k in range(4))
    if name == 'multilabel_margin_loss':
        if isinstance(t[0], bool): own = [k for k in range(4) if t[k]]
        else: own = t[:t.index(-1)] if -1 in t else t
        return sum(against(k, set(range(4)) - set(own)) for k in own)
    if name == 'multilabel_soft_margin_loss': return -sum(w[k]*(t[k]*log(sig[k]) + (1-t[k])*log(1-sig[k])) for k in range(4))/4
    if name == 'binary_brier_loss': return [weight[i, k].item()*(sig[k] - t[k])**2 for k in range(4)]
    if name == 'hinge_loss': return [max(0., margin - t[k]*z[k])**p for k in range(4)]
    if name == 'margin_ranking_loss': return [max(0., margin - t[k]*(z[k] - row[1][k])) for k in range(4)]
    return [z[k] if t[k] == 1 else max(0., margin - z[k]) for k in range(4)]


CASES = list(cases())
IDS = [f'{i}-{c[0]}' for i, c in enumerate(CASES)]
every_case = pytest.mark.parametrize('name,inputs,target,options', CASES, ids=IDS)
def call(name, inputs, target, **kw): return getattr(m, name)(*inputs, target, **kw)


@every_case
def test_values(name, inputs, target, options):
    "One value per element, by an independent formula"
    expected = torch.tensor([slow(name, inputs, target, i, **options) for i in range(5)], **double)
    got = call(name, inputs, target, reduction='none', **options)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@every_case
def test_masks_and_weights(name, inputs, target, options):
    "A masked mean is that of the kept rows, whatever stands in the others; sample weights are counted by every mean but one"
    fixed = {k: v for k, v in options.items() if k != 'weight' or v.ndim == 1}
    each = call(name, inputs, target, reduction='none', **fixed)
    keep, s = torch.rand(each.shape) < .6, torch.rand(each.shape, **double)
    kept = keep.reshape(keep.shape + (1,)*(inputs[0].ndim - keep.ndim)).expand(inputs[0].shape)
    broken = [torch.where(kept, o, torch.nan).requires_grad_() for o in inputs]
    bad = torch.where(keep if target.ndim == keep.ndim else kept, target, 77 if target.dtype != torch.bool else True)
    out = call(name, broken, bad, mask=keep, sample_weight=s, **fixed)
    torch.testing.assert_close(out, (s*each)[keep].sum()/s[keep].sum(), rtol=1e-10, atol=0)
    for o in torch.autograd.grad(out, broken): assert not o[~kept].any() and o.isfinite().all()
    for r, count in {'element_mean': keep.sum(), 'batchmean': len(each), 'sum': 1}.items():
        got = call(name, inputs, target, mask=keep, sample_weight=s, reduction=r, **fixed)
        torch.testing.assert_close(got, (s*each)[keep].sum()/count, rtol=1e-10, atol=0)
    assert call(name, inputs, target, mask=keep & False) == 0
    torch.testing.assert_close(call(name, inputs, target, normalizer=7, **fixed), each.sum()/7)
    a, b = (call(name, [o[i] for o in inputs], target[i], reduction='parts', **fixed) for i in (slice(0, 2), slice(2, 5)))
    torch.testing.assert_close((a + b).mean, each.mean())


@pytest.mark.parametrize('name', ['multi_margin_loss', 'brier_loss'])
def test_class_weights(name):
    "PyTorch's mean divides by the rows; the weighted mean by the weights of the labels"
    z, y, w = torch.randn(6, 3, **double), torch.tensor([0, 1, 2, 2, 1, -100]), torch.tensor([1., 2., 5.], **double)
    fn, rows = getattr(m, name), y >= 0
    each = fn(z[rows], y[rows], reduction='none')*w[y[rows]]
    torch.testing.assert_close(fn(z, y, weight=w), each.mean())
    for target in y[rows], F.one_hot(y[rows], 3):
        torch.testing.assert_close(fn(z[rows], target, weight=w, reduction='weighted_mean'), each.sum()/w[y[rows]].sum())
    for dtype in torch.uint8, torch.int32: torch.testing.assert_close(fn(z[rows], y[rows].to(dtype), weight=w), each.mean())


@pytest.mark.parametrize('name', ['multi_margin_loss', 'brier_loss', 'multilabel_margin_loss', 'multilabel_soft_margin_loss'])
def test_class_axis(name):
    "Classes on any axis, and rows without a batch"
    z, fn = torch.randn(2, 3, 5, 4, **double), getattr(m, name)
    target = torch.randint(0, 4, (2, 3, 5)) if 'multilabel' not in name else torch.rand(2, 3, 5, 4).round()
    at = (lambda o, d: o.movedim(-1, d)) if target.ndim == 4 else (lambda o, d: o)
    expected = fn(z.reshape(-1, 4), target.reshape(30, *target.shape[3:]), reduction='none').view(2, 3, 5)
    for d in 1, 2, -1, 0: torch.testing.assert_close(fn(z.movedim(-1, d), at(target, d), dim=d, reduction='none'), expected)
    torch.testing.assert_close(fn(z[0, 0, 0], target[0, 0, 0]), expected[0, 0, 0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@every_case
def test_half_precision(name, inputs, target, options, dtype):
    "Computed and returned in float32, gradients in the dtype of the input"
    low = [o.to(dtype).requires_grad_() for o in inputs]
    out = call(name, low, target, **options)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, call(name, [o.float() for o in low], target, **options))
    assert all(o.dtype == dtype and o.isfinite().all() for o in torch.autograd.grad(out, low))


@pytest.mark.parametrize('name', ['multi_margin_loss', 'brier_loss'])
def test_impossible_classes(name):
    "A class with a logit of -inf is no rival, in value and gradient"
    z = torch.tensor([[1., 0., .5, -torch.inf]], **double).requires_grad_()
    out = getattr(m, name)(z, torch.tensor([0]), reduction='none')
    g, = torch.autograd.grad(out.sum(), z)
    torch.testing.assert_close(out, getattr(m, name)(z[:, :3], torch.tensor([0]), reduction='none')*(3/4 if name == 'multi_margin_loss' else 1))
    assert g.isfinite().all() and g[0, 3] == 0 and g[0, 0] < 0
    two = torch.tensor([[1., 0., -torch.inf, -torch.inf]], **double)
    for target in torch.tensor([0]), F.one_hot(torch.tensor([0]), 4), torch.tensor([[.5, .5, 0, 0]]):
        assert getattr(m, name)(two, target).isfinite()
    assert getattr(m, name)(two, torch.tensor([2])) in (torch.inf, getattr(m, name)(two[:, :3], torch.tensor([2])))


@every_case
def test_transforms(name, inputs, target, options):
    "vmap over the rows, forward and reverse derivatives, twice, and one graph"
    fixed = {k: v for k, v in options.items() if k != 'weight' or v.ndim == 1}
    fn = lambda *a: call(name, a[:-1], a[-1], **fixed)
    each = call(name, inputs, target, reduction='none', **fixed)
    rows = torch.func.vmap(fn)(*inputs, target)
    torch.testing.assert_close(rows, each if each.ndim == 1 else each.mean(1))
    loss, tangents = lambda *a: fn(*a, target), tuple(torch.randn_like(o) for o in inputs)
    _, slope = torch.func.jvp(loss, inputs, tangents)
    grads = torch.func.grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
    torch.testing.assert_close(slope, sum((g*t).sum() for g, t in zip(grads, tangents)))
    assert torch.autograd.gradgradcheck(loss, [o.clone().requires_grad_() for o in inputs])


@every_case
def test_compiles(name, inputs, target, options):
    "One graph, without breaks"
    torch._dynamo.reset()
    fn = torch.compile(lambda *a: call(name, a[:-1], a[-1], **options), fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(fn(*inputs, target), call(name, inputs, target, **options))


@pytest.mark.parametrize('cls', [*CLASSES, 'HingeLoss', 'BrierLoss', 'BinaryBrierLoss'])
def test_modules(cls):
    "A module is its function, and has PyTorch's options with PyTorch's defaults"
    import inspect
    ours = getattr(m, cls)
    if theirs := getattr(torch.nn, cls, None):
        for name, o in inspect.signature(theirs).parameters.items():
            if name not in ('size_average', 'reduce'): assert ours.options[name] == o.default
    case = next(c for c in CASES if getattr(m, c[0]) is ours.fn)
    assert ours(**case[3])(*case[1], case[2]) == call(*case[:3], **case[3])


z, y, sign = torch.randn(3, 4), torch.tensor([0, 1, 3]), torch.ones(3, 4)
WRONG = {
    'no axis': (ValueError, 'must have an axis of classes', lambda: m.multi_margin_loss(torch.tensor(1.), torch.tensor(0))),
    'p': (ValueError, 'p is 3; it must be one of 1, 2', lambda: m.hinge_loss(z, sign, p=3)),
    'margin': (TypeError, "margin is '1'", lambda: m.multi_margin_loss(z, y, margin='1')),
    'label': (ValueError, r'target\[2\] is 4', lambda: m.multi_margin_loss(z, torch.tensor([0, 1, 4]))),
    'zero and one': (ValueError, r'target\[0, 0\] is 0, but labels are -1 or 1; for labels 0 and 1 use 2\*target - 1', lambda: m.hinge_loss(z, sign*0)),
    'sign': (ValueError, 'if 2 marks elements without a label, use ignore_index=2', lambda: m.hinge_embedding_loss(z, sign*2)),
    'column': (ValueError, r'target has shape \(3, 1\) and input1 has shape \(3,\); nothing is broadcast', lambda: m.margin_ranking_loss(z[:, 0], z[:, 1], sign[:, :1])),
    'second': (ValueError, r'input2 has shape \(3, 1\) and input1 has shape \(3, 4\)', lambda: m.margin_ranking_loss(z, z[:, :1], sign)),
    'integers': (TypeError, 'input2 has dtype torch.int64', lambda: m.margin_ranking_loss(z, z.long(), sign)),
    'list': (ValueError, r'target holds 4 in row \[1\], but labels are 0 to 3, and -1 ends a list', lambda: m.multilabel_margin_loss(z, torch.tensor([[1, -1, -1, -1], [4, -1, -1, -1], [0, 0, 0, 2]]))),
    'before': (ValueError, r'target holds -2 in row \[0\]', lambda: m.multilabel_margin_loss(z, torch.full((3, 4), -2))),
    'hot': (ValueError, 'use target.bool()', lambda: m.multilabel_margin_loss(z, sign.long())),
    'soft': (ValueError, 'holds 0.5 in row', lambda: m.multilabel_margin_loss(z, sign*.5)),
    'mask': (ValueError, r'mask has shape \(3, 4\), but the loss has one value per element, shape \(3,\)', lambda: m.multilabel_margin_loss(z, y[:, None].expand(3, 4), mask=sign.bool())),
    'rows': (ValueError, r'sample_weight has shape \(3, 4\)', lambda: m.multilabel_soft_margin_loss(z, sign, sample_weight=sign)),
    'answer': (ValueError, 'is 2(.0)?, but answers lie between 0 and 1', lambda: m.binary_brier_loss(z, sign*2)),
    'weight': (ValueError, r'weight has shape \(3,\)', lambda: m.brier_loss(z, y, weight=torch.ones(3))),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_calls(name):
    "The error names the argument, what it got and what to do"
    error, text, wrong = WRONG[name]
    with pytest.raises(error, match=text): wrong()


def test_what_does_not_count():
    "Ties, missing answers and ignored labels leave sum and count"
    a, s = torch.randn(4, **double), torch.tensor([1, -1, 0, 1])
    torch.testing.assert_close(m.hinge_loss(a, s, ignore_index=0), m.hinge_loss(a[s != 0], s[s != 0]))
    torch.testing.assert_close(m.hinge_embedding_loss(a, s, ignore_index=0), m.hinge_embedding_loss(a[s != 0], s[s != 0]))
    q = torch.rand(2, 4, **double)
    part = q.clone()
    part[0, 1:3] = -100
    part[1] = -100
    loss = m.multilabel_soft_margin_loss(torch.ones(2, 4, **double), part)
    torch.testing.assert_close(loss, m.multilabel_soft_margin_loss(torch.ones(1, 2, **double), q[:1, [0, 3]]))


def test_corners():
    "At a corner the slope is PyTorch's: 0 for the classes, 1 for pairs"
    for o in grid(p=(1, 2)):
        for fn in (m.multi_margin_loss, F.multi_margin_loss):
            _, g = value_and_grad(lambda z, fn=fn: fn(z, torch.tensor([0]), **o), torch.tensor([[1., 0.]]))
            assert not g.any()
    for fn in m, F:
        assert value_and_grad(lambda a, fn=fn: fn.margin_ranking_loss(a, torch.zeros(1), torch.ones(1)), torch.zeros(1))[1] == -1
        assert value_and_grad(lambda a, fn=fn: fn.hinge_embedding_loss(a, -torch.ones(1)), torch.ones(1))[1] == -1


@pytest.mark.parametrize('name', ['multilabel_soft_margin_loss', 'binary_brier_loss', 'brier_loss', 'multi_margin_loss'])
def test_weighted_mean_of_equal_values(name):
    "Where all elements cost the same, a weighted mean is that cost, whatever the weights"
    z, w = torch.zeros(5, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0]) if name in ('brier_loss', 'multi_margin_loss') else (torch.rand(5, 4) < .5).double()
    loss = getattr(m, name)
    torch.testing.assert_close(loss(z, target, weight=w, reduction='weighted_mean'), loss(z, target))
