"Every combination of options: against PyTorch where it has them, against slow Python where it has not"
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from oracle import INDEX_DTYPES, REDUCTIONS, assert_same, grid, make_logits, make_target, oracle, value_and_grad

import losslab as ll

SHAPES = (4,), (5, 4), (3, 4, 2), (2, 4, 3, 2)
LAYOUTS = [(s, 1) for s in SHAPES] + [((2, 3, 4), -1), ((4, 5), 0), ((1, 3, 2, 4, 2), 3)]
W = torch.tensor([.5, 2., .25, 1.5], dtype=torch.float64)
W0 = torch.tensor([.5, 2., 0., 1.5], dtype=torch.float64)


def elements(shape, dim): return make_logits(shape).select(0 if len(shape) == 1 else dim, 0).shape
def classes_second(t, dim): return t if t.ndim == 1 else t.movedim(dim, 1)


@pytest.mark.parametrize('shape,dim', LAYOUTS, ids=str)
@pytest.mark.parametrize('kind', ['index', 'shares'])
def test_equals_pytorch(shape, dim, kind):
    "Value and gradient are PyTorch's own, wherever the classes stand"
    logits = make_logits(shape)
    for o in grid(reduction=('none', 'sum', 'mean'), weight=(None, W0), label_smoothing=(0., .1, 1.), ignore_index=(-100, 1) if kind == 'index' else (-100,)):
        target = make_target(kind, shape, dim, ignored=(o['ignore_index'],) if kind == 'index' and len(shape) > 1 else ())
        if not target.ndim: target = torch.tensor(3)  # a weight of 0 alone has no mean in PyTorch
        there = classes_second(target, dim) if kind == 'shares' else target
        expected = value_and_grad(lambda z: F.cross_entropy(classes_second(z, dim), there, **o), logits)
        assert_same(value_and_grad(lambda z: ll.cross_entropy(z, target, dim=dim, **o), logits), expected, f'{o}')


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_nll_loss_equals_pytorch(shape):
    "The same for log-probabilities"
    lp = make_logits(shape).log_softmax(0 if len(shape) == 1 else 1)
    for o in grid(reduction=('none', 'sum', 'mean'), weight=(None, W), ignore_index=(-100, 2)):
        target = make_target('index', shape, 1, ignored=(o['ignore_index'],) if len(shape) > 1 else ())
        if not target.ndim: target = torch.tensor(1)
        assert_same(value_and_grad(lambda z: ll.nll_loss(z, target, **o), lp), value_and_grad(lambda z: F.nll_loss(z, target, **o), lp), f'{o}')


@pytest.mark.parametrize('kind,backend', [('index', 'reference'), ('index', 'fused'), ('onehot', 'fused'), ('bool', 'auto'), ('shares', 'auto')])
@pytest.mark.parametrize('shape,dim', LAYOUTS, ids=str)
def test_equals_the_oracle(shape, dim, kind, backend):
    "Named means, masks, sample weights, several ignored labels: value and gradient of the slow oracle"
    size, logits = elements(shape, dim), make_logits(shape)
    mask = torch.rand(size) < .7
    sample_weight = torch.rand(size, dtype=torch.float64)*(torch.rand(size) < .8)
    with ll.backend(backend):
        for o in grid(reduction=REDUCTIONS, weight=(None, W), mask=(None, mask), sample_weight=(None, sample_weight), ignore_index=(-100, (1, 3)),
                      label_smoothing=(0., .2)):
            target = make_target(kind, shape, dim, ignored=(1, 3) if o['ignore_index'] != -100 else ())
            assert_same(value_and_grad(lambda z: ll.cross_entropy(z, target, dim=dim, **o), logits), oracle(logits, target, dim=dim, **o), f'{o}')


