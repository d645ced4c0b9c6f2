"What holds for every public loss, on shapes, dtypes, masks, weights and options that hypothesis makes up"
import pytest
import torch
from examples import LOSSES, REGIONS, SQUARES, WHOLE_BATCH, WITHOUT_LABELS, arguments, counting, is_over_classes, needed, options, over_scores, parameters, permuted, permuted_arguments, values_shape
from hypothesis import given
from hypothesis import strategies as st

CLOSE = dict(rtol=1e-9, atol=1e-11)
MEANS = 'mean', 'weighted_mean', 'element_mean', 'batchmean'
REDUCTION = st.sampled_from(['none', 'sum', *MEANS])
every_loss = pytest.mark.parametrize('fn', [over_scores(o) for o in LOSSES], ids=lambda o: o.__name__)


def close(a, b): torch.testing.assert_close(a, b, **CLOSE)


@st.composite
def problems(draw, min_rows=1, max_rows=6):
    "Sizes and a seed; the names of the options to set"
    return dict(n=draw(st.integers(min_rows, max_rows)), c=draw(st.integers(1, 5)), seed=draw(st.integers(0, 2**16)), some=draw(st.randoms(use_true_random=False)))


def problem(fn, n, c, seed, some, scale=3., dtype=torch.float64, ignored=True):
    "Arguments, and a random choice of options"
    args = arguments(fn, n, c, seed=seed, scale=scale, dtype=dtype, ignored=ignored)
    chosen = {k: v for k, v in options(fn, c, seed=seed).items() if k in needed(fn) or some.random() < .4}
    chosen = {k: v.to(dtype) if isinstance(v, torch.Tensor) and dtype == torch.float64 else v for k, v in chosen.items()}
    counts, generator = counting(fn, args), torch.Generator().manual_seed(seed)
    if some.random() < .5: chosen['mask'] = torch.rand(counts.shape, generator=generator) < .7
    if some.random() < .5: chosen['sample_weight'] = torch.rand(values_shape(fn, args), generator=generator, dtype=torch.float64)
    return args, chosen, counts & chosen.get('mask', torch.tensor(True))


def value_and_grad(fn, args, **chosen):
    "Value and gradient in the first argument; `'parts'` as a pair"
    first = args[0].detach().clone().requires_grad_()
    out = fn(first, *args[1:], **chosen)
    out = torch.stack([o.double() for o in out]) if isinstance(out, tuple) else out
    return out.detach(), torch.autograd.grad((out*torch.linspace(1, 2, out.numel()).view(out.shape)).sum(), first)[0]


def each(values, pick): return {k: pick(v) if k in ('mask', 'sample_weight') else v for k, v in values.items()}


@every_loss
@given(problems(), st.sampled_from([(0., torch.float32), (1., torch.float16), (1e4, torch.float16), (1e4, torch.bfloat16), (1e4, torch.float32),
                                    (1e30, torch.float32), (1e30, torch.float64), (1e-40, torch.float64)]), REDUCTION)
def test_finite(fn, sizes, kind, reduction):
    "Finite input of any size gives a finite loss in float32 or more, and finite gradients in the dtype of the input"
    scale, dtype = kind
    if fn.__name__ in SQUARES: scale = min(scale, 100.)
    args, chosen, _ = problem(fn, **sizes, scale=scale, dtype=dtype)
    if scale > 1e15: chosen = {k: v for k, v in chosen.items() if k not in ('p', 'z_loss')}  # the square itself is none
    value, grad = value_and_grad(fn, args, reduction=reduction, **chosen)
    assert value.isfinite().all()
    steep = next(iter(parameters(fn))) == 'probs' and dtype == torch.float16  # the slope of log at 0, cut at 1e12, is more than float16 holds
    assert grad.isfinite().all() or steep
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and grad.dtype == dtype


@every_loss
@given(problems(), st.sampled_from(['sum', *MEANS[:3]]), st.sampled_from([torch.nan, torch.inf, -torch.inf, 0.]))
def test_a_mask_removes_rows(fn, sizes, reduction, fill):
    "The mean over what counts is the mean over the kept rows, whatever stands in the others; they get no gradient"
    args, chosen, counts = problem(fn, **sizes)
    rows = counts if counts.ndim == 1 else counts.any(1)
    dirty = args[0].masked_fill(~(counts if counts.ndim == 2 else counts[:, None]), fill) if fn.__name__ != 'kl_div' else args[0]
    value, grad = value_and_grad(fn, (dirty, *args[1:]), reduction=reduction, **chosen)
    kept = each(chosen, lambda t: t[rows])
    expected, of_kept = value_and_grad(fn, [o[rows] for o in args], reduction=reduction, **kept)
    close(value, expected)
    close(grad[rows], of_kept)
    assert not grad[~rows].any() and not (counts.ndim == 2 and grad[~counts].any())


