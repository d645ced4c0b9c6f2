"Contrastive losses against sums written out, in every option; blocks, processes, memory"
import math
import subprocess
import sys
from itertools import product

import pytest
import torch
from oracle import PEAK_GB, REDUCTIONS, cotangent
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import losslab as ll
from losslab import infonce
from losslab.core import reduce_loss

LOSSES = {'nce': ll.info_nce_loss, 'xent': ll.nt_xent_loss, 'clip': ll.clip_loss, 'siglip': ll.siglip_loss, 'supcon': ll.supcon_loss}
PAIRED = [ll.info_nce_loss, ll.nt_xent_loss, ll.clip_loss, ll.siglip_loss]
IDS = torch.tensor([3, 1, 3, 0, 5, 1, 8])
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 4])
MASK = torch.tensor([True, True, True, False, True, True, True])


def rows(n=7, d=2, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))


def sim(u, v, kind):
    "One similarity, by hand"
    dot = sum(a*b for a, b in zip(u, v))
    return dot if kind == 'dot' else dot/(sum(a*a for a in u).sqrt()*sum(b*b for b in v).sqrt())


def answer(scores, right):
    "Minus the logarithm of the share of `right` among the exponentials, by hand"
    return -(scores[right].exp()/sum(o.exp() for o in scores.values())).log()


def nce_by_hand(q, k, i, used, ids, t, kind, negatives=None, in_batch=True):
    scores = {j: sim(q[i], k[j], kind)/t for j in used if j == i or in_batch and (ids is None or ids[j] != ids[i])}
    if negatives is not None:
        for m, o in enumerate(negatives if negatives.ndim == 2 else negatives[i]): scores['n', m] = sim(q[i], o, kind)/t
    return answer(scores, i)


def by_hand(name, a, b, used, ids=None, t=.1, kind='cosine', labels=None, bias=0., variant='out', **more):
    "One value per row of `used`, as sums over pairs"
    values = []
    for i in used:
        if name == 'nce': values.append(nce_by_hand(a, b, i, used, ids, t, kind, **more))
        if name == 'clip': values.append((nce_by_hand(a, b, i, used, ids, t, kind) + nce_by_hand(b, a, i, used, ids, t, kind))/2)
        if name == 'siglip':
            other = [j for j in used if j != i and (ids is None or ids[j] != ids[i])]
            values.append((1 + (-sim(a[i], b[i], kind)/t - bias).exp()).log() + sum((1 + (sim(a[i], b[j], kind)/t + bias).exp()).log() for j in other))
        if name == 'xent':
            views, both = {0: a, 1: b}, []
            for v, z in views.items():
                scores = {(w, j): sim(z[i], views[w][j], kind)/t for w, j in product((0, 1), used)
                          if (w, j) != (v, i) and (j == i or ids is None or ids[j] != ids[i])}
                both.append(answer(scores, (1-v, i)))
            values.append(sum(both)/2)
        if name == 'supcon':
            scores = {j: sim(a[i], a[j], kind)/t for j in used if j != i}
            friends = [j for j in scores if labels[j] == labels[i]]
            if not friends: values.append(a.sum()*0)
            elif variant == 'out': values.append(sum(answer(scores, j) for j in friends)/len(friends))
            else: values.append(-(sum((-answer(scores, j)).exp() for j in friends)/len(friends)).log())
    return values


def compare(fn, expected, used, a, b, weight=None, counts=None, **options):
    "The value of every reduction, and both gradients"
    own = torch.zeros(len(a), dtype=torch.bool).index_fill(0, torch.tensor(used), True) if counts is None else counts
    options |= {} if weight is None else dict(sample_weight=weight)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    each = torch.zeros(len(a), dtype=torch.float64).index_put((torch.tensor(used),), torch.stack(expected(a, b)))
    for reduction in REDUCTIONS:
        want, got = reduce_loss(each, reduction, sample_weight=weight, mask=own), fn(a, b, reduction=reduction, **options)
        assert_close(got, want, rtol=1e-10, atol=1e-12)
        if reduction not in ('none', 'mean'): continue
        pull = cotangent(want)
        g, h = (torch.autograd.grad((o*pull).sum(), (a, b), retain_graph=True, allow_unused=True) for o in (got, want))
        for x, y in zip(g, h): assert_close(torch.zeros_like(a) if x is None else x, torch.zeros_like(a) if y is None else y, rtol=1e-9, atol=1e-11)
    total, count = fn(a, b, reduction='parts', **options)
    assert_close(total/count, fn(a, b, **options))


