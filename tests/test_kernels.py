"Every kernel is its reference: values, gradients, odd sizes, odd numbers, memory, misuse, compilers"
import itertools
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch.testing import assert_close

import losslab as ll
from losslab import kernels
from losslab.bench import Alive
from losslab.core import backend, compute, implementation
from losslab.labels import read_labels
from oracle import assert_unspoilt, value_and_grad

CLOSE = {torch.float64: dict(rtol=1e-11, atol=1e-12), torch.float32: dict(rtol=2e-5, atol=2e-6),
         torch.bfloat16: dict(rtol=1e-2, atol=1e-3), torch.float16: dict(rtol=1e-2, atol=1e-3)}
OPTIONS = [{}, dict(weight=1), dict(label_smoothing=.1), dict(label_smoothing=1.), dict(weight=1, label_smoothing=.3), dict(softcap=3.), dict(temperature=2.), dict(z_loss=.1),
           dict(weight=1, label_smoothing=.1, softcap=2., temperature=.5, z_loss=.2), dict(mask=1), dict(mask=1, sample_weight=1, weight=1)]
SHAPES = [((7, 5), 1), ((3, 33), 1), ((2, 5, 7), 1), ((2, 7, 5), -1), ((2, 90, 3), 1), ((1, 1), 1), ((4, 1, 3), 1), ((2, 3, 4, 5), 2), ((1, 200), 1)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch): monkeypatch.setattr(kernels, 'block_size', 64)


@pytest.fixture
def fused():
    with backend('fused'): yield


def result(name, loss_fn, *inputs, reduction='none'):
    "Loss and gradients under a backend"
    inputs = [o.clone().requires_grad_() for o in inputs]
    with backend(name): loss = loss_fn(*inputs)
    return loss.detach(), *torch.autograd.grad((loss*torch.linspace(1, 2, loss.numel()).view(loss.shape).to(loss)).sum(), inputs)


def assert_same(loss_fn, *inputs, tolerance=None):
    tolerance = tolerance or CLOSE[inputs[0].dtype]
    for fast, slow in zip(result('fused', loss_fn, *inputs), result('reference', loss_fn, *inputs)):
        assert fast.dtype == slow.dtype
        assert_close(fast, slow, **tolerance)


def problem(shape, dim, dtype, dense, options, deleted, seed=0):
    "Logits, labels and options; a class may be impossible, masked elements hold nan"
    torch.manual_seed(seed)
    axis, z = dim % len(shape), (3*torch.randn(shape)).to(dtype)
    places, c = shape[:axis] + shape[axis+1:], shape[axis]
    target, options = torch.randint(c, places), dict(options)
    if dense: target = torch.randn(shape, dtype=torch.float64).softmax(axis)
    if deleted and c > 2:
        z.select(axis, 1).fill_(-torch.inf)
        target = target.index_fill(axis, torch.tensor([1]), 0) if dense else target.masked_fill(target == 1, 0)
    if 'weight' in options: options['weight'] = torch.rand(c)
    if 'sample_weight' in options: options['sample_weight'] = torch.rand(places)
    if 'mask' in options:
        options['mask'] = torch.rand(places) < .6
        z = z.masked_fill(~options['mask'].unsqueeze(axis), torch.nan)
    return z, target, options | dict(dim=dim)


@pytest.mark.parametrize('dtype', CLOSE, ids=str)
@pytest.mark.parametrize('shape,dim', SHAPES, ids=str)
def test_cross_entropy(shape, dim, dtype):
    for dense, options, deleted in itertools.product((False, True), OPTIONS, (False, True)):
        z, target, options = problem(shape, dim, dtype, dense, options, deleted)
        assert_same(lambda z: ll.cross_entropy(z, target, reduction='none', **options), z)


@pytest.mark.parametrize('shape,dim', SHAPES, ids=str)
def test_in_place(shape, dim):
    "The gradient is that of the reference, and lies where the logits were"
    for dense, options, deleted in itertools.product((False, True), OPTIONS, (False, True)):
        for dtype in (torch.float64, torch.bfloat16):
            z, target, options = problem(shape, dim, dtype, dense, options, deleted)
            leaf = z.clone().requires_grad_()
            logits = leaf*1
            with backend('reference'): expected, = torch.autograd.grad(ll.cross_entropy(leaf, target, **options), leaf)
            with backend('fused'): found, = torch.autograd.grad(ll.cross_entropy(logits, target, inplace=True, **options), logits)
            assert_close(found, expected, **CLOSE[dtype])
            assert found.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize('options', [{}, dict(weight=0), dict(z_loss=.1), dict(temperature=2.), dict(label_smoothing=.1)], ids=str)
def test_in_place_with_deleted_classes(options):
    "One that is the label of a row, one that is not, one whose weight is 0, and a row without classes"
    z, y = torch.randn(6, 33, dtype=torch.float64), torch.tensor([3, 4, 5, 6, 7, 8])
    z[1, 4] = z[2, 0] = -torch.inf
    if 'weight' in options: options = dict(weight=torch.arange(33).double() % 4)
    for empty in (False, True):
        if empty: z[3] = -torch.inf
        leaf = z.clone().requires_grad_()
        logits = leaf*1
        expected = result('reference', lambda z: ll.cross_entropy(z, y, reduction='none', **options), z)
        with backend('fused'): loss = ll.cross_entropy(logits, y, reduction='none', inplace=True, **options)
        assert_close(loss, expected[0], equal_nan=True)
        found, = torch.autograd.grad((loss*torch.linspace(1, 2, 6)).sum(), logits)
        assert_close(found, expected[1], equal_nan=True)


