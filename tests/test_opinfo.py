"PyTorch's own sample inputs, with which it tests its own cross entropy"
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same

import losslab as ll
from losslab import logits as lab

pytestmark = pytest.mark.xdist_group('opinfo')  # the samples take seconds to import: do it in one process
LOSSES = {'nn.functional.cross_entropy': (F.cross_entropy, ll.cross_entropy), 'nn.functional.nll_loss': (F.nll_loss, ll.nll_loss)}
MAPS = ['softmax', 'log_softmax', 'logsumexp', 'sigmoid', 'nn.functional.logsigmoid', 'logit']


@pytest.fixture(scope='module')
def ops():
    "PyTorch's table of operations, by name"
    from torch.testing._internal.common_methods_invocations import op_db
    return {name: [o for o in op_db if o.name == name] for name in (*LOSSES, *MAPS)}


def samples(op): return list(op.sample_inputs('cpu', torch.float64, requires_grad=True))
def leaves(sample): return [t for t in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(t, torch.Tensor) and t.requires_grad]


def value_and_grads(fn, sample):
    "Value and the gradients in everything that requires one"
    out = fn(sample.input, *sample.args, **sample.kwargs)
    return out.detach(), *torch.autograd.grad((out*torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum(), leaves(sample))


def with_tensors(fn, sample):
    "`fn` as a function of the tensors that require a gradient"
    def run(*tensors):
        new = iter(tensors)
        swap = lambda o: next(new) if isinstance(o, torch.Tensor) and o.requires_grad else o
        return fn(swap(sample.input), *[swap(o) for o in sample.args], **{k: swap(o) for k, o in sample.kwargs.items()})
    return run


def variants(name, sample):
    "The sample as it is, and with label smoothing, which PyTorch's samples leave out"
    yield sample.kwargs
    if 'cross_entropy' in name: yield sample.kwargs | {'label_smoothing': .1}


@pytest.mark.parametrize('name', LOSSES)
def test_losses_equal_pytorch(ops, name):
    "Value and gradient, except that a batch in which nothing counts is 0 and not nan"
    theirs, ours = LOSSES[name]
    n = 0
    for op in ops[name]:
        for sample in samples(op):
            for options in variants(name, sample):
                sample.kwargs = options
                got, expected, n = value_and_grads(ours, sample), value_and_grads(theirs, sample), n+1
                if expected[0].isnan().any():
                    target, ignored = sample.args[0], sample.kwargs['ignore_index']
                    assert (target == ignored).all() and got[0] == 0 and not got[1].any()
                else: assert_same(got, expected, str(sample))
    assert n >= 40


@pytest.mark.parametrize('name', LOSSES)
def test_losses_derive_twice(ops, name):
    "Gradients of first and second order agree with finite differences, in the logits and in soft targets"
    _, ours = LOSSES[name]
    for op in ops[name]:
        for sample in samples(op):
            if sample.input.numel() > 12: continue
            fn, tensors = with_tensors(ours, sample), leaves(sample)
            torch.autograd.gradcheck(fn, tensors, check_forward_ad=True)
            torch.autograd.gradgradcheck(fn, tensors)


@pytest.mark.parametrize('name', MAPS)
def test_maps_equal_pytorch(ops, name):
    "softmax and its relatives, on PyTorch's samples"
    ours = getattr(lab, name.split('.')[-1])
    for op in ops[name]:
        assert samples(op)
        for sample in samples(op):
            assert_same(value_and_grads(ours, sample), value_and_grads(op.op, sample), f'{op.variant_test_name} {sample}')


@pytest.mark.parametrize('name', MAPS)
def test_maps_derive_twice(ops, name):
    "First and second derivatives against finite differences"
    ours = getattr(lab, name.split('.')[-1])
    for sample in samples(ops[name][0]):
        if not 0 < sample.input.numel() <= 30: continue
        fn, tensors = with_tensors(ours, sample), leaves(sample)
        if name == 'logit' and sample.args: continue  # its clamp has a corner
        torch.autograd.gradcheck(fn, tensors)
        torch.autograd.gradgradcheck(fn, tensors)


@pytest.mark.parametrize('name', ['CrossEntropyLoss', 'NLLLoss'])
def test_modules_equal_pytorch(name):
    "The module takes the constructor's arguments of PyTorch's module and gives its numbers"
    from torch.testing._internal.common_modules import module_db
    info, = (o for o in module_db if o.module_cls is getattr(torch.nn, name))
    inputs = info.module_inputs_func(info, device='cpu', dtype=torch.float64, requires_grad=True, training=True)
    assert len(inputs) >= 28
    for o in inputs:
        options, forward = o.constructor_input.kwargs, o.forward_input
        if 'weight' in options: options['weight'] = options['weight'].detach()
        sample = type('Sample', (), dict(input=forward.args[0], args=forward.args[1:], kwargs=forward.kwargs))
        theirs, ours = getattr(torch.nn, name)(**options), getattr(ll, name)(**options)
        expected, got = value_and_grads(theirs, sample), value_and_grads(ours, sample)
        if expected[0].isnan().any(): assert not got[0].isnan().any()
        else: assert_same(got, expected, o.desc)
