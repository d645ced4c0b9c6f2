"Schedules: their formulas in plain floats, their ends, tensors as steps, and a step that saves"
import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

import losslab as ll
from losslab.schedules import progress

number = st.floats(-10, 10)
step = st.integers(-5, 60)


def ramp(t, steps, start, end, delay, kind, slope=None):
    "The weight, written out"
    u = (t - delay)/steps
    u = 0. if u < 0 else 1. if u > 1 else u
    if kind == 'cosine': u = math.sin(math.pi*u/2)**2
    if kind == 'sigmoid':
        def s(x): return 1/(1 + math.exp(-slope*(x - .5)))
        u = (s(u) - s(0))/(s(1) - s(0))
    return start + u*(end - start)


def table(t, values, every): return values[max(0, min(math.floor(t/every), len(values) - 1))]
def cycle(t, fn, period, cycles): return fn(period if cycles and t >= period*cycles else t - period*math.floor(t/period))


@given(step, st.integers(1, 40), number, number, st.integers(0, 9), st.sampled_from(['linear', 'cosine', 'sigmoid']), st.floats(.1, 40))
def test_ramps(t, steps, start, end, delay, kind, slope):
    cls = dict(linear=ll.LinearSchedule, cosine=ll.CosineSchedule, sigmoid=ll.SigmoidSchedule)[kind]
    more = dict(slope=slope) if kind == 'sigmoid' else {}
    schedule = cls(steps, start, end, delay, **more)
    expected = ramp(t, steps, start, end, delay, kind, slope)
    got = schedule(t)
    assert isinstance(got, float) and got == pytest.approx(expected, rel=1e-9, abs=1e-9)
    of_tensor = schedule(torch.tensor([t, t + 1]))
    assert of_tensor.dtype == torch.float64
    torch.testing.assert_close(of_tensor[0].item(), got, rtol=1e-12, atol=1e-12)
    assert schedule(delay) == start and schedule(delay + steps) == schedule(10**6) == end and schedule(-10**6) == start
    assert schedule(torch.tensor(delay + steps)).item() == end
    assert min(start, end) - 1e-12 <= got <= max(start, end) + 1e-12


@given(step, st.lists(number, min_size=1, max_size=5), st.integers(1, 7))
def test_table(t, values, every):
    schedule = ll.TableSchedule(values, every)
    assert schedule(t) == table(t, values, every)
    assert schedule(torch.tensor([[t]])).tolist() == [[table(t, values, every)]]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 2, 3]))
def test_cycles(t, steps, period, cycles):
    inner = ll.CosineSchedule(steps, .2, 3.)
    schedule = ll.CyclicalSchedule(inner, period, cycles)
    assert schedule(t) == pytest.approx(cycle(t, inner, period, cycles), abs=1e-12)
    torch.testing.assert_close(schedule(torch.tensor(t)).item(), schedule(t), rtol=1e-12, atol=1e-12)


def test_cycles_of_fu():
    "Fu et al. (2019), equations (6) and (7), for 40000 steps, 4 cycles and a share of one half, step by step"
    schedule = ll.CyclicalSchedule(ll.LinearSchedule(5000), 10_000, cycles=4)
    for t in range(1, 40_001, 37):
        tau = ((t - 1) % math.ceil(40_000/4))/(40_000/4)
        assert schedule(t - 1) == pytest.approx(tau/.5 if tau <= .5 else 1., abs=1e-12)
    assert schedule(40_000) == schedule(10**6) == 1.


def test_progress():
    assert progress(-1, 4) == 0. and progress(1, 4) == .25 and progress(9, 4) == 1.
    large = torch.tensor(2**24 + 1)   # more than float32 holds
    assert progress(large, 2**25).item() == progress(2**24 + 1, 2**25)


SCHEDULES = [ll.ConstantSchedule(2.5), ll.LinearSchedule(7, -1., 3., 2), ll.CosineSchedule(7, 5., .1), ll.SigmoidSchedule(7, slope=3.),
             ll.TableSchedule([1, 2.5, 0.], 3), ll.CyclicalSchedule(ll.LinearSchedule(3), 5), ll.CyclicalSchedule(ll.CosineSchedule(3), 5, 2)]
every_schedule = pytest.mark.parametrize('schedule', SCHEDULES, ids=repr)


