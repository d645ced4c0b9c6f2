"The same numbers on every run, and no fight for cores"
import os

os.environ.setdefault('KERAS_BACKEND', 'torch')
os.environ.setdefault('MPLBACKEND', 'agg')

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile('losslab', deadline=None, derandomize=True, database=None, max_examples=40,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile('losslab')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(42)
