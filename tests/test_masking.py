"A mask is a deletion: for every kind of target, every spelling and every mean"
import pytest
import torch
import torch.nn.functional as F
from oracle import TIGHT, assert_same, make_logits, make_target, value_and_grad

from losslab.binary import binary_cross_entropy_with_logits
from losslab.categorical import cross_entropy, nll_loss
from losslab.information import kl_div
from losslab.masking import lengths_to_mask
from losslab.smoothing import distillation_loss
from losslab.targets import one_hot

LENGTHS = torch.tensor([4, 1, 0, 3])
MASK = torch.tensor([[True]*4, [True] + [False]*3, [False]*4, [True]*3 + [False]])
REDUCTIONS = 'sum', 'mean', 'weighted_mean', 'element_mean'


def close(a, b): torch.testing.assert_close(a, b, **TIGHT)


def kl(z, q, *, dim=-1, **options): return kl_div(z.log_softmax(dim), q, dim=dim, **options)
def distil(z, q, **options): return distillation_loss(z, 4*q, temperature=2., **options)
def nll(z, target, *, dim=-1, **options): return nll_loss(z.log_softmax(dim), target, dim=dim, **options)


FORMS = {'index': (cross_entropy, 'index'), 'onehot': (cross_entropy, 'onehot'), 'bool': (cross_entropy, 'bool'), 'shares': (cross_entropy, 'shares'),
         'nll': (nll, 'index'), 'nll of shares': (nll, 'shares'), 'divergence': (kl, 'shares'), 'teacher': (distil, 'shares')}


def test_lengths_to_mask():
    "Every integer dtype, any number of axes, with and without the number of places"
    for dtype in torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64:
        for max_len in None, 4: assert torch.equal(lengths_to_mask(LENGTHS.to(dtype), max_len), MASK)
    assert torch.equal(lengths_to_mask(LENGTHS, 6), F.pad(MASK, (0, 2)))
    assert torch.equal(lengths_to_mask(LENGTHS.view(2, 2)), MASK.view(2, 2, 4))
    assert lengths_to_mask(torch.tensor(2), 3).tolist() == [True, True, False]
    assert lengths_to_mask(torch.zeros(0).long(), 3).shape == (0, 3) and lengths_to_mask(torch.zeros(0).long()).shape == (0, 0)
    assert torch.equal(torch.vmap(lambda n: lengths_to_mask(n, 4))(LENGTHS), MASK)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(lambda n: lengths_to_mask(n, 4), fullgraph=True, backend='eager')(LENGTHS), MASK)


@pytest.mark.parametrize('lengths,max_len,error,text', [
    ([1, 2], None, TypeError, 'lengths is a list'), (torch.tensor([1.]), None, TypeError, 'lengths has dtype torch.float32'), (MASK, None, TypeError, r'mask.sum\(-1\) if it is a mask'),
    (LENGTHS, 3, ValueError, r'lengths\[0\] is 4; it must be between 0 and max_len=3; .*clamp'), (torch.tensor([1, -2]), None, ValueError, r'lengths\[1\] is -2; it must be at least 0'),
    (LENGTHS, 4., TypeError, 'max_len is 4.0'), (LENGTHS, -1, ValueError, 'max_len is -1'), (LENGTHS, True, TypeError, 'max_len is True'),
    (torch.tensor(5), 4, ValueError, 'lengths is 5')])
def test_bad_lengths_get_a_sentence(lengths, max_len, error, text):
    with pytest.raises(error, match=text): lengths_to_mask(lengths, max_len)


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('form', FORMS)
def test_masked_is_deleted(form, reduction):
    "Value and gradient of (B, T, V) with a mask are those of the kept rows alone, also where the rest is NaN or inf"
    loss_fn, kind = FORMS[form]
    z, q = make_logits((4, 4, 5)), make_target(kind, (4, 4, 5), -1)
    value, grad = value_and_grad(lambda z: loss_fn(z, q[MASK], dim=-1, reduction=reduction), z[MASK])
    expected = value, torch.zeros_like(z).masked_scatter(MASK[..., None], grad)
    for fill in (0.,) if loss_fn in (kl, nll) else (0., torch.nan, torch.inf, -torch.inf):  # these two take log_softmax before the mask
        bad = torch.where(MASK[..., None], z, fill)
        assert_same(value_and_grad(lambda z: loss_fn(z, q, dim=-1, mask=MASK, reduction=reduction), bad), expected, (form, fill))


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_yes_or_no_is_masked_by_label(reduction):
    z, y, known = make_logits((4, 3)), torch.rand(4, 3, dtype=torch.float64), torch.rand(4, 3) < .6
    value, grad = value_and_grad(lambda z: binary_cross_entropy_with_logits(z, y[known], reduction=reduction), z[known])
    bad = z.masked_fill(~known, torch.nan)
    got = value_and_grad(lambda z: binary_cross_entropy_with_logits(z, y, mask=known, reduction=reduction), bad)
    assert_same(got, (value, torch.zeros_like(z).masked_scatter(known, grad)))


