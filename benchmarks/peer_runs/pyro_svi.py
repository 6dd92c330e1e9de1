"""Pyro: SVI with the analytic KL where there is one, a hand-written guide, float32."""

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import LambdaLR
from torch import nn

from .task import Clock, Factors


def linear(x, previous, c):
    theta = pyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta + c["tau"] * z, c["sigma"]), obs=x)


def saw(x, previous, c):
    theta = pyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(previous, 1.0))
        pyro.sample("x", dist.Normal(c["a"] * (theta + z), 1.0), obs=x)


def nonlinear(x, previous, c):
    """The published density: the likelihood without its -log sd = -cos z."""
    theta = pyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean, log_sd = theta + z * torch.sin(z) + z, torch.cos(z)
        pyro.sample("x", dist.Normal(mean, torch.exp(log_sd)), obs=x)
        pyro.factor("published", log_sd)


def factors(x, previous, c):
    variance = pyro.sample("variance", dist.InverseGamma(c["noise_shape"], c["noise_scale"]))
    scale = torch.full((c["n_features"], c["n_latents"]), c["loading_scale"])
    loadings = pyro.sample("loadings", dist.Normal(0.0, scale).to_event(2))
    center = torch.as_tensor(c["mean_loc"], dtype=torch.float32)
    mean = pyro.sample("mean", dist.Normal(center, c["mean_scale"]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(c["n_latents"]), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ loadings.T + mean, variance.sqrt()).to_event(1), obs=x)


MODELS = {"linear": linear, "saw": saw, "nonlinear": nonlinear, "factors": factors}


def sample_theta(mean, sd, c):
    """Sample the one global of the paper's models."""
    pyro.sample("theta", dist.Normal(mean[0], sd[0]))


def sample_factors_theta(mean, sd, c):
    """Sample the noise variance, the loadings and the mean: in this order in one vector."""
    pyro.sample("variance", dist.LogNormal(mean[0], sd[0]))
    n, shape = c["n_features"], (c["n_features"], c["n_latents"])
    loadings = dist.Normal(mean[1:-n].reshape(shape), sd[1:-n].reshape(shape))
    pyro.sample("loadings", loadings.to_event(2))
    pyro.sample("mean", dist.Normal(mean[-n:], sd[-n:]).to_event(1))


GLOBALS = {"factors": sample_factors_theta}


class Local(nn.Module):
    """Means and log sds of q(z): free numbers, a line with one log sd, or a network."""

    def __init__(self, task):
        super().__init__()
        n_inputs = task.inputs.shape[1]
        self.inputs = torch.tensor(task.inputs, dtype=torch.float32)
        self.free = self.line = self.network = None
        if not task.amortized:
            self.free = nn.Parameter(torch.zeros(2, *task.latents_shape))
        elif task.width == 0:
            self.line, self.log_sd = nn.Linear(n_inputs, 1), nn.Parameter(torch.zeros(()))
        else:
            sizes = n_inputs, task.width, task.width
            hidden = [m for i, o in itertools.pairwise(sizes) for m in _layer(i, o)]
            self.network = nn.Sequential(*hidden, nn.Linear(task.width, 2))

    def forward(self):
        if self.free is not None:
            return self.free[0], self.free[1]
        if self.line is not None:
            mean = self.line(self.inputs)[:, 0]
            return mean, self.log_sd.expand(len(mean))
        return self.network(self.inputs).unbind(1)


def _layer(n_inputs, n_outputs):
    return nn.Linear(n_inputs, n_outputs), nn.ReLU()


def run(task):
    """Climb by SVI."""
    clock = Clock(task.seconds)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    x = torch.tensor(task.cells, dtype=torch.float32)
    previous = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    local = Local(task)
    theta = nn.ParameterList([torch.tensor(s, dtype=torch.float32) for s in task.start])

    def guide(x, previous, c):
        pyro.module("local", local)
        pyro.module("global", theta)
        GLOBALS.get(task.model, sample_theta)(theta[0], theta[1].exp(), c)
        mean, log_sd = local()
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(mean, log_sd.exp()).to_event(mean.ndim - 1))

    many = task.n_draws > 1
    elbo = TraceMeanField_ELBO(task.n_draws, max_plate_nesting=1, vectorize_particles=many)
    schedule = LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": task.rate.start},
            "lr_lambda": task.rate.factor,
        }
    )
    svi = SVI(MODELS[task.model], guide, schedule, elbo)
    clock.start()
    while not clock.tick(lambda: _read(theta, local)):
        svi.step(x, previous, task.constants)
        schedule.step()
    return clock.run


@torch.no_grad()
def _read(theta, local):
    mean, log_sd = local()
    n = len(mean)
    numbers = theta[0], theta[1].exp(), mean.reshape(n, -1), log_sd.exp().reshape(n, -1)
    return Factors(*(number.double().numpy().copy() for number in numbers))
