"""Torch modules that a model holds."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.distributions import HalfNormal, Normal

from skavi import AmortizedVI, FactorizedVI, can_close_gap
from skavi.models import HierarchicalModel
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

X = np.random.default_rng(0).normal(size=(20, 3))


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(1, 3)


NET = linear()


class ByHand(HierarchicalModel):
    """The same network in float64, written out."""

    n_latents = 1

    def global_prior(self, n_features):
        return {"sd": HalfNormal(1.0)}

    def local_prior(self, theta):
        return Normal(0.0, 1.0)

    def likelihood(self, z, theta):
        weight, bias = NET.weight.detach().double(), NET.bias.detach().double()
        return Normal(z @ weight.T + bias, theta["sd"])


class Given(ByHand):
    """A network as an argument."""

    def __init__(self, net=None):
        self.net = net

    def likelihood(self, z, theta):
        return Normal(self.net(z), theta["sd"])


class Listed(ByHand):
    """Networks in a list."""

    def __init__(self, nets=()):
        self.nets = nets

    def likelihood(self, z, theta):
        return Normal(self.nets[0](z), theta["sd"])


class OfTheClass(Given):
    """A network in the class body."""

    net = NET

    def __init__(self):
        pass


class Built(Given):
    """A network made in __init__, trained since."""

    def __init__(self, n_columns=3):
        self.n_columns = n_columns
        with torch.random.fork_rng(devices=[]):
            self.net = nn.Linear(1, n_columns)


def built():
    model = Built()
    model.net.load_state_dict(NET.state_dict())
    return model


MODELS = {
    "argument": lambda: Given(NET),
    "list": lambda: Listed([NET]),
    "class": OfTheClass,
    "built": built,
}


@pytest.mark.parametrize("held", MODELS)
def test_a_held_network_is_as_one_written_out_in_float64(held):
    model, weight = MODELS[held](), NET.weight.detach().clone()
    vi, same = (FactorizedVI(m, random_state=0).fit(X) for m in (model, ByHand()))
    assert vi.elbo_ == pytest.approx(same.elbo_, abs=1e-10)
    np.testing.assert_allclose(vi.transform(X), same.transform(X), atol=1e-9)
    Z = np.ones((2, 1))
    np.testing.assert_allclose(vi.inverse_transform(Z), same.inverse_transform(Z), atol=1e-9)
    for drawn, other in zip(vi.sample(3, 0), same.sample(3, 0), strict=True):
        np.testing.assert_allclose(drawn, other, atol=1e-9)
    # The user's own network is as it was, and trainable.
    assert NET.weight.dtype == torch.float32
    assert NET.weight.requires_grad
    assert NET.training
    assert torch.equal(NET.weight, weight)


def test_other_ways_to_use_it():
    assert can_close_gap(Given(NET), n_features=3, random_state=0).context == (0, 0)
    vi = AmortizedVI(Given(NET), random_state=0).fit(X)
    assert vi.elbo_ == pytest.approx(AmortizedVI(ByHand(), random_state=0).fit(X).elbo_, abs=1e-6)
    assert not vi.model_.net.weight.requires_grad


@pytest.mark.filterwarnings("ignore:FactorizedVI did not converge")
def test_stochastic_steps_in_single_precision_take_it():
    solver, noise = Adam(batch_size=10), MonteCarlo(2)
    fits = [
        FactorizedVI(m, solver=solver, noise=noise, max_iter=20, random_state=0).fit(
            X.astype(np.float32)
        )
        for m in (Given(NET), ByHand())
    ]
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, rel=1e-6)


def test_a_network_is_evaluated_not_trained():
    """Dropout would make the density random."""
    dropping = nn.Sequential(NET, nn.Dropout(0.5))
    vi = FactorizedVI(Given(dropping), random_state=0).fit(X)
    assert vi.elbo_ == pytest.approx(FactorizedVI(ByHand(), random_state=0).fit(X).elbo_, abs=1e-10)
    assert dropping.training


def test_clones_keep_the_weights_of_the_same_network_only():
    model = built()
    assert torch.equal(clone(model).net.weight, NET.weight)
    assert clone(model.set_params(n_columns=5)).net.weight.shape == (5, 1)