def test_in_place_at_a_low_temperature():
    "Scores of 10 000, whose exponentials exist only below their largest"
    z, y = 50*torch.randn(5, 33, dtype=torch.float64), torch.randint(33, (5,))
    leaf = z.clone().requires_grad_()
    fn = lambda z, **o: ll.cross_entropy(z, y, temperature=.005, z_loss=1e-4, reduction='none', **o)
    expected = result('reference', fn, z)
    with backend('fused'): loss = fn(leaf*1, inplace=True)
    assert_close(loss, expected[0])
    assert_close(torch.autograd.grad((loss*torch.linspace(1, 2, 5)).sum(), leaf)[0], expected[1])


def test_the_middle_axis():
    "Classes on an axis between others, by the formula and by PyTorch on moved axes"
    z, t = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(4, (2, 3, 5))
    moved, grad = result('reference', lambda z: F.cross_entropy(z.movedim(2, 1), t, reduction='none'), z)
    for name in 'reference', 'fused': assert_close(result(name, lambda z: ll.cross_entropy(z, t, dim=2, reduction='none'), z), (moved, grad))


@pytest.mark.parametrize('n', [1, 63, 64, 65, 1000])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_single_numbers(n, dtype):
    torch.manual_seed(n)
    z, soft = 5*torch.randn(n, dtype=dtype), torch.rand(n, dtype=dtype)
    for y in soft, soft.round():
        assert_same(lambda z: ll.binary_cross_entropy_with_logits(z, y, reduction='none'), z)
        for gamma, alpha in itertools.product((0., .5, 1., 2., 5.), (.25, None, 1.)):
            assert_same(lambda z: ll.sigmoid_focal_loss(z, y, gamma=gamma, alpha=alpha, reduction='none'), z)
    logvar = torch.randn(n, dtype=dtype)
    assert_same(lambda mu, logvar: ll.gaussian_kl_loss(mu, logvar, dim=None, reduction='none'), z, logvar)
    assert_same(lambda mu, logvar: ll.gaussian_kl_loss(mu.view(1, -1), logvar.view(1, -1)), z, logvar)


@pytest.mark.parametrize('shape', [(1000,), (3, 50), (2, 5, 7), (40, 1), (1, 65)], ids=str)
def test_sums_are_added_up_in_the_blocks(shape):
    "What a sum and a mean get, over one block, many, and rows that are longer than a block"
    torch.manual_seed(1)
    z, y, mu, logvar = 5*torch.randn(shape), torch.rand(shape), torch.randn(shape), torch.randn(shape)
    for reduction in 'sum', 'mean', 'element_mean', 'weighted_mean', 'batchmean':
        assert_same(lambda z: ll.binary_cross_entropy_with_logits(z, y, reduction=reduction), z)
        assert_same(lambda z: ll.sigmoid_focal_loss(z, y, gamma=1.5, reduction=reduction), z)
        for dim in (*range(len(shape)), tuple(range(len(shape))), tuple(range(1, len(shape))), None):
            assert_same(lambda *o: ll.gaussian_kl_loss(*o, dim=dim, reduction=reduction), mu, logvar)
    z.view(-1)[-1] = torch.inf
    assert_same(lambda z: ll.binary_cross_entropy_with_logits(z, y.round(), reduction='sum'), z)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('shape,dim', [((7, 5), 1), ((3, 90), 1), ((2, 5, 7), 1), ((2, 7, 5), -1)], ids=str)
def test_divergence_of_given_probabilities(shape, dim, dtype):
    "Entries that are 0 or 1, on both sides, as probabilities and as logarithms"
    torch.manual_seed(2)
    x, t = torch.randn(shape, dtype=dtype).log_softmax(dim), torch.randn(shape, dtype=dtype).softmax(dim)
    t.select(dim, 0).zero_()
    t.select(dim, 1)[0] = 1.
    for log_target, axis, reduction in itertools.product((False, True), (dim, None), ('none', 'mean', 'batchmean')):
        fn = lambda x: ll.kl_div(x, t.log() if log_target else t, log_target=log_target, dim=axis, reduction=reduction)
        assert_same(fn, x)
        assert_same(fn, x.index_fill(dim, torch.tensor([0]), -torch.inf))
    with backend('fused'): assert implementation('kl_div', x, t, False, (1,)).__name__ == ('kl_div_blocks' if len(shape) == 2 else 'kl_div_values')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('gamma', [0, .5, 1., 2., 5.])
def test_focal_loss_of_classes(gamma, dtype):
    "By the cross-entropy of each row: sure rows, impossible labels, masks, weights, and where labels are not hard"
    z, y = 3*torch.randn(9, 33, dtype=dtype), torch.randint(33, (9,))
    z[1], z[2, y[2]], z[3, y[3]], y[4] = 0, 30., -torch.inf, -100
    z[5] = torch.nan
    mask = torch.arange(9) != 5
    for o in {}, dict(weight=torch.rand(33)), dict(alpha=.3), dict(sample_weight=torch.rand(9)), dict(temperature=2.):
        fn = lambda z: ll.focal_loss(z, y, gamma=gamma, mask=mask, reduction='none', **o)
        fast, slow = result('fused', fn, z), result('reference', fn, z)
        assert_close(fast[0], slow[0], **CLOSE[dtype])
        assert_close(fast[1][mask], slow[1][mask], **CLOSE[dtype])
        assert not fast[1][~mask].any() and fast[0][3] == torch.inf
    labels = read_labels(y, z, 1)
    with backend('fused'):
        assert implementation('focal_loss', z, labels, 1).__name__ == 'focal_loss_blocks'
        assert implementation('focal_loss', z, labels, 1, None, .1).__name__ == 'focal_values'
        assert implementation('focal_loss', z, read_labels(torch.rand(9, 33).softmax(1), z, 1), 1).__name__ == 'focal_values'
    with backend('auto'): assert implementation('focal_loss', z, labels, 1).__name__ == 'focal_values'


