"Pair and triplet losses: PyTorch's own samples, slow formulas in plain Python, blocks, masks, ties, wrong calls"
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import PEAK_GB, assert_same, value_and_grad
from torch.testing import assert_close

from losslab import pairs as m

pytestmark = pytest.mark.xdist_group('opinfo')
double = dict(dtype=torch.float64)
MINING = 'all', 'semihard', 'hard'
DISTANCES = 'euclidean', 'squared', 'cosine'
SAMPLES = {'triplet_margin_loss': 7, 'triplet_margin_with_distance_loss': 7, 'cosine_embedding_loss': 6}


@pytest.fixture(scope='module')
def ops():
    from torch.testing._internal.common_methods_invocations import op_db
    return {o.name.split('.')[-1]: o for o in op_db if o.name.split('.')[-1] in SAMPLES}


def test_the_distance_that_is_not_given():
    "PyTorch's, with what it adds to each difference"
    rows = [torch.randn(5, 3, **double) for _ in 'apn']
    assert_close(m.triplet_margin_with_distance_loss(*rows), F.triplet_margin_with_distance_loss(*rows), rtol=1e-12, atol=0)


def test_a_border_that_is_missing_where_nothing_counts():
    "A border of nan for a masked pair touches no value and no gradient, its own included"
    a, b, beta = torch.randn(4, 3, **double).requires_grad_(), torch.randn(4, 3, **double), torch.tensor([1., torch.nan, 1.2, .5], **double).requires_grad_()
    y, mask = torch.tensor([1., 0., 0., 1.]), torch.tensor([True, False, True, True])
    loss, expected = m.margin_loss(a, b, y, beta=beta, mask=mask), m.margin_loss(a[mask], b[mask], y[mask], beta=beta[mask])
    assert_close(loss, expected)
    for got, right in zip(torch.autograd.grad(loss, (a, beta)), torch.autograd.grad(expected, (a, beta))): assert_close(got, right)


