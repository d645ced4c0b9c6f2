"A slow, independent cross entropy in plain Python floats, with its gradient, and the helpers that the tests share"
import math
from itertools import product

import torch

TIGHT = dict(rtol=1e-10, atol=1e-14)
REDUCTIONS = 'none', 'sum', 'mean', 'weighted_mean', 'element_mean', 'batchmean'
INDEX_DTYPES = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


def cotangent(out):
    "Numbers that tell every element of `out` from every other"
    return torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape)


def value_and_grad(fn, *tensors):
    "`fn(*tensors)` and its gradients, each element of the value weighted differently"
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = fn(*tensors)
    return out.detach(), *torch.autograd.grad((out*cotangent(out)).sum(), tensors)


def assert_same(got, expected, note='', **tolerance):
    "Two tuples of tensors are equal, or say for which case they are not"
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, msg=lambda m, i=i: f'{"gradient" if i else "value"} of {note}: {m}', **(tolerance or TIGHT))


def assert_unspoilt(loss_fn, x, read):
    "That `read` changes before the backward pass is noticed, or leaves the gradient of `x` alone, because it was copied"
    expected, = torch.autograd.grad(loss_fn(), x)
    loss = loss_fn()
    read.zero_()
    try: found, = torch.autograd.grad(loss, x)
    except RuntimeError as e: assert 'modified by an inplace operation' in str(e)
    else: assert torch.equal(found, expected)


# of this process alone; `getrusage` would count what its parent held
PEAK_GB = "next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM'))/2**20"


def grid(**axes):
    "Every combination of the options, as dicts"
    for values in product(*axes.values()): yield dict(zip(axes, values))


def rows(t, dim): return t.detach().double().movedim(dim, -1).reshape(-1, t.shape[dim]).tolist()
def flat(t, default, n): return [default]*n if t is None else t.detach().double().reshape(-1).tolist()


def one_row(z, q, w, smoothing, softcap, temperature, z_loss, log_probs):
    "Loss of one row of scores `z` with shares `q`, and its gradient in `z`"
    capped = [o if softcap is None or o == -math.inf else softcap*math.tanh(o/softcap) for o in z]
    slope = [1/temperature if softcap is None or o == -math.inf else (1 - math.tanh(o/softcap)**2)/temperature for o in z]
    scaled = [o/temperature for o in capped]
    top = max(scaled)
    lse = top + math.log(math.fsum(math.exp(o - top) for o in scaled))
    lp = z if log_probs else [o - lse for o in scaled]
    p = [0.]*len(z) if log_probs else [math.exp(o) for o in lp]
    possible = [o != -math.inf for o in lp]
    even = [smoothing*w[c]/sum(possible) if possible[c] else 0. for c in range(len(z))]
    share = [(1-smoothing)*q[c]*w[c] + even[c] for c in range(len(z))]
    loss = math.fsum(-share[c]*lp[c] for c in range(len(z)) if share[c]) + z_loss*lse**2
    if log_probs: return loss, [-o for o in share]
    return loss, [slope[c]*(p[c]*math.fsum(share) - share[c] + 2*z_loss*lse*p[c]) for c in range(len(z))]


def oracle(logits, target, *, weight=None, sample_weight=None, mask=None, ignore_index=-100, label_smoothing=0., softcap=None,
           temperature=1., z_loss=0., dim=1, reduction='mean', normalizer=None, log_probs=False):
    "Value and gradient of cross entropy (`log_probs=True`: of the negative log-likelihood); for `'parts'` total, count and gradient"
    axis = 0 if logits.ndim == 1 else dim
    n_classes, shape = logits.shape[axis], logits.select(axis, 0).shape
    zs, n = rows(logits, axis), shape.numel()
    dense = target.shape == logits.shape
    labels = rows(target, axis) if dense else [int(o) for o in target.reshape(-1).tolist()]
    ignored = (ignore_index,) if isinstance(ignore_index, int) else tuple(ignore_index or ())
    w, s, m = flat(weight, 1., n_classes), flat(sample_weight, 1., n), flat(mask, 1., n)

    values, grads, weights, counted = [], [], [], []
    for i, label in enumerate(labels):
        q = label if dense else [float(c == label) for c in range(n_classes)]
        on_ignored = any(q[c] for c in ignored if 0 <= c < n_classes) and not any(q[c] for c in range(n_classes) if c not in ignored)
        counts = bool(m[i]) and not (on_ignored if dense else label in ignored)
        loss, grad = one_row(zs[i], q, w, label_smoothing, softcap, temperature, z_loss, log_probs) if counts and s[i] else (0., [0.]*n_classes)
        values.append(s[i]*loss if counts and s[i] else 0.)
        grads.append([s[i]*o if counts and s[i] else 0. for o in grad])
        weights.append((s[i], s[i]*sum(w[c]*q[c] for c in range(n_classes) if q[c])) if counts else (0., 0.))
        counted.append(counts)

    weighted = math.fsum(o[1] for o in weights)
    mean = math.fsum(o[0] for o in weights) if dense else weighted
    count = dict(none=1, sum=1, mean=mean, parts=mean, weighted_mean=weighted, element_mean=sum(counted), batchmean=shape[0] if shape else 1)[reduction]
    by = normalizer if normalizer is not None else 1 if reduction == 'parts' else count
    by = by or 1
    v = cotangent(torch.empty(shape, dtype=torch.float64)).reshape(-1).tolist() if reduction == 'none' else [1.]*n
    grad = torch.tensor([[v[i]*o/by for o in g] for i, g in enumerate(grads)], dtype=torch.float64).reshape(*shape, n_classes).movedim(-1, axis)
    value = torch.tensor(values, dtype=torch.float64).reshape(shape) if reduction == 'none' else torch.tensor(math.fsum(values)/by, dtype=torch.float64)
    return (value, torch.tensor(float(count), dtype=torch.float64), grad) if reduction == 'parts' else (value, grad)


def make_logits(shape, dtype=torch.float64): return 3*torch.randn(shape, dtype=torch.float64).to(dtype)


def make_target(kind, shape, dim, ignored=()):
    "Labels of a kind ('index', 'onehot', 'bool', 'shares') for logits of `shape`; every fourth element is one of `ignored`"
    axis = 0 if len(shape) == 1 else dim % len(shape)
    n, elements = shape[axis], shape[:axis] + shape[axis+1:]
    if kind == 'shares': return torch.rand(shape, dtype=torch.float64).softmax(axis)
    index = torch.randint(n, elements)
    if ignored: index.view(-1)[::4] = torch.tensor(ignored)[torch.arange(len(index.view(-1)[::4])) % len(ignored)]
    if kind == 'index': return index
    hot = torch.nn.functional.one_hot(index, n).movedim(-1, axis)
    return hot.bool() if kind == 'bool' else hot
