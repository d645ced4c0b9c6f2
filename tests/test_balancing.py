"GradNorm, dynamic weight average and PCGrad against their algorithms, written out step by step"
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import losslab as ll
from losslab.balancing import gradnorm_slope, project_conflicts, task_gradients

seeds = st.integers(0, 2**16)


def tasks(n=3):
    "A shared trunk, heads that only one task uses, and a parameter that none uses"
    net = nn.ModuleDict(dict(trunk=nn.Linear(4, 5), unused=nn.Linear(2, 2), **{f'head{i}': nn.Linear(5, 1) for i in range(n)})).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    h = net['trunk'](x).tanh()
    return net, [(3**i)*(net[f'head{i}'](h)[:, 0] - (-1)**i).square().mean() for i in range(n)]


def surgery(grads, orders):
    "Algorithm 1 of Yu et al. (2020), in numpy"
    out = []
    for i, order in enumerate(orders):
        g = grads[i].copy()
        for j in order:
            if i != j and np.dot(g, grads[j]) < 0: g -= np.dot(g, grads[j])/np.linalg.norm(grads[j])**2*grads[j]
        out.append(g)
    return np.stack(out)


@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_projection(seed, n, size):
    rows = torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(n)]
    expected = torch.as_tensor(surgery(rows.numpy(), orders))
    before = rows.clone()
    assert_close(project_conflicts(rows, torch.Generator().manual_seed(seed)), expected, rtol=1e-9, atol=1e-12)
    assert_close(rows, before, rtol=0, atol=0)


