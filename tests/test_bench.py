"The benchmark: arithmetic on clocks made by hand, memory counted, and the command in a real process"
import json
import os
import platform
import re
import statistics
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from losslab import bench
from losslab.core import backend

TINY = 'cross_entropy (32, 10)'


class Clock:
    "Time passes only where work is done, and three times as fast in some stretches"
    def __init__(self): self.now, self.calls = 0., []
    def __call__(self): return self.now

    def work(self, name, units):
        self.calls.append(name)
        self.now += units*(3 if self.now % 1000 > 600 else 1)


def command(*args, check=True, **env):
    "Run the command, with one thread"
    kept = {k: v for k, v in os.environ.items() if k not in ('THP_MEM_ALLOC_ENABLE', 'LOSSLAB_COMPILE')}
    call = [sys.executable, '-m', 'losslab.bench', *args]
    done = subprocess.run(call, env=kept | {'OMP_NUM_THREADS': '1'} | env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == check, done.stdout + done.stderr
    return done


# ---- Arithmetic

def test_ratios_are_of_rounds_then_quartiles():
    "Not a ratio of medians, and the first name is the baseline"
    times = {'base': [1., 2., 10., 4., 5.], 'other': [3., 2., 5., 16., 10.], 'third': [1., 2., 10., 4., 5.]}
    found = bench.ratios(times)
    assert list(found) == ['other', 'third']
    each = [3., 1., .5, 4., 2.]
    assert found['other'] == bench.Ratio(*statistics.quantiles(each, n=4, method='inclusive')) == (1., 2., 3.)
    assert found['third'] == (1., 1., 1.)
    assert str(found['other']) == '2.00 (1.00-3.00)'


def test_turns_alternate_and_slow_stretches_cancel():
    clock = Clock()
    times = bench.time_in_turns({'a': lambda: clock.work('a', 10), 'b': lambda: clock.work('b', 12)}, rounds=30, seconds=1, clock=clock)
    assert len(times['a']) == len(times['b']) == 30
    assert clock.calls == ['a', 'a', 'b', 'b'] + ['a', 'b']*31  # twice to warm up, and a round that does not count
    assert bench.ratios(times)['b'].median == pytest.approx(1.2)
    assert len(set(times['a'])) > 1


def test_a_turn_is_as_long_as_asked_for_each_candidate():
    "A fast candidate runs more often in its turn, and its time is that of one call"
    clock = Clock()
    times = bench.time_in_turns({'slow': lambda: clock.work('slow', 8), 'fast': lambda: clock.work('fast', 1)}, rounds=2, seconds=16, clock=clock)
    assert times == {'slow': [8., 8.], 'fast': [1., 1.]}
    assert (clock.calls.count('slow'), clock.calls.count('fast')) == (2 + 3*2, 2 + 3*16)


def test_the_first_round_is_thrown_away():
    "Calls 1 and 2 warm up, call 3 is the round that does not count"
    clock, cost = Clock(), iter([50, 20, 9, 1, 2, 3])
    times = bench.time_in_turns({'a': lambda: clock.work('a', next(cost))}, rounds=3, seconds=1, clock=clock)
    assert times == {'a': [1., 2., 3.]}


@pytest.mark.parametrize('most, rounds', [(0, 3), (65, 3), (85, 4), (1e9, 9)])
def test_a_budget_ends_the_rounds(most, rounds):
    clock = Clock()
    times = bench.time_in_turns({'a': lambda: clock.work('a', 10), 'b': lambda: clock.work('b', 10)}, rounds=9, seconds=1, most=most, clock=clock)
    assert {len(o) for o in times.values()} == {rounds}


# ---- Memory

def test_alive_counts_storages_once_and_lets_them_go():
    x = torch.ones(1000)
    with bench.Alive(x) as alive:
        y = x + 1
        y = y.view(10, 100).T
        y += 1
        assert (alive.now, alive.peak) == (4000, 4000)
        del y
        assert (alive.now, alive.peak) == (0, 4000)
        x.double()
    assert alive.peak == 8000


def test_peak_memory_is_what_the_profiler_sees():
    "PyTorch's chunked layer and losslab's, by the allocator's own records"
    g = torch.Generator().manual_seed(0)
    for case in (bench.cases(True)['linear_cross_entropy (256, 256) x 8000'], bench.cases(True)['cross_entropy (256, 1000)']):
        for name, fn in case.ways.items():
            inputs = case.make(torch.float32, 'cpu', g)
            step = bench.training_step(fn, *inputs)
            step()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen: step()
            now, peak = 0, 0
            for o in sorted((o for o in seen.profiler.kineto_results.events() if o.name() == '[memory]'), key=lambda o: o.start_ns()):
                now += o.nbytes()
                peak = max(peak, now)
            assert bench.peak_memory(step, *inputs) == pytest.approx(peak, rel=.02, abs=4096), name


def test_overwriting_holds_no_gradient():
    found = bench.compare(bench.cases(True)['cross_entropy (128, 128256)'], rounds=2, seconds=1e-4)
    assert found['bytes']['torch'] == pytest.approx(3*128*128256*4, rel=.01)
    assert found['bytes']['losslab'] < 1.1*128*128256*4
    assert found['bytes']['losslab inplace'] < .16*128*128256*4


# ---- Cases

SMALL = {'cross_entropy': bench._class_inputs((20, 7, 3)), 'binary_cross_entropy_with_logits': bench._answer_inputs((50,)),
         'sigmoid_focal_loss': bench._answer_inputs((50,)), 'gaussian_kl_loss': bench._latent_inputs((9, 4)),
         'linear_cross_entropy': bench._layer_inputs(30, 5, 11)}


@pytest.mark.parametrize('case', {o.name: o for o in bench.cases().values()}.values(), ids=lambda o: o.name)
def test_every_way_finds_the_same_loss_and_gradient(case):
    "In float64; and the floor runs"
    results = {}
    for name, fn in case.ways.items():
        inputs = SMALL[case.name](torch.float64, 'cpu', torch.Generator().manual_seed(0))
        loss = fn(*inputs)
        results[name] = loss.detach(), *torch.autograd.grad(loss, [o for o in inputs if o.requires_grad])
    for name, found in results.items(): torch.testing.assert_close(found, results['torch'], msg=lambda m: f'{case.title}, {name}: {m}')
    case.floor(*inputs)()


def test_product_floor_makes_the_gradients_of_a_linear_loss():
    "The three products of the sum of squares of the logits, halved: the gradient of the logits is the logits"
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 5, generator=g, dtype=torch.float64, requires_grad=True) for n in (300, 7))
    products = bench.product_floor(h, w, None)
    products()
    products()
    made = dict(zip(products.__code__.co_freevars, (o.cell_contents for o in products.__closure__)))
    wanted = torch.autograd.grad((h @ w.T).square().sum()/2, (h, w))
    torch.testing.assert_close((made['to_hidden'], made['to_weight']), wanted)


