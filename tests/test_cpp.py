"The loop in C++ is the reference: values, gradients, odd sizes, odd numbers, labels out of range, no compiler"
import contextlib
import ctypes
import itertools
import math
import os
import shutil
import subprocess
import sys

import pytest
import test_kernels
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close

import losslab as ll
from losslab import cpp, kernels
from losslab.core import backend, compute, implementation
from losslab.labels import Labels, read_labels
from oracle import assert_unspoilt, cotangent, value_and_grad

pytestmark = pytest.mark.skipif(not shutil.which(os.environ.get('CXX', 'c++')), reason='needs a C++ compiler')
CLOSE = {torch.float32: dict(rtol=2e-6, atol=2e-7), torch.bfloat16: dict(rtol=1e-2, atol=1e-6)}
SHAPES = [((1, 1), 1), ((7, 5), 1), ((64, 64), 1), ((65, 64), 1), ((130, 3), 1), ((3, 65), 1), ((5, 2048), 1), ((3, 5000), 1),
          ((2, 5, 7), 1), ((2, 7, 5), -1), ((2, 90, 64), 1), ((3, 130, 65), 1), ((2, 3, 4, 5), 2), ((1, 21, 9, 15), 1), ((6, 1, 3), 1), ((40,), 0)]
OPTIONS = [{}, dict(weight=1), dict(label_smoothing=.1), dict(label_smoothing=1.), dict(weight=1, label_smoothing=.3), dict(temperature=2.), dict(z_loss=.1),
           dict(weight=1, label_smoothing=.1, temperature=.5, z_loss=.2), dict(mask=1), dict(mask=1, sample_weight=1, weight=1, label_smoothing=.2)]


@pytest.fixture(autouse=True)
def in_cpp(monkeypatch):
    monkeypatch.setattr(kernels.compiled, 'on', True)
    with backend('fused'): yield


# what holds for the blocks holds for the loops
globals().update({o: getattr(test_kernels, o) for o in (
    'test_cross_entropy', 'test_in_place_with_deleted_classes', 'test_the_middle_axis', 'test_single_numbers', 'test_sums_are_added_up_in_the_blocks',
    'test_focal_loss_of_classes', 'test_sums_are_exact', 'test_the_gradient_of_a_mean_is_there_before_the_backward_pass', 'test_no_gradient_where_nobody_knows_what_comes_back',
    'test_a_mean_that_is_multiplied', 'test_one_input_that_follows_from_another', 'test_a_parameter_is_not_overwritten_through_a_view',
    'test_what_was_overwritten_is_not_read_again', 'test_slopes_of_confident_answers_keep_their_digits', 'test_other_default_devices', 'test_traced', 'test_a_divisor_that_was_wrong',
    'test_the_gradient_of_a_mean_of_single_numbers', 'test_nothing_is_computed_for_who_does_not_learn', 'test_kl_near_the_prior', 'test_single_numbers_at_the_edge',
    'test_misuse_of_in_place', 'test_half_precision_is_not_worse_than_pytorchs')})
fused = test_kernels.fused


def problem(shape, dim, options): return test_kernels.problem(shape, dim, torch.float64, False, options, False)


def serves(z, y, dim=1, **options): return implementation('cross_entropy', z, read_labels(y, z, dim % z.ndim), dim % z.ndim, **options) is cpp.cross_entropy_in_cpp


def both(z, fn):
    "Losses and gradients in C++, and by the formula in double precision"
    for name, x in ('fused', z), ('reference', z.double()):
        x = x.clone().requires_grad_()
        with backend(name): loss = fn(x)
        yield loss.detach(), torch.autograd.grad((loss*cotangent(loss)).sum(), x)[0]


def assert_same(z, fn, **tolerance):
    tolerance = tolerance or CLOSE[z.dtype]
    (loss, grad), (exact, slope) = both(z, fn)
    assert_close(loss.double(), exact, **CLOSE[torch.float32], equal_nan=True)
    assert_close(grad.double(), slope, **tolerance, equal_nan=True)


def of_numbers(formula, x, to):
    "`to`, filled by a formula of `x[i]` and `to[i]` in C++"
    kind = {torch.float32: 'float', torch.bfloat16: 'bfloat16'}[to.dtype]
    code = f'extern "C" void run(const float *x, {kind} *to, int64_t n) {{ for (int64_t i = 0; i < n; i++) {{ {formula}; }} }}'
    cpp.build(cpp._source + code).run(*(ctypes.c_void_p(o.data_ptr()) for o in (x, to)), ctypes.c_int64(len(x)))
    return to