def test_where_the_kernels_serve():
    "A million and a half logits, four million with soft labels; few where classes are few, and none of their images"
    def serves(shape, *options, dtype=torch.float32, soft=False):
        z = torch.empty(shape, dtype=dtype, requires_grad=True)
        target = torch.zeros(shape) if soft else torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
        return implementation('cross_entropy', z, read_labels(target, z, 1), 1, *options).__name__ == 'cross_entropy_blocks'
    inplace = None, 0., None, 1., 0., True
    for options in (), inplace: assert serves((1536, 1024), *options) and not serves((1535, 1024), *options)
    for dtype in torch.bfloat16, torch.float64: assert serves((1536, 1024), dtype=dtype) and not serves((1535, 1024), dtype=dtype)
    assert serves((2**12, 1024), soft=True) and not serves((2**12-1, 1024), soft=True)
    assert serves((2**15, 10)) and not serves((2**13, 10)) and not serves((2**15, 16))
    assert serves((4, 8, 256, 256)) and not serves((16, 7, 256, 256)) and not serves((2, 8, 256, 256))
    for name, size in ('kl_div', 2**16), ('binary_cross_entropy_with_logits', 2**15), ('sigmoid_focal_loss', 2**13), ('gaussian_kl', 1):
        served = [implementation(name, torch.empty(n), torch.empty(n)).__name__ for n in (size, size-1)]
        assert [o.endswith('_blocks') for o in served] == [True, False], name


def test_few_logits_are_pytorchs_also_where_they_may_be_overwritten():
    z, y = torch.randn(32, 100, requires_grad=True), torch.randint(100, (32,))
    logits = z*1
    assert torch.equal(ll.cross_entropy(logits, y, inplace=True), F.cross_entropy(z, y))
    assert torch.equal(logits, z)


def test_sums_are_exact():
    "A million values that differ by a factor of a million, against double precision"
    z, y = torch.randn(2**20)*10, (torch.rand(2**20) < .5).float()
    for fn in ll.binary_cross_entropy_with_logits, ll.sigmoid_focal_loss:
        with backend('fused'): found = fn(z, y, reduction='sum')
        with backend('reference'): exact = fn(z.double(), y.double(), reduction='sum')
        assert_close(found.double(), exact, rtol=2e-7, atol=0)


def test_sums_hold_no_values():
    "A sum is made without the values, and its gradient comes with one number for all of them"
    z, y = torch.randn(2**18, requires_grad=True), torch.rand(2**18)
    with backend('fused'):
        with torch.no_grad(), Alive(z, y) as alive: ll.binary_cross_entropy_with_logits(z, y)
        assert alive.peak < z.numel()
        with Alive(z, y) as alive: torch.autograd.grad(ll.binary_cross_entropy_with_logits(z, y), z)
    assert alive.peak < 1.3*z.numel()*4


def known(fn, *inputs):
    "The gradient that a kernel leaves for the backward pass, of one backward pass and of another"
    x = [o.clone().requires_grad_() for o in inputs]
    with backend('fused'): loss = fn(*x)
    nodes = [loss.grad_fn]
    while not hasattr(node := nodes.pop(), 'found'): nodes += [o for o, _ in node.next_functions if o]
    early = None if node.found is None else [o.clone() for o in node.found]
    return early, loss, x


MEANS = {
    'mean': dict(), 'sum': dict(reduction='sum'), 'normalizer': dict(normalizer=3.), 'number in a tensor': dict(normalizer=torch.tensor(7)),
    'weighted': dict(weight=torch.arange(33.) + 1), 'batchmean': dict(reduction='batchmean'), 'mask': dict(mask=torch.arange(8) % 3 > 0),
    'ignored': dict(ignore_index=4), 'element mean': dict(weight=torch.arange(33.) + 1, reduction='element_mean')}


@pytest.mark.parametrize('options', MEANS.values(), ids=MEANS)
def test_the_gradient_of_a_mean_is_there_before_the_backward_pass(options):
    "Bit for bit, unless some rows do not count: these are multiplied by 0"
    z, y = torch.randn(8, 33), torch.tensor([4, 1, 2, 32, 0, 4, 7, 9])
    early, loss, (x,) = known(lambda z: ll.cross_entropy(z, y, **options), z)
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, early[0])
    assert_close(x.grad, result('reference', lambda z: ll.cross_entropy(z, y, **options), z)[1])
    again, = torch.autograd.grad(loss, x)
    assert_close(again, x.grad)


def test_a_row_without_a_label_beside_one_with_it(monkeypatch):
    "In one block: its gradient is 0 at once, and nothing is multiplied later"
    monkeypatch.setattr(kernels, 'block_size', 2**19)
    z, y = torch.randn(8, 33), torch.tensor([4, -100, 2, -100, 0, 4, 7, 9])
    early, loss, (x,) = known(lambda z: ll.cross_entropy(z, y), z)
    assert not early[0][1].any() and early[0][0].any()
    grad, = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(grad, early[0])
    assert_close(grad, result('reference', lambda z: ll.cross_entropy(z, y), z)[1])
    _, loss, (x,) = known(lambda z: ll.cross_entropy(z, y), z)
    assert_close(torch.autograd.grad(3*loss, x)[0], 3*grad)


