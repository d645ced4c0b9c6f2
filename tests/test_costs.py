"Costs: the rule and the two losses against plain Python, the special cases, masks, transforms, wrong calls"
import math

import pytest
import torch
import torch.nn.functional as F
from oracle import REDUCTIONS, assert_same, cotangent, grid, make_logits, make_target, value_and_grad

import losslab as ll
from losslab import costs as c

double = dict(dtype=torch.float64)
LOSSES = c.cost_sensitive_cross_entropy, c.expected_cost_loss
COST = torch.tensor([[0., 1, 3, 2], [4, -1, 2, 6], [50, 20, 0, 1], [2, 2, 2, 0]], **double)
KINDS = 'index', 'onehot', 'bool', 'shares'
LAYOUTS = [((4,), 1), ((5, 4), 1), ((2, 3, 4), -1), ((2, 4, 3), 1), ((4, 5), 0)]
every_loss = pytest.mark.parametrize('fn', LOSSES, ids=lambda o: o.__name__)
def close(a, b, **kw): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **(kw or dict(rtol=1e-10, atol=1e-13)))


def slow(fn, z, q, cost):
    "Value and gradient of one row of scores with shares `q`, in plain floats"
    n = len(z)
    e = [math.exp(o - max(z)) for o in z]
    p = [o/sum(e) for o in e]
    if fn is c.expected_cost_loss:
        price = [sum(q[y]*cost[y][j] for y in range(n)) for j in range(n)]
        value = sum(price[j]*p[j] for j in range(n))
        return value, [p[k]*(price[k] - value) for k in range(n)], sum(q)
    saved = [sum(q[y]*(max(cost[y]) - cost[y][j]) for y in range(n)) for j in range(n)]
    return -sum(saved[j]*math.log(p[j]) for j in range(n)), [p[k]*sum(saved) - saved[k] for k in range(n)], sum(saved)


def oracle(fn, z, target, *, cost, sample_weight=None, mask=None, ignore_index=-100, dim=1, reduction='mean'):
    "Value and gradient by the formulas, with each denominator written out"
    axis = 0 if z.ndim == 1 else dim
    shape, dense = z.select(axis, 0).shape, target.shape == z.shape
    rows, n = z.movedim(axis, -1).reshape(-1, 4).tolist(), shape.numel()
    labels = target.movedim(axis, -1).reshape(-1, 4).double().tolist() if dense else target.reshape(-1).tolist()
    ignored = (ignore_index,) if isinstance(ignore_index, int) else ignore_index
    s = [1.]*n if sample_weight is None else sample_weight.reshape(-1).tolist()
    m = [True]*n if mask is None else mask.reshape(-1).tolist()
    values, grads, weights, plain, counted = [], [], 0., 0., 0
    for row, label, sw, used in zip(rows, labels, s, m):
        q = label if dense else [float(k == label) for k in range(4)]
        if dense: used = used and not (any(q[k] for k in ignored if 0 <= k < 4) and not any(q[k] for k in range(4) if k not in ignored))
        else: used = used and label not in ignored
        v, g, weight = slow(fn, row, q, cost.tolist()) if used else (0., [0.]*4, 0.)
        values.append(sw*v)
        grads.append([sw*o for o in g])
        weights += sw*weight
        plain += sw*used
        counted += used
    by_weight = weights if fn is c.cost_sensitive_cross_entropy or dense else plain
    by = dict(none=1, sum=1, mean=by_weight if fn is c.cost_sensitive_cross_entropy and not dense else plain, weighted_mean=by_weight, element_mean=counted,
              batchmean=shape[0] if shape else 1)[reduction] or 1
    v = cotangent(torch.empty(shape, **double)).reshape(-1).tolist() if reduction == 'none' else [1.]*n
    grad = torch.tensor([[a*o/by for o in g] for a, g in zip(v, grads)], **double).reshape(*shape, 4).movedim(-1, axis)
    return (torch.tensor(values, **double).reshape(shape) if reduction == 'none' else torch.tensor(sum(values)/by, **double)), grad


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape,dim', LAYOUTS, ids=str)
@every_loss
def test_equals_the_oracle(fn, shape, dim, kind):
    "Every reduction, masks, weights, several ignored labels: value and gradient"
    z = make_logits(shape)
    size = z.select(0 if len(shape) == 1 else dim, 0).shape
    mask, s = torch.rand(size) < .7, torch.rand(size, **double)*(torch.rand(size) < .8)
    for o in grid(reduction=REDUCTIONS, mask=(None, mask), sample_weight=(None, s), ignore_index=(-100, (1, 3))):
        target = make_target(kind, shape, dim, ignored=(1, 3) if o['ignore_index'] != -100 else ())
        got = value_and_grad(lambda z: fn(z, target, cost=COST, dim=dim, **o), z)
        assert_same(got, oracle(fn, z, target, cost=COST, dim=dim, **o), f'{o}')