@pytest.mark.parametrize('distance', ['euclidean', 'squared'])
def test_a_cloud_far_from_the_origin(distance):
    "A million away, distances of 1 keep their digits, because the middle of the cloud is taken off"
    torch.manual_seed(0)
    near = torch.randn(20, 7, **double)
    near = (near*2**20).round()/2**20  # so that adding a power of 2 is exact
    far = near + 2**20
    expected = (far.unsqueeze(1) - far).square().sum(-1)
    if distance == 'euclidean': expected = expected.sqrt()
    assert_close(m.distance_matrix(far, distance=distance), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('distance', ['euclidean', 'squared'])
def test_rows_that_are_equal_have_no_distance(distance):
    "Exactly, where the rounding of a product leaves a little, and with no gradient between them"
    torch.manual_seed(0)
    a = torch.randn(50, 100, **double)
    a = torch.cat([a, a]).requires_grad_()
    d = m.distance_matrix(a, distance=distance)
    same = torch.eye(50, dtype=torch.bool).repeat(2, 2)
    assert not d[same].any() and (d[~same] > 1).all()
    assert not torch.autograd.grad(d[same].sum(), a)[0].any()


@pytest.mark.parametrize('name', SAMPLES)
def test_pytorchs_samples(ops, name):
    "Value and gradient, in every input"
    n = 0
    for sample in ops[name].sample_inputs('cpu', torch.float64, requires_grad=True):
        inputs, rest = [sample.input, *sample.args], []
        if name.startswith('cosine'): inputs, rest = inputs[:2], [torch.where(inputs[2].detach() > 0, 1, -1)]
        got, expected = (value_and_grad(lambda *a, fn=fn: fn(*a, *rest, **sample.kwargs), *inputs) for fn in (getattr(m, name), getattr(F, name)))
        assert_same(got, expected, f'{name} {sample}', rtol=1e-9, atol=1e-11)
        n += 1
    assert n == SAMPLES[name]


@pytest.mark.parametrize('cls', ['CosineEmbeddingLoss'])
def test_pytorchs_module_inputs(cls):
    "The constructor's arguments of PyTorch's module give its numbers"
    from torch.testing._internal.common_modules import module_db
    info, = (o for o in module_db if o.module_cls is getattr(torch.nn, cls))
    for o in info.module_inputs_func(info, device='cpu', dtype=torch.float64, requires_grad=False, training=True):
        args = o.forward_input.args
        assert_close(getattr(m, cls)(**o.constructor_input.kwargs)(*args), getattr(torch.nn, cls)(**o.constructor_input.kwargs)(*args))


def test_norms_and_poses():
    "Every norm, swap and eps, for one vector, rows and sequences"
    for shape in (4,), (5, 4), (2, 3, 4):
        a, p, n = torch.randn(3, *shape, **double)
        for kw in dict(p=1.), dict(p=math.inf, margin=3.), dict(p=2.5, swap=True), dict(eps=0., margin=.1), dict(eps=.3, swap=True, margin=4.):
            got, expected = (value_and_grad(lambda *o, fn=fn: fn(*o, reduction='none', **kw), a, p, n) for fn in (m.triplet_margin_loss, F.triplet_margin_loss))
            assert_same(got, expected, f'{shape} {kw}')


def numbers(a, b, distance):
    "Distance of two lists of numbers"
    if distance == 'cosine':
        lengths = math.dist(a, [0]*len(a))*math.dist(b, [0]*len(b))
        return 1 - (sum(x*y for x, y in zip(a, b))/lengths if lengths else 0.)
    return math.dist(a, b)**(2 if distance == 'squared' else 1)


@pytest.mark.parametrize('distance', DISTANCES)
def test_distances(distance):
    "Pairs and matrices against plain floats; the same point is exactly 0, also far from the origin"
    a, b = torch.randn(6, 3, **double), torch.randn(4, 3, **double)
    a[2] = 0
    expected = torch.tensor([[numbers(x, y, distance) for y in b.tolist()] for x in a.tolist()], **double)
    assert_close(m.distance_matrix(a, b, distance=distance), expected)
    assert_close(m.pair_distance(a[:4], b, distance=distance), expected[:4].diagonal())
    assert_close(m.distance_matrix(a, distance=distance).diagonal()[[0, 1, 3]], torch.zeros(3, **double), rtol=0, atol=1e-15)
    far = torch.tensor([[1e4, 1e4], [1e4, 1e4 + .01], [1e4, 1e4]])
    if distance == 'euclidean':
        assert m.distance_matrix(far)[0, 2] == 0
        assert_close(m.distance_matrix(far)[0, 1].item(), .01, rtol=.05, atol=0)
    assert m.distance_matrix(a.half()).dtype == m.pair_distance(a.half(), a.half()).dtype == torch.float32


@pytest.mark.parametrize('size', [1e-40, 1e-20, 1., 1e20, 1e150])
def test_sizes(size):
    "Neither overflow nor underflow, in the value or in the slope"
    a = (torch.tensor([[3., 4.]], **double)*size).requires_grad_()
    d = m.pair_distance(a, torch.zeros(1, 2, **double))
    assert_close(d/size, torch.tensor([5.], **double))
    assert_close(torch.autograd.grad(d, a)[0], torch.tensor([[.6, .8]], **double))
    assert_close(m.distance_matrix(torch.cat([a, 0*a]))[0, 1]/size, torch.tensor(5., **double))
    assert_close(m.pair_distance(a, a.detach()*7, distance='cosine'), torch.zeros(1, **double), rtol=0, atol=1e-15)


def test_a_point_on_itself():
    "First and second derivatives of the distance of duplicates are 0"
    for fn in lambda a: m.pair_distance(a, a.detach()).sum(), lambda a: m.distance_matrix(a).sum(), lambda a: m.pair_distance(a, a.detach(), distance='cosine').sum():
        a = torch.zeros(2, 3, **double, requires_grad=True)
        g, = torch.autograd.grad(fn(a), a, create_graph=True)
        assert not g.any() and not torch.autograd.grad(g.sum(), a)[0].any()
    assert not torch.autograd.grad(m.distance_matrix(a, distance='squared').sum(), a)[0].any()
    b = torch.ones(2, 3, **double, requires_grad=True)
    for mining in MINING:
        g, = torch.autograd.grad(m.batch_triplet_loss(torch.cat([b, b]), torch.tensor([0, 1, 0, 1]), mining=mining), b, create_graph=True)
        assert not g.any()


@pytest.mark.parametrize('distance', DISTANCES)
def test_pair_losses(distance):
    "Contrastive and margin loss by their formulas, hard and soft answers"
    a, b, y = torch.randn(7, 3, **double), torch.randn(7, 3, **double), torch.tensor([1, 0, 0, 1, 0, .3, .8], **double)
    d = [numbers(p, q, distance) for p, q in zip(a.tolist(), b.tolist())]
    lack = lambda o: max(0., o)
    contrastive = [t*o**2 + (1-t)*lack(1.7 - o)**2 for t, o in zip(y.tolist(), d)]
    border = torch.rand(7, **double) + .5
    margin = [t*lack(o - c + .4) + (1-t)*lack(c - o + .4) for t, o, c in zip(y.tolist(), d, border.tolist())]
    assert_close(m.contrastive_loss(a, b, y, margin=1.7, distance=distance, reduction='none'), torch.tensor(contrastive, **double))
    assert_close(m.margin_loss(a, b, y, beta=border, margin=.4, distance=distance, reduction='none'), torch.tensor(margin, **double))
    assert_close(m.contrastive_loss(a[:5], b[:5], y[:5] == 1, distance=distance), m.contrastive_loss(a[:5], b[:5], y[:5].int(), distance=distance))
    defaults = [t*lack(o - 1.2 + .2) + (1-t)*lack(1.2 - o + .2) for t, o in zip(y.tolist(), d)]
    assert_close(m.margin_loss(a, b, y, distance=distance, reduction='none'), torch.tensor(defaults, **double))


def test_a_border_learns():
    "A border per class gets the count of equal pairs beyond it less that of different pairs before it, and none from masked pairs"
    border = torch.tensor([1., 2.], **double).requires_grad_()
    a, b = torch.zeros(4, 1, **double), torch.tensor([[1.5], [.9], [5.], [0.]], **double)
    loss = m.margin_loss(a, b, torch.tensor([1, 0, 1, 0]), beta=border[torch.tensor([0, 0, 1, 1])], reduction='sum', mask=torch.tensor([True, True, True, False]))
    assert_close(torch.autograd.grad(loss, border)[0], torch.tensor([0., -1.], **double))


def chosen(x, labels, mining, distance, counts):
    "Every triplet that a rule takes, by its words"
    rows, n = x.tolist(), len(labels)
    d = [[numbers(p, q, distance) for q in rows] for p in rows]
    live = [i for i in range(n) if counts[i]]
    for a in live:
        friends = [p for p in live if p != a and labels[p] == labels[a]]
        strangers = sorted((q for q in live if labels[q] != labels[a]), key=lambda q: d[a][q])
        if not friends or not strangers: continue
        if mining == 'hard': yield a, max(friends, key=lambda p: d[a][p]), strangers[0]
        for p in friends if mining != 'hard' else ():
            outside = [q for q in strangers if d[a][q] > d[a][p]]
            if mining == 'semihard': yield a, p, outside[0] if outside else strangers[-1]
            else: yield from ((a, p, q) for q in strangers)


@pytest.mark.parametrize('distance', DISTANCES)
@pytest.mark.parametrize('mining', MINING)
@pytest.mark.parametrize('block', [10**6, 40, 1])
def test_batches(mining, distance, block, monkeypatch):
    "All rules, distances and means against loops; in one matrix, in blocks and row by row; weights, masks, ignored labels, second derivatives"
    monkeypatch.setattr(m, '_BLOCK', block)
    for seed in range(2):
        torch.manual_seed(seed)
        x, y, s = torch.randn(11, 3, **double), torch.randint(3, (11,)), torch.rand(11, **double)
        mask = torch.rand(11) < .8
        y[3] = -100
        counts = mask & (y != -100)
        found = torch.tensor(list(chosen(x, y.tolist(), mining, distance, counts.tolist()))).T
        def slow(x, weight, what):
            a, b, c = (x[i] for i in found)
            w = weight[found[0]]
            each = (.4 + m.pair_distance(a, b, distance=distance) - m.pair_distance(a, c, distance=distance)).clamp(min=0)
            n = {'mean': w.sum(), 'nonzero': w[each > 0].sum(), 'sum': 1, 'batchmean': 11, 'element_mean': counts.sum()}[what]
            return (each*w).sum()/(n or 1)
        for weight in None, s:
            for what in 'mean', 'nonzero', 'sum', 'batchmean', 'element_mean':
                kw = dict(nonzero=True) if what == 'nonzero' else dict(reduction=what)
                fn = lambda x: m.batch_triplet_loss(x, y, mining=mining, margin=.4, distance=distance, mask=mask, sample_weight=weight, **kw)
                got = value_and_grad(fn, x)
                assert_same(got, value_and_grad(lambda x: slow(x, torch.ones(11, **double) if weight is None else s, what), x), f'{what}', rtol=1e-9, atol=1e-11)
        fn = lambda x: m.batch_triplet_loss(x, y, mining=mining, margin=.4, distance=distance, mask=mask)
        assert torch.autograd.gradgradcheck(fn, x.requires_grad_())


@pytest.mark.parametrize('mining', MINING)
def test_ties(mining):
    "A negative as far as the positive is not beyond it; a hinge that is exactly closed is not open"
    x, y = torch.tensor([[0.], [1.], [-1.], [2.]], **double), torch.tensor([0, 0, 1, 1])
    d = m.distance_matrix(x)
    same, me = y[:, None] == y, torch.eye(4, dtype=torch.bool)
    if mining == 'semihard':
        w, n = m.weigh_semihard(d, same & ~me, ~same, 1.5)
        assert w[0].tolist() == [0., 1., 0., -1.] and n.tolist() == [1]*4
    if mining == 'all':
        w, n = m.weigh_all(d, same & ~me, ~same, 1.)
        assert w[0].tolist() == [0., 1., -1., 0.] and n.tolist() == [2]*4
    if mining == 'hard':
        parts = m.batch_triplet_loss(x[[0, 1, 3]], torch.tensor([0, 0, 1]), mining='hard', margin=1., nonzero=True, reduction='parts')
        assert parts.total == 1 and parts.count == 1   # anchor 0 is exactly at the margin, anchor 1 is not


@pytest.mark.parametrize('mining', MINING)
def test_transforms_and_graphs(mining):
    "torch.func over batches of batches, forward derivatives, one graph, and half precision"
    x, y = torch.randn(3, 8, 4, **double), torch.arange(8) % 3
    fn = lambda x: m.batch_triplet_loss(x, y, mining=mining)
    rows = torch.stack([fn(o) for o in x])
    assert_close(torch.func.vmap(fn)(x), rows)
    slopes = torch.func.vmap(torch.func.grad(fn))(x)
    t = torch.randn_like(x[0])
    assert_close(torch.func.jvp(fn, (x[0],), (t,))[1], (slopes[0]*t).sum())
    assert_close(torch.compile(fn, fullgraph=True, backend='aot_eager')(x[0]), rows[0])
    low = x[0].bfloat16().requires_grad_()
    loss = fn(low)
    assert loss.dtype == torch.float32 and torch.autograd.grad(loss, low)[0].dtype == torch.bfloat16
    assert_close(loss, fn(low.float()))


def test_labels_of_any_kind():
    "Any whole numbers, of any dtype; only equality matters"
    x, y = torch.randn(8, 3), torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    for mining in MINING:
        expected = m.batch_triplet_loss(x, y, mining=mining)
        for other in y.to(torch.uint8), y.int(), 10**12*y - 7, -1 - y: assert_close(m.batch_triplet_loss(x, other, mining=mining), expected)
    assert_close(m.batch_triplet_loss(x, y == 2), m.batch_triplet_loss(x, (y == 2).long()))


PEAK = f"""if True:
    import sys, torch
    torch.set_num_threads(1)
    from losslab.pairs import batch_triplet_loss
    n, mining = int(sys.argv[1]), sys.argv[2]
    x = torch.randn(n, 128, requires_grad=True)
    batch_triplet_loss(x, torch.arange(n)//4, mining=mining).backward()
    assert x.grad.isfinite().all() and x.grad.any()
    print({PEAK_GB})"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the peak is read from /proc')
@pytest.mark.parametrize('mining,n', [('hard', 16384), ('semihard', 16384), ('all', 8192)])
def test_memory(mining, n):
    "16384 embeddings of 128 numbers, forward and backward, in far less than 2 GB (a matrix of their distances has 2 GB)"
    run = subprocess.run([sys.executable, '-c', PEAK, str(n), mining], capture_output=True, text=True, check=False, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.2


z, y, pair = torch.randn(3, 4), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
WRONG = {
    'signs': (ValueError, r'target\[1\] is -1, but answers lie between 0 and 1', lambda: m.contrastive_loss(z, z, 2*pair - 1)),
    'answers': (ValueError, r'target\[1\] is 0, but labels are -1 or 1; for labels 0 and 1 use 2\*target - 1', lambda: m.cosine_embedding_loss(z, z, pair)),
    'column': (ValueError, r'target has shape \(3, 1\) and the loss has shape \(3,\); nothing is broadcast', lambda: m.margin_loss(z, z, pair[:, None])),
    'one row': (ValueError, r'positive has shape \(1, 4\) and anchor has shape \(3, 4\)', lambda: m.triplet_margin_loss(z, z[:1], z)),
    'margin': (ValueError, 'margin is 0; it must be larger than 0', lambda: m.triplet_margin_loss(z, z, z, margin=0)),
    'cosine': (ValueError, 'margin is 2; it must be between -1 and 1', lambda: m.cosine_embedding_loss(z, z, 2*pair - 1, margin=2)),
    'norm': (ValueError, 'p is 0.5; it must be at least 1', lambda: m.triplet_margin_loss(z, z, z, p=.5)),
    'distance': (ValueError, "distance is 'l2'; it must be one of 'euclidean', 'squared', 'cosine'", lambda: m.contrastive_loss(z, z, pair, distance='l2')),
    'a matrix': (ValueError, r'distance_function gave shape \(3, 3\) for inputs of shape \(3, 4\)', lambda: m.triplet_margin_with_distance_loss(z, z, z, distance_function=m.distance_matrix)),
    'mining': (ValueError, "mining is 'easy'", lambda: m.batch_triplet_loss(z, y, mining='easy')),
    'floats': (TypeError, r'target is torch.float32; .* target.long\(\)', lambda: m.batch_triplet_loss(z, y.float())),
    'one-hot': (ValueError, r'if its rows are one-hot, use target.argmax\(1\)', lambda: m.batch_triplet_loss(z, F.one_hot(y))),
    'nonzero': (ValueError, 'nonzero is 3', lambda: m.batch_triplet_loss(z, y, nonzero=3)),
    'features': (ValueError, 'last axis must hold the features', lambda: m.pair_distance(z[:, :0], z[:, :0])),
    'integers': (TypeError, 'b has dtype torch.int64', lambda: m.pair_distance(z, z.long())),
    'other width': (ValueError, r'b has shape \(3, 2\); .* with the 4 features of a', lambda: m.distance_matrix(z, z[:, :2])),
    'border': (ValueError, r'beta has shape \(2,\), which does not expand', lambda: m.margin_loss(z, z, pair, beta=torch.ones(2))),
    'weights': (ValueError, r'sample_weight has shape \(3, 1\)', lambda: m.batch_triplet_loss(z, y, sample_weight=torch.ones(3, 1))),
    'mask': (TypeError, 'mask has dtype torch.int64', lambda: m.triplet_margin_loss(z, z, z, mask=y)),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_calls(name):
    "The error names the argument, what it got and what to do"
    error, text, wrong = WRONG[name]
    with pytest.raises(error, match=text): wrong()