@pytest.mark.parametrize('options', [dict(reduction='none'), dict(reduction='parts'), dict(sample_weight=torch.arange(8.) + 1), dict(mask=torch.zeros(8).bool())], ids=str)
def test_no_gradient_where_nobody_knows_what_comes_back(options):
    z, y = torch.randn(8, 33), torch.randint(33, (8,))
    def loss_fn(z):
        loss = ll.cross_entropy(z, y, **options)
        return loss.total if isinstance(loss, ll.LossParts) else loss.sum()
    early, loss, (x,) = known(loss_fn, z)
    assert early is None
    loss.backward()
    assert_close(x.grad, result('reference', loss_fn, z)[1])


@pytest.mark.parametrize('scale', [2., -.3, 0., torch.tensor([[.5]])], ids=str)
@pytest.mark.parametrize('inplace', [False, True])
def test_a_mean_that_is_multiplied(scale, inplace):
    z, y = torch.randn(8, 33, dtype=torch.float64), torch.tensor([4, 1, -100, 32, 0, 4, 7, 9])
    def loss_fn(z): return (ll.cross_entropy(z*1, y, inplace=inplace)*scale).sum()
    for a, b in zip(result('fused', loss_fn, z), result('reference', loss_fn, z)): assert_close(a, b)


@pytest.mark.parametrize('inplace', [False, True])
def test_a_cap_far_below_the_logits(inplace):
    "What is subtracted before the exponential is the largest score after the cap"
    z, y = 1e4*torch.randn(5, 33, dtype=torch.float64), torch.randint(33, (5,))
    def loss_fn(z): return ll.cross_entropy(z*1, y, softcap=3., temperature=.5, inplace=inplace)
    for a, b in zip(result('fused', loss_fn, z), result('reference', loss_fn, z)): assert_close(a, b)


def test_one_input_that_follows_from_another():
    "With and without create_graph, each way to an input counts once"
    mu, y = torch.randn(40, 10, requires_grad=True), torch.randint(40, (30,))
    layer, index = torch.nn.Linear(10, 10), torch.randint(40, (30,))
    for loss_fn in lambda: ll.gaussian_kl_loss(mu, layer(mu)), lambda: ll.gaussian_kl_loss(mu, mu), lambda: ll.linear_cross_entropy(mu[index].tanh(), mu, y):
        for name in 'fused', 'reference':
            with backend(name): plain, again = (torch.autograd.grad(loss_fn(), mu, create_graph=o)[0] for o in (False, True))
            assert_close(plain, again)


@pytest.mark.usefixtures('fused')
@pytest.mark.parametrize('what', ['index', 'shares', 'weight', 'mask'])
def test_labels_that_change_before_the_backward_pass(what):
    z, y, w, mask = torch.randn(4, 33, requires_grad=True), torch.tensor([0, 1, 2, 1]), torch.rand(33), torch.tensor([True, True, False, True])
    shares = torch.rand(4, 33).softmax(1)
    def loss_fn(): return ll.cross_entropy(z, shares if what == 'shares' else y, weight=w, mask=mask, reduction='none').sum()
    assert_unspoilt(loss_fn, z, dict(index=y, shares=shares, weight=w, mask=mask)[what])


@pytest.mark.usefixtures('fused')
def test_a_parameter_is_not_overwritten_through_a_view():
    w, y = torch.randn(2, 66, requires_grad=True), torch.tensor([0, 1, 2, 1])
    for view in w.view(4, 33), w[:1].view(2, 33), w.view(-1)[66:].view(2, 33):
        with pytest.raises(ValueError, match='view of one'): ll.cross_entropy(view, y[:len(view)], inplace=True)
    ll.cross_entropy((w*1).view(4, 33), y, inplace=True).backward()


@pytest.mark.usefixtures('fused')
def test_what_was_overwritten_is_not_read_again():
    "Also where hooks keep copies, which no version counter watches"
    z, y = torch.randn(4, 33, requires_grad=True), torch.tensor([0, 1, 2, 1])
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda o: o): loss = ll.cross_entropy(z*1, y, inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='one backward pass is left'): loss.backward()


def test_targets_that_are_a_rounding_error_below_0():
    x, t = torch.randn(8, 5, dtype=torch.float64).log_softmax(1), torch.rand(8, 5, dtype=torch.float64).softmax(1)
    t[:, 0], t[:, 1] = -9e-4, 0.
    for reduction in 'none', 'sum':
        def loss_fn(x): return ll.kl_div(x, t, reduction=reduction).sum()
        for a, b in zip(result('fused', loss_fn, x), result('reference', loss_fn, x)): assert_close(a, b)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_slopes_of_confident_answers_keep_their_digits(dtype):
    "Hard answers each of them; soft ones to a rounding error of 1, as the slope at 0 subtracts them"
    z, eps = torch.cat([torch.linspace(-80, 80, 1001, dtype=dtype), torch.tensor([0., -0.], dtype=dtype)]), torch.finfo(dtype).eps
    targets = ((z > 0).to(dtype), 0), ((z < 0).to(dtype), 0), (torch.rand(1003, dtype=dtype), 4*eps), (torch.full_like(z, 1e-9), 4*eps)
    for y, atol in targets:
        def loss_fn(z): return ll.binary_cross_entropy_with_logits(z, y, reduction='sum')
        (_, found), (_, exact) = result('fused', loss_fn, z), result('reference', loss_fn, z.double())
        assert_close(found.double(), exact, rtol=8*eps, atol=atol)