@every_loss
@given(problems(), REDUCTION)
def test_order_of_the_batch(fn, sizes, reduction):
    "Rows have no order"
    args, chosen, _ = problem(fn, **sizes)
    order = torch.randperm(len(args[0]), generator=torch.Generator().manual_seed(sizes['seed']))
    value, moved = fn(*args, reduction=reduction, **chosen), fn(*(o[order] for o in args), reduction=reduction, **each(chosen, lambda t: t[order]))
    close(value[order] if reduction == 'none' else value, moved)


@every_loss
@given(problems(), st.sampled_from(['sum', *MEANS]))
def test_order_of_the_classes(fn, sizes, reduction):
    "Classes have no order: permute scores, answers, labels and options together"
    args, chosen, counts = problem(fn, **sizes)
    order = torch.randperm(args[0].shape[1], generator=torch.Generator().manual_seed(sizes['seed']))
    per_row = {k for k in ('mask', 'sample_weight') if k in chosen and chosen[k].ndim == 1}
    moved = {k: v if k in per_row else v[:, order] if k == 'mask' else permuted(v, order, by_pair=k == 'cost') for k, v in chosen.items()}
    value, grad = value_and_grad(fn, args, reduction=reduction, **chosen)
    expected, of_moved = value_and_grad(fn, permuted_arguments(fn, args, order), reduction=reduction, **moved)
    close(value, expected)
    close(grad[:, order], of_moved)


@every_loss
@given(problems(max_rows=9), st.integers(0, 9))
def test_split_batches(fn, sizes, cut):
    "Sums and parts of two halves add up to the whole, wherever the batch is cut"
    if fn.__name__ in WHOLE_BATCH: return  # the other half holds wrong answers
    args, chosen, _ = problem(fn, **sizes)
    halves = [([o[s] for o in args], each(chosen, lambda t: t[s])) for s in (slice(None, cut), slice(cut, None))]
    close(sum(fn(*a, reduction='sum', **o) for a, o in halves), fn(*args, reduction='sum', **chosen))
    whole, parts = fn(*args, reduction='parts', **chosen), [fn(*a, reduction='parts', **o) for a, o in halves]
    close((parts[0] + parts[1]).total, whole.total)
    close((parts[0] + parts[1]).count.double(), whole.count.double())
    close(whole.mean, fn(*args, **chosen))


@pytest.mark.parametrize('fn', [o for o in LOSSES if is_over_classes(o)], ids=lambda o: o.__name__)
@given(problems(), st.sampled_from(['none', 'sum', 'weighted_mean', 'element_mean', 'batchmean']))
def test_encodings(fn, sizes, reduction):
    "Indices and one-hot rows, as integers, bools or shares, are the same labels"
    args, chosen, _ = problem(fn, **sizes, ignored=False)
    hot = torch.nn.functional.one_hot(args[1], args[0].shape[1])
    expected = value_and_grad(fn, args, reduction=reduction, **chosen)
    for target in hot, hot.bool(), hot.double(): close(value_and_grad(fn, (args[0], target), reduction=reduction, **chosen), expected)


@every_loss
@given(problems(), st.sampled_from([torch.nan, torch.inf, -torch.inf]), st.sampled_from(['none', 'sum', *MEANS]))
def test_a_weight_of_0_is_silent(fn, sizes, fill, reduction):
    "What weighs nothing adds nothing, even if its scores are broken"
    if fn.__name__ in WHOLE_BATCH: return  # only a mask takes a row out of the comparisons
    args, chosen, counts = problem(fn, **sizes)
    if 'probs' in parameters(fn) or fn.__name__ == 'kl_div': return
    weights = chosen.pop('sample_weight', torch.ones(values_shape(fn, args)).double()) + .1
    off = torch.rand(weights.shape, generator=torch.Generator().manual_seed(sizes['seed'])) < .4
    if fn.__name__ in REGIONS and off.ndim > 1: off[:] = off[:, :1]  # the values of an image share its scores
    weights = weights.masked_fill(off, 0)
    expected = value_and_grad(fn, args, reduction=reduction, sample_weight=weights, **chosen)
    dirty = args[0].masked_fill(off if off.ndim == 2 else off[:, None], fill)
    close(value_and_grad(fn, (dirty, *args[1:]), reduction=reduction, sample_weight=weights, **chosen), expected)