@pytest.mark.parametrize('kind', ['index', 'shares'])
@pytest.mark.parametrize('shape,dim', [((5, 4), 1), ((2, 3, 4), -1), ((2, 4, 3), 1)], ids=str)
def test_options_on_logits(shape, dim, kind):
    "Temperature, softcap and z_loss, alone and together; z_loss knows no class weight, but sample weights and masks"
    size, logits, target = elements(shape, dim), make_logits(shape), make_target(kind, shape, dim)
    weights = dict(weight=W, sample_weight=torch.rand(size, dtype=torch.float64), mask=torch.rand(size) < .7)
    for o in grid(reduction=('none', 'mean'), temperature=(1., .5), softcap=(None, 2.), z_loss=(0., .1), label_smoothing=(0., .3), with_weights=(False, True)):
        if o.pop('with_weights'): o |= weights
        assert_same(value_and_grad(lambda z: ll.cross_entropy(z, target, dim=dim, **o), logits), oracle(logits, target, dim=dim, **o), f'{o}')


def test_temperature_as_a_tensor():
    "A tensor of one number is that number; one with the axes of the logits is a temperature for each row or class"
    logits, target, t = make_logits((5, 4)), make_target('index', (5, 4), 1), torch.rand(5, 1, dtype=torch.float64) + .5
    logits[:, 3], target = -torch.inf, target.clamp(max=2)
    assert_same([ll.cross_entropy(logits, target, temperature=torch.tensor(.5, dtype=torch.float64))], [ll.cross_entropy(logits, target, temperature=.5)])
    assert_same([ll.cross_entropy(logits, target, temperature=t)], [ll.cross_entropy(logits/t, target)])
    assert_same([ll.cross_entropy(logits, target, temperature=t.new_tensor([[1, 2, 3, 4]]))], [ll.cross_entropy(logits/torch.arange(1, 5), target)])


@pytest.mark.parametrize('kind', ['index', 'onehot', 'shares'])
def test_nll_loss_equals_the_oracle(kind):
    "Everything that `nll_loss` has beyond PyTorch's"
    for shape, dim in ((5, 4), 1), ((2, 3, 4), -1):
        size, lp = elements(shape, dim), make_logits(shape).log_softmax(dim)
        mask, sample_weight = torch.rand(size) < .7, torch.rand(size, dtype=torch.float64)
        for o in grid(reduction=REDUCTIONS, weight=(None, W), mask=(None, mask), sample_weight=(None, sample_weight), label_smoothing=(0., .2)):
            target = make_target(kind, shape, dim)
            assert_same(value_and_grad(lambda z: ll.nll_loss(z, target, dim=dim, **o), lp), oracle(lp, target, dim=dim, log_probs=True, **o), f'{o}')