@pytest.mark.usefixtures('fused')
def test_other_default_devices():
    "Tensors are on the CPU, whatever the default of new ones is"
    z, y, rows = torch.randn(4, 33, requires_grad=True), torch.tensor([0, 1, 2, 1]), torch.rand(4, 33)
    cases = (lambda: ll.cross_entropy(z, y, label_smoothing=.1), lambda: ll.binary_cross_entropy_with_logits(z, rows),
             lambda: ll.gaussian_kl_loss(z, rows), lambda: ll.kl_div(z.log_softmax(1), rows.softmax(1)), lambda: ll.sigmoid_focal_loss(z, rows))
    with torch.device('meta'):
        for loss_fn in cases: assert torch.autograd.grad(loss_fn(), z)[0].device.type == 'cpu'


@pytest.mark.usefixtures('fused')
def test_traced():
    "torch.jit.trace records the operations of the reference"
    z, y = torch.randn(4, 33), torch.tensor([0, 1, 2, 1])
    traced = torch.jit.trace(lambda z: ll.cross_entropy(z, y, label_smoothing=.1), z, check_trace=False)
    assert_close(traced(z + 1), ll.cross_entropy(z + 1, y, label_smoothing=.1))


@pytest.mark.usefixtures('fused')
@pytest.mark.parametrize('normalizer', ['3', torch.ones(2), -1., 2j], ids=['text', 'two', 'negative', 'complex'])
def test_a_normalizer_that_is_none(normalizer):
    z, y, rows = torch.randn(4, 33, requires_grad=True), torch.tensor([0, 1, 2, 1]), torch.rand(4, 33)
    for loss_fn in lambda: ll.cross_entropy(z, y, label_smoothing=.1, normalizer=normalizer), lambda: ll.binary_cross_entropy_with_logits(z, rows, normalizer=normalizer):
        with pytest.raises((TypeError, ValueError), match='normalizer'): loss_fn()


@pytest.mark.usefixtures('fused')
def test_two_precisions_of_a_gaussian():
    mu, logvar = torch.randn(4, 5), torch.randn(4, 5, dtype=torch.float64)
    assert ll.gaussian_kl_loss(mu, logvar).dtype == torch.float64


@pytest.mark.parametrize('weights', [[.5, .5, .5], [.5, 1., -2.], [1., 1., 1.], [0., .5, .5]], ids=str)
def test_a_divisor_that_was_wrong(weights):
    "What an implementation is told saves time; the gradient is right for whatever comes back to each value"
    z, y, rows = torch.randn(3, 33), torch.tensor([4, 0, 32]), torch.randn(3, 33)
    kernels_of = {
        'cross_entropy': (z, lambda z: compute('cross_entropy', z, read_labels(y, z, 1), 1, divisor=lambda: 2)),
        'gaussian_kl': (rows, lambda mu: compute('gaussian_kl', mu, rows, axes=(1,), divisor=lambda: 2))}
    for x, values in kernels_of.values():
        def loss_fn(x): return values(x) @ torch.tensor(weights)
        for a, b in zip(result('fused', loss_fn, x), result('reference', loss_fn, x)): assert_close(a, b)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_small_gradient_in_half_precision_survives_its_scale(dtype):
    "A loss scale of 65536, as of a scaler, over classes whose slopes are below the smallest float16"
    z, y = torch.zeros(2, 33, dtype=dtype), torch.tensor([0, 1])
    z[:, 2:] = -13.
    for inplace in (False, True):
        def loss_fn(z): return ll.cross_entropy(z*1, y, inplace=inplace)*65536
        grad, exact = (result(name, loss_fn, x)[1].double() for name, x in (('fused', z), ('reference', z.double())))
        assert_close(grad, exact, rtol=.02, atol=0)
        assert (grad != 0).all()


def test_the_gradient_of_a_mean_of_single_numbers():
    z, y, rows = torch.randn(7, 30), torch.rand(7, 30), torch.randn(7, 30)
    p, log_p = rows.softmax(1), z.log_softmax(1)
    cases = {
        'bce': (lambda z: ll.binary_cross_entropy_with_logits(z, y), z), 'sum': (lambda z: ll.binary_cross_entropy_with_logits(z, y, reduction='sum'), z),
        'focal': (lambda z: ll.sigmoid_focal_loss(z, y, alpha=.25), z), 'kl': (ll.gaussian_kl_loss, z, rows), 'kl none': (lambda a, b: ll.gaussian_kl_loss(a, b, dim=None), z, rows),
        'kl_div': (lambda x: ll.kl_div(x, p, reduction='batchmean'), log_p), 'kl_div rows': (lambda x: ll.kl_div(x, p, dim=1), log_p)}
    for name, (loss_fn, *inputs) in cases.items():
        early, loss, x = known(loss_fn, *inputs)
        found = torch.autograd.grad(loss, x, retain_graph=True)
        for a, b in zip(early, found): assert torch.equal(a, b), name
        again = torch.autograd.grad(3*loss, x)
        for a, b, c in zip(found, result('reference', loss_fn, *inputs)[1:], again):
            assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
            assert_close(c, 3*b, rtol=1e-5, atol=1e-7, msg=name)
        _, loss, x = known(loss_fn, *inputs)
        for a, b in zip(torch.autograd.grad(3*loss, x), found): assert_close(a, 3*b, rtol=1e-5, atol=1e-9, msg=name)


def test_nothing_is_computed_for_who_does_not_learn():
    z, y = torch.randn(8, 33), torch.randint(33, (8,))
    with backend('fused'):
        with Alive(z, y) as alive: ll.cross_entropy(z, y)
        assert alive.now < 100
        with torch.no_grad(), Alive(z, y) as alive: ll.cross_entropy(z.requires_grad_(), y)
        assert alive.now < 100
        with Alive(z, y) as alive: loss = ll.cross_entropy(z, y)
        assert alive.now > z.numel()*4 and loss.requires_grad


