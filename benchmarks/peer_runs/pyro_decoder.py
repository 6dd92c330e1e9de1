"""The decoder's step in Pyro: one draw, analytic KL, rows of the batch only."""

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn
from torch.nn import functional as F

from .decoder import timed


def run_decoder(task):
    """Return seconds of each step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    X = torch.tensor(task.X)
    n, k = len(X), task.n_latents
    shapes = {
        f"{kind}_{layer}": shape
        for layer, (i, o) in enumerate(itertools.pairwise(task.sizes))
        for kind, shape in (("weight", (i, o)), ("bias", (o,)))
    }
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(task.encoder_sizes)]
    hidden = [m for layer in layers[:-1] for m in (layer, nn.ReLU())]
    encoder = nn.Sequential(*hidden, layers[-1])

    def model(batch):
        theta = {
            name: pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
            for name, shape in shapes.items()
        }
        with pyro.plate("rows", n, subsample=batch):
            h = pyro.sample("z", dist.Normal(torch.zeros(len(batch), k), 1.0).to_event(1))
            for layer in range(len(task.sizes) - 1):
                h = h if layer == 0 else F.leaky_relu(h, 0.2)
                h = torch.addmm(theta[f"bias_{layer}"], h, theta[f"weight_{layer}"])
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=X[batch])

    def guide(batch):
        for name, shape in shapes.items():
            mean = pyro.param(f"{name}_mean", lambda shape=shape: 0.05 * torch.randn(shape))
            log_sd = pyro.param(f"{name}_log_sd", lambda shape=shape: torch.full(shape, -4.0))
            pyro.sample(name, dist.Normal(mean, log_sd.exp()).to_event(len(shape)))
        if task.amortized:
            raw = pyro.module("encoder", encoder)(X[batch])
        else:
            raw = pyro.param("table", lambda: torch.zeros(n, 2 * k))[batch]
        mean, log_sd = raw.chunk(2, 1)
        with pyro.plate("rows", n, subsample=batch):
            pyro.sample("z", dist.Normal(mean, log_sd.exp()).to_event(1))

    svi = SVI(model, guide, Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    return timed(lambda: svi.step(torch.randint(n, (task.n_batch,))), task.n_steps)