@pytest.mark.parametrize('kind', KINDS)
def test_class_weights_are_a_special_case(kind):
    "Constant rows are `weight`, no matrix is none, for every mean, label and layout, impossible classes included"
    w = torch.tensor([.5, 2, 1, 7], **double)
    for (shape, dim), r in [(o, r) for o in LAYOUTS for r in REDUCTIONS]:
        z, target = make_logits(shape), make_target(kind, shape, dim)
        for cost, weight in (None, None), (w[:, None]*(1 - torch.eye(4)), w), (w[:, None]*(1 - torch.eye(4)) - 3, w):
            got, expected = (value_and_grad(f, z) for f in (lambda z: c.cost_sensitive_cross_entropy(z, target, cost=cost, dim=dim, reduction=r),
                                                            lambda z: ll.cross_entropy(z, target, weight=weight, dim=dim, reduction=r)))
            assert_same(got, expected, f'{shape} {r}')
    z = torch.tensor([[0., -math.inf, 2, 1], [-math.inf, 1, 1, 0]], **double)
    for y in torch.tensor([0, 1]), torch.tensor([1, 3]):
        close(c.cost_sensitive_cross_entropy(z, y, reduction='none'), ll.cross_entropy(z, y, reduction='none'))
        close(c.cost_sensitive_cross_entropy(z, F.one_hot(y, 4), reduction='none'), ll.cross_entropy(z, F.one_hot(y, 4), reduction='none'))


@every_loss
def test_impossible_answers(fn):
    "A class with a logit of -inf is no answer: the loss is finite, its gradient is 0, and the others are as without its column"
    z = make_logits((5, 4))
    z[:, 2] = -math.inf
    y, some = torch.tensor([0, 1, 3, 3, 0]), [0, 1, 3]
    for target in y, F.one_hot(y, 4).double(), F.one_hot(y, 4):
        value, grad = value_and_grad(lambda z: fn(z, target, cost=COST, reduction='none'), z)
        rows = COST[y]
        if fn is c.expected_cost_loss: expected = (rows[:, some]*z[:, some].softmax(1)).sum(1)
        else: expected = -((rows.amax(1, keepdim=True) - rows)[:, some]*z[:, some].log_softmax(1)).sum(1)
        close(value, expected)
        assert grad.isfinite().all() and not grad[:, 2].any()


@every_loss
def test_large_logits_and_masked_nan(fn):
    "Finite for logits of any size; a masked row counts for nothing, whatever is in it"
    for dtype, size in (torch.float32, 1e30), (torch.float16, 6e4), (torch.bfloat16, 1e4), (torch.float64, 1e300):
        z = torch.tensor([[1., -1, 0, .5], [-1, 1, 1, -1], [0, 0, 0, 1]], **double).mul(size).to(dtype)
        value, grad = value_and_grad(lambda z: fn(z, torch.tensor([1, 0, 2]), cost=COST), z)
        assert value.isfinite() and grad.isfinite().all() and grad.dtype == dtype
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    z, y, mask = make_logits((4, 4)), torch.tensor([0, 1, 9, 3]), torch.tensor([True, False, False, True])
    z[1], z[2] = math.nan, math.inf
    value, grad = value_and_grad(lambda z: fn(z, y, cost=COST, mask=mask), z)
    assert_same((value, grad[mask]), value_and_grad(lambda z: fn(z, y[mask], cost=COST), z[mask]))
    assert not grad[~mask].any()
    value, grad = value_and_grad(lambda z: fn(z, y, cost=COST, mask=mask & False), z)
    assert value == 0 and not grad.any()


