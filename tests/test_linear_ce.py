"The last layer and its loss in blocks: equal to the plain formula in float64 over every option, within its budget, and a citizen of autograd"
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import losslab as ll
from losslab import linear_ce as m
from losslab.bench import Alive
from oracle import assert_unspoilt

double = torch.float64
BLOCKS = 'rows', 'vocabulary'
both = pytest.mark.parametrize('blocks', BLOCKS)


def close(a, b, **kw): torch.testing.assert_close(a, b, **({'rtol': 1e-9, 'atol': 1e-11} | kw))


def run(h, w, b, y, backend='fused', **o):
    "Value, count, gradients and statistics, each element of the value weighted differently"
    tensors = [None if t is None else t.detach().clone().requires_grad_() for t in (h, w, b)]
    with ll.backend(backend): out = ll.linear_cross_entropy(*tensors[:2], y, linear_bias=tensors[2], **o)
    out, stats = out if o.get('return_stats') else (out, ())
    loss, count = out if isinstance(out, ll.LossParts) else (out, torch.zeros(()))
    used = [t for t in tensors if t is not None]
    return [loss.detach(), count.double(), *torch.autograd.grad((loss*torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum(), used), *stats]


def problem(seed, dtype=double):
    "A layer, labels and a random choice of options"
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    def rand(*s): return torch.rand(s, generator=g, dtype=dtype)
    lead, d, v = r.choice([(7,), (2, 5), (), (1,), (0,), (33,), (2, 3, 2)]), r.choice([1, 3, 8]), r.choice([1, 2, 13, 50])
    h, w, b = (torch.randn(*s, generator=g, dtype=dtype) for s in ((*lead, d), (v, d), (v,)))
    b, o = r.choice([b, None]), {}
    y = torch.randint(v, lead, generator=g)
    if b is not None and v > 2 and r.random() < .4: b[v//2] = -torch.inf
    if r.random() < .4:
        k = r.choice([1, 3])
        y, o['target_probs'] = torch.randint(v, (*lead, k), generator=g), rand(*lead, k)
    if v > 2: y = torch.where(y == v//2, 0, y)
    if r.random() < .5: y, o['ignore_index'] = torch.where(rand(*y.shape) < .4, r.choice([-100, -1]), y), (-100, -1)
    if r.random() < .4: o['weight'] = rand(v)
    if r.random() < .4: o['sample_weight'] = rand(*lead).masked_fill(rand(*lead) < .3, 0)
    if r.random() < .4: o['mask'] = rand(*lead) < .6
    if r.random() < .5: o['label_smoothing'] = r.choice([.2, 1.])
    if r.random() < .4: o['softcap'] = 2.
    if r.random() < .4: o['temperature'] = r.choice([.7, torch.tensor([1.4])])
    if r.random() < .4: o['z_loss'] = .1
    o |= dict(reduction=r.choice(ll.core.reductions), return_stats=r.random() < .5)
    if o['reduction'] in ('mean', 'batchmean') and r.random() < .3: o['normalizer'] = 7
    return (h, w, b, y), o


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([.02, .3, 3.]))
def test_blocks_are_the_formula(seed, budget):
    "Every option, reduction, shape and kind of label, both ways"
    args, o = problem(seed)
    expected = run(*args, backend='reference', **o)
    for blocks in BLOCKS:
        got = run(*args, budget=budget, blocks=blocks, **o)
        for a, b in zip(got, expected, strict=True): close(a, b)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_reference_is_cross_entropy(seed):
    "The reference itself, against `cross_entropy` of logits and labels written out"
    (h, w, b, y), o = problem(seed)
    o.pop('return_stats')
    z, probs, ignored = F.linear(h, w, b), o.pop('target_probs', None), o.pop('ignore_index', -100)
    got = run(h, w, b, y, backend='reference', ignore_index=ignored, **({} if probs is None else dict(target_probs=probs)), **o)
    if probs is not None:
        keep = (y >= 0).any(-1)
        o['mask'] = keep & o.get('mask', torch.tensor(True))
        y, ignored = torch.zeros_like(z).scatter_add(-1, y.clamp(min=0), probs.masked_fill(y < 0, 0)), None
    expected = ll.cross_entropy(z, y, dim=-1, ignore_index=ignored, **o)
    close(got[0], expected.total if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize('v,size', [(10, 3), (64, 64), (65, 64), (1, 5), (7, 1)])
def test_pieces(v, size):
    pieces = m._pieces(v, size)
    assert [i for p in pieces for i in range(v)[p]] == list(range(v)) and all(0 < p.stop - p.start <= size for p in pieces)


@pytest.mark.parametrize('v', [64, 65, 127, 200])
@pytest.mark.parametrize('softcap', [None, 3.])
def test_many_small_blocks(v, softcap):
    "Blocks that do not divide the problem, kept and not, chunks of one row"
    h, w, b, y = torch.randn(9, 4, dtype=double), torch.randn(v, 4, dtype=double), torch.randn(v, dtype=double), torch.randint(v, (9,))
    o = dict(label_smoothing=.1, z_loss=.01, softcap=softcap, return_stats=True)
    expected = run(h, w, b, y, backend='reference', **o)
    with pytest.MonkeyPatch.context() as patch:
        for plan in ('rows', 2, 0, 1), ('rows', 9, 0, 300), ('vocabulary', 7, 0, 1), ('vocabulary', 7, 3, 20), ('vocabulary', 64, 99, 2**9), ('vocabulary', 1, 0, 2):
            patch.setattr(m, 'plan_blocks', lambda *a, plan=plan, **k: m.BlockPlan(*plan))
            for a, c in zip(run(h, w, b, y, **o), expected, strict=True): close(a, c)
            if plan[0] == 'vocabulary':
                for a, c in zip(run(h, w, b, y, reduction='none', **o), run(h, w, b, y, backend='reference', reduction='none', **o), strict=True): close(a, c)


@pytest.mark.parametrize('o', [{}, dict(reduction='none'), dict(blocks='vocabulary'), dict(ignored=True), dict(softcap=3., label_smoothing=.1, z_loss=.1), dict(return_stats=True)], ids=str)
@pytest.mark.parametrize('budget', [.5, .2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('n,d,v', [(400, 8, 3000), (1500, 24, 1500)])
def test_the_budget_is_kept(n, d, v, dtype, budget, o):
    o = dict(o)
    h, w, b, y = torch.randn(n, d).to(dtype).requires_grad_(), torch.randn(v, d).to(dtype).requires_grad_(), torch.zeros(v, dtype=dtype).requires_grad_(), torch.randint(v, (n,))
    if o.pop('ignored', False): y[::7] = -100
    with Alive(h, w, b, y) as alive, ll.backend('fused'):
        loss = ll.linear_cross_entropy(h, w, y, linear_bias=b, budget=budget, **o)
        loss = (loss[0] if isinstance(loss, tuple) else loss).sum()
        loss.backward()
    assert alive.beyond(h.grad, w.grad, b.grad) <= budget*n*v*dtype.itemsize


def test_what_counts_is_counted():
    "The counter sees three copies of the logits in the plain way"
    h, w, y = torch.randn(200, 8).requires_grad_(), torch.randn(900, 8).requires_grad_(), torch.randint(900, (200,))
    with Alive(h, w, y) as alive: F.cross_entropy(F.linear(h, w), y).backward()
    assert 2.9 < alive.beyond(h.grad, w.grad)/(200*900*4) < 3.1


@both
def test_rows_that_do_not_count_are_never_computed(blocks):
    "NaN and inf in ignored, masked and weightless rows touch nothing; no gradient there"
    h, w, y = torch.randn(8, 3), torch.randn(11, 3), torch.tensor([0, -100, 2, 3, 10, 5, 6, 255])
    sw, mask = torch.tensor([1., 1, 1, 0, 2, 1, 1, 1]), torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    kept = [0, 4, 5, 6]
    for fill in torch.nan, torch.inf, 0.:
        dirty = h.clone()
        dirty[[1, 2, 3, 7]] = fill
        for backend in 'fused', 'reference':
            for reduction in 'mean', 'sum', 'none':
                o = dict(blocks=blocks, reduction=reduction, ignore_index=(-100, 255))
                a = run(dirty, w, None, y, backend=backend, sample_weight=sw, mask=mask, **o)
                assert not a[2][[1, 2, 3, 7]].any() and a[3].isfinite().all()
                if reduction == 'none': assert not a[0][[1, 2, 3, 7]].any()
                else: close(a[2][kept], run(h[kept], w, None, y[kept], sample_weight=sw[kept], **o)[2], rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'weighted_mean', 'element_mean', 'batchmean', 'none'])
def test_nothing_counts(blocks, reduction):
    h, w, b = torch.randn(4, 3), torch.randn(9, 3), torch.randn(9)
    for y, o in (torch.full((4,), -100), {}), (torch.ones(4).long(), dict(mask=torch.zeros(4).bool())), (torch.zeros(4, 2).long() - 100, dict(target_probs=torch.ones(4, 2))):
        assert not any(t.any() for t in run(h, w, b, y, blocks=blocks, reduction=reduction, **o))
    assert not any(t.any() for t in run(h[:0], w, b, y[:0, 0], blocks=blocks, reduction=reduction))


@both
def test_a_graph_that_is_kept(blocks):
    "A second backward gives the same numbers, whatever was done with the first ones; a freed graph says so"
    h, w, b = (torch.randn(*s, requires_grad=True) for s in ((70, 4), (90, 4), (90,)))
    y = torch.randint(90, (70,))
    with ll.backend('fused'): loss = ll.linear_cross_entropy(h, w, y, linear_bias=b, blocks=blocks)
    first = torch.autograd.grad(loss, (h, w, b), retain_graph=True)
    kept = [o.clone() for o in first]
    for o in first: o.mul_(9)
    for a, c in zip(torch.autograd.grad(3*loss, (h, w, b), retain_graph=True), kept): close(a, 3*c, rtol=1e-5, atol=1e-7)
    for a, c in zip(torch.autograd.grad(loss, (h, w, b)), kept): assert torch.equal(a, c)
    with pytest.raises(RuntimeError, match='second time'): torch.autograd.grad(loss, h)
    (g,) = torch.autograd.grad(ll.linear_cross_entropy(h, w.detach(), y, blocks=blocks), h)
    close(g, torch.autograd.grad(F.cross_entropy(F.linear(h, w), y), h)[0], rtol=1e-4, atol=1e-7)


@both
def test_derivatives(blocks):
    "Of first and second order, in all three, and through weights of rows"
    h, w, b = (torch.randn(*s, dtype=double, requires_grad=True) for s in ((4, 3), (6, 3), (6,)))
    y, sw = torch.tensor([0, 5, -100, 2]), torch.rand(4, dtype=double, requires_grad=True)
    for o in dict(), dict(reduction='none'), dict(softcap=2., label_smoothing=.1, z_loss=.1, weight=torch.rand(6, dtype=double), temperature=.8):
        def loss(h, w, b, o=o): return ll.linear_cross_entropy(h, w, y, linear_bias=b, blocks=blocks, **o)
        with ll.backend('fused'):
            torch.autograd.gradcheck(loss, (h, w, b))
            torch.autograd.gradgradcheck(loss, (h, w, b))
    with ll.backend('fused'):
        torch.autograd.gradcheck(lambda sw: ll.linear_cross_entropy(h, w, y, sample_weight=sw), sw)
        torch.autograd.gradcheck(lambda w: ll.linear_cross_entropy(h, w, y, sample_weight=sw.detach()), w)
        p = torch.rand(4, 2, dtype=double, requires_grad=True)
        torch.autograd.gradcheck(lambda p: ll.linear_cross_entropy(h, w, torch.tensor([[0, 1]]*4), target_probs=p), p)
        torch.autograd.gradcheck(lambda t: ll.linear_cross_entropy(h, w, y, temperature=t), torch.tensor(1.3, dtype=double, requires_grad=True))


def test_transformations_take_the_formula():
    "Blocks step aside by themselves"
    h, w, y = torch.randn(6, 3, dtype=double), torch.randn(9, 3, dtype=double), torch.randint(9, (6,))
    expected = F.cross_entropy(F.linear(h, w), y, reduction='none')
    def one(h, y): return ll.linear_cross_entropy(h, w, y)
    with ll.backend('fused'):
        close(torch.func.vmap(one)(h, y), expected)
        value, slope = torch.func.jvp(lambda h: one(h, y), (h,), (h,))
        close(slope, (torch.func.grad(one)(h, y)*h).sum())
        with torch.autograd.forward_ad.dual_level():
            dual = one(torch.autograd.forward_ad.make_dual(h, h), y)
            close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)
        close(torch.compile(one, fullgraph=True, backend='eager')(h, y), expected.mean())
        assert not m._may_block(h, w, F.one_hot(y, 9)) and m._may_block(h, w, y)
        close(ll.linear_cross_entropy(h, w, F.one_hot(y, 9).double()), expected.mean())


def test_who_serves():
    "The formula below four million logits, blocks above; by hand either"
    small, large = (torch.zeros(8, 2), torch.zeros(9, 2), torch.zeros(8).long()), (torch.zeros(2**11, 2), torch.zeros(2**11, 2), torch.zeros(2**11).long())
    assert ll.implementation('linear_cross_entropy', *small) is m.linear_cross_entropy_plain
    assert ll.implementation('linear_cross_entropy', *large) is m.linear_cross_entropy_blocks
    with ll.backend('reference'): assert ll.implementation('linear_cross_entropy', *large) is m.linear_cross_entropy_plain


@pytest.mark.parametrize('layout', ['strided', 'transposed', 'expanded'])
@both
def test_layouts(layout, blocks):
    h, w = torch.randn(4, 6, 5, dtype=double), torch.randn(9, 10, dtype=double)
    y = torch.randint(9, (4, 6))
    if layout == 'strided': h, w = torch.randn(4, 6, 10, dtype=double)[..., ::2], w[:, ::2]
    if layout == 'transposed': h, w = h.transpose(0, 1).contiguous().transpose(0, 1), torch.randn(5, 9, dtype=double).t()
    if layout == 'expanded': h, w = h[:1].expand(4, 6, 5), w[:1, :5].expand(9, 5)
    h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
    with ll.backend('fused'): got = torch.autograd.grad(ll.linear_cross_entropy(h, w, y, blocks=blocks), (h, w))
    for a, b in zip(got, torch.autograd.grad(F.cross_entropy(F.linear(h, w).flatten(0, 1), y.flatten()), (h, w))): close(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves(dtype):
    "Computed and returned in float32, gradients in the dtype given, no further from float64 than PyTorch's own"
    h, w, y = torch.randn(150, 24).to(dtype), (torch.randn(900, 24)/3).to(dtype), torch.randint(900, (150,))
    exact = run(h.double(), w.double(), None, y, backend='reference')
    got = run(h, w, None, y, budget=.3)
    a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(a, b), y)
    theirs = [loss, None, *torch.autograd.grad(loss, (a, b))]
    assert got[0].dtype == torch.float32 and got[2].dtype == got[3].dtype == dtype
    for i in 0, 2, 3: assert (got[i].double() - exact[i]).norm() <= 1.05*(theirs[i].detach().double() - exact[i]).norm() + 1e-6


def test_autocast():
    h, w, y = torch.randn(50, 8), torch.randn(60, 8), torch.randint(60, (50,))
    with torch.autocast('cpu', torch.bfloat16):
        got, plain = run(h, w, None, y), run(h, w, None, y, backend='reference')
        mixed = run(h.bfloat16(), w, None, y)
    for a, b, c in zip(got, plain, mixed): close(a, b, rtol=1e-2, atol=1e-4), close(a, c.to(a.dtype), rtol=1e-2, atol=1e-4)
    assert got[0].dtype == torch.float32 and got[2].dtype == torch.float32 and mixed[2].dtype == torch.bfloat16


@pytest.mark.parametrize('scale', [1e4, 1e30])
@both
def test_large_logits(scale, blocks):
    h, w, y = scale*torch.randn(20, 3), torch.randn(70, 3), torch.randint(70, (20,))
    for a, b in zip(run(h, w, None, y, blocks=blocks, budget=.3), run(h, w, None, y, backend='reference')):
        assert a.isfinite().all()
        close(a, b, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_wanted():
    "Without gradients nothing is kept, and only what needs one gets one"
    h, w, y = torch.randn(400, 4), torch.randn(2000, 4), torch.randint(2000, (400,))
    with Alive(h, w, y) as alive, ll.backend('fused'): loss = ll.linear_cross_entropy(h, w, y, budget=.2)
    assert not loss.requires_grad and alive.beyond() <= .2*400*2000*4
    close(loss, F.cross_entropy(F.linear(h, w), y), rtol=1e-5, atol=1e-6)


def test_parts_and_module():
    h, w, y = torch.randn(30, 4, dtype=double), torch.randn(50, 4, dtype=double), torch.randint(50, (30,))
    o = dict(weight=torch.rand(50, dtype=double), label_smoothing=.1)
    with ll.backend('fused'):
        pieces = [ll.linear_cross_entropy(h[s], w, y[s], reduction='parts', **o) for s in (slice(0, 11), slice(11, 30))]
        whole = ll.LinearCrossEntropyLoss(**o)(h, w, y)
    close(sum(pieces).mean, whole)
    close(whole, F.cross_entropy(F.linear(h, w), y, **o))


def test_plans():
    for n, v, d in (4096, 128256, 2048), (1, 10, 3), (0, 5, 2), (100, 50, 4):
        for dtype in torch.float32, torch.bfloat16, double:
            for budget in .001, .15, .4, 1., 5.:
                plan = m.plan_blocks(n, v, d, dtype, budget)
                assert plan.chunk >= 1 and plan.kept >= 0
                assert plan.block >= min(n if plan.way == 'rows' else v, 1) and (plan.way == 'vocabulary' or dtype != torch.bfloat16)
    assert m.plan_blocks(4096, 128256, 2048, budget=.4).way == 'rows' and m.plan_blocks(4096, 128256, 2048, budget=.01).way == 'vocabulary'


h0, w0, y0 = torch.zeros(5, 3), torch.zeros(7, 3), torch.zeros(5).long()
BAD = {
    'linear_weight (3, 7)': dict(linear_weight=w0.t()), 'hidden is a list': dict(hidden=[[1.]]), 'linear_bias has shape (3,)': dict(linear_bias=torch.zeros(3)),
    'target must be (5,) class indices or (5, 7) shares': dict(target=y0[:4]), 'target is a list': dict(target=[0]*5), 'use one for all': dict(hidden=h0.half()),
    'target[0] is 7, but there are 7 classes': dict(target=y0 + 7), 'K per element': dict(target_probs=torch.ones(5)),
    'target_probs has shape (5, 2)': dict(target=torch.zeros(5, 1).long(), target_probs=torch.ones(5, 2)),
    'target has dtype torch.float32; beside target_probs': dict(target=torch.zeros(5, 1), target_probs=torch.ones(5, 1)),
    'target_probs[0, 0] is -1': dict(target=torch.zeros(5, 1).long(), target_probs=-torch.ones(5, 1)),
    'target[0, 0] is -3': dict(target=torch.zeros(5, 1).long() - 3, target_probs=torch.ones(5, 1)),
    'budget is 0': dict(budget=0), "blocks is 'columns'": dict(blocks='columns'), 'weight has shape (6,)': dict(weight=torch.ones(6)), 'softcap is -1': dict(softcap=-1.),
    'temperature is 0': dict(temperature=0.), 'label_smoothing is 2': dict(label_smoothing=2), 'z_loss is -1': dict(z_loss=-1.), 'mask has shape (4,)': dict(mask=torch.ones(4).bool()),
    'sample_weight has shape (5, 1)': dict(sample_weight=torch.ones(5, 1)), "reduction is 'avg'": dict(reduction='avg'), 'dtype torch.int64': dict(hidden=h0.long())}


@pytest.mark.parametrize('says', BAD)
@pytest.mark.parametrize('backend', ['fused', 'reference'])
def test_errors(says, backend):
    import re
    o = dict(hidden=h0, linear_weight=w0, target=y0) | BAD[says]
    with ll.backend(backend), pytest.raises((ValueError, TypeError), match=re.escape(says)): ll.linear_cross_entropy(o.pop('hidden'), o.pop('linear_weight'), o.pop('target'), **o)


@pytest.mark.parametrize('blocks', ['rows', 'vocabulary'])
def test_labels_that_change_before_the_backward_pass(blocks):
    hidden, weight, y = torch.randn(6, 5, requires_grad=True), torch.randn(40, 5), torch.randint(1, 40, (6,))
    def loss_fn(): return ll.linear_cross_entropy(hidden, weight, y, blocks=blocks, reduction='none').sum()
    with ll.backend('fused'): assert_unspoilt(loss_fn, hidden, y)
