"""The decoder's step written by hand in torch: what the arithmetic itself costs.

Rows of the batch only, normal KL terms in closed form, one draw of the weights, fused Adam,
float32.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from .decoder import timed

_SLOPE, _RATE = 0.2, 1e-3


def run_decoder(task):
    """Return seconds of each step."""
    return timed(step_of(task), task.n_steps)


def step_of(task):
    """Return a function that makes one step."""
    torch.manual_seed(1)
    X = torch.tensor(task.X)
    n, k = len(X), task.n_latents
    shapes = [s for i, o in itertools.pairwise(task.sizes) for s in ((i, o), (o,))]
    means = [nn.Parameter(0.05 * torch.randn(shape)) for shape in shapes]
    log_sds = [nn.Parameter(torch.full(shape, -4.0)) for shape in shapes]
    table = nn.Parameter(torch.cat([torch.zeros(n, k), torch.zeros(n, k)], 1))
    encoder = nn.Sequential(*_layers(task.encoder_sizes))
    local = list(encoder.parameters()) if task.amortized else [table]
    adam = torch.optim.Adam([*means, *log_sds, *local], lr=_RATE, fused=True)

    def step():
        batch = torch.randint(n, (task.n_batch,))
        rows = X[batch]
        mean, log_sd = (encoder(rows) if task.amortized else table[batch]).chunk(2, 1)
        draw = mean + log_sd.exp() * torch.randn_like(mean)
        weights = [m + s.exp() * torch.randn_like(m) for m, s in zip(means, log_sds, strict=True)]
        for layer in range(0, len(weights), 2):
            draw = draw if layer == 0 else F.leaky_relu(draw, _SLOPE)
            draw = torch.addmm(weights[layer + 1], draw, weights[layer])
        local_loss = 0.5 * (rows - draw).square().sum() + _divergence(mean, log_sd)
        loss = local_loss * (n / len(batch))
        for m, s in zip(means, log_sds, strict=True):
            loss = loss + _divergence(m, s)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def _layers(sizes):
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
    between = [m for layer in layers[:-1] for m in (layer, nn.ReLU())]
    return [*between, layers[-1]]


def _divergence(mean, log_sd):
    """KL from a standard normal."""
    return 0.5 * (mean.square() + (2 * log_sd).exp() - 1).sum() - log_sd.sum()