def test_kl_near_the_prior():
    "Half of x squared, also where exp(x) is 1 in float32"
    x = torch.tensor([1e-3, -1e-3, 1e-5, 0.])
    fast = result('fused', lambda mu, x: ll.gaussian_kl_loss(mu, x, dim=None, reduction='none'), torch.zeros(4), x)[0]
    assert_close(fast, x**2/4 + x**3/12, rtol=1e-5, atol=1e-16)
    assert (fast >= 0).all()


@pytest.mark.parametrize('loss_fn', [ll.binary_cross_entropy_with_logits, ll.sigmoid_focal_loss])
def test_single_numbers_at_the_edge(loss_fn):
    z, y = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, 0., 3., 88., -104.]), torch.tensor([1., 0., 1., 0., .3, .5, 0., 1.])
    assert_same(lambda z: loss_fn(z, y, reduction='none'), z)


def test_weights_step_aside():
    "Answers with weights that are tensors are the reference's"
    z, y = torch.randn(10, 10), (torch.rand(10, 10) < .5).float()
    with backend('fused'):
        assert implementation('binary_cross_entropy_with_logits', z, y, None).__name__ == 'binary_cross_entropy_blocks'
        assert implementation('binary_cross_entropy_with_logits', z, y, z).__name__ == 'binary_cross_entropy_values'
    assert_same(lambda z: ll.binary_cross_entropy_with_logits(z, y, pos_weight=torch.arange(1., 11)), z)


def cases():
    x, y = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.rand(3, 5, dtype=torch.float64)
    yield lambda x: ll.cross_entropy(x, torch.tensor([0, 1, 4]), label_smoothing=.1, z_loss=.1), x
    yield lambda x: ll.cross_entropy(x, y.softmax(1)), x
    yield lambda x: ll.binary_cross_entropy_with_logits(x, y), x
    yield lambda x: ll.sigmoid_focal_loss(x, y), x


@pytest.mark.parametrize('case', range(4))
def test_derivatives_of_every_kind(case):
    fn, x = list(cases())[case]
    with backend('fused'):
        assert torch.autograd.gradcheck(fn, x) and torch.autograd.gradgradcheck(fn, x)
        loss = fn(x)
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        assert_close(torch.func.grad(fn)(x.detach()), first)
        by_rows = torch.autograd.functional.jacobian(lambda x: fn(x)*torch.ones(2, dtype=x.dtype), x, vectorize=True)
        assert_close(by_rows[0], first)
        direction = torch.randn_like(x)
        assert_close(torch.func.jvp(fn, (x.detach(),), (direction,))[1], (first*direction).sum())
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.detach(), direction)
            assert_close(torch.autograd.forward_ad.unpack_dual(fn(dual)).tangent, (first*direction).sum())
        assert_close(torch.autograd.functional.hessian(fn, x), torch.func.hessian(fn)(x.detach()))


def test_checkpoints():
    "Activations that are computed again in the backward pass give the same gradients"
    for fn, x in cases():
        with backend('fused'):
            plain, = torch.autograd.grad(fn(x*1), x)
            again, = torch.autograd.grad(torch.utils.checkpoint.checkpoint(lambda x: fn(x*1), x, use_reentrant=False), x)
        assert torch.equal(plain, again)


def test_threads():
    "More cores change no bit, and inference mode is no obstacle"
    z, y, n = torch.randn(40, 33), torch.randint(33, (40,)), torch.get_num_threads()
    z[7, 3] = -torch.inf
    fn = lambda z: ll.cross_entropy(z, y, label_smoothing=.1, reduction='none')
    try:
        torch.set_num_threads(2)
        many = result('fused', fn, z)
        with torch.inference_mode(), backend('fused'): assert torch.equal(fn(z), many[0])
        torch.set_num_threads(1)
        for a, b in zip(many, result('fused', fn, z)): assert torch.equal(a, b)
    finally: torch.set_num_threads(n)


def test_steps_aside():
    "Strides, integers, a weight that learns, a learned temperature, subclasses"
    z, y = torch.randn(6, 40, requires_grad=True), torch.randint(40, (6,))
    def serves(z, *options):
        with backend('fused'): return implementation('cross_entropy', z, read_labels(y, z, 1), 1, *options).__name__ == 'cross_entropy_blocks'
    assert serves(z) and serves(torch.nn.Parameter(z))
    assert not serves(torch.randn(40, 6).T)
    assert not serves(z, torch.ones(40, requires_grad=True))
    assert not serves(z, None, 0., None, torch.tensor(2.)) and not serves(z, None, 0., None, -1.)
    class Mine(torch.Tensor): pass
    assert not serves(z.detach().as_subclass(Mine))
    with pytest.raises(ValueError, match='temperature is -1'): ll.cross_entropy(z, y, temperature=-1.)
    with pytest.raises(ValueError, match='z_loss is -1'): ll.cross_entropy(z, y, z_loss=-1.)


def test_blocks_without_labels_are_not_computed(monkeypatch):
    "A block in which nothing counts never reaches the arithmetic"
    seen, visit = [], kernels._visit
    monkeypatch.setattr(kernels, '_visit', lambda x, *args, **named: seen.append(len(x)) or visit(x, *args, **named))
    z, y = torch.randn(10, 64), torch.full((10,), -100)
    y[3] = 5
    with backend('fused'): ll.cross_entropy(z, y)
    assert seen == [4], 'four rows of 64 make a block'


