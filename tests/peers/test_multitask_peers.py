"Keras 3, on its PyTorch backend: models with several losses have the same logs, gradients and averages"
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import losslab as ll
from losslab.metrics import sparse_categorical_accuracy

os.environ['KERAS_BACKEND'] = 'torch'
keras = pytest.importorskip('keras', reason='Keras 3 is in the dev extra')
if keras.backend.backend() != 'torch': pytest.skip('Keras runs on another backend', allow_module_level=True)
pytestmark = pytest.mark.xdist_group('keras')
NAMES = dict(loss='total', digit_loss='digit', ink_loss='ink', digit_accuracy='accuracy')
X, KIND, INK, S = (np.random.RandomState(0).randn(7, 4).astype('float32'), np.random.RandomState(1).randint(3, size=7),
                   np.random.RandomState(2).randn(7, 1).astype('float32'), np.random.RandomState(3).rand(7).astype('float32'))


def two_outputs(weights, lr=0.):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation='tanh')(inputs)
    model = keras.Model(inputs, dict(digit=keras.layers.Dense(3, name='digit')(hidden), ink=keras.layers.Dense(1, name='ink')(hidden)))
    model.compile(keras.optimizers.SGD(lr), loss=dict(digit=keras.losses.SparseCategoricalCrossentropy(from_logits=True), ink='mse'),
                  loss_weights=weights, metrics=dict(digit=['accuracy']))
    return model


def make(weights, **digit):
    return ll.MultiLoss(dict(digit=ll.CrossEntropyLoss(**digit), ink=F.mse_loss), weights, dict(accuracy=sparse_categorical_accuracy))


def call(model, i=slice(None), **options):
    out, y = model(X[i]), torch.as_tensor(KIND)[i]
    return dict(digit=(out['digit'], y, options), ink=(out['ink'], torch.as_tensor(INK)[i]), accuracy=(out['digit'], y))


@pytest.mark.parametrize('weights', [None, dict(digit=1., ink=20.), dict(digit=.3, ink=0.)], ids=str)
@pytest.mark.parametrize('size', [7, 3, 2, 1])
def test_logs_of_an_epoch(weights, size):
    "Total, losses and accuracy of `fit`, with a last batch that is smaller, and the same from `evaluate`"
    model, criterion = two_outputs(weights), make(weights)
    logs = {k: v[0] for k, v in model.fit(X, dict(digit=KIND, ink=INK), batch_size=size, shuffle=False, verbose=0).history.items()}
    with torch.no_grad():
        for at in range(0, 7, size): criterion(**call(model, slice(at, at + size)))
    epoch = criterion.epoch()
    assert set(logs) == set(NAMES)
    for k, name in NAMES.items(): assert_close(logs[k], epoch[name], rtol=1e-5, atol=1e-6)
    logs = model.evaluate(X, dict(digit=KIND, ink=INK), batch_size=size, verbose=0, return_dict=True)
    for k, name in NAMES.items(): assert_close(logs[k], epoch[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('weights', [None, dict(digit=2., ink=20.)], ids=str)
@pytest.mark.parametrize('weighted', [False, True])
def test_a_step(weights, weighted):
    "One step of SGD ends at the same parameters; sample weights of one output only are divided by the rows"
    model, criterion = two_outputs(weights, lr=.1), make(weights, reduction='batchmean')
    variables = model.trainable_variables
    before = [v.value.detach().clone() for v in variables]
    given = call(model, **(dict(sample_weight=torch.as_tensor(S)) if weighted else {}))
    step = torch.autograd.grad(criterion(**given).total, [v.value for v in variables])
    ones = np.ones(7, dtype='float32')
    model.train_on_batch(X, dict(digit=KIND, ink=INK), sample_weight=dict(digit=S, ink=ones) if weighted else None)
    for v, b, g in zip(variables, before, step): assert_close(v.value.detach(), b - .1*g, rtol=1e-4, atol=1e-6)


def test_class_weights():
    "Keras has them for one output only; for that one, a mean over the elements"
    model = two_outputs(None)
    with pytest.raises(ValueError, match='class_weight'):
        model.fit(X, dict(digit=KIND, ink=INK), class_weight={0: 1., 1: 2., 2: 3.}, verbose=0)
    keras.utils.set_random_seed(0)
    one = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    one.compile(keras.optimizers.SGD(0.), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = one.fit(X, KIND, batch_size=7, class_weight={0: 1., 1: 2., 2: 3.}, verbose=0).history
    criterion = ll.MultiLoss(dict(digit=ll.CrossEntropyLoss(weight=torch.tensor([1., 2., 3.]), reduction='element_mean')))
    with torch.no_grad():
        for i in slice(0, 3), slice(3, 7): criterion(digit=(one(X[i]), torch.as_tensor(KIND)[i]))
    assert_close(logs['loss'][0], criterion.epoch()['digit'], rtol=1e-5, atol=0)


def test_add_loss():
    "A term that a layer adds is one more part, with a weight of 1"
    class WithPenalty(keras.layers.Layer):
        def call(self, h):
            self.add_loss(.5*keras.ops.mean(keras.ops.square(h)))
            return h
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5)(inputs)
    both = keras.Model(inputs, keras.layers.Dense(1)(WithPenalty()(hidden)))
    both.compile(keras.optimizers.SGD(0.), 'mse')
    logs = both.evaluate(X, INK, batch_size=7, verbose=0, return_dict=True)
    criterion = ll.MultiLoss(dict(ink=F.mse_loss, penalty=lambda h: h.square().mean(1)), dict(penalty=.5))
    with torch.no_grad(): out = criterion(ink=(both(X), torch.as_tensor(INK)), penalty=keras.Model(inputs, hidden)(X))
    assert_close(logs['loss'], out.total.item(), rtol=1e-5, atol=0)


def test_annealing_by_a_callback():
    "A weight that a callback raises at each epoch, and a schedule"
    weight = keras.Variable(0., trainable=False)
    def scaled(y, p): return weight*keras.ops.mean(keras.ops.square(y - p), axis=-1)
    class Raise(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None): weight.assign(min(epoch/2, 1.))
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.), scaled)
    logs = model.fit(X, INK, epochs=4, batch_size=7, callbacks=[Raise()], verbose=0).history['loss']
    criterion = ll.MultiLoss(dict(ink=F.mse_loss), dict(ink=ll.LinearSchedule(2)))
    for expected in logs:
        with torch.no_grad(): assert_close(criterion(ink=(model(X), torch.as_tensor(INK))).total.item(), expected, rtol=1e-5, atol=1e-7)
        criterion.step()
