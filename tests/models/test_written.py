"""The commonest slips in a model of one's own are named, with what to write instead."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, Poisson

from skavi import FactorizedVI
from skavi.models import FactorAnalysis, HierarchicalModel
from skavi.models._written import check_signatures

X = np.random.default_rng(0).poisson(3.0, size=(50, 2)).astype(float)


class Rates(HierarchicalModel):
    """Counts with a level a row: right as it stands."""

    n_latents = 1

    def global_prior(self, n_features):
        return {"mu": Normal(torch.zeros(n_features), 5.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Poisson(torch.exp(theta["mu"] + z))


SLIPS = {
    "a tensor": (
        {"likelihood": lambda self, z, theta: torch.exp(theta["mu"] + z)},
        TypeError,
        r"likelihood returned a Tensor: it must return one of torch\.distributions",
    ),
    "nothing": ({"likelihood": lambda self, z, theta: None}, TypeError, "likelihood returned None"),
    "no argument": (
        {"global_prior": lambda self: {"mu": Normal(0.0, 1.0)}},
        TypeError,
        r"global_prior takes \(\), but is called with \(n_features\): write def global_prior",
    ),
    "no argument of latents": (
        {"n_latents": lambda self: 1},
        TypeError,
        r"n_latents takes \(\), but is called with \(n_features\)",
    ),
    "no globals for the prior of latents": (
        {"local_prior": lambda self: Normal(torch.zeros(1), 1.0)},
        TypeError,
        r"local_prior takes \(\), but is called with \(theta\): write def local_prior\(self, t",
    ),
    "a likelihood of latents alone": (
        {"likelihood": lambda self, z: Poisson(torch.exp(z))},
        TypeError,
        r"likelihood takes \(z\), but is called with \(z, theta\)",
    ),
    "arguments that change places": (
        {"likelihood": lambda self, theta, z: Poisson(torch.exp(theta["mu"] + z))},
        TypeError,
        r"takes \(theta, z\), but is called with \(z, theta\): write def likelihood\(self, z, t",
    ),
    "arguments of a log likelihood that change places": (
        {"log_likelihood": lambda self, z, theta, X: Poisson(torch.exp(z)).log_prob(X).sum(-1)},
        TypeError,
        r"takes \(z, theta, X\), but is called with \(theta, z, X\)",
    ),
    "a global of whole numbers": (
        {"global_prior": lambda self, n_features: {"k": Poisson(3.0)}},
        ValueError,
        "global_prior: 'k' is Poisson with support .*give it a continuous prior",
    ),
    "a prior for each row": (
        {"local_prior": lambda self, theta: Normal(torch.zeros(50, 1), 1.0)},
        ValueError,
        r"local_prior has shape \(50, 1\) for 3 rows, .* must be \(1,\), without a dimension of",
    ),
    "matrices of another size": (
        {"likelihood": lambda self, z, theta: MultivariateNormal(theta["mu"] + z, torch.eye(3))},
        ValueError,
        r"cannot be evaluated at the start: shape .*\. Check the shapes: z is \(n_rows, n_lat",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_named_with_what_to_write(slip):
    methods, kind, message = SLIPS[slip]
    model = type("Mine", (Rates,), methods)()
    with pytest.raises(kind, match=message):
        FactorizedVI(model).fit(X)


def test_without_a_slip_it_fits():
    assert FactorizedVI(Rates(), random_state=0).fit(X).converged_


def test_an_argument_that_is_not_kept_is_named():
    class Forgetful(Rates):
        def __init__(self, scale=1.0):
            self.s = scale

    message = "__init__ takes 'scale', but does not keep it under this name: write self.scale"
    with pytest.raises(AttributeError, match=message):
        FactorizedVI(Forgetful()).fit(X)


def test_names_of_arguments_are_free_and_defaults_may_be_added():
    class Free(Rates):
        def likelihood(self, latents, g, floor=0.0):
            return Poisson(floor + torch.exp(g["mu"] + latents))

        def global_prior(self, n):
            return super().global_prior(n)

        def local_prior(self, *anything):
            return super().local_prior(*anything)

    check_signatures(Free())
    check_signatures(FactorAnalysis())


def test_a_class_of_ones_own_is_told_to_be_made_an_object():
    class Frail(HierarchicalModel):
        """A model that nobody has made yet."""

    with pytest.raises(ValueError, match=r"Got the class Frail instead\. Write model=Frail\("):
        FactorizedVI(Frail).fit([[1.0], [2.0]])