RAISED = {None: 'as they are', 31.75: 'as they are', -31.75: 'as they are', 32.25: 'below top', -32.25: 'below top', 1e3: 'below top', -1e3: 'below top'}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('score', RAISED)
def test_exponentials_of_scores_as_they_are(score, inplace, dtype, monkeypatch):
    "Up to 32, around the label; the same loss and slope on both sides of the border, for sure rows too"
    ran, below = [], kernels._raise_below_top
    monkeypatch.setattr(kernels, '_raise_below_top', lambda *args: ran.append(1) or below(*args))
    torch.manual_seed(0)
    y = torch.randint(90, (12,))
    x = torch.randn(12, 90, dtype=torch.double) + (score or 0)
    x[torch.arange(12), y] = torch.cat([x[torch.arange(6), y[:6]], torch.full((6,), score or 20.)])
    if score: x = x.clamp(max=score) if score > 0 else x.clamp(min=score)
    x = x.to(dtype)
    for options in {}, dict(z_loss=.01), dict(weight=torch.rand(90)+.1), dict(mask=y > 20):
        def fn(x): return ll.cross_entropy(x*1, y, inplace=inplace, reduction='none', **options)
        with backend('fused'): found = value_and_grad(fn, x)
        with backend('reference'): exact = value_and_grad(fn, x.double())
        close = dict(rtol=1e-2, atol=1e-6) if dtype == torch.bfloat16 else dict(rtol=4e-6, atol=8e-7)
        for a, b in zip(found, exact): assert_close(a.double(), b, **close)
    assert bool(ran) == (RAISED[score] == 'below top')


@pytest.mark.parametrize('temperature', [1., .25])
@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('odd', [33., 54., 56., 80., 88., 200., 1e30, torch.inf, torch.nan, -88., -104., -1e30, -torch.inf])
def test_one_score_far_from_those_of_the_labels(odd, inplace, temperature):
    "A small slope of a large exponential keeps its digits, too"
    z, y = torch.randn(9, 70, dtype=torch.double), torch.zeros(9, dtype=torch.long)
    z[4, 3] = odd
    def fn(z): return ll.cross_entropy(z*temperature, y, inplace=inplace, normalizer=1e6, temperature=temperature)
    with backend('fused'): found = value_and_grad(fn, z.float())
    with backend('reference'): exact = value_and_grad(fn, z)
    for a, b in zip(found, exact): assert_close(a.double(), b, rtol=4e-6, atol=1e-12, equal_nan=True)


def test_a_masked_label_is_near(monkeypatch):
    ran, below = [], kernels._raise_below_top
    monkeypatch.setattr(kernels, '_raise_below_top', lambda *args: ran.append(1) or below(*args))
    z, y = torch.randn(40, 64), torch.zeros(40, dtype=torch.long)
    z[1, 0] = 1e4
    for mask, blocks in (None, 40), (torch.arange(40) != 1, 1):
        ran.clear()
        with backend('fused'): ll.cross_entropy(z, y, mask=mask)
        assert len(ran) == blocks, 'of one row, and of four'


@pytest.mark.parametrize('logvar', [-1e30, -1e8, -1e3, -30., -1e-3, -1e-6, 0., 1e-6, 1e-3, 30., 87.9, 89., 200., 1e30])
def test_variances_that_are_extreme(logvar):
    "The slope keeps its digits where the value has none left for it, and the other way round"
    mu, x = torch.zeros(6, 9), torch.full((6, 9), logvar)
    with backend('fused'): found = value_and_grad(ll.gaussian_kl_loss, mu, x)
    with backend('reference'): exact = value_and_grad(ll.gaussian_kl_loss, mu, x)
    for a, b in zip(found, exact): assert_close(a, b, rtol=1e-5 if abs(logvar) > 1e-5 else 1e-3, atol=0)


@pytest.mark.usefixtures('fused')
@pytest.mark.parametrize('reduction', ['none', 'sum'])
def test_no_gradient_is_an_input(reduction):
    "What is scaled in place later must not be the logits, the labels, or what came back"
    z, y, p = torch.randn(9, 70), torch.randint(70, (9,)), torch.rand(9, 70)
    for fn, *inputs in (
            (lambda z: ll.cross_entropy(z, y, reduction=reduction), z), (lambda z: ll.focal_loss(z, y, reduction=reduction), z),
            (lambda z: ll.binary_cross_entropy_with_logits(z, p, reduction=reduction), z),
            (lambda z: ll.sigmoid_focal_loss(z, p, reduction=reduction), z),
            (lambda mu, x: ll.gaussian_kl_loss(mu, x, reduction=reduction), z, p),
            (lambda x: ll.kl_div(x, p, reduction=reduction), z.log_softmax(1))):
        leaves = [o.clone().requires_grad_() for o in inputs]
        loss = fn(*leaves)
        back = torch.ones_like(loss)
        found = torch.autograd.grad(loss, leaves, back)
        places = [o.data_ptr() for o in (*found, *leaves, back, p, y)]
        assert len({*places}) == len(places)