GRID = list(product((None, IDS), (None, MASK), (False, True), ('cosine', 'dot'), (None, 3)))


@pytest.mark.parametrize('ids,mask,weighted,kind,block', GRID[::5])
@pytest.mark.parametrize('name', ['nce', 'xent', 'clip', 'siglip'])
def test_pairs_by_hand(name, ids, mask, weighted, kind, block):
    "Losses over pairs are the sums of their papers, whatever is masked, weighed or the same"
    a, b = rows()
    used = [i for i in range(7) if mask is None or mask[i]]
    t, weight = .4, torch.rand(7, dtype=torch.float64) if weighted else None
    scale = dict(temperature=t) if name in ('nce', 'xent') else dict(logit_scale=math.log(1/t))
    bias = dict(bias=-.7) if name == 'siglip' else {}
    ours = {f'logit_{k}': v for k, v in bias.items()}
    compare(LOSSES[name], lambda a, b: by_hand(name, a, b, used, ids, t, kind, **bias), used, a, b, weight,
            ids=ids, mask=mask, similarity=kind, block_size=block, **scale, **ours)


@pytest.mark.parametrize('variant', ['out', 'in'])
@pytest.mark.parametrize('mask,weighted,kind,block', list(product((None, MASK), (False, True), ('cosine', 'dot'), (None, 2)))[::3])
def test_supcon_by_hand(variant, mask, weighted, kind, block):
    "A mean over positives, outside or inside of the logarithm; rows without any do not count"
    a, b = rows()
    labels = LABELS.masked_fill(torch.arange(7) == 4, -100)  # class 0 keeps three rows
    used = [i for i in range(7) if (mask is None or mask[i]) and i != 4]
    alone = torch.tensor([i in used and any(labels[j] == labels[i] for j in used if j != i) for i in range(7)])
    weight = torch.rand(7, dtype=torch.float64) if weighted else None
    compare(lambda a, b, **o: ll.supcon_loss(a, labels, **o), lambda a, b: by_hand('supcon', a, b, used, None, .4, kind, labels=labels, variant=variant),
            used, a, b, weight, alone, variant=variant, mask=mask, similarity=kind, block_size=block, temperature=.4)


@pytest.mark.parametrize('in_batch', [False, True])
@pytest.mark.parametrize('shape', [(4, 2), (7, 4, 2), (0, 2), (7, 0, 2)])
@pytest.mark.parametrize('mask,block', [(None, None), (MASK, 2)])
def test_negatives_by_hand(in_batch, shape, mask, block):
    "Explicit negatives, shared or not, with the batch or instead of it"
    (a, b), negatives = rows(), torch.randn(*shape, dtype=torch.float64)
    used = [i for i in range(7) if mask is None or mask[i]]
    compare(ll.info_nce_loss, lambda a, b: by_hand('nce', a, b, used, IDS, .4, negatives=negatives, in_batch=in_batch), used, a, b,
            negatives=negatives, in_batch=in_batch, ids=IDS, mask=mask, block_size=block, temperature=.4)


def test_negatives_learn_and_hide():
    "Negatives get gradients; those of a masked row may be broken"
    (a, b), own = rows(), torch.randn(7, 4, 2, dtype=torch.float64)
    own[3] = torch.nan
    own.requires_grad_()
    grad, = torch.autograd.grad(ll.info_nce_loss(a, b, negatives=own, mask=MASK), own)
    assert grad[MASK].abs().sum((1, 2)).all() and not grad[3].any()
    assert ll.info_nce_loss(a.float(), b.float(), negatives=own.detach().half(), mask=MASK).dtype == torch.float32