@every_loss
@given(problems())
def test_the_slope_in_a_weight_is_its_value(fn, sizes):
    "Also of a weight of 0, which may be learned"
    args, chosen, _ = problem(fn, **sizes)
    chosen.pop('sample_weight', None)
    values = fn(*args, reduction='none', **chosen)
    weight = (torch.arange(values.numel(), dtype=torch.float64) % 3).view(values.shape).requires_grad_()
    slope, = torch.autograd.grad(fn(*args, sample_weight=weight, reduction='none', **chosen).sum(), weight)
    close(slope, values)


@every_loss
def test_labels_that_nobody_could_read(fn):
    "Where values cannot be looked at, a label out of range is nan in its own element and nowhere else"
    if fn.__name__ in WITHOUT_LABELS: return
    args = list(arguments(fn, dtype=torch.float64, ignored=False))
    clean = fn(*args, **needed(fn), reduction='none')
    bad = (2,) if args[-1].ndim == 1 else (2, 1)
    args[-1] = args[-1].clone()
    args[-1][bad] = 9
    compiled = torch.compile(fn, fullgraph=True, backend='eager')
    got = compiled(*args, **needed(fn), reduction='none')
    here = torch.zeros(got.shape, dtype=torch.bool)
    here[bad[:got.ndim]] = True
    assert torch.equal(got.isnan(), here)
    close(got[~here], clean[~here])
    with pytest.raises(ValueError, match='target'): fn(*args, **needed(fn))


@every_loss
def test_nothing_counts(fn):
    "No rows, or none that count: the means are 0, and so are the gradients"
    args = arguments(fn)
    nothing = torch.zeros_like(counting(fn, args))
    for empty, chosen in ((args, dict(mask=nothing)), ([o[:0] for o in args], {})):
        for reduction in 'sum', *MEANS:
            value, grad = value_and_grad(fn, empty, reduction=reduction, **chosen, **needed(fn))
            assert value == 0 and not grad.any()


@every_loss
def test_derivatives(fn):
    "Finite differences of first and second order, forwards and backwards, with every option of the loss set"
    args, chosen = arguments(fn, 3, 4, dtype=torch.float64), options(fn)
    chosen = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in chosen.items()}
    first = args[0].requires_grad_()
    for reduction in 'mean', 'none':
        loss = lambda z: fn(z, *args[1:], reduction=reduction, **chosen)
        torch.autograd.gradcheck(loss, first, check_forward_ad=True)
        torch.autograd.gradgradcheck(loss, first)


@every_loss
def test_transforms(fn):
    "`torch.func` maps and differentiates, and `torch.compile` takes the whole function, as if each row stood alone"
    args, chosen = arguments(fn, dtype=torch.float64), needed(fn)
    each_row = lambda *row: fn(*(o[None] for o in row), **chosen)
    rows = torch.stack([each_row(*row) for row in zip(*args)])
    close(torch.func.vmap(each_row)(*args), rows)
    grads = torch.func.vmap(torch.func.grad(each_row))(*args)
    close(grads, torch.stack([torch.func.grad(each_row)(*row) for row in zip(*args)]))
    tangent = torch.randn_like(args[0])
    _, forwards = torch.func.jvp(lambda z: fn(z, *args[1:], **chosen), (args[0],), (tangent,))
    close(forwards, (value_and_grad(fn, args, **chosen)[1]*tangent).sum())
    compiled = torch.compile(fn, fullgraph=True, backend='eager')
    close(compiled(*args, **chosen), fn(*args, **chosen))


@every_loss
def test_autocast(fn):
    "Half scores under autocast are summed in float32"
    args = arguments(fn, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16): value = fn(*args, **needed(fn))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fn(*args, **needed(fn)))


@every_loss
def test_options_that_do_not_exist(fn):
    "A misspelt option or reduction is refused by name"
    args = arguments(fn)
    with pytest.raises(TypeError, match='lable_smoothing'): fn(*args, **needed(fn), lable_smoothing=.1)
    with pytest.raises(ValueError, match="'avg'"): fn(*args, **needed(fn), reduction='avg')
    with pytest.raises(ValueError, match='normalizer'): fn(*args, **needed(fn), reduction='sum', normalizer=2.)
    for name in 'mask', 'sample_weight':
        assert name in parameters(fn)
        with pytest.raises(ValueError, match=name): fn(*args, **needed(fn), **{name: torch.ones(3, 2, dtype=torch.bool if name == 'mask' else torch.float32)})