@every_schedule
def test_values_not_state(schedule):
    "Frozen, comparable, hashable, picklable; printed as it is written"
    assert pickle.loads(pickle.dumps(schedule)) == schedule == copy.deepcopy(schedule) and hash(schedule) == hash(copy.copy(schedule))
    assert eval(repr(schedule), vars(ll)) == schedule
    with pytest.raises(AttributeError): schedule.period = schedule.steps = schedule.value = schedule.values = 3


@every_schedule
def test_scheduled(schedule):
    "The module gives the weight of its step, which saves, loads, copies and is not a parameter"
    module = ll.Scheduled(schedule)
    for t in range(9):
        assert float(module) == pytest.approx(schedule(t), abs=1e-12) and module().ndim == 0
        module.step()
    module.step(3)
    assert module.position.item() == 12 and list(module.state_dict()) == ['position'] and not list(module.parameters())
    other = ll.Scheduled(schedule)
    other.load_state_dict(pickle.loads(pickle.dumps(module.state_dict())))
    assert other() == module() == ll.Scheduled(schedule, 12)() == copy.deepcopy(module)()
    module.step()
    assert other.position.item() == 12
    assert module.half().position.dtype == torch.int64 and 'position=13' in repr(module)


@every_schedule
def test_compiled_once(schedule):
    "One graph for all steps"
    counter = CompileCounter()
    module = ll.Scheduled(schedule)
    weigh = torch.compile(lambda x: x*module(), fullgraph=True, backend=counter)
    for t in range(6):
        assert weigh(torch.tensor(2., dtype=torch.float64)).item() == pytest.approx(2*schedule(t), abs=1e-12)
        module.step()
    assert counter.frame_count == 1


def test_any_function():
    "Of a tensor, or a constant"
    assert float(ll.Scheduled(lambda step: 3)) == 3 and ll.Scheduled(lambda step: 3)().dtype == torch.float64
    module = ll.Scheduled(lambda step: torch.where(step < 2, 1., 0.), 1)
    assert float(module) == 1
    module.step()
    assert float(module) == 0


def test_a_shape_of_your_own():
    class Square(ll.Schedule):
        "Slow first"
        def shape(self, t): return t**2
    assert Square(10, 1., 5.)(5) == 2. and Square(10)(torch.tensor(5)).item() == .25
    with pytest.raises(NotImplementedError, match='Schedule has no shape'): ll.Schedule(3)(1)


@pytest.mark.parametrize('make, error, text', [
    (lambda: ll.LinearSchedule(0), ValueError, 'steps is 0; it must be larger than 0'),
    (lambda: ll.LinearSchedule('9'), TypeError, "steps is '9'"),
    (lambda: ll.LinearSchedule(3, end=math.nan), ValueError, 'end is nan'),
    (lambda: ll.LinearSchedule(3, delay=-1), ValueError, 'delay is -1'),
    (lambda: ll.SigmoidSchedule(3, slope=0), ValueError, 'slope is 0'),
    (lambda: ll.SigmoidSchedule(0), ValueError, 'steps is 0'),
    (lambda: ll.ConstantSchedule('a'), TypeError, "value is 'a'"),
    (lambda: ll.TableSchedule([]), ValueError, 'values is empty'),
    (lambda: ll.TableSchedule([1., None]), TypeError, r'values\[1\] is None'),
    (lambda: ll.TableSchedule([1.], every=0), ValueError, 'every is 0'),
    (lambda: ll.CyclicalSchedule(.5, 3), TypeError, 'schedule is 0.5; it must be a schedule'),
    (lambda: ll.CyclicalSchedule(ll.LinearSchedule(3), 0), ValueError, 'period is 0'),
    (lambda: ll.CyclicalSchedule(ll.LinearSchedule(3), 2, 0), ValueError, 'cycles is 0'),
    (lambda: ll.Scheduled(.5), TypeError, 'it must be a function of the step'),
])
def test_errors(make, error, text):
    with pytest.raises(error, match=text): make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@every_schedule
def test_on_a_gpu(schedule):
    module = ll.Scheduled(schedule, 3).cuda()
    assert module().device.type == 'cuda' and module.cpu()().item() == pytest.approx(schedule(3), abs=1e-12)