@every_loss
def test_invariances(fn):
    "A constant in a row of costs changes no gradient, a factor scales it, and classes may be renamed"
    z, y, k = make_logits((6, 4)), torch.tensor([0, 1, 2, 3, 1, 2]), torch.tensor([3, 1, 0, 2])
    value, grad = value_and_grad(lambda z: fn(z, y, cost=COST, reduction='sum'), z)
    close(value_and_grad(lambda z: fn(z, y, cost=5*COST + torch.randn(4, 1, **double), reduction='sum'), z)[1], 5*grad)
    close(fn(z[:, k], k.argsort()[y], cost=COST[k][:, k], reduction='sum'), value)
    parts = sum(fn(z[i:i+2], y[i:i+2], cost=COST, reduction='parts') for i in (0, 2, 4))
    close(parts.mean, fn(z, y, cost=COST))
    close(fn(z, y, cost=COST, normalizer=3), value/3)


def test_consistency():
    "The best scores of the convex loss choose the cheapest answer; its gradient is 0 where it should be"
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        p, cost = torch.rand(1, 4, generator=g, **double).softmax(1), torch.randn(4, 4, generator=g, **double)
        q = (p @ (cost.amax(1, keepdim=True) - cost)).clamp(min=1e-30)  # 0 where an answer is the worst for every class
        z = q.log().requires_grad_()
        grad, = torch.autograd.grad(c.cost_sensitive_cross_entropy(z, p, cost=cost, reduction='sum'), z)
        close(grad, torch.zeros(1, 4), rtol=0, atol=1e-10)
        assert z.argmax(1) == c.cheapest_answer(p.log(), cost)


def test_the_rule():
    "Expected costs and the cheapest answer, on any axis, for any number of answers"
    p = torch.rand(2, 3, 4, **double).softmax(-1)
    for cost in COST, torch.randn(4, 7, **double), torch.randn(4, 1, **double), torch.randint(0, 9, (4, 2)):
        expected = torch.einsum('abc,cd->abd', p, cost.double())
        for dim in -1, 1, 0:
            z = (p.log() + 2).movedim(-1, dim)
            close(c.expected_cost(z, cost, dim=dim), expected.movedim(-1, dim))
            assert torch.equal(c.cheapest_answer(z, cost, dim=dim), expected.argmin(-1))
        assert torch.equal(c.cheapest_answer(p[0, 0].log(), cost), expected[0, 0].argmin())
    z = p.log().half()
    assert c.expected_cost(z, COST, dim=-1).dtype == torch.float32
    z = torch.tensor([[0., -math.inf]])
    close(c.expected_cost(z, torch.tensor([[1., 2], [3, 4]])), [[1., 2.]])


def test_threshold():
    "Elkan's formula, gains included, and the rule it stands for"
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        cost = torch.randn(2, 2, generator=g, **double)
        cost[0, 1], cost[1, 0] = cost[0, 0] + torch.rand((), generator=g), cost[1, 1] + torch.rand((), generator=g)
        t = c.threshold_of_cost(cost)
        for p in t - 1e-6, t + 1e-6:
            assert c.cheapest_answer(torch.stack([1 - p, p]).log(), cost) == (p > t)
    assert c.threshold_of_cost(torch.tensor([[0, 1], [3, 0]])) == .25 and c.threshold_of_cost(torch.tensor([[0, 1], [0, 0]])) == 1
    assert c.threshold_of_cost(torch.tensor([[0., 1], [3, 0]], **double)).dtype == torch.float64
    close(c.threshold_of_cost(torch.tensor([[0., 1], [9, 0]])), ll.threshold_of_weight(9.), rtol=1e-6, atol=0)