def test_three_spellings():
    "A label that is none, a mask and a weight of 0, alone and several labels at once"
    z, y = make_logits((4, 4, 5)), make_target('index', (4, 4, 5), -1)
    expected = value_and_grad(lambda z: F.cross_entropy(z[MASK], y[MASK]), z)
    spellings = (y.masked_fill(~MASK, -100), {}), (y.masked_fill(~MASK, 255), dict(ignore_index=(255, -1))), (y, dict(mask=MASK)), (y, dict(sample_weight=MASK.double()))
    for target, options in spellings:
        assert_same(value_and_grad(lambda z: cross_entropy(z, target, dim=-1, **options), z), expected, options)
    several = y.clone()
    several[:, 0], several[:, 1] = -1, 255
    expected = value_and_grad(lambda z: F.cross_entropy(z[:, 2:].flatten(0, 1), y[:, 2:].flatten()), z)
    assert_same(value_and_grad(lambda z: cross_entropy(z, several, dim=-1, ignore_index=(255, -1)), z), expected)


def test_padding_changes_nothing_but_the_box():
    "Longer boxes leave the mean over what counts alone, and shrink the mean over the box"
    z, y = make_logits((4, 4, 5)), make_target('index', (4, 4, 5), -1).masked_fill(~MASK, -100)
    expected, g = value_and_grad(lambda z: cross_entropy(z, y, dim=-1), z)
    for extra in 1, 10:
        pad = lambda z: F.pad(z, (0, 0, 0, extra))
        longer = F.pad(y, (0, extra), value=-100)
        assert_same(value_and_grad(lambda z: cross_entropy(pad(z), longer, dim=-1), z), (expected, g))
        shrunk = value_and_grad(lambda z: cross_entropy(pad(z), longer, dim=-1, normalizer=longer.numel()), z)
        share = MASK.sum()/longer.numel()
        assert_same(shrunk, (expected*share, g*share), rtol=1e-6, atol=1e-12)


def test_three_heads_in_one_call():
    "(B, 3, 6): the mean is the mean of three heads, divided by B it is their sum; missing labels weigh by their number"
    z, y = make_logits((7, 3, 6)), torch.randint(6, (7, 3))
    heads = lambda z: [F.cross_entropy(z[:, i], y[:, i]) for i in range(3)]
    assert_same(value_and_grad(lambda z: cross_entropy(z, y, dim=-1), z), value_and_grad(lambda z: sum(heads(z))/3, z))
    assert_same(value_and_grad(lambda z: cross_entropy(z, y, dim=-1, normalizer=7), z), value_and_grad(lambda z: sum(heads(z)), z))
    y[2:, 2] = -100
    counts = (y != -100).sum(0)
    weighted = sum(n*h for n, h in zip(counts, heads(z)))/counts.sum()
    close(cross_entropy(z, y, dim=-1), weighted)
    assert not torch.isclose(weighted, sum(heads(z))/3)


@pytest.mark.parametrize('smoothing', [0., .2])
def test_an_impossible_class_leaves_the_softmax_and_an_ignored_label_does_not(smoothing):
    z, y = make_logits((6, 4)), torch.tensor([0, 1, 3, 2, 3, 0])
    kept = y != 3
    _, grad = value_and_grad(lambda z: cross_entropy(z, y, ignore_index=3, reduction='sum', label_smoothing=smoothing), z)
    close(grad[kept, 3], z.softmax(1)[kept, 3] - smoothing/4)
    assert (grad[~kept] == 0).all()
    out = lambda z: z.index_fill(1, torch.tensor(3), -torch.inf)
    got = value_and_grad(lambda z: cross_entropy(out(z), y, ignore_index=3, label_smoothing=smoothing), z)
    assert_same(got, value_and_grad(lambda z: F.cross_entropy(z[kept, :3], y[kept], label_smoothing=smoothing), z))


def test_legal_moves_differ_by_row():
    "Each row is a softmax over its own classes; a row without any is NaN unless masked, with a gradient of 0"
    z, y = make_logits((5, 4)), torch.tensor([0, 1, 3, 2, 0])
    legal = (torch.rand(5, 4) < .5) | one_hot(y, 4, dtype=torch.bool)
    rule = lambda z: z.masked_fill(~legal, -torch.inf)
    expected = torch.stack([z[i, legal[i]].logsumexp(0) - z[i, y[i]] for i in range(5)])
    value, grad = value_and_grad(lambda z: cross_entropy(rule(z), y, reduction='none'), z)
    close(value, expected)
    assert (grad[~legal] == 0).all()
    legal[4] = False
    assert cross_entropy(rule(z), y).isnan()
    can = legal.any(1)
    value, grad = value_and_grad(lambda z: cross_entropy(rule(z), y, mask=can), z)
    close(value, expected[:4].mean())
    assert grad.isfinite().all() and (grad[4] == 0).all()