def test_a_wrong_way_is_not_timed():
    case = bench.cases(True)[TINY]
    with pytest.raises(RuntimeError, match=re.escape(f'{TINY}: half finds')):
        bench.compare(case._replace(ways={'torch': F.cross_entropy, 'half': lambda z, y: F.cross_entropy(z, y)/2}), rounds=2, seconds=1e-4)


def test_a_peer_that_refuses_is_left_out_but_losslab_is_not(capsys):
    def refuses(z, y): raise TypeError('only halves')
    case = bench.cases(True)[TINY]
    found = bench.compare(case._replace(ways={'torch': F.cross_entropy, 'liger': refuses}), rounds=2, seconds=1e-4)
    assert list(found['ratio']) == ['floor'] and list(found['bytes']) == ['torch']
    assert 'liger is left out: only halves' in capsys.readouterr().err
    with pytest.raises(TypeError, match='only halves'):
        bench.compare(case._replace(ways={'torch': F.cross_entropy, 'losslab': refuses}), rounds=2, seconds=1e-4)


def test_who_overwrites_has_inputs_of_its_own():
    "What the others compute on is untouched, and the steps give loss and gradient"
    case = bench.cases(True)[TINY]
    steps, inputs, known = bench._candidates(case, 'float32', 'cpu', False)
    before = inputs[0].detach().clone()
    with backend('fused'):  # so few logits are not worth it otherwise
        for _ in range(2):
            for step in steps.values(): step()
    assert torch.equal(inputs[0].detach(), before)
    assert not any(o is inputs[0] for o in known[-2:]) and not torch.equal(known[-2].detach(), before)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_compare_gives_plain_data(dtype):
    state = torch.random.get_rng_state()
    found = bench.compare(bench.cases(True)[TINY], dtype, rounds=3, seconds=1e-4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert json.loads(json.dumps(found)) == found
    assert (found['case'], found['size'], found['dtype'], found['rounds']) == ('cross_entropy', '(32, 10)', dtype, 3)
    assert list(found['seconds']) == ['torch', 'losslab', 'losslab inplace', 'floor']
    assert list(found['ratio']) == ['losslab', 'losslab inplace', 'floor']
    for low, mid, high in (*found['seconds'].values(), *found['ratio'].values()): assert 0 < low <= mid <= high


# ---- The command

def test_command_prints_and_saves(tmp_path):
    "Large pages are another process, with a baseline of its own"
    file = tmp_path/'results.json'
    done = command('--quick', '--only', TINY, '--device', 'cpu', '--threads', '1', '--large-pages', '--save', str(file))
    assert f'{TINY}, float32' in done.stdout and 'losslab inplace' in done.stdout
    assert f'[1/1] {TINY}, float32' in done.stderr and '[1/1]' not in done.stdout
    text = file.read_text(encoding='utf-8')
    saved = json.loads(text)
    for o in saved['results']: assert bench.report(o) in done.stdout
    assert [o['large_pages'] for o in saved['results']] == [False, True]
    assert not any(o['compiled'] for o in saved['results'])
    assert set(saved['machine']) <= {'torch', 'cpu', 'cores', 'threads', 'device', 'gpu', 'load'}
    assert (saved['machine']['torch'], saved['machine']['threads']) == (torch.__version__, 1)
    for secret in (str(tmp_path), os.sep + 'home', platform.node() or 'no name'): assert secret not in text


def test_a_run_that_is_stopped_has_saved_what_it_measured(tmp_path, monkeypatch, capsys):
    "Case by case, beside what was there; a file of another machine is left alone"
    file, measured, compare = tmp_path/'results.json', [], bench.compare
    def once(*args, **kwargs):
        if measured: raise KeyboardInterrupt
        measured.append(compare(*args, **kwargs))
        return measured[0]
    monkeypatch.setattr(bench, 'compare', once)
    call = ['bench', '--quick', '--only', 'cross_entropy', '--device', 'cpu', '--save', str(file)]
    with pytest.raises(KeyboardInterrupt): bench.main(call)
    held = json.loads(file.read_text(encoding='utf-8'))
    assert held['results'] == measured and [o.name for o in tmp_path.iterdir()] == ['results.json']
    monkeypatch.setattr(bench, 'compare', lambda case, *a, **k: {**measured[0], 'size': case.size})
    bench.main(call)
    added = json.loads(file.read_text(encoding='utf-8'))['results']
    assert len(added) == 7 and added[0] == measured[0]
    file.write_text(json.dumps({**held, 'machine': {**held['machine'], 'cores': 0}}), encoding='utf-8')
    with pytest.raises(SystemExit): bench.main(call)
    assert "another machine ({'cores': 0})" in capsys.readouterr().err


def test_unknown_name_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop: bench.main(['bench', '--only', 'softmax'])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    for o in ("only is 'softmax'", 'gaussian_kl_loss', TINY): assert o in said
    assert 'Traceback' not in said


def test_the_command_needs_a_subcommand(capsys):
    with pytest.raises(SystemExit) as stop: bench.main([])
    assert stop.value.code == 2 and 'bench' in capsys.readouterr().err


@pytest.mark.parametrize('only, count', [([], 11), (['cross_entropy'], 7), ([TINY, 'gaussian_kl_loss'], 2)])
def test_choose(only, count): assert len(bench.choose(only, quick=True)) == count


# ---- The picture

def result(case, **kwargs):
    ratio = {'losslab': [.4, .5, .75], 'floor': [.1, .125, .2]}
    return {'case': case, 'size': '(2,)', 'dtype': 'float32', 'compiled': False, 'large_pages': False, 'ratio': ratio} | kwargs


def test_plot_shows_what_was_asked_for():
    plt = pytest.importorskip('matplotlib.pyplot')
    compiled = {'torch compiled': [.8, .9, 1.], 'floor': [9., 9., 9.]}
    data = [result('a'), result('a', compiled=True, ratio=compiled), result('b'), result('c', dtype='bfloat16'), result('d', large_pages=True)]
    ax = bench.plot_ratios(data)
    assert [o.get_text() for o in ax.get_yticklabels()] == ['a (2,)', 'b (2,)']
    assert ax.get_xscale() == 'log'
    whiskers = [tuple(o.get_segments()[0][:, 0]) for o in ax.collections]
    assert whiskers == [pytest.approx(o) for o in ((.4, .75), (.8, 1.), (.4, .75))]
    floors = [tuple(o.get_xdata()) for o in ax.get_lines() if o.get_linewidth() == 3 and len(o.get_xdata()) == 2]
    assert floors == [(.125, .125)]*2
    assert [o.get_text() for o in bench.plot_ratios(data, large_pages=True).get_yticklabels()] == ['d (2,)']
    plt.close('all')