@pytest.mark.parametrize('kind', ['index', 'shares'])
@every_loss
def test_transforms(fn, kind):
    "One graph, vmap, jvp, and derivatives of second order in logits, costs and soft labels"
    z, y, s = make_logits((5, 4)), make_target(kind, (5, 4), 1), torch.rand(5, **double)
    call = lambda z, y: fn(z, y, cost=COST, sample_weight=s, ignore_index=(2, -100))
    torch._dynamo.reset()
    close(torch.compile(call, fullgraph=True, backend='aot_eager')(z, y), call(z, y))
    pairs = [(make_logits((5, 4)), make_target(kind, (5, 4), 1)) for _ in range(3)]
    close(torch.func.vmap(call)(*map(torch.stack, zip(*pairs))), torch.stack([call(*o) for o in pairs]))
    zr = z.clone().requires_grad_()
    g, = torch.autograd.grad(call(zr, y), zr)
    close(torch.func.grad(call)(z, y), g)
    v = torch.randn_like(z)
    close(torch.func.jvp(lambda z: call(z, y), (z,), (v,))[1], (g*v).sum())
    cost = torch.rand(4, 4, **double).requires_grad_()  # no ties, where a maximum has no derivative
    for r in 'mean', 'weighted_mean', 'none': torch.autograd.gradcheck(lambda z, k: fn(z, y, cost=k, reduction=r), (zr, cost))
    torch.autograd.gradgradcheck(call, (zr, y))


@every_loss
def test_compile_cannot_read_labels(fn):
    "A label out of range spoils its own row"
    torch._dynamo.reset()
    out = torch.compile(lambda z, t: fn(z, t, cost=COST, reduction='none'), fullgraph=True, backend='eager')(make_logits((3, 4)), torch.tensor([0, 7, 1]))
    assert out.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize('cost,error,text', [
    ([[0, 1], [1, 0]], TypeError, 'cost is list; it must be a real tensor'),
    (torch.eye(4).bool(), TypeError, 'cost is torch.bool'),
    (torch.eye(4).cfloat(), TypeError, 'cost is torch.complex64'),
    (torch.eye(3), ValueError, r'cost has shape \(3, 3\), but there are 4 classes on axis 1; it must be \(4, 4\)'),
    (torch.ones(4, 5), ValueError, r'cost has shape \(4, 5\)'),
    (torch.ones(4), ValueError, r'cost has shape \(4,\)'),
    (torch.eye(4).log(), ValueError, r'cost\[0, 1\] is -inf; a cost must be finite'),
    (torch.full((4, 4), math.nan), ValueError, r'cost\[0, 0\] is nan'),
])
@every_loss
def test_wrong_costs(fn, cost, error, text):
    with pytest.raises(error, match=text): fn(make_logits((2, 4)), torch.tensor([0, 1]), cost=cost)


@pytest.mark.parametrize('call,error,text', [
    (lambda z: c.expected_cost(z, torch.ones(3, 2)), ValueError, r'cost has shape \(3, 2\).* it must be \(4, D\)'),
    (lambda z: c.expected_cost(z, torch.ones(4, 0)), ValueError, r'cost has shape \(4, 0\)'),
    (lambda z: c.cheapest_answer(z.long(), COST), TypeError, 'logits has dtype torch.int64'),
    (lambda z: c.cheapest_answer(z, COST, dim=5), ValueError, 'dim is 5'),
    (lambda z: c.threshold_of_cost(COST), ValueError, r'cost has shape \(4, 4\), but there are 2 classes'),
    (lambda z: c.threshold_of_cost([[0, 1], [1, 0]]), TypeError, 'cost is list'),
    (lambda z: c.threshold_of_cost(torch.tensor([[1., 0], [1, 0]])), ValueError, 'or there is no threshold'),
    (lambda z: c.threshold_of_cost(torch.tensor([[0., 1], [0, 1]])), ValueError, 'or there is no threshold'),
    (lambda z: c.threshold_of_cost(torch.tensor([[0., 2], [0, 1]])), ValueError, 'or there is no threshold'),
    (lambda z: c.threshold_of_cost(torch.tensor([[1., 0], [2, 0]])), ValueError, 'or there is no threshold'),
    (lambda z: c.threshold_of_cost(torch.zeros(2, 2)), ValueError, 'or there is no threshold'),
])
def test_wrong_calls(call, error, text):
    with pytest.raises(error, match=text): call(make_logits((2, 4)))