def test_projection_draws_from_its_generator():
    rows = torch.randn(4, 3)
    state = torch.get_rng_state()
    a = project_conflicts(rows, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    seen = {tuple(project_conflicts(rows, torch.Generator().manual_seed(i)).flatten().tolist()) for i in range(20)}
    assert tuple(a.flatten().tolist()) in seen and len(seen) > 1
    torch.manual_seed(3); b = project_conflicts(rows)
    torch.manual_seed(3); assert_close(project_conflicts(rows), b, rtol=0, atol=0)


@given(seeds)
def test_two_tasks_never_hurt(seed):
    "The step is |g|^2 sin^2 along each of two gradients in conflict, and their sum if they agree"
    g = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    step = project_conflicts(g).sum(0)
    cosine = (g[0] @ g[1])/(g[0].norm()*g[1].norm())
    if cosine < 0: assert_close(g @ step, g.square().sum(1)*(1 - cosine**2), rtol=1e-9, atol=1e-12)
    else: assert_close(step, g.sum(0))


def test_pcgrad_of_a_model():
    "Shapes of the parameters, zeros where nothing flows, the sum where nothing conflicts; graphs can still be used"
    net, losses = tasks()
    params = list(net.parameters())
    got = ll.pcgrad(losses, net.parameters(), torch.Generator().manual_seed(0))
    rows = task_gradients(losses, params)
    for i, loss in enumerate(losses):
        each = torch.autograd.grad(loss, params, allow_unused=True, retain_graph=True)
        assert_close(rows[i], torch.cat([torch.zeros(p.numel()).double() if g is None else g.flatten() for g, p in zip(each, params)]))
    expected = project_conflicts(rows, torch.Generator().manual_seed(0)).sum(0)
    assert [o.shape for o in got] == [p.shape for p in params]
    assert_close(torch.cat([o.flatten() for o in got]), expected)
    assert not got[[i for i, (k, _) in enumerate(net.named_parameters()) if k == 'unused.weight'][0]].any()
    assert all(p.grad is None for p in params)
    one = ll.pcgrad([losses[0]], params)
    assert_close(one[0], torch.autograd.grad(losses[0], params[0])[0])


def test_pcgrad_in_half_precision():
    p = torch.tensor([1., 2.], dtype=torch.float16, requires_grad=True)
    big = torch.tensor([400., 1.], dtype=torch.float16)
    step, = ll.pcgrad([(p*big).sum(), (-p*big).sum()*.5], [p])   # 400^2 is more than float16 holds
    assert step.dtype == torch.float16 and step.isfinite().all() and step.abs().max() < 1e-2


def test_a_task_at_its_optimum():
    "A gradient of zero neither breaks the projection nor a weight"
    p = torch.tensor([1., 2.], requires_grad=True)
    step, = ll.pcgrad([(p*0).sum(), p.sum()], [p])
    assert_close(step, torch.ones(2))
    weights = ll.GradNorm(['a', 'b']).step(dict(a=(p*0).sum(), b=p.sum()), [p])
    assert all(math.isfinite(o) for o in weights.values())


@given(seeds, st.sampled_from([0., .5, 1.5]))
def test_slope_of_gradnorm(seed, alpha):
    "The closed form is the gradient of the loss of Chen et al. (2018), through norms of gradients with a graph"
    torch.manual_seed(seed)
    net, losses = tasks()
    w = torch.rand(3, dtype=torch.float64).add(.1).requires_grad_()
    left = torch.rand(3, dtype=torch.float64) + .1
    shared = net['trunk'].weight
    G = torch.stack([torch.autograd.grad(wi*o, shared, create_graph=True)[0].norm() for wi, o in zip(w, losses)])
    rate = left/(left.sum()/3)
    expected, = torch.autograd.grad((G - (G.mean()*rate**alpha).detach()).abs().sum(), w)
    norms = torch.stack([torch.autograd.grad(o, shared, retain_graph=True)[0].norm() for o in losses])
    assert_close(gradnorm_slope(w.detach(), norms, left, alpha), expected, rtol=1e-9, atol=1e-12)


def test_gradnorm_by_hand():
    "Three steps in plain numpy: descend in log w by slope over mean norm, then scale to a sum of T"
    balance, w, first = ll.GradNorm(['a', 'b'], alpha=1.5, lr=.1).double(), np.ones(2), None
    for t in range(3):
        p = torch.tensor([1. + t, -2.], dtype=torch.float64, requires_grad=True)
        losses = dict(b=20*(p - 1).square().sum(), a=(p + 2).square().sum(), total=None)
        weights = balance.step(losses, [p])
        values = np.array([losses['a'].item(), losses['b'].item()])
        first = values if first is None else first
        g = np.array([np.linalg.norm(2*(p.detach().numpy() + 2)), np.linalg.norm(40*(p.detach().numpy() - 1))])
        rate = values/first/np.mean(values/first)
        slope = np.sign(w*g - np.mean(w*g)*rate**1.5)*g
        w = w*np.exp(-.1*slope*w/np.mean(w*g))
        w = 2*w/w.sum()
        assert_close(torch.stack([weights['a'], weights['b']]), torch.as_tensor(w), rtol=1e-9, atol=0)
    assert weights['a'] > weights['b']


def test_gradnorm_makes_lengths_equal():
    "At a point that stays, the weighted gradients end equally long, whatever the units"
    for unit in 1e-3, 1., 1e3:
        p = torch.tensor([.2, .8], requires_grad=True)
        balance = ll.GradNorm(['a', 'b', 'c'], alpha=0., lr=.02)
        for _ in range(900): balance.step(dict(a=(p - 1).square().sum(), b=unit*(p*3).square().sum(), c=p.abs().sum()), [p])
        lengths = balance.weights*task_gradients([(p - 1).square().sum(), unit*(p*3).square().sum(), p.abs().sum()], [p]).norm(dim=1)
        assert_close(lengths/lengths.mean(), torch.ones(3), rtol=.12, atol=0)
        assert_close(balance.weights.sum(), torch.tensor(3.))


def test_gradnorm_saves():
    p = torch.tensor([.2, .8], requires_grad=True)
    def losses(t): return dict(a=(p - t).square().sum(), b=(p + 3).square().sum())
    one, two = ll.GradNorm(['a', 'b']), ll.GradNorm(['a', 'b'])
    one.step(losses(1), [p])
    two.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    for balance in one, two: last = balance.step(losses(2), [p])
    assert last == one.step(losses(9), [p]) or torch.equal(one.first, two.first)
    assert torch.equal(two.first, torch.stack(list(losses(1).values())).detach())
    assert not list(one.parameters()) and not last['a'].requires_grad
    kept = last['a'].item()
    two.step(losses(4), [p])
    assert last['a'].item() == kept   # what was returned does not change


@given(st.lists(st.tuples(st.floats(.1, 10), st.floats(.1, 10), st.floats(.1, 10)), min_size=1, max_size=5), st.floats(.5, 5))
def test_dynamic_weight_average(epochs, temperature):
    "Equation (7) of Liu et al. (2019), in plain floats"
    average = ll.DynamicWeightAverage('abc', temperature).double()
    for t, losses in enumerate(epochs):
        weights = average.step(dict(zip('cba', losses[::-1])) | dict(total=math.nan))
        rate = [1.]*3 if t == 0 else [x/y for x, y in zip(epochs[t], epochs[t-1])]
        e = [math.exp(r/temperature) for r in rate]
        for k, v in zip('abc', e): assert weights[k].item() == pytest.approx(3*v/sum(e), rel=1e-5)
    other = ll.DynamicWeightAverage('abc', temperature).double()
    other.load_state_dict(pickle.loads(pickle.dumps(average.state_dict())))
    assert other.step(dict(a=1., b=2., c=3.)) == copy.deepcopy(average).step(dict(a=1., b=2., c=3.))


def test_a_loss_that_is_zero():
    "0 after 0 has not changed"
    average = ll.DynamicWeightAverage('ab')
    for _ in range(2): weights = average.step(dict(a=0., b=1.))
    assert weights['a'] == weights['b'] == 1


def test_together():
    "With MultiLoss: set what the methods return; `terms` are what PCGrad takes"
    z = torch.randn(6, 2, requires_grad=True)
    criterion = ll.MultiLoss(dict(a=lambda z: z.square().sum(1), b=lambda z: (z - 3).square().sum(1)), dict(b=20.))
    out = criterion(a=z, b=z)
    step, = ll.pcgrad(out.terms.values(), [z])
    by_hand, = ll.pcgrad([z.square().sum(1).mean(), 20*(z - 3).square().sum(1).mean()], [z])
    assert_close(step, by_hand)
    balance = ll.GradNorm(['a', 'b'])
    criterion.set_weights(**balance.step({k: o.mean for k, o in out.parts.items()}, [z]))
    assert_close(criterion.weights['a']().float(), balance.weights[0])
    out.backward()
    criterion.set_weights(**ll.DynamicWeightAverage(['a', 'b']).step(criterion.epoch()))
    assert criterion.weights['a']() == 1


@pytest.mark.parametrize('make, error, text', [
    (lambda: ll.GradNorm('ab', alpha=-1), ValueError, 'alpha is -1'),
    (lambda: ll.GradNorm('ab', lr=0), ValueError, 'lr is 0'),
    (lambda: ll.DynamicWeightAverage('ab', 0.), ValueError, 'temperature is 0'),
    (lambda: ll.DynamicWeightAverage('ab').step(dict(a=1.)), ValueError, "losses has no 'b'; it must have a, b"),
    (lambda: ll.GradNorm('ab').step(dict(b=1.), []), ValueError, "losses has no 'a'"),
    (lambda: ll.pcgrad([], [torch.ones(1)]), ValueError, 'losses is empty'),
    (lambda: ll.pcgrad([torch.ones(1)], []), ValueError, 'params is empty'),
])
def test_errors(make, error, text):
    with pytest.raises(error, match=text): make()