@pytest.mark.usefixtures('fused')
def test_misuse_of_in_place():
    leaf, y = torch.randn(4, 33, requires_grad=True), torch.randint(33, (4,))
    with pytest.raises(ValueError, match='logits is a leaf'): ll.cross_entropy(leaf, y, inplace=True)
    with torch.no_grad():
        before = leaf.clone()
        ll.cross_entropy(leaf, y, inplace=True)
        assert torch.equal(before, leaf)
    loss = ll.cross_entropy(leaf*1, y, inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='modified by an inplace'): loss.backward()
    with pytest.raises(RuntimeError, match='modified by an inplace'): ll.cross_entropy(leaf.tanh(), y, inplace=True).backward()
    with pytest.raises(RuntimeError, match='no second derivative'): torch.autograd.grad(ll.cross_entropy(leaf*1, y, inplace=True), leaf, create_graph=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_not_worse_than_pytorchs(dtype):
    z, y = (3*torch.randn(64, 500)).to(dtype), torch.randint(500, (64,))
    exact = result('reference', lambda z: F.cross_entropy(z, y), z.double())
    ours, theirs = result('fused', lambda z: ll.cross_entropy(z, y), z), result('fused', lambda z: F.cross_entropy(z, y), z)
    for a, b, c in zip(ours, theirs, exact): assert (a.double() - c).abs().max() <= (b.double() - c).abs().max()


COMPILED = """
import itertools, torch, losslab as ll
from torch.utils.flop_counter import FlopCounterMode
from losslab.core import backend
from torch.testing import assert_close
ll.compile_kernels()
ll.kernels.compiled_size = 0
def both(fn, *inputs):
    for name in 'fused', 'reference':
        x = [o.clone().requires_grad_() for o in inputs]
        with backend(name): loss = fn(*x)
        yield loss.detach(), *torch.autograd.grad(loss, x)
def same(fn, *inputs):
    for a, b in zip(*both(fn, *inputs)): assert_close(a, b, rtol=1e-5, atol=1e-7)
z, y, shares = torch.randn(50, 70).double(), torch.randint(70, (50,)), torch.rand(50, 70).double().softmax(1)
with FlopCounterMode(display=False), backend('fused'): ll.cross_entropy(z, y) # what watches must not spoil the rest
everything = dict(weight=torch.rand(70), label_smoothing=.1, softcap=2., temperature=.5, z_loss=.2)
smooth = dict(weight=torch.rand(70), label_smoothing=.1)
for o in {}, everything:
    same(lambda z: ll.cross_entropy(z, y, **o), z)
    for a, b in zip(*both(lambda z: ll.cross_entropy(z, y, **o), z.half())): assert_close(a, b, rtol=1e-2, atol=1e-4)
same(lambda z: ll.cross_entropy(z, y, softcap=2.), z.float())
same(lambda z: ll.cross_entropy(z, shares, **smooth), z)
for o in {}, smooth | dict(temperature=2.): same(lambda z: ll.cross_entropy(z*1, y, inplace=True, **o), z)
for c in 5, 70:
    pixels, places = torch.randn(2, c, 9).double(), torch.randint(-1, c, (2, 9))
    for o in {}, dict(label_smoothing=.1), dict(inplace=True): same(lambda z: ll.cross_entropy(z*1, places, ignore_index=-1, **o), pixels)
z[3, 5] = -torch.inf
same(lambda z: ll.cross_entropy(z, y, label_smoothing=.1), z)
z[3, 5], z[0, y[0]], w = 0, -torch.inf, torch.ones(70) # a deleted class is a label, which counts for nothing
w[y[0]] = 0
for inplace in False, True: same(lambda z: ll.cross_entropy(z*1, y, weight=w, inplace=inplace), z)
z[0, y[0]] = 0
torch.use_deterministic_algorithms(True)
same(lambda z: ll.cross_entropy(z, y), z)
torch.use_deterministic_algorithms(False)
even = torch.zeros(2**20) # sums of equal numbers
for a, b in zip(*both(lambda z: ll.binary_cross_entropy_with_logits(z, torch.full_like(z, .5)), even)): assert_close(a, b, rtol=1e-6, atol=0)
z, y = torch.randn(3000), (torch.rand(3000) < .5).float()
for r in 'mean', 'none':
    same(lambda z: ll.binary_cross_entropy_with_logits(z, y, reduction=r).sum(), z)
    same(lambda z: ll.sigmoid_focal_loss(z, y, reduction=r).sum(), z)
same(lambda mu, logvar: ll.gaussian_kl_loss(mu.view(50, 60), logvar.view(50, 60)), z, z.flip(0))
same(lambda mu, logvar: ll.gaussian_kl_loss(mu, logvar, dim=None), z, z.flip(0))
for kind in torch.float32, torch.float64: # losses of confident answers keep their digits
    z = torch.linspace(-80, 80, 3001, dtype=kind)
    def losses(name):
        with backend(name): return ll.binary_cross_entropy_with_logits(z, (z > 0).to(kind), reduction='none')
    assert_close(losses('fused'), losses('reference'), rtol=4*torch.finfo(kind).eps, atol=0)
frames = torch._dynamo.utils.counters['frames']
assert frames['total'] == frames['ok'] > 8, frames
print('compiled' if ll.kernels.compiled.on else 'blocks')
"""


@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='needs a C++ compiler')
def test_compiled():
    done = subprocess.run([sys.executable, '-c', COMPILED], capture_output=True, text=True)
    assert done.stdout == 'compiled\n', done.stderr[-3000:]


def test_without_a_compiler():
    "The wish for compiled kernels becomes a warning, and blocks do the work"
    code = "import os, torch, losslab as ll\nz, y = torch.randn(4000, 300), torch.randint(300, (4000,))\nwith ll.core.backend('fused'): a = ll.cross_entropy(z, y)\nprint(torch.allclose(a, torch.nn.functional.cross_entropy(z, y)))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=dict(LOSSLAB_COMPILE='1', PATH='', CXX='/none', TORCHINDUCTOR_FORCE_DISABLE_CACHES='1'))
    assert done.stdout == 'True\n', done.stderr[-3000:]
    assert 'blocks are used instead' in done.stderr


def test_advice_on_memory_is_optional(monkeypatch):
    monkeypatch.setattr(kernels, '_madvise', lambda: None)
    t = kernels.fresh(torch.ones(2**21))
    assert t.shape == (2**21,) and t.dtype == torch.float32
    assert kernels.fresh(torch.ones(3, 4).T).is_contiguous()