def test_numbers_in_half_precision():
    "To the nearest, ties to the even one, and what is not finite stays that"
    bits = torch.arange(0, 2**31, 12_347, dtype=torch.int64).to(torch.int32)
    ties = torch.arange(0, 2**15, dtype=torch.int32)*2**16 + 2**15
    x = torch.cat([bits, ties, ties - 1, ties + 1]).view(torch.float32)
    x = torch.cat([x, -x])
    assert torch.equal(of_numbers('store(to[i], x[i])', x, torch.empty_like(x, dtype=torch.bfloat16)).isnan(), x.isnan())
    assert_close(of_numbers('store(to[i], x[i])', x, torch.empty_like(x, dtype=torch.bfloat16)), x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('formula,exact,low,high', [
    ('to[i] = exponential(x[i])', torch.exp, -87, 0), ('to[i] = logarithm(x[i])', torch.log, 2, 1e6), ('to[i] = log1p_of(x[i])', torch.log1p, 0, 1)], ids=['exp', 'log', 'log1p'])
def test_functions_are_as_exact_as_a_float(formula, exact, low, high):
    x = torch.linspace(low, high, 300_001)
    found, exact = of_numbers(formula, x, torch.empty_like(x)).double(), exact(x.double())
    assert ((found - exact)/exact.clamp_min(1e-38)).abs().max() < 1.5*torch.finfo(torch.float32).eps


def test_the_rest_of_an_exponential():
    "e^x - 1 - x keeps its digits near 0, where it is half of x squared"
    x = torch.cat([torch.linspace(-5, 5, 100_001), torch.logspace(-15, 0, 1000), -torch.logspace(-15, 0, 1000)])
    exact = x.double().expm1() - x.double()
    exact = torch.where(x.abs() < 1e-3, sum(x.double()**k/math.factorial(k) for k in range(2, 6)), exact)
    assert_close(of_numbers('to[i] = exp_above_tangent(x[i])', x, torch.empty_like(x)).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize('dtype', CLOSE, ids=str)
@pytest.mark.parametrize('shape,dim', SHAPES, ids=str)
def test_every_option(shape, dim, dtype, monkeypatch):
    monkeypatch.setattr(cpp._InCpp, 'mend', None) # nothing is left to the reference
    for options in OPTIONS:
        z, y, options = problem(shape, dim, options)
        z = z.to(dtype)
        assert serves(z, y, dim)
        assert_same(z, lambda x: ll.cross_entropy(x, y, reduction='none', **options))
        for reduction in 'mean', 'sum':
            assert_same(z, lambda x: ll.cross_entropy(x, y, reduction=reduction, **options))


@pytest.mark.parametrize('dtype', CLOSE, ids=str)
@pytest.mark.parametrize('shape,dim', SHAPES, ids=str)
def test_in_place(shape, dim, dtype):
    "The gradient is the same, bit for bit, and lies where the logits were, with elements that are not finite among them"
    for options, odd in itertools.product(OPTIONS, (False, True)):
        z, y, options = problem(shape, dim, options)
        leaf = z.to(dtype)
        if odd: # the label of the first element is impossible
            leaf.movedim(dim, -1)[(0,)*(leaf.ndim-1)][y.view(-1)[0]] = -torch.inf
            leaf.view(-1)[-1] = torch.nan
        leaf.requires_grad_()
        logits = leaf*1
        place = logits.data_ptr()
        expected, = torch.autograd.grad(ll.cross_entropy(leaf, y, reduction='sum', **options), leaf)
        found, = torch.autograd.grad(ll.cross_entropy(logits, y, inplace=True, reduction='sum', **options), logits)
        assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found.data_ptr() == place


@pytest.mark.parametrize('c', [5, 65, 1000])
@pytest.mark.parametrize('what', ['deleted', 'deleted label', 'all deleted', 'nan', 'inf', 'huge'])
def test_numbers_that_are_odd(c, what):
    z, y = torch.randn(70, c), torch.randint(1, c, (70,))
    y[3] = 1
    cases = {'deleted': (3, 0, -torch.inf), 'deleted label': (3, 1, -torch.inf), 'all deleted': (3, slice(None), -torch.inf),
             'nan': (3, 0, torch.nan), 'inf': (3, 0, torch.inf), 'huge': (3, 0, 1e18)}
    row, k, value = cases[what]
    z[row, k] = value
    for o in {}, dict(label_smoothing=.1), dict(weight=torch.arange(c)/c), dict(z_loss=.1):
        assert_same(z, lambda x: ll.cross_entropy(x, y, reduction='none', **o))
        assert_same(z.view(2, 35, c).mT.contiguous(), lambda x: ll.cross_entropy(x, y.view(2, 35), reduction='none', **o))


def test_deleted_classes_stay_in_the_loop(monkeypatch):
    "Also where a step of a long row has no other"
    monkeypatch.setattr(cpp._InCpp, 'mend', None)
    for shape in (3, 5000), (70, 5), (2, 5, 70):
        z, y = torch.randn(shape), torch.full(shape[:1] + shape[2:], shape[1] - 1)
        z[:, :shape[1]*3//4] = -torch.inf
        assert_same(z, lambda x: ll.cross_entropy(x, y, reduction='none'))
        z[0, shape[1] - 2] = -torch.inf
        assert_same(z, lambda x: ll.cross_entropy(x, y, reduction='none'))


def test_what_the_loops_must_not_see():
    "Fake outputs, numbers whose sign is kept elsewhere, inputs of several shapes, weights that are none"
    z, y = torch.randn(64, 300), torch.randint(300, (64,))
    leaf = z.clone().requires_grad_()
    loss = ll.cross_entropy(leaf, y, reduction='none')
    with FakeTensorMode(allow_non_fake_inputs=True):
        for fn in lambda: ll.cross_entropy(z, y), lambda: ll.gaussian_kl_loss(z, z), lambda: torch.autograd.grad(loss.sum(), leaf):
            with contextlib.suppress(Exception): fn()
    turned = torch.tensor([2j]).conj().imag
    assert_close(ll.binary_cross_entropy_with_logits(turned, torch.ones(1)), torch.tensor(2.1269), rtol=1e-4, atol=0)
    back = torch.autograd.grad(ll.cross_entropy(leaf[:1], y[:1], reduction='none'), leaf, turned)[0]
    assert_close(back[:1], -2*(z[:1].softmax(1) - F.one_hot(y[:1], 300)))
    z, column = torch.ones(40, 300), torch.cat([torch.rand(40), torch.zeros(40*299)])[:40].view(40, 1) # what lies behind is 0
    assert_close(kernels.binary_cross_entropy_blocks(z, column, axes=(1,)), F.binary_cross_entropy_with_logits(z, column.expand_as(z), reduction='none').sum(1))
    for bad in torch.inf, torch.nan:
        weight = torch.tensor([1., bad, 1.])
        for mask in None, torch.tensor([True, False]):
            assert_same(torch.zeros(2, 3), lambda x: ll.cross_entropy(x, torch.tensor([0, 2]), weight=weight, mask=mask, reduction='none'))


@pytest.mark.parametrize('smoothing', [.1, 1.])
@pytest.mark.parametrize('shape', [(8, 3000), (8, 10), (2, 30, 40)], ids=str)
def test_what_scores_have_in_common_cancels(shape, smoothing):
    z, y = 3*torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
    for offset in 30., -1e3, 1e4:
        assert_same(z + offset, lambda x: ll.cross_entropy(x, y, label_smoothing=smoothing, reduction='none'))


@pytest.mark.parametrize('c', [5, 70])
def test_labels_and_masks_that_are_views(c):
    "Of any stride and any dtype of whole numbers"
    z, y, mask = torch.randn(6, c, 7), torch.randint(c, (7, 12))[:, ::2].T, (torch.rand(7, 6) < .7).T
    for labels in y, y.int(), y.to(torch.uint8): assert_same(z, lambda x: ll.cross_entropy(x, labels, mask=mask, reduction='none'))
    rows = z[..., 0].contiguous()
    for labels, counts in (y[:, 0], mask[:, 0]), (y[:1, 0].expand(6), mask[:1, 1].expand(6)): assert_same(rows, lambda x: ll.cross_entropy(x, labels, mask=counts, reduction='none'))


@pytest.mark.parametrize('high', [0, 3000, -1])
def test_one_score_far_above_the_others(high):
    "In any step of a row"
    z, y = torch.randn(3, 5000), torch.tensor([1, 2500, 4999])
    z[:, high] = 300.
    assert_same(z, lambda x: ll.cross_entropy(x, y, reduction='none'))


@pytest.mark.parametrize('shape', [(9, 5), (9, 65), (9, 5, 3)], ids=str)
@pytest.mark.parametrize('label', [-2, -2**40, 65, 2**40])
def test_labels_that_do_not_exist(shape, label):
    "Nothing is read for them, and the reference says so"
    z, index = torch.randn(shape).requires_grad_(), torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    index.view(-1)[-1] = label
    with pytest.raises(IndexError, match='out of bounds'): compute('cross_entropy', z, Labels(index, None, None, None), 1)


@pytest.mark.parametrize('c', [10, 70, 1000, 30_000])
def test_confident_rows_keep_a_small_loss(c):
    "To a few rounding errors of 1, as PyTorch's"
    z, y = torch.randn(200, c), torch.randint(c, (200,))
    z[torch.arange(200), y] += torch.linspace(5, 20, 200) + math.log(c)
    (loss, _), (exact, _) = both(z, lambda x: ll.cross_entropy(x, y, reduction='none'))
    theirs = F.cross_entropy(z, y, reduction='none')
    assert (loss - exact).abs().max() < 4*max(torch.finfo(torch.float32).eps, (theirs - exact).abs().max())


def test_sums_of_many_small_numbers():
    "A row of a large vocabulary, against double precision"
    z, y = torch.randn(3, 200_001), torch.tensor([0, 5, 200_000])
    (loss, grad), (exact, slope) = both(z, lambda x: ll.cross_entropy(x, y, label_smoothing=.1, reduction='none'))
    assert_close(loss.double(), exact, rtol=2e-7, atol=0)
    assert_close(grad.double(), slope, rtol=3e-6, atol=1e-12)


def test_threads():
    "More cores change no bit"
    n = torch.get_num_threads()
    for shape in (40, 3000), (300, 7), (2, 21, 300):
        z, y = torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
        found = []
        try:
            for k in 1, 2, 3:
                torch.set_num_threads(k)
                found.append(next(both(z, lambda x: ll.cross_entropy(x, y, reduction='none'))))
        finally: torch.set_num_threads(n)
        for a, b in itertools.product(found[:1], found[1:]): assert all(map(torch.equal, a, b))


def test_derivatives():
    "Twice backward, of a gradient, forward mode, functions of functions"
    z, y = torch.randn(6, 70), torch.randint(70, (6,))
    def fn(x): return ll.cross_entropy(x, y, label_smoothing=.1)
    leaf = z.requires_grad_()
    loss = fn(leaf)
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert_close(first, second)
    assert_close(torch.autograd.grad(fn(leaf), leaf, create_graph=True)[0], first)
    for other in torch.func.grad(fn)(z.detach()), torch.autograd.grad(torch.compile(fn, backend='eager')(leaf), leaf)[0]: assert_close(other, first)
    direction = torch.randn(6, 70)
    assert_close(torch.func.jvp(fn, (z.detach(),), (direction,))[1], (first*direction).sum())
    with torch.no_grad(): assert_close(fn(leaf), loss)


def test_many_weights_at_once():
    z, y, weights = torch.randn(64, 70), torch.randint(70, (64,)), torch.rand(3, 70)
    def fn(weight): return ll.cross_entropy(z, y, weight=weight)
    assert_close(torch.func.vmap(fn)(weights), torch.stack([fn(o) for o in weights]))


def test_labels_and_weights_that_change():
    z, y, w = torch.randn(70, 33, requires_grad=True), torch.randint(1, 33, (70,)), torch.rand(33)
    for read in y, w: assert_unspoilt(lambda: ll.cross_entropy(z, y, weight=w, reduction='none').sum(), z, read)


def test_where_it_serves(monkeypatch):
    z, y = torch.randn(8, 40), torch.randint(40, (8,))
    assert serves(z, y) and serves(z.bfloat16(), y) and serves(z.view(2, 4, 40).mT.contiguous(), y.view(2, 4))
    assert not serves(z.double(), y) and not serves(z.half(), y) and not serves(z, z.softmax(1)) and not serves(z, y, softcap=3.)
    assert not serves(z, y, temperature=torch.tensor(2.)) and not serves(z.T.contiguous().T, y) and not serves(torch.zeros(1, 1025, 2), torch.zeros(1, 2).long())
    with backend('auto'):
        for n, c in (2**12, 2**7), (2**12, 8): assert [serves(torch.zeros(k, c), torch.zeros(k).long()) for k in (n, n-1)] == [True, False]
    monkeypatch.setattr(kernels.compiled, 'on', False)
    assert not serves(z, y)


@pytest.mark.parametrize('dtype', CLOSE, ids=str)
def test_errors_are_not_above_pytorchs(dtype):
    z, y = (3*torch.randn(300, 500)).to(dtype), torch.randint(500, (300,))
    (loss, grad), (exact, slope) = both(z, lambda x: ll.cross_entropy(x, y))
    x = z.clone().requires_grad_()
    theirs = F.cross_entropy(x, y)
    limit = 1 if dtype == torch.bfloat16 else 2 # in float32, both are a rounding error
    assert (loss - exact).abs() <= limit*max((theirs - exact).abs(), torch.finfo(torch.float32).eps*exact)
    assert (grad - slope).abs().max() <= limit*(torch.autograd.grad(theirs, x)[0] - slope).abs().max()


SHAPES_OF_ANSWERS = (1,), (1023,), (20_000,), (3, 50), (5, 17_000), (300, 64), (2, 3, 5)


def answers(shape, hard):
    "Each loss of single numbers with its inputs"
    z, y, mu, logvar = 5*torch.randn(shape), torch.rand(shape), torch.randn(shape), 2*torch.randn(shape)
    y = y.round() if hard else y
    for reduction in 'none', 'mean', 'sum':
        yield lambda z, r=reduction: ll.binary_cross_entropy_with_logits(z, y, reduction=r), z
        for gamma, alpha in itertools.product((0., .5, 1., 2., 5.), (.25, None)):
            yield lambda z, r=reduction, g=gamma, a=alpha: ll.sigmoid_focal_loss(z, y, gamma=g, alpha=a, reduction=r), z
        yield lambda mu, logvar, r=reduction: ll.gaussian_kl_loss(mu, logvar, dim=None, reduction=r), mu, logvar
        if len(shape) > 1: yield lambda mu, logvar, r=reduction: ll.gaussian_kl_loss(mu, logvar, reduction=r), mu, logvar


@pytest.mark.parametrize('hard', [False, True])
@pytest.mark.parametrize('shape', SHAPES_OF_ANSWERS, ids=str)
def test_single_numbers_against_double_precision(shape, hard, monkeypatch):
    ran = []
    for formula, run in kernels.compiled_runs.items(): monkeypatch.setitem(kernels.compiled_runs, formula, lambda *a, run=run: ran.append(run(*a)) or ran[-1])
    torch.manual_seed(3)
    for fn, *inputs in answers(shape, hard):
        ran.clear()
        found = value_and_grad(fn, *inputs)
        assert ran and all(o is not None for o in ran)
        with backend('reference'): exact = value_and_grad(fn, *(o.double() for o in inputs))
        for a, b in zip(found, exact): assert_close(a.double(), b, rtol=4e-6, atol=2e-7)


def test_numbers_that_are_none():
    "The blocks and the reference have them; the others lose nothing"
    z, y = torch.randn(3000), torch.rand(3000)
    for value in torch.nan, torch.inf, -torch.inf:
        z[7] = value
        for fn in ll.binary_cross_entropy_with_logits, ll.sigmoid_focal_loss:
            def loss_fn(z): return fn(z, y, reduction='none')
            found = value_and_grad(loss_fn, z)
            with backend('reference'): exact = value_and_grad(loss_fn, z)
            for a, b in zip(found, exact): assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize('logvar', [-1e30, -200., -87.5, 87.9, 88.5, 89., 128., 200., 1e30])
def test_variances_that_are_extreme(logvar):
    mu, x = torch.randn(3000), torch.randn(3000)
    x[7] = logvar
    def loss_fn(mu, x): return ll.gaussian_kl_loss(mu, x, dim=None, reduction='none')
    found = value_and_grad(loss_fn, mu, x)
    with backend('reference'): exact = value_and_grad(loss_fn, mu, x)
    for a, b in zip(found, exact): assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_threads_of_single_numbers():
    "More cores change no bit of what the loop adds up; PyTorch adds up the rest, in one core if it is little"
    n = torch.get_num_threads()
    for shape in (100_000,), (2, 16_000), (1000, 30):
        for fn, *inputs in answers(shape, False):
            if shape == (100_000,) and len(inputs) > 1: continue
            found = []
            try:
                for k in 1, 2, 3:
                    torch.set_num_threads(k)
                    found.append(fn(*inputs))
            finally: torch.set_num_threads(n)
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize('compiler', ['/none', 'false'])
def test_without_a_compiler(compiler):
    "One warning, and the same loss"
    code = "import torch, losslab as ll\nll.compile_kernels()\nz, y = torch.randn(6000, 90), torch.randint(90, (6000,))\nfor _ in range(2): print(torch.allclose(ll.cross_entropy(z, y), torch.nn.functional.cross_entropy(z, y)))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(CXX=compiler))
    assert done.stdout == 'True\nTrue\n', done.stderr[-3000:]
    assert done.stderr.count('was not built') == 1
