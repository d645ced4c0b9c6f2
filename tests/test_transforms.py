"Everything PyTorch does to its own losses works here: torch.func, compile, export, autocast, meta tensors, modules that move and pickle"
import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from oracle import TIGHT, assert_same, cotangent, make_logits, make_target
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import losslab as ll

W = torch.tensor([.5, 2., 0., 1.5], dtype=torch.float64)
S = torch.tensor([1., .5, 0., 2., 1.], dtype=torch.float64)
M = torch.tensor([True, True, True, False, True])
CASES = {'plain': {}, 'weight': dict(weight=W), 'ignored': dict(ignore_index=(1, 2)), 'mask': dict(mask=M), 'sample_weight': dict(sample_weight=S),
         'smoothing': dict(label_smoothing=.1, weight=W), 'on logits': dict(temperature=2., softcap=3., z_loss=.1), 'weighted_mean': dict(weight=W, reduction='weighted_mean'),
         'none': dict(reduction='none', mask=M), 'normalizer': dict(normalizer=3.)}
KINDS = 'index', 'onehot', 'shares'


def data(kind):
    torch.manual_seed(0)
    return make_logits((5, 4)), make_target(kind, (5, 4), 1)


def close(a, b): torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', CASES)
def test_derivatives(case, kind):
    "Finite differences of first and second order, forwards and backwards"
    z, target = data(kind)
    fn = lambda z: ll.cross_entropy(z, target, **CASES[case])
    z.requires_grad_()
    torch.autograd.gradcheck(fn, z, check_forward_ad=True)
    torch.autograd.gradgradcheck(fn, z)


@pytest.mark.parametrize('backend', ['reference', 'fused'])
def test_derivatives_of_every_path(backend):
    "A fast path is as differentiable as the reference"
    z, target = data('index')
    with ll.backend(backend):
        torch.autograd.gradcheck(lambda z: ll.cross_entropy(z, target, weight=W), z.requires_grad_(), check_forward_ad=True)
        torch.autograd.gradgradcheck(lambda z: ll.cross_entropy(z, target, weight=W), z)


def test_learnable_options():
    "Gradients reach class weights, sample weights, soft targets, the temperature and the normalizer"
    z, shares = data('shares')
    index = data('index')[1]
    positive = lambda *shape: (torch.rand(shape, dtype=torch.float64) + .5).requires_grad_()
    check = torch.autograd.gradcheck
    for reduction in 'mean', 'weighted_mean', 'element_mean', 'none':
        for target in index, shares:
            assert check(lambda w, s: ll.cross_entropy(z, target, weight=w, sample_weight=s, reduction=reduction, label_smoothing=.1), (positive(4), positive(5)))
            assert check(lambda t: ll.cross_entropy(z, target, temperature=t, z_loss=.1, reduction=reduction), positive())
        assert check(lambda z, q: ll.cross_entropy(z, q, weight=W, mask=M, reduction=reduction), (z.clone().requires_grad_(), shares.clone().requires_grad_()))
    assert check(lambda n: ll.cross_entropy(z, index, normalizer=n), positive())


def test_a_sample_weight_of_0_can_be_learned():
    "The derivative in a sample weight is the loss of the element, also where the weight is 0 (learning to reweight starts there)"
    z, target = data('index')
    s = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    got, = torch.autograd.grad(ll.cross_entropy(z, target, sample_weight=s, reduction='sum'), s)
    close(got, ll.cross_entropy(z, target, reduction='none'))
    close(grad(lambda s: ll.cross_entropy(z, target, sample_weight=s, reduction='sum'))(s.detach()), got)