def test_views():
    "Several views are rows with the label of their thing; two without labels are NT-Xent"
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, -100])
    mask, w = torch.tensor([True, False, True, True, True]), torch.rand(5, dtype=torch.float64)
    flat = ll.supcon_loss(x.flatten(0, 1), labels.repeat_interleave(3), mask=mask.repeat_interleave(3), reduction='none')
    for block in None, 4:
        each = ll.supcon_loss(x, labels, mask=mask, reduction='none', block_size=block)
        assert_close(each, flat.view(5, 3).mean(1))
        kept = mask & (labels >= 0)
        assert_close(ll.supcon_loss(x, labels, mask=mask, sample_weight=w, block_size=block), (w*each)[kept].sum()/w[kept].sum())
    assert_close(ll.supcon_loss(x[:, :2], reduction='none', mask=mask), ll.nt_xent_loss(x[:, 0], x[:, 1], mask=mask, reduction='none'))
    assert_close(ll.supcon_loss(x[:, :1], labels), ll.supcon_loss(x[:, 0], labels))
    assert ll.supcon_loss(x[:, :1]) == 0 and ll.supcon_loss(x[:, :0]) == 0
    assert_close(ll.supcon_loss(x, labels, ignore_index=(0, -100)), ll.supcon_loss(x[[1, 3]], labels[[1, 3]]))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer(dtype):
    a, b = rows()
    assert_close(ll.supcon_loss(a, LABELS.to(dtype)), ll.supcon_loss(a, LABELS))
    assert_close(ll.clip_loss(a, b, ids=IDS.to(dtype)), ll.clip_loss(a, b, ids=IDS))


def test_unit_rows():
    "Directions at any scale, and nothing from nothing, in value and in both derivatives"
    x = torch.tensor([[3., 4.], [0., 0.], [-1e-300, 0.], [1e300, 1e300]], dtype=torch.float64)
    want = torch.tensor([[.6, .8], [0., 0.], [-1., 0.], [.5**.5, .5**.5]], dtype=torch.float64)
    assert_close(infonce.unit_rows(x), want, rtol=1e-15, atol=0)
    assert_close(infonce.unit_rows(x.clamp(-1e38, 1e38).float()*torch.tensor([[1e-30], [1.], [1.], [1.]]))[0], want[0].float())
    x = x[:2].clone().requires_grad_()
    jac = torch.autograd.functional.jacobian(infonce.unit_rows, x)
    assert_close(jac[0, :, 0], torch.tensor([[.64, -.48], [-.48, .36]], dtype=torch.float64)/5)
    assert not jac[1].any()
    for fn in PAIRED:
        a, b = rows()
        a[2] = 0
        first, = torch.autograd.grad(fn(a.requires_grad_(), b).sum(), a, create_graph=True)
        assert first.isfinite().all() and not first[2].any() and torch.autograd.grad(first.square().sum(), a)[0].isfinite().all()


@pytest.mark.parametrize('fn', PAIRED, ids=lambda o: o.__name__)
def test_scale_invariance(fn):
    "Cosines forget lengths: 1e-18, 1e18 and 1 give one loss, in float32"
    a, b = rows(dtype=torch.float32)
    for s in 1e-30, 1e30: assert_close(fn(a*s, b/s), fn(a, b))


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(name, dtype):
    "Halves are computed and returned in float32, also under autocast, with gradients in their dtype"
    a, b = rows(dtype=dtype)
    call = lambda a, b: LOSSES[name](a, LABELS if name == 'supcon' else b, temperature=.05) if name not in ('clip', 'siglip') else LOSSES[name](a, b)
    x = a.clone().requires_grad_()
    loss = call(x, b)
    assert loss.dtype == torch.float32 and torch.autograd.grad(loss, x)[0].dtype == dtype
    assert_close(loss, call(a.float(), b.float()))
    assert_close(loss.double(), call(a.double(), b.double()), rtol=1e-5, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16): assert_close(call(a.float(), b.float()), call(a.float(), b.float()), rtol=0, atol=0)
    with torch.autocast('cpu', torch.bfloat16): assert_close(call(a.float(), b.float()), loss.detach())


def test_mixed_dtypes():
    "The larger precision wins"
    a, b = rows()
    for fn in PAIRED:
        assert fn(a.float(), b).dtype == fn(a, b.half()).dtype == torch.float64
        assert fn(a.float(), b.half()).dtype == torch.float32


