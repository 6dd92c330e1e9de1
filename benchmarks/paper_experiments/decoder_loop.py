"""The decoder's published loop, rewritten: plain Adam, all latents drawn and summed every step."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_SLOPE = 0.2
_START_LOG_SD = -4.0  # of weights; where the paper's start is not known, a quiet one


class NormalFactor(nn.Module):
    """A free normal factor, drawn anew each time that it is called."""

    def __init__(self, mean, log_sd):
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.log_sd = nn.Parameter(torch.full_like(mean, log_sd))

    def forward(self):
        draw = self.mean + self.log_sd.exp() * torch.randn_like(self.mean)
        return draw, _divergence(draw, self.log_sd)


def _divergence(draw, log_sd):
    """One draw's log q - log p under a standard normal prior, up to draws of its own noise."""
    return 0.5 * (draw**2).sum() - log_sd.sum()


class Decoder(nn.Module):
    """Leaky ReLU layers with a normal factor for every weight and bias."""

    def __init__(self, sizes):
        super().__init__()
        layers = [nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes)]
        start = [p.detach() for layer in layers for p in (layer.weight, layer.bias)]
        self.factors = nn.ModuleList(NormalFactor(mean, _START_LOG_SD) for mean in start)

    def draw(self):
        """Return one draw of all weights and its divergence from the prior."""
        draws, divergences = zip(*(factor() for factor in self.factors), strict=True)
        return draws, sum(divergences)

    def means(self):
        """Return the posterior means of all weights."""
        return [factor.mean for factor in self.factors]

    def decode(self, z, weights):
        """Return the reconstruction of latents z (n_rows, n_latents)."""
        for layer in range(0, len(weights), 2):
            z = F.linear(z if layer == 0 else F.leaky_relu(z, _SLOPE), *weights[layer : layer + 2])
        return z


class FreeLatents(nn.Module):
    """F-VI: a free mean and log sd for every latent of every row."""

    def __init__(self, X, n_latents):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(len(X), n_latents))
        self.log_sd = nn.Parameter(torch.randn(len(X), n_latents))

    def forward(self):
        return self.mean, self.log_sd


class NetworkLatents(nn.Module):
    """A-VI: two hidden leaky ReLU layers, a head for the means and one for the log sds."""

    def __init__(self, X, n_latents, width):
        super().__init__()
        self.X = X
        self.network = nn.Sequential(
            nn.Linear(X.shape[1], width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(width, width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(width, 2 * n_latents),
        )

    def forward(self):
        return self.network(self.X).chunk(2, 1)


def train(latents: nn.Module, decoder: Decoder, X, settings) -> np.ndarray:
    """Return the mean squared reconstruction error of all rows, by posterior means, each epoch.

    The published loss: the likelihood of a batch weighed by n_batches, the latents of all rows
    drawn and summed in every step.
    """
    parameters = [*latents.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    errors = []
    for _ in range(settings.n_epochs):
        for batch in torch.randperm(len(X)).chunk(settings.n_batches):
            step(latents, decoder, X, batch, adam)
        with torch.no_grad():
            reconstruction = decoder.decode(latents()[0], decoder.means())
            errors.append(float(((X - reconstruction) ** 2).mean()))
    return np.array(errors)


def step(latents, decoder, X, batch, adam):
    """Take one step on the rows of a batch and the latents of all rows."""
    adam.zero_grad()
    mean, log_sd = latents()
    z = mean + log_sd.exp() * torch.randn_like(mean)
    weights, divergence = decoder.draw()
    residual = X[batch] - decoder.decode(z[batch], weights)
    likelihood = 0.5 * (residual**2).sum() * len(X) / len(batch)
    (likelihood + _divergence(z, log_sd) + divergence).backward()
    adam.step()