def test_a_learned_temperature_beside_impossible_classes():
    "A class that is out sends nothing to the temperature"
    z, target = data('index')
    z[:, 3], target = -torch.inf, target.clamp(max=2)
    t = torch.tensor(2., dtype=torch.float64, requires_grad=True)
    got, = torch.autograd.grad(ll.cross_entropy(z, target, temperature=t), t)
    expected, = torch.autograd.grad(ll.cross_entropy(z[:, :3], target, temperature=t), t)
    close(got, expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', CASES)
def test_func_equals_autograd(case, kind):
    "grad, jvp, jacrev and hessian of torch.func against torch.autograd"
    z, target = data(kind)
    fn = lambda z: (o := ll.cross_entropy(z, target, **CASES[case])).mul(cotangent(o)).sum()
    zr = z.clone().requires_grad_()
    g, = torch.autograd.grad(fn(zr), zr, create_graph=True)
    direction = torch.randn_like(z)
    close(grad(fn)(z), g.detach())
    close(jacrev(fn)(z), g.detach())
    close(jvp(fn, (z,), (direction,))[1], (g*direction).sum().detach())
    close(hessian(fn)(z), torch.autograd.functional.hessian(fn, z))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', CASES)
def test_vmap(case, kind):
    "vmap over a batch of batches is the loop, alone and around grad"
    options = CASES[case]
    pairs = [(make_logits((5, 4)), make_target(kind, (5, 4), 1)) for _ in range(3)]
    zs, targets = map(torch.stack, zip(*pairs))
    fn = lambda z, t: ll.cross_entropy(z, t, **options)
    close(vmap(fn)(zs, targets), torch.stack([fn(z, t) for z, t in pairs]))
    close(vmap(fn, (0, None))(zs, targets[0]), torch.stack([fn(z, targets[0]) for z in zs]))
    summed = lambda z, t: fn(z, t).sum()
    close(vmap(grad(summed))(zs, targets), torch.stack([grad(summed)(z, t) for z, t in pairs]))


def test_vmap_over_one_sample_at_a_time():
    "Per-sample gradients, with logits of shape (C,) inside"
    z, target = data('index')
    g = vmap(grad(lambda z, t: ll.cross_entropy(z, t)))(z, target)
    close(g, z.softmax(1) - F.one_hot(target, 4))


@pytest.mark.parametrize('kind,case', [(k, 'weight') for k in KINDS] + [('index', c) for c in ('ignored', 'mask', 'sample_weight', 'smoothing', 'on logits', 'none')])
def test_compile(kind, case):
    "One graph, the same value and gradient"
    torch._dynamo.reset()
    z, target = data(kind)
    fn = lambda z, t: ll.cross_entropy(z, t, **CASES[case])
    results = []
    for f in torch.compile(fn, fullgraph=True, backend='aot_eager'), fn:
        zr = z.clone().requires_grad_()
        out = f(zr, target)
        results.append((out.detach(), *torch.autograd.grad((out*cotangent(out)).sum(), zr)))
    assert_same(*results)


def test_compile_other_layouts():
    "Sequences, pixels, single rows, nll_loss, parts, and modules compile too"
    torch._dynamo.reset()
    run = lambda fn: torch.compile(fn, fullgraph=True, backend='eager')
    z = make_logits((2, 3, 4))
    tokens, pixels = torch.tensor([[0, -100, 3], [1, 2, -100]]), torch.tensor([[0, 1, 2, 2], [2, 1, -100, 0]])
    close(run(lambda z: ll.cross_entropy(z, tokens, dim=-1))(z), ll.cross_entropy(z, tokens, dim=-1))
    close(run(lambda z: ll.cross_entropy(z, pixels))(z), ll.cross_entropy(z, pixels))
    close(run(lambda z: ll.cross_entropy(z, torch.tensor(1)))(z[0, 0]), ll.cross_entropy(z[0, 0], torch.tensor(1)))
    close(run(lambda z: ll.nll_loss(z, tokens, dim=-1))(z), ll.nll_loss(z, tokens, dim=-1))
    close(run(ll.CrossEntropyLoss(weight=W, dim=-1))(z, tokens), ll.cross_entropy(z, tokens, dim=-1, weight=W))
    total, count = run(lambda z: tuple(ll.cross_entropy(z, tokens, dim=-1, reduction='parts')))(z)
    assert count == 4 and total.isfinite()


def test_compile_with_inductor():
    "The compiler that people use, once, with a gradient"
    torch._dynamo.reset()
    z, target = data('index')
    fn = lambda z, t: ll.cross_entropy(z, t, weight=W, label_smoothing=.1, ignore_index=3)
    results = []
    for f in torch.compile(fn, fullgraph=True), fn:
        zr = z.clone().requires_grad_()
        out = f(zr, target)
        results.append((out.detach(), *torch.autograd.grad(out, zr)))
    assert_same(*results)


def test_compile_cannot_read_labels():
    "Under compile a label out of range spoils its own row, and nothing else"
    torch._dynamo.reset()
    z, target = data('index')
    target[2] = 7
    out = torch.compile(lambda z, t: ll.cross_entropy(z, t, reduction='none'), fullgraph=True, backend='eager')(z, target)
    assert out.isnan().tolist() == [False, False, True, False, False]


def test_export():
    "torch.export keeps the loss as a graph"
    z, target = data('index')
    program = torch.export.export(ll.CrossEntropyLoss(weight=W, ignore_index=2), (z, target))
    close(program.module()(z, target), ll.cross_entropy(z, target, weight=W, ignore_index=2))


@pytest.mark.parametrize('kind', KINDS)
def test_meta_and_fake_tensors(kind):
    "Shapes without numbers: nothing tries to read a value"
    z, target = data(kind)
    for reduction, shape in ('none', (5,)), ('mean', ()):
        out = ll.cross_entropy(z.to('meta'), target.to('meta'), weight=W.to('meta'), mask=M.to('meta'), sample_weight=S.to('meta'), reduction=reduction)
        assert out.device.type == 'meta' and out.shape == shape and out.dtype == torch.float64
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode() as mode:
        out = ll.cross_entropy(mode.from_tensor(z), mode.from_tensor(target), mask=mode.from_tensor(M))
    assert out.shape == ()


def test_autocast():
    "A bf16 model under autocast gets a float32 loss, and its parameters gradients"
    model, x, target = torch.nn.Linear(6, 4), torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(x)
        loss = ll.cross_entropy(logits, target, label_smoothing=.1)
        soft = ll.cross_entropy(logits, F.one_hot(target, 4).bfloat16())
    assert logits.dtype == torch.bfloat16 and loss.dtype == soft.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target, label_smoothing=.1), rtol=1e-6, atol=1e-6)
    loss.backward()
    assert model.weight.grad.dtype == torch.float32 and model.weight.grad.any()


