"""The one way from a numpy generator to a seed for torch."""

import numpy as np

from skavi import FactorizedVI
from skavi._platform.random_state import drawn_seed, private_state
from skavi.models import LinearModel


def test_seeds_are_those_of_every_version_so_far():
    state = private_state(0)
    assert [drawn_seed(state), drawn_seed(state)] == [209652396, 398764591]


def test_a_call_with_a_generator_takes_one_seed_from_it():
    state, same = np.random.RandomState(3), np.random.RandomState(3)
    FactorizedVI(LinearModel(), random_state=state).fit(np.arange(5.0)[:, None])
    drawn_seed(same)
    assert drawn_seed(state) == drawn_seed(same)
