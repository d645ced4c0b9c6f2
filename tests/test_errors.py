"Every wrong call gets a sentence: the right exception, which names the argument, what it got, and what to do"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losslab as ll

T = torch.tensor
Z, Y, Q = torch.linspace(-1, 1, 12).view(3, 4), T([0, 1, 2]), torch.full((3, 4), .25)
Z3, NAN = torch.randn(2, 3, 5), math.nan
ones, zeros = torch.ones, torch.zeros


def labels(*shape): return zeros(shape, dtype=torch.long)
def ce(logits=Z, target=Y, **options): return lambda: ll.cross_entropy(logits, target, **options)


# What is called, the exception, and pieces that the message must hold
WRONG = {
    'logits of integers': (ce(Z.long()), TypeError, 'logits', 'torch.int64', 'logits.float()'),
    'logits of bools': (ce(Z > 0), TypeError, 'logits', 'torch.bool', 'logits.float()'),
    'complex logits': (ce(Z.to(torch.complex64)), TypeError, 'logits', 'torch.complex64'),
    'logits in a list': (ce(Z.tolist()), TypeError, 'logits', 'list', 'torch.as_tensor(logits)'),
    'logits in numpy': (ce(Z.numpy()), TypeError, 'logits', 'ndarray', 'torch.as_tensor(logits)'),
    'no logits': (ce(None), TypeError, 'logits', 'NoneType'),
    'a single logit': (ce(T(1.), T(0)), ValueError, 'logits', 'single number', 'axis of classes'),
    'arguments swapped': (ce(Y, Z), TypeError, 'logits', 'torch.int64'),
    'log_probs in a list': (lambda: ll.nll_loss(Z.tolist(), Y), TypeError, 'log_probs', 'list'),
    'log_probs of integers': (lambda: ll.nll_loss(Z.long(), Y), TypeError, 'log_probs', 'torch.int64', 'log_probs.float()'),
    'no classes': (ce(zeros(3, 0)), ValueError, 'logits', '(3, 0)', 'axis 1', 'empty'),
    'no classes, one row': (ce(zeros(0), T(0)), ValueError, 'logits', '(0,)', 'empty'),
    'no classes last': (ce(zeros(2, 3, 0), labels(2, 3), dim=-1), ValueError, 'axis 2', 'empty'),
    'float target': (ce(Z, Y.float()), TypeError, 'target', 'torch.float32', '(3,)', 'target.long()', '(3, 4)'),
    'half target': (ce(Z, Y.half()), TypeError, 'target', 'torch.float16', 'target.long()'),
    'bool target': (ce(Z, Y > 0), TypeError, 'target', 'torch.bool', 'target.long()'),
    'complex target': (ce(Z, Q.to(torch.complex64)), TypeError, 'target', 'torch.complex64'),
    'target in a list': (ce(Z, [0, 1, 2]), TypeError, 'target', 'list', 'torch.as_tensor(target)'),
    'target in numpy': (ce(Z, Y.numpy()), TypeError, 'target', 'ndarray', 'torch.as_tensor(target)'),
    'target a number': (ce(Z[0], 1), TypeError, 'target', 'int', 'torch.as_tensor(target)'),
    'no target': (ce(Z, None), TypeError, 'target', 'NoneType'),
    'target (N, 1)': (ce(Z, Y[:, None]), ValueError, 'target', '(3, 1)', '(3, 4)', 'target.squeeze(1)'),
    'target (B, 1, H, W)': (ce(torch.randn(2, 3, 4, 5), labels(2, 1, 4, 5)), ValueError, 'target', '(2, 1, 4, 5)', 'target.squeeze(1)'),
    'target (1,) for (C,)': (ce(Z[0], Y[:1]), ValueError, 'target', '(1,)', 'target.squeeze(0)'),
    'target (1, N)': (ce(Z, Y[None]), ValueError, 'target', '(1, 3)', '(3,)'),
    'scalar target for a batch': (ce(Z, T(1)), ValueError, 'target', '()', '(3,)'),
    'scalar target for a batch of 1': (ce(Z[:1], T(1)), ValueError, 'target', '()', '(1,)'),
    'fewer targets': (ce(Z, Y[:2]), ValueError, 'target', '(2,)', '(3,)'),
    'one target for a batch': (ce(Z, Y[:1]), ValueError, 'target', '(1,)', '(3,)'),
    'wider rows': (ce(Z, ones(3, 5)), ValueError, 'target', '(3, 5)', '(3, 4)'),
    'transposed rows': (ce(Z, ones(4, 3)), ValueError, 'target', '(4, 3)', '(3, 4)'),
    'one row for a batch': (ce(Z, Q[:1]), ValueError, 'target', '(1, 4)', '(3, 4)'),
    '(B, T, V) with (B, T)': (ce(Z3, labels(2, 3)), ValueError, '(2, 3)', '(2, 3, 5)', 'axis 1', 'dim=-1'),
    '(B, V, T) with dim=-1': (ce(Z3.mT, labels(2, 3), dim=-1), ValueError, '(2, 3)', 'axis 2', 'dim=1'),
    '(N, H, W, C) pixels': (ce(torch.randn(2, 4, 4, 3), labels(2, 4, 4)), ValueError, '(2, 4, 4)', 'dim=-1'),
    'rows with the classes last': (ce(torch.randn(2, 5, 3), zeros(2, 3, 5)), ValueError, 'target', 'target.movedim(-1, 1)'),
    'label -1': (ce(Z, T([0, -1, 2])), ValueError, 'target[1] is -1', '4 classes', '0 to 3', 'ignore_index=-1'),
    'label C': (ce(Z, T([0, 1, 4])), ValueError, 'target[2] is 4', '4 classes', '0 to 3', 'ignore_index=4'),
    'labels from 1': (ce(Z, T([1, 4, 2])), ValueError, 'target[1] is 4', 'target - 1'),
    'label 255': (ce(Z, T([0, 255, 2], dtype=torch.uint8)), ValueError, 'target[1] is 255', 'ignore_index=255'),
    'label out of range in a grid': (ce(Z3.mT, T([[0, 0, 0], [0, 9, 0]])), ValueError, 'target[1, 1] is 9', '5 classes'),
    'label out of range, one row': (ce(Z[0], T(7)), ValueError, 'target is 7', '4 classes'),
    'label out of range beside ignored ones': (ce(Z, T([-100, 5, 0])), ValueError, 'target[1] is 5'),
    'label out of range beside masked ones': (ce(Z, T([9, 5, 0]), mask=T([False, True, True])), ValueError, 'target[1] is 5'),
    'label C under weights': (ce(Z, T([0, 4, 1]), weight=ones(4), sample_weight=ones(3)), ValueError, 'target[1] is 4'),
    'nll_loss, label C': (lambda: ll.nll_loss(Z, T([0, 4, 1])), ValueError, 'target[1] is 4'),
    '-100 that nobody ignores': (ce(Z, T([0, -100, 2]), ignore_index=None), ValueError, 'target[1] is -100', 'ignore_index=-100'),
    'integers that are not one-hot': (ce(Z, T([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]])), ValueError, 'target', '(1,)', '[0, 2, 0, 0]', 'one-hot', 'float()'),
    'integers, sum 1': (ce(Z, T([[2, -1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])), ValueError, '[2, -1, 0, 0]', 'one-hot'),
    'integers, two ones': (ce(Z, T([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=torch.uint8)), ValueError, '[0, 1, 1, 0]', 'one-hot'),
    'integers, no one': (ce(Z, labels(3, 4)), ValueError, 'target', '[0, 0, 0, 0]', 'one-hot'),
    'bools, several true': (ce(Z, Q > 0), ValueError, 'target', 'one-hot'),
    'one-hot of a long row': (ce(torch.randn(2, 50), labels(2, 50)), ValueError, 'target', "'...'"),
    'negative shares': (ce(Z, Q - .5), ValueError, 'target', '(0,)', 'negative', 'target.softmax(1)'),
    'logits for target': (ce(Z, Z), ValueError, 'target', 'negative', 'softmax'),
    'weight too short': (ce(weight=ones(3)), ValueError, 'weight', '(3,)', '4 classes', 'sample_weight'),
    'weight (1, C)': (ce(weight=ones(1, 4)), ValueError, 'weight', '(1, 4)', '4 classes'),
    'weight ()': (ce(weight=T(1.)), ValueError, 'weight', '()', '4 classes'),
    'weight (1,)': (ce(weight=ones(1)), ValueError, 'weight', '(1,)', '4 classes'),
    'weight for shares': (ce(Z, Q, weight=ones(3)), ValueError, 'weight', '(3,)', '4 classes'),
    'weight for other dim': (ce(Z3, labels(2, 3), dim=-1, weight=ones(3)), ValueError, 'weight', '5 classes', 'axis 2'),
    'integer weight': (ce(weight=labels(4)), TypeError, 'weight', 'torch.int64', 'float()'),
    'complex weight': (ce(weight=ones(4, dtype=torch.complex64)), TypeError, 'weight', 'torch.complex64'),
    'weight in a list': (ce(weight=[1., 1., 1., 1.]), TypeError, 'weight', 'list', 'torch.as_tensor(weight)'),
    'weight in numpy': (ce(weight=np.ones(4)), TypeError, 'weight', 'torch.as_tensor(weight)'),
    'weight a number': (ce(weight=2.), TypeError, 'weight', 'float'),
    'sample_weight too long': (ce(sample_weight=ones(4)), ValueError, 'sample_weight', '(4,)', '(3,)'),
    'sample_weight (N, 1)': (ce(sample_weight=ones(3, 1)), ValueError, 'sample_weight', '(3, 1)', '(3,)', 'broadcast'),
    'sample_weight (1,)': (ce(sample_weight=ones(1)), ValueError, 'sample_weight', '(1,)', '(3,)', 'expand'),
    'sample_weight ()': (ce(sample_weight=T(1.)), ValueError, 'sample_weight', '()', '(3,)'),
    'sample_weight per class': (ce(Z, Q, sample_weight=ones(3, 4)), ValueError, 'sample_weight', '(3, 4)', '(3,)'),
    'sample_weight of bools': (ce(sample_weight=Y > 0), TypeError, 'sample_weight', 'torch.bool', 'mask=sample_weight'),
    'complex sample_weight': (ce(sample_weight=ones(3, dtype=torch.complex64)), TypeError, 'sample_weight', 'complex'),
    'sample_weight a number': (ce(sample_weight=2.), TypeError, 'sample_weight', 'float', '(3,)'),
    'sample_weight in a list': (ce(sample_weight=[1., 1., 1.]), TypeError, 'sample_weight', 'list'),
    'mask of another shape': (ce(mask=ones(4, dtype=torch.bool)), ValueError, 'mask', '(4,)', '(3,)'),
    'mask (1,)': (ce(mask=ones(1, dtype=torch.bool)), ValueError, 'mask', '(1,)', '(3,)', 'broadcast'),
    'mask per class': (ce(Z, Q, mask=Q > 0), ValueError, 'mask', '(3, 4)', '(3,)'),
    'mask per sequence': (ce(Z3, labels(2, 3), dim=-1, mask=ones(2, dtype=torch.bool)), ValueError, 'mask', '(2,)', '(2, 3)'),
    'mask of floats': (ce(mask=ones(3)), TypeError, 'mask', 'torch.float32', 'mask.bool()'),
    'mask of integers': (ce(mask=labels(3)), TypeError, 'mask', 'torch.int64', 'mask.bool()'),
    'mask in a list': (ce(mask=[True]*3), TypeError, 'mask', 'list'),
    'mask=True': (ce(mask=True), TypeError, 'mask', 'bool'),
    'smoothing above 1': (ce(label_smoothing=1.1), ValueError, 'label_smoothing', '1.1', 'between 0 and 1'),
    'smoothing below 0': (ce(label_smoothing=-.1), ValueError, 'label_smoothing', '-0.1', 'between 0 and 1'),
    'smoothing nan': (ce(label_smoothing=NAN), ValueError, 'label_smoothing', 'nan'),
    'smoothing None': (ce(label_smoothing=None), TypeError, 'label_smoothing', 'None'),
    'smoothing text': (ce(label_smoothing='0.1'), TypeError, 'label_smoothing', "'0.1'"),
    'smoothing True': (ce(label_smoothing=True), TypeError, 'label_smoothing', 'True'),
    'nll_loss, smoothing above 1': (lambda: ll.nll_loss(Z, Y, label_smoothing=2), ValueError, 'label_smoothing', '2'),
    'temperature 0': (ce(temperature=0), ValueError, 'temperature', '0', 'larger than 0'),
    'temperature below 0': (ce(temperature=-1.), ValueError, 'temperature', '-1', 'larger than 0'),
    'temperature nan': (ce(temperature=NAN), ValueError, 'temperature', 'nan'),
    'temperature None': (ce(temperature=None), TypeError, 'temperature', 'None'),
    'temperature per class': (ce(temperature=ones(4)), ValueError, 'temperature', '(4,)', '(3, 4)'),
    'temperature with more axes': (ce(temperature=ones(2, 3, 4)), ValueError, 'temperature', '(2, 3, 4)'),
    'softcap 0': (ce(softcap=0), ValueError, 'softcap', '0', 'larger than 0'),
    'softcap below 0': (ce(softcap=-3.), ValueError, 'softcap', '-3', 'larger than 0'),
    'softcap nan': (ce(softcap=NAN), ValueError, 'softcap', 'nan'),
    'softcap text': (ce(softcap='3'), TypeError, 'softcap', "'3'"),
    'softcap True': (ce(softcap=True), TypeError, 'softcap', 'True'),
    'z_loss below 0': (ce(z_loss=-.1), ValueError, 'z_loss', '-0.1', 'at least 0'),
    'z_loss nan': (ce(z_loss=NAN), ValueError, 'z_loss', 'nan'),
    'z_loss text': (ce(z_loss='a'), TypeError, 'z_loss', "'a'"),
    'z_loss True': (ce(z_loss=True), TypeError, 'z_loss', 'True'),
    'dim too large': (ce(dim=2), ValueError, 'dim is 2', '(3, 4)', '0 to 1'),
    'dim too small': (ce(dim=-3), ValueError, 'dim is -3', '(3, 4)'),
    'dim of one row': (ce(Z[0], T(1), dim=2), ValueError, 'dim is 2', '(4,)'),
    'reduction unknown': (ce(reduction='avg'), ValueError, 'reduction', "'avg'", "'weighted_mean'"),
    'reduction in capitals': (ce(reduction='Mean'), ValueError, 'reduction', "'Mean'", "'mean'"),
    'reduction None': (ce(reduction=None), ValueError, 'reduction', 'None', "'none'"),
    'reduction a number': (ce(reduction=0), ValueError, 'reduction', '0'),
    'reduction in a list': (ce(reduction=['mean']), ValueError, 'reduction', "['mean']"),
    'normalizer below 0': (ce(normalizer=-1), ValueError, 'normalizer', '-1', 'at least 0'),
    'normalizer nan': (ce(normalizer=NAN), ValueError, 'normalizer', 'nan'),
    'normalizer text': (ce(normalizer='3'), TypeError, 'normalizer', "'3'"),
    'normalizer True': (ce(normalizer=True), TypeError, 'normalizer', 'True'),
    'normalizer in a list': (ce(normalizer=[2]), TypeError, 'normalizer', '[2]'),
    'normalizer per element': (ce(normalizer=ones(3)), ValueError, 'normalizer', '(3,)', 'one number'),
    'normalizer for none': (ce(normalizer=2, reduction='none'), ValueError, 'normalizer', "'none'", "'mean'"),
    'normalizer for sum': (ce(normalizer=2, reduction='sum'), ValueError, 'normalizer', "'sum'"),
    'normalizer for parts': (ce(normalizer=2, reduction='parts'), ValueError, 'normalizer', "'parts'"),
    'ignore_index a float': (ce(ignore_index=1.), TypeError, 'ignore_index', '1.0', '-100'),
    'ignore_index text': (ce(ignore_index='1'), TypeError, 'ignore_index', "'1'"),
    'ignore_index True': (ce(ignore_index=True), TypeError, 'ignore_index', 'True'),
    'ignore_index mixed': (ce(ignore_index=(1, 2.)), TypeError, 'ignore_index', '(1, 2.0)'),
    'positional weight': (lambda: ll.cross_entropy(Z, Y, ones(4)), TypeError, 'positional'),
    'unknown option': (ce(gamma=2), TypeError, 'gamma'),
    'module, positional': (lambda: ll.CrossEntropyLoss(ones(4)), TypeError, 'CrossEntropyLoss', 'weight='),
    'module, unknown option': (lambda: ll.CrossEntropyLoss(lable_smoothing=.1), TypeError, 'CrossEntropyLoss', "'lable_smoothing'", 'label_smoothing'),
    'module, unknown option in a call': (lambda: ll.NLLLoss()(Z, Y, temperature=2), TypeError, 'NLLLoss', "'temperature'", 'label_smoothing'),
    'module, bad value': (lambda: ll.CrossEntropyLoss(reduction='avg')(Z, Y), ValueError, 'reduction', "'avg'"),
    'unknown backend': (lambda: ll.backend('cuda'), ValueError, 'backend', "'cuda'", "'fused'"),
    'reduce_loss, mask': (lambda: ll.reduce_loss(ones(3), mask=ones(1, dtype=torch.bool)), ValueError, 'mask', '(1,)', '(3,)'),
    'reduce_loss, sample_weight': (lambda: ll.reduce_loss(ones(3), sample_weight=ones(1)), ValueError, 'sample_weight', '(1,)', '(3,)'),
    'reduce_loss, reduction': (lambda: ll.reduce_loss(ones(3), 'average'), ValueError, 'reduction', "'average'"),
    'smoothing complex': (ce(label_smoothing=1j), TypeError, 'label_smoothing'),
    'smoothing a tensor out of range': (ce(label_smoothing=T(2.)), TypeError, 'label_smoothing'),
    'smoothing per element': (ce(label_smoothing=T([.1, .2, .3])), TypeError, 'label_smoothing'),
    'temperature a tensor below 0': (ce(temperature=T(-1.)), ValueError, 'temperature', '-1'),
    'temperature a tensor of 0': (ce(temperature=T(0.)), ValueError, 'temperature', '0'),
    'temperature a complex tensor': (ce(temperature=T(2j)), TypeError, 'temperature'),
    'softcap per class': (ce(softcap=ones(4)), TypeError, 'softcap'),
    'softcap a tensor below 0': (ce(softcap=T(-3.)), TypeError, 'softcap'),
    'z_loss None': (ce(z_loss=None), TypeError, 'z_loss', 'None'),
    'z_loss empty text': (ce(z_loss=''), TypeError, 'z_loss'),
    'z_loss a tensor below 0': (ce(z_loss=T(-1.)), TypeError, 'z_loss'),
    'z_loss per element': (ce(z_loss=ones(3)), TypeError, 'z_loss'),
    'dim None': (ce(dim=None), TypeError, 'dim', 'None'),
    'dim a float': (ce(dim=1.), TypeError, 'dim', '1.0'),
    'dim text': (ce(dim='1'), TypeError, 'dim', "'1'"),
    'dim several': (ce(dim=(1,)), TypeError, 'dim', '(1,)'),
    'normalizer complex': (ce(normalizer=2j), TypeError, 'normalizer'),
    'normalizer a complex tensor': (ce(normalizer=T(2j)), TypeError, 'normalizer'),
    'normalizer a tensor below 0': (ce(normalizer=T(-2.)), ValueError, 'normalizer', '-2'),
    'ignore_index a tensor': (ce(ignore_index=T(1)), TypeError, 'ignore_index'),
    'negative shares beside a masked nan': (ce(Z, T([[NAN]*4, [-1., 1, 1, 0], [1, 0, 0, 0]]), mask=T([False, True, True])), ValueError, 'negative'),
    'reduce_loss in a list': (lambda: ll.reduce_loss([1., 2.]), TypeError, 'loss', 'list'),
    'reduce_loss of integers': (lambda: ll.reduce_loss(Y), TypeError, 'loss', 'int64'),
    'reduce_loss, carried_weight (1,)': (lambda: ll.reduce_loss(ones(3), carried_weight=ones(1)), ValueError, 'carried_weight', '(1,)', '(3,)'),
    'reduce_loss, carried_weight too long': (lambda: ll.reduce_loss(ones(3), carried_weight=ones(4)), ValueError, 'carried_weight', '(4,)', '(3,)'),
    'parts times a number': (lambda: ll.cross_entropy(Z, Y, reduction='parts')*2, TypeError, 'LossParts'),
    'float8 logits': (ce(Z.to(torch.float8_e4m3fn)), TypeError, 'logits', 'float8'),
}


def check_message(call, exception, *pieces):
    with pytest.raises(exception) as caught: call()
    message = str(caught.value)
    assert [o for o in pieces if o not in message] == [], message
    assert type(caught.value) in (exception if isinstance(exception, tuple) else (exception,))


@pytest.mark.parametrize('case', WRONG)
def test_wrong_call(case):
    "The exact exception, with argument, value and fix in its sentence"
    check_message(*WRONG[case])


def test_the_suggested_fix_works():
    "What a message proposes is accepted when done"
    z = torch.randn(2, 3, 5)
    for bad, good in [(ce(Z, Y.float()), ce(Z, Y.float().long())), (ce(Z, Y[:, None]), ce(Z, Y[:, None].squeeze(1))), (ce(Z3, labels(2, 3)), ce(Z3, labels(2, 3), dim=-1)),
                      (ce(Z, T([0, -1, 2])), ce(Z, T([0, -1, 2]), ignore_index=-1)), (ce(Z, T([1, 4, 2])), ce(Z, T([1, 4, 2]) - 1)), (ce(Z, Z), ce(Z, Z.softmax(1))),
                      (ce(z.mT, torch.full((2, 3, 5), .2)), ce(z.mT, torch.full((2, 3, 5), .2).movedim(-1, 1))),
                      (ce(sample_weight=ones(1)), ce(sample_weight=ones(1).expand((3,)))), (ce(mask=labels(3) + 1), ce(mask=(labels(3) + 1).bool()))]:
        with pytest.raises((TypeError, ValueError)): bad()
        assert good().isfinite()


def test_expand_is_proposed_only_where_it_works():
    "A mask per class, or of another length, has another remedy than expand"
    for mask in ones(4, dtype=torch.bool), ones(3, 4, dtype=torch.bool), ones(3, 1, dtype=torch.bool):
        with pytest.raises(ValueError) as caught: ll.cross_entropy(Z, Y, mask=mask)
        assert 'expand' not in str(caught.value)


def test_square_sequences_are_read_along_dim():
    "Where T == V no shape can tell the axes apart: `dim` says which is which"
    z, t = torch.randn(2, 4, 4), torch.randint(4, (2, 4))
    torch.testing.assert_close(ll.cross_entropy(z, t, dim=-1), F.cross_entropy(z.mT, t))
    torch.testing.assert_close(ll.cross_entropy(z, t), F.cross_entropy(z, t))


def test_nothing_but_a_scalar_comes_out_of_a_mean():
    "A normalizer of shape (1,) or of another dtype leaves the loss a scalar of its own dtype"
    assert ll.cross_entropy(Z, Y, normalizer=T(3)).shape == () and ll.cross_entropy(Z, Y, normalizer=T(3)).dtype == torch.float32


def test_a_normalizer_with_an_axis(): assert ll.cross_entropy(Z, Y, normalizer=ones(1)).shape == ()


def test_a_normalizer_of_another_dtype(): assert ll.cross_entropy(Z, Y, normalizer=T(2., dtype=torch.float64)).dtype == torch.float32


def test_values_are_read_only_where_that_is_free():
    "Without values there is no error: the row alone is nan (here as inside vmap)"
    bad = T([0, 9, 2])
    out = torch.func.vmap(lambda z, t: ll.cross_entropy(z, t, reduction='none'))(Z[None], bad[None])
    assert out.isnan().tolist() == [[False, True, False]]
    hot = T([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    out = torch.func.vmap(lambda z, t: ll.cross_entropy(z, t, reduction='none'))(Z[None], hot[None])
    assert out.isnan().tolist() == [[False, True, False]]


def test_settings_are_put_back():
    "`checks` and `backend` end with their block, also after an error, and nest"
    from losslab.core import backend, checks
    with ll.checks():
        assert checks.value is True
        with ll.checks(False): assert checks.value is False
        assert checks.value is True
    with pytest.raises(ZeroDivisionError), ll.backend('fused'):
        with ll.backend('reference'): assert backend.value == 'reference'
        assert backend.value == 'fused'
        raise ZeroDivisionError
    assert checks.value is False and backend.value == 'auto'


def test_a_setting_can_be_used_twice():
    "One object serves two blocks"
    from losslab.core import backend
    reference = ll.backend('reference')
    with reference: assert backend.value == 'reference'
    with reference: assert backend.value == 'reference'


def test_every_message_is_a_sentence():
    "No message is longer than four lines of a terminal"
    for call, exception, *_ in WRONG.values():
        with pytest.raises(exception) as caught: call()
        assert len(str(caught.value)) < 320 and '\n' not in str(caught.value)