MODULES = [ll.CrossEntropyLoss(weight=W, ignore_index=(1, 3), label_smoothing=.1), ll.NLLLoss(weight=W, reduction='sum')]


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize('module', MODULES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load], ids=['deepcopy', 'pickle', 'save'])
def test_copies(module, copied):
    "A copy has the same options, its own tensors and the same results"
    z, target = data('index')
    other = copied(module)
    close(other(z, target), module(z, target))
    other.weight.fill_(1)
    assert not torch.equal(other.weight, module.weight) and torch.equal(W, module.weight)
    assert other.extra_repr() == module.extra_repr() and (other.ignore_index, other.reduction) == (module.ignore_index, module.reduction)


def test_modules_move_and_save():
    "Tensor options are buffers: in the state, in `.to()`, and loaded back"
    z, target = data('index')
    module = ll.CrossEntropyLoss(weight=W.clone())
    assert list(module.state_dict()) == ['weight'] and not list(module.parameters())
    assert module.float().weight.dtype == torch.float32 and module.to('meta').weight.device.type == 'meta'
    fresh = ll.CrossEntropyLoss(weight=torch.ones(4, dtype=torch.float64))
    fresh.load_state_dict({'weight': W})
    close(fresh(z, target), F.cross_entropy(z, target, weight=W))
    close(functional_call(fresh, {'weight': torch.ones(4, dtype=torch.float64)}, (z, target)), F.cross_entropy(z, target))
    assert torch.nn.Sequential(module).state_dict().keys() == {'0.weight'}


def test_an_option_can_change():
    "A call overrides an option once, an assignment for good"
    z, target = data('index')
    module = ll.CrossEntropyLoss(reduction='sum')
    close(module(z, target, reduction='mean'), F.cross_entropy(z, target))
    close(module(z, target), F.cross_entropy(z, target, reduction='sum'))
    module.weight = W
    assert list(module.state_dict()) == ['weight']
    close(module(z, target), F.cross_entropy(z, target, weight=W, reduction='sum'))
    module.weight = None
    close(module(z, target), F.cross_entropy(z, target, reduction='sum'))
    module.weight = torch.nn.Parameter(W.clone())
    module(z, target).backward()
    assert [n for n, _ in module.named_parameters()] == ['weight'] and module.weight.grad.any()


def test_modules_show_what_they_are():
    "The text of a module names the options that are not default"
    assert repr(ll.CrossEntropyLoss()) == 'CrossEntropyLoss()'
    assert repr(ll.CrossEntropyLoss(label_smoothing=.1, weight=W)) == 'CrossEntropyLoss(weight=tensor of shape (4,), label_smoothing=0.1)'