@pytest.mark.parametrize('kind', ['index', 'onehot', 'shares'])
def test_parts_and_normalizer(kind):
    "`'parts'` is total and count of `'mean'`; `normalizer` takes the place of the count of any mean"
    shape, dim = (2, 4, 3), 1
    logits, target = make_logits(shape), make_target(kind, shape, dim)
    mask, sample_weight = torch.rand(2, 3) < .7, torch.rand(2, 3, dtype=torch.float64)
    for o in grid(weight=(None, W), mask=(None, mask), sample_weight=(None, sample_weight)):
        parts = ll.cross_entropy(logits, target, reduction='parts', **o)
        total, count, grad = oracle(logits, target, reduction='parts', **o)
        _, got = value_and_grad(lambda z: ll.cross_entropy(z, target, reduction='parts', **o).total, logits)
        assert_same((parts.total, parts.count.double(), got), (total, count, grad), f'{o}')
        assert_same([parts.mean], [ll.cross_entropy(logits, target, **o)], f'{o}')
        for reduction, n in product(('mean', 'weighted_mean', 'element_mean', 'batchmean'), (7, 2.5, torch.tensor(7), torch.tensor(2.5))):
            got = value_and_grad(lambda z: ll.cross_entropy(z, target, reduction=reduction, normalizer=n, **o), logits)
            assert_same(got, oracle(logits, target, reduction=reduction, normalizer=float(n), **o), f'{reduction} {n} {o}')


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_every_spelling_of_a_label(shape):
    "All integer dtypes, one-hot rows of any dtype, and shares give the same elements and the same named means"
    logits, index = make_logits(shape), make_target('index', shape, 1)
    if not index.ndim: index = torch.tensor(1)
    hot = F.one_hot(index, 4).movedim(-1, 0 if len(shape) == 1 else 1)
    spellings = [index.to(d) for d in INDEX_DTYPES] + [hot.to(d) for d in (torch.uint8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    for o in grid(weight=(None, W), label_smoothing=(0., .1), reduction=('none', 'sum', 'weighted_mean', 'element_mean', 'batchmean')):
        expected = value_and_grad(lambda z: ll.cross_entropy(z, index, **o), logits)
        for target in spellings:
            assert_same(value_and_grad(lambda z: ll.cross_entropy(z, target, **o), logits), expected, f'{target.dtype} {tuple(target.shape)} {o}')


@pytest.mark.parametrize('dtype', [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_wide_unsigned_labels(dtype):
    "Any integer dtype is any integer dtype"
    logits, index = make_logits((5, 4)), make_target('index', (5, 4), 1)
    expected = ll.cross_entropy(logits, index)
    torch.testing.assert_close(ll.cross_entropy(logits, index.to(dtype)), expected, rtol=0, atol=0)
    torch.testing.assert_close(ll.cross_entropy(logits, F.one_hot(index, 4).to(dtype)), expected, rtol=0, atol=0)


@pytest.mark.parametrize('kind', ['index', 'shares'])
@pytest.mark.parametrize('dtype,computed', [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
                                            (torch.float16, torch.float32)], ids=str)
def test_dtypes(dtype, computed, kind):
    "Half precision is computed and returned in float32, and its gradient comes back in the dtype that went in"
    logits, target = make_logits((6, 4), dtype), make_target(kind, (6, 4), 1)
    for o in grid(reduction=('none', 'mean'), weight=(None, W), label_smoothing=(0., .1), sample_weight=(None, torch.rand(6, dtype=torch.float64))):
        value, grad = value_and_grad(lambda z: ll.cross_entropy(z, target, **o), logits)
        expected = value_and_grad(lambda z: ll.cross_entropy(z, target.to(z.dtype) if kind == 'shares' else target, **o), logits.to(computed))
        assert value.dtype == computed and grad.dtype == dtype
        assert_same((value, grad), (expected[0], expected[1].to(dtype)), f'{o}', rtol=1e-6, atol=1e-7)
        exact = value_and_grad(lambda z: ll.cross_entropy(z, target, **o), logits.double())
        assert_same((value.double(),), exact[:1], f'{o}', rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=1e-7)


@pytest.mark.parametrize('kind', ['index', 'shares'])
def test_layout_in_memory(kind):
    "Transposed, expanded and strided tensors give what their contiguous copies give"
    base, target = make_logits((4, 6)), make_target(kind, (6, 4), 1)
    for logits in base.T, make_logits((12, 4))[::2], make_logits((1, 4)).expand(6, 4), make_logits((6, 9))[:, 1::2]:
        other = target.T.contiguous().T if kind == 'shares' else torch.stack([target, target], 1)[:, 0]
        assert_same([ll.cross_entropy(logits, other, weight=torch.stack([W, W], 1)[:, 0])], [ll.cross_entropy(logits.contiguous(), target, weight=W)])


def test_narrow_logits_take_the_fast_path():
    "The sizes at which another implementation serves give the same numbers and gradients"
    logits, target, sample_weight = make_logits((4000, 5)), torch.randint(5, (4000,)), torch.rand(4000, dtype=torch.float64)
    target[::7] = -100
    logits[::3, 1] = -torch.inf
    target[(target == 1)] = 2
    for o in grid(weight=(None, torch.rand(5, dtype=torch.float64)), sample_weight=(None, sample_weight), reduction=('none', 'mean'), label_smoothing=(0., .1)):
        with ll.backend('reference'): expected = value_and_grad(lambda z: ll.cross_entropy(z, target, **o), logits)
        assert_same(value_and_grad(lambda z: ll.cross_entropy(z, target, **o), logits), expected, f'{o}')
