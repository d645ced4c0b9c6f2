"What must hold for any logits and labels, on examples that hypothesis makes up"
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import losslab as ll

CLOSE = dict(rtol=1e-9, atol=1e-11)
LOGIT = st.floats(-50, 50, width=32)


@st.composite
def problems(draw, min_rows=1):
    "Logits, indices, and the options that a mean knows"
    n, c = draw(st.integers(min_rows, 6)), draw(st.integers(1, 5))
    numbers = lambda low, high, *shape: torch.tensor(draw(st.lists(st.floats(low, high, width=32), min_size=(k := int(torch.Size(shape).numel())), max_size=k)),
                                                     dtype=torch.float64).view(shape)
    z = numbers(-50, 50, n, c)
    target = torch.tensor(draw(st.lists(st.integers(0, c-1), min_size=n, max_size=n)))
    options = dict(weight=numbers(.125, 4, c), sample_weight=numbers(0, 4, n), label_smoothing=draw(st.sampled_from([0., .1, .5, 1.])))
    if draw(st.booleans()): options['mask'] = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    if draw(st.booleans()): options['ignore_index'] = tuple(draw(st.sets(st.integers(0, c-1))))
    return z, target, {k: v for k, v in options.items() if draw(st.booleans()) or k in ('mask', 'ignore_index')}


def value_and_grad(z, target, **options):
    z = z.clone().requires_grad_()
    out = ll.cross_entropy(z, target, **options)
    return out.detach(), torch.autograd.grad(out.sum(), z)[0]


def close(a, b): torch.testing.assert_close(a, b, **CLOSE)


REDUCTION = st.sampled_from(['none', 'sum', 'mean', 'weighted_mean', 'element_mean', 'batchmean'])


@given(problems(), LOGIT, REDUCTION)
def test_shift(problem, shift, reduction):
    "Adding a number to all logits of a row changes nothing, so gradients sum to 0 over the classes"
    z, target, options = problem
    value, grad = value_and_grad(z, target, reduction=reduction, **options)
    moved, same = value_and_grad(z + shift, target, reduction=reduction, **options)
    close(value, moved)
    close(grad, same)
    close(grad.sum(1), torch.zeros(len(z), dtype=z.dtype))


@given(problems(), st.randoms(use_true_random=False), REDUCTION)
def test_class_permutation(problem, random, reduction):
    "Classes have no order: permute logits, labels, weights and ignored labels together"
    z, target, options = problem
    order = list(range(z.shape[1]))
    random.shuffle(order)
    order, there = torch.tensor(order), torch.tensor(order).argsort()
    moved = dict(options)
    if 'weight' in options: moved['weight'] = options['weight'][order]
    if 'ignore_index' in options: moved['ignore_index'] = tuple(there[o].item() for o in options['ignore_index'])
    value, grad = value_and_grad(z, target, reduction=reduction, **options)
    other, permuted = value_and_grad(z[:, order], there[target], reduction=reduction, **moved)
    close(value, other)
    close(grad[:, order], permuted)


@given(problems(), st.sampled_from(['none', 'sum', 'weighted_mean', 'element_mean', 'batchmean']))
def test_encodings(problem, reduction):
    "Indices, one-hot integers, bools and shares: same loss, same gradient"
    z, target, options = problem
    hot = F.one_hot(target, z.shape[1])
    expected = value_and_grad(z, target, reduction=reduction, **options)
    for labels in hot, hot.bool(), hot.double(): close(value_and_grad(z, labels, reduction=reduction, **options), expected)


@pytest.mark.parametrize('dense', [False, True])
@given(problem=problems(), reduction=st.sampled_from(['sum', 'mean', 'weighted_mean', 'element_mean']))
def test_a_mask_removes_rows(dense, problem, reduction):
    "What is masked or ignored might as well not be there"
    z, target, options = problem
    keep = options.get('mask', torch.ones(len(z), dtype=torch.bool))
    for o in options.get('ignore_index', ()): keep = keep & (target != o)
    labels = F.one_hot(target, z.shape[1]).double() if dense else target
    value, grad = value_and_grad(z, labels, reduction=reduction, **options)
    rest = {k: v[keep] if k == 'sample_weight' else v for k, v in options.items() if k not in ('mask', 'ignore_index')}
    expected, kept = value_and_grad(z[keep], labels[keep], reduction=reduction, **rest)
    close(value, expected)
    close(grad[keep], kept)
    assert not grad[~keep].any()


@given(problems(min_rows=2), st.data())
def test_parts_add_up(problem, data):
    "Cut the batch anywhere: the parts add up to the whole"
    z, target, options = problem
    cut = data.draw(st.integers(0, len(z)))
    per_row = lambda o, s: {k: v[s] if k in ('mask', 'sample_weight') else v for k, v in o.items()}
    a, b = (ll.cross_entropy(z[s], target[s], reduction='parts', **per_row(options, s)) for s in (slice(0, cut), slice(cut, None)))
    whole = ll.cross_entropy(z, target, reduction='parts', **options)
    close((a + b).total, whole.total)
    close((a + b).count.double(), whole.count.double())
    close((a + b).mean, ll.cross_entropy(z, target, **options))


@given(problems(), REDUCTION)
def test_doubling_sample_weights(problem, reduction):
    "Means that divide by the weights do not feel their scale; the others double"
    z, target, options = problem
    s = options.pop('sample_weight', torch.ones(len(z), dtype=z.dtype))
    once = ll.cross_entropy(z, target, sample_weight=s, reduction=reduction, **options)
    twice = ll.cross_entropy(z, target, sample_weight=2*s, reduction=reduction, **options)
    close(twice, once if reduction in ('mean', 'weighted_mean') else 2*once)


@given(problems())
def test_repeating_a_row_is_a_weight_of_2(problem):
    "A sample weight counts like copies"
    z, target, options = problem
    options = {k: v for k, v in options.items() if k not in ('sample_weight', 'mask')}
    s = torch.ones(len(z), dtype=z.dtype)
    s[0] = 2
    twice = ll.cross_entropy(torch.cat([z[:1], z]), torch.cat([target[:1], target]), **options)
    close(ll.cross_entropy(z, target, sample_weight=s, **options), twice)


@given(problems(), st.floats(.25, 4), REDUCTION)
def test_temperature(problem, temperature, reduction):
    "A temperature divides the logits, and the gradient once more"
    z, target, options = problem
    value, grad = value_and_grad(z, target, temperature=temperature, reduction=reduction, **options)
    expected, cold = value_and_grad(z/temperature, target, reduction=reduction, **options)
    close(value, expected)
    close(grad, cold/temperature)


@given(problems())
def test_losses_are_not_negative(problem):
    "A surprise is at least 0, and guessing costs log C"
    z, target, options = problem
    assert (ll.cross_entropy(z, target, reduction='none', **options) >= 0).all()
    flat = ll.cross_entropy(torch.zeros_like(z), target)
    close(flat, torch.tensor(float(z.shape[1]), dtype=z.dtype).log())


@given(problems(), st.sampled_from([1, -1, 0, 2]))
def test_any_axis(problem, dim):
    "The class axis may be anywhere"
    z, target, options = problem
    grids = {k: v[None].expand(3, -1) if k in ('mask', 'sample_weight') else v for k, v in options.items()}
    rows, labels = z[None].expand(3, -1, -1), target[None].expand(3, -1)
    expected = ll.cross_entropy(z, target, **options)
    close(ll.cross_entropy(rows.movedim(-1, dim), labels, dim=dim, **grids), expected)