@pytest.mark.parametrize('fn', [ll.clip_loss, ll.siglip_loss], ids=lambda o: o.__name__)
def test_learned_scale(fn):
    "A tensor, a parameter and a number are one; derivatives in all of them; a clamp has no slope"
    (a, b), t = rows(), torch.tensor([.7], dtype=torch.float64, requires_grad=True)
    assert_close(fn(a, b, logit_scale=t), fn(a, b, logit_scale=.7))
    assert torch.autograd.gradcheck(lambda t: fn(a, b, logit_scale=t, block_size=2), t)
    assert torch.autograd.gradgradcheck(lambda t: fn(a, b, logit_scale=t, block_size=2), t)
    assert_close(fn(a, b, logit_scale=50.), fn(a, b, logit_scale=math.log(100.)))
    assert_close(fn(a, b, logit_scale=2., max_scale=3.), fn(a, b, logit_scale=math.log(3.)))
    assert_close(fn(a, b, logit_scale=math.log(200.), max_scale=None), fn(a, b, logit_scale=math.log(200.), max_scale=200.))
    high = torch.tensor(5., dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(fn(a, b, logit_scale=high), high)[0] == 0
    assert torch.autograd.grad(fn(a, b, logit_scale=high, max_scale=None), high)[0] != 0
    module = ll.ClipLoss(logit_scale=nn.Parameter(torch.tensor(2.))) if fn is ll.clip_loss else ll.SigLipLoss(logit_bias=nn.Parameter(torch.tensor(-2.)))
    module(a, b).backward()
    assert [p.grad is not None for p in module.parameters()] == [True]
    assert len(module.state_dict()) == 1 and '=tensor of shape ()' in repr(module)


def test_learned_bias_and_temperature():
    (a, b), bias = rows(), torch.tensor(-1., dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: ll.siglip_loss(a, b, logit_bias=o), bias)
    assert_close(ll.siglip_loss(a, b, logit_bias=bias.float()), ll.siglip_loss(a, b, logit_bias=-1))
    t = torch.tensor(.3, dtype=torch.float64, requires_grad=True)
    for call in lambda t: ll.info_nce_loss(a, b, temperature=t), lambda t: ll.nt_xent_loss(a, b, temperature=t), lambda t: ll.supcon_loss(a, LABELS, temperature=t):
        assert torch.autograd.gradcheck(call, t)
        assert_close(call(t), call(.3))


CALLS = {'nce': lambda a, b, **o: ll.info_nce_loss(a, b, negatives=b.detach().clone()*.5 + 1, ids=IDS, **o), 'xent': lambda a, b, **o: ll.nt_xent_loss(a, b, mask=MASK, **o),
         'clip': ll.clip_loss, 'siglip': lambda a, b, **o: ll.siglip_loss(a, b, ids=IDS, **o), 'supcon': lambda a, b, **o: ll.supcon_loss(torch.stack([a, b], 1), LABELS, **o)}


@pytest.mark.parametrize('name', CALLS)
def test_blocks(name):
    "Blocks of any size give the value, gradient and second derivative of the whole; forwards and without a graph too"
    def derivatives(**o):
        a, b = (t.requires_grad_() for t in rows())
        loss = CALLS[name](a, b, **o)
        first = torch.autograd.grad(loss, (a, b), create_graph=True)
        return loss.detach(), *first, *torch.autograd.grad(sum(g.pow(3).sum() for g in first), (a, b))
    whole = derivatives()
    for size in 1, 5, 13:
        for got, expected in zip(derivatives(block_size=size), whole): assert_close(got, expected, rtol=1e-9, atol=1e-11)
    a, b = rows()
    with torch.no_grad(): assert_close(CALLS[name](a, b, block_size=2), whole[0])
    call = lambda a: CALLS[name](a, b, block_size=5)
    assert torch.autograd.gradcheck(call, a.requires_grad_(), check_forward_ad=True)
    assert_close(torch.func.grad(call)(a), whole[1])
    assert_close(torch.compile(CALLS[name], fullgraph=True, backend='eager')(a, b, block_size=2), whole[0])


def test_blocks_are_chosen_by_size(monkeypatch):
    "Small batches use one matrix, large ones blocks of 8 million, and the numbers agree"
    sizes, one = [], infonce.checkpoint
    monkeypatch.setattr(infonce, 'checkpoint', lambda fn, *args, **o: sizes.append(len(args[0])) or one(fn, *args, **o))
    a, b = rows(4100, 2, dtype=torch.float32)
    small = ll.info_nce_loss(a[:4096], b[:4096])
    assert not sizes
    large = ll.info_nce_loss(a, b)
    assert sizes == [2046, 2046, 8]
    assert_close(large, ll.info_nce_loss(a, b, block_size=4100))
    assert abs(large - small) < .1


PEAK = f'''
import torch, losslab as ll
torch.set_num_threads(1)
a, b = torch.randn(2, 16384, 128).unbind(0)
a.requires_grad_(); b.requires_grad_()
loss = ll.info_nce_loss(a, b)
loss.backward()
assert a.grad.isfinite().all() and b.grad.abs().sum() > 0
print({PEAK_GB}, loss.item())
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='the peak is read from /proc')
def test_memory_of_a_large_batch():
    "16 384 pairs of 128 numbers, forward and backward, within 2 GB of a fresh process"
    run = subprocess.run([sys.executable, '-c', PEAK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    peak, loss = map(float, run.stdout.split())
    assert peak < 2 and 9.5 < loss < 10.5


@pytest.mark.parametrize('name', CALLS)
def test_nobody_else(name):
    "One row, no row, no row that counts: 0, with gradients of exactly 0; SigLIP still asks about the pair itself"
    for n, o in (1, {}), (0, {}), (7, dict(mask=torch.zeros(7, dtype=torch.bool))):
        a, b = (t[:n].clone().requires_grad_() for t in rows())
        call = lambda **more: LOSSES[name](a, LABELS[:n] if name == 'supcon' else b, **o, **more)
        for reduction in 'mean', 'sum', 'element_mean', 'batchmean', 'weighted_mean':
            loss = call(reduction=reduction)
            grad, = torch.autograd.grad(loss, a)
            if name == 'siglip' and n == 1: assert loss > 0
            else: assert loss == 0 and not grad.any()
        assert call(reduction='none').shape == (n,)


def test_no_positives():
    "Labels that are all different, all the same, or one pair among many"
    a, _ = rows()
    for labels in torch.arange(7), torch.zeros(7).long(), torch.tensor([0, 0, 1, 2, 3, 4, 5]):
        for variant in 'out', 'in':
            x = a.clone().requires_grad_()
            loss = ll.supcon_loss(x, labels, variant=variant)
            grad, = torch.autograd.grad(loss, x)
            assert loss.isfinite() and grad.isfinite().all()
            if len(labels.unique()) == 7: assert loss == 0 and not grad.any()
    for variant in 'out', 'in':
        each = ll.supcon_loss(a, torch.tensor([0, 0, 1, 2, 3, 4, 5]), variant=variant, reduction='none')
        assert (each != 0).tolist() == [True, True] + [False]*5
        assert_close(ll.supcon_loss(a, torch.tensor([0, 0, 1, 2, 3, 4, 5]), variant=variant), each[:2].mean())


@pytest.mark.parametrize('fn', PAIRED, ids=lambda o: o.__name__)
def test_vmap_over_batches(fn):
    "Several batches at once are several calls, with their gradients"
    a, b = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert_close(torch.func.vmap(fn)(a, b), torch.stack([fn(x, y) for x, y in zip(a, b)]))
    grads = torch.func.vmap(torch.func.grad(fn))(a, b)
    assert_close(grads, torch.stack([torch.func.grad(fn)(x, y) for x, y in zip(a, b)]))
    ids = torch.randint(3, (3, 5))
    assert_close(torch.func.vmap(lambda x, y, i: fn(x, y, ids=i))(a, b, ids), torch.stack([fn(x, y, ids=i) for x, y, i in zip(a, b, ids)]))


def test_compiled_options():
    a, b = rows()
    for fn, o in [(ll.info_nce_loss, dict(ids=IDS, mask=MASK, temperature=torch.tensor(.3))), (ll.clip_loss, dict(logit_scale=torch.tensor(1.))),
                  (ll.siglip_loss, dict(mask=MASK)), (ll.nt_xent_loss, dict(ids=IDS))]:
        assert_close(torch.compile(fn, fullgraph=True, backend='eager')(a, b, **o), fn(a, b, **o))


ERRORS = [
    (lambda a, b: ll.info_nce_loss(a.long(), b), TypeError, 'query has dtype torch.int64'),
    (lambda a, b: ll.info_nce_loss(a, b.long()), TypeError, 'key has dtype torch.int64'),
    (lambda a, b: ll.info_nce_loss(a, None), TypeError, 'key is a NoneType'),
    (lambda a, b: ll.nt_xent_loss(a, b[:3]), ValueError, 'view2 has shape (3, 2) and view1 has shape (7, 2)'),
    (lambda a, b: ll.clip_loss(a[0], b[0]), ValueError, 'image has shape (2,); it must have shape (N, D), one vector per row'),
    (lambda a, b: ll.clip_loss(a[:, :0], b[:, :0]), ValueError, 'image has shape (7, 0)'),
    (lambda a, b: ll.clip_loss(a, b, ids=IDS[:2]), ValueError, 'ids has shape (2,); it must be (7,)'),
    (lambda a, b: ll.clip_loss(a, b, ids=IDS.float()), TypeError, 'ids has dtype torch.float32; it must hold integers: ids.long()'),
    (lambda a, b: ll.clip_loss(a, b, ids=[1]*7), TypeError, 'ids is a list; it must be a tensor of 7 integers'),
    (lambda a, b: ll.clip_loss(a, b, ids=MASK), TypeError, 'ids has dtype torch.bool'),
    (lambda a, b: ll.clip_loss(a, b, similarity='euclid'), ValueError, "similarity is 'euclid'; it must be one of 'cosine', 'dot'"),
    (lambda a, b: ll.clip_loss(a, b, max_scale=0), ValueError, 'max_scale is 0; it must be larger than 0'),
    (lambda a, b: ll.clip_loss(a, b, logit_scale=torch.ones(2)), ValueError, 'logit_scale has shape (2,); it must be one number'),
    (lambda a, b: ll.siglip_loss(a, b, logit_bias='x'), TypeError, "logit_bias is 'x' (str); it must be a number"),
    (lambda a, b: ll.info_nce_loss(a, b, temperature=-1.), ValueError, 'temperature is -1.0; it must be larger than 0'),
    (lambda a, b: ll.info_nce_loss(a, b, temperature=torch.ones(7)), ValueError, 'temperature has shape (7,); it must be one number'),
    (lambda a, b: ll.info_nce_loss(a, b, block_size=0), ValueError, 'block_size is 0; it must be at least 1'),
    (lambda a, b: ll.info_nce_loss(a, b, gather=1.5), ValueError, 'gather is 1.5; it must be one of True, False'),
    (lambda a, b: ll.info_nce_loss(a, b, in_batch=None), ValueError, 'in_batch is None'),
    (lambda a, b: ll.info_nce_loss(a, b, negatives=a[:, :1]), ValueError, 'negatives has shape (7, 1); for embeddings of shape (7, 2) it must be (M, 2)'),
    (lambda a, b: ll.info_nce_loss(a, b, negatives=a[None]), ValueError, 'negatives has shape (1, 7, 2)'),
    (lambda a, b: ll.info_nce_loss(a, b, negatives=a[0]), ValueError, 'negatives has shape (2,)'),
    (lambda a, b: ll.info_nce_loss(a, b, negatives=IDS), TypeError, 'negatives has dtype torch.int64'),
    (lambda a, b: ll.info_nce_loss(a, b, mask=MASK[:2]), ValueError, 'mask has shape (2,)'),
    (lambda a, b: ll.info_nce_loss(a, b, sample_weight=a), ValueError, 'sample_weight has shape (7, 2)'),
    (lambda a, b: ll.supcon_loss(a), ValueError, 'target is None and embeddings has shape (7, 2)'),
    (lambda a, b: ll.supcon_loss(a, LABELS[:3]), ValueError, 'target has shape (3,) and embeddings has shape (7, 2)'),
    (lambda a, b: ll.supcon_loss(a, LABELS.double()), TypeError, 'target has dtype torch.float64; it must hold integers'),
    (lambda a, b: ll.supcon_loss(a, [0]*7), TypeError, 'target is a list'),
    (lambda a, b: ll.supcon_loss(a[None, None]), ValueError, 'embeddings has shape (1, 1, 7, 2)'),
    (lambda a, b: ll.supcon_loss(a, LABELS, variant='mid'), ValueError, "variant is 'mid'; it must be one of 'out', 'in'"),
    (lambda a, b: ll.supcon_loss(a.long(), LABELS), TypeError, 'embeddings has dtype torch.int64'),
]


@pytest.mark.parametrize('case', range(len(ERRORS)))
def test_errors(case):
    call, kind, sentence = ERRORS[case]
    with pytest.raises(kind) as caught: call(*rows())
    assert sentence in str(caught.value), str(caught.value)


# Processes: one batch, cut into unequal parts

def whole_batch(n):
    g = torch.Generator().manual_seed(1)
    def draw(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    return dict(x=draw(n, 4), y=draw(n, 4), ids=torch.randint(4, (n,), generator=g), mask=torch.rand(n, generator=g) < .8, w=torch.rand(n, generator=g, dtype=torch.float64) + .1,
                queue=draw(5, 3), t=draw(1).squeeze().abs())


def two_towers(data, rows, model, name, **o):
    "One loss over the given rows, from a model of two layers and the options"
    x, y = model(data['x'][rows]), model(data['y'][rows])
    ids, mask, w = (data[k][rows] for k in ('ids', 'mask', 'w'))
    if name == 'nce': return ll.info_nce_loss(x, y, ids=ids, mask=mask, sample_weight=w, **o)
    if name == 'queue': return ll.info_nce_loss(x, y, negatives=data['queue'], temperature=data['t'], **o)
    if name == 'xent': return ll.nt_xent_loss(x, y, ids=ids, **o)
    if name == 'clip': return ll.clip_loss(x, y, mask=mask, **o)
    if name == 'siglip': return ll.siglip_loss(x, y, ids=ids, mask=mask, sample_weight=w, **o)
    if name == 'views': return ll.supcon_loss(torch.stack([x, y], 1), mask=mask, **o)
    return ll.supcon_loss(x, ids, mask=mask, sample_weight=w, **o)


NAMES = 'nce', 'queue', 'xent', 'clip', 'siglip', 'views', 'supcon'


def on_a_rank(rank, cuts):
    "Compare every loss on this rank's rows, gathered, with the whole batch in one process"
    mine, n = slice(cuts[rank], cuts[rank+1]), cuts[-1]
    data, notes = whole_batch(n), []
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    parallel = DistributedDataParallel(model)
    def grads(loss):
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]
    for name in NAMES:
        others = ({}, dict(reduction='element_mean', block_size=2), dict(reduction='batchmean'), dict(normalizer=5.), dict(reduction='weighted_mean'))
        for o in others if name == 'nce' else others[:2]:
            whole = two_towers(data, slice(None), model, name, **o)
            expected = torch.autograd.grad(whole, list(model.parameters()))
            loss = two_towers(data, mine, parallel, name, gather=True, **o)
            assert_close(loss.detach(), whole.detach(), rtol=1e-12, atol=1e-14, msg=lambda m, name=name, o=o: f'value of {name} {o}: {m}')
            for g, e in zip(grads(loss), expected): assert_close(g, e, rtol=1e-10, atol=1e-13, msg=lambda m, name=name, o=o: f'gradient of {name} {o}: {m}')
        whole = two_towers(data, slice(None), model, name, reduction='none').detach()
        assert_close(two_towers(data, mine, parallel, name, gather=True, reduction='none').detach(), whole[mine], rtol=1e-12, atol=1e-14)
        assert_close(two_towers(data, mine, parallel, name, gather=True, reduction='sum').detach(), reduce_loss(
            two_towers(data, slice(None), model, name, reduction='none').detach()[mine], 'sum'), rtol=1e-12, atol=1e-14)
        parts = two_towers(data, mine, parallel, name, gather=True, reduction='parts')
        for g, e in zip(grads(parts.all_reduce().mean), torch.autograd.grad(two_towers(data, slice(None), model, name), list(model.parameters()))):
            assert_close(g, e, rtol=1e-10, atol=1e-13)
        alone = grads(two_towers(data, mine, parallel, name))
        notes.append(any(not torch.allclose(a, e, rtol=1e-6) for a, e in zip(alone, torch.autograd.grad(two_towers(data, slice(None), model, name), list(model.parameters())))))
    return notes


@pytest.mark.parametrize('cuts', [(0, 5, 7), (0, 0, 6)], ids=str)
def test_two_processes(cuts):
    "The averaged gradient of two gloo processes is that of the whole batch, for parts of any size, also none"
    assert in_processes(on_a_rank, cuts) == [[True]*len(NAMES)]*2
