"""A variational autoencoder of images, beside the loop that users of PyTorch write."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from skavi import AmortizedVI
from skavi.models import BayesianDecoder

from .contest import Contestant, Job
from .evaluation import LOG_2PI, importance_sampled
from .linear import LOG_LIKELIHOOD, split

_LATENTS, _WIDTH, _RATE, _BATCH = 8, 64, 1e-3, 64
_N_DRAWS = 500


class Loop(nn.Module):
    """The plain loop: encoder and decoder of two hidden layers, and one learned noise."""

    def __init__(self, X, n_epochs):
        super().__init__()
        torch.manual_seed(0)
        X, D, H, k = torch.as_tensor(X).float(), X.shape[1], _WIDTH, _LATENTS
        layers = nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 2 * k)
        self.encoder = nn.Sequential(*layers)
        layers = nn.Linear(k, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, D)
        self.decoder = nn.Sequential(*layers)
        self.log_sd = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.Adam(self.parameters(), lr=_RATE)
        for _ in range(n_epochs):
            for rows in torch.randperm(len(X)).split(_BATCH):
                loss = -self.elbo(X[rows]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def elbo(self, x):
        mean, log_sd = self.encoder(x).chunk(2, -1)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(-1)
        return self.log_likelihood(x, z) - kl

    def log_likelihood(self, x, z):
        residual = (x - self.decoder(z)) / self.log_sd.exp()
        return (-0.5 * (residual**2 + LOG_2PI) - self.log_sd).sum(-1)


class BinaryLoop(Loop):
    """The plain loop for pixels of two values."""

    def log_likelihood(self, x, z):
        output = self.decoder(z)
        return -binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)


def digits(n_epochs=400, binary=False):
    """Digits in [0, 1], or above their middle: at default settings, posterior and point weights."""
    X = load_digits().data / 16
    train, test = split((X > 0.5).astype(float) if binary else X)
    x, loop = torch.as_tensor(test), BinaryLoop if binary else Loop
    likelihood = "bernoulli" if binary else "normal"

    def specialist():
        return loop(train, n_epochs)

    def posterior_weights():
        model = BayesianDecoder(_LATENTS, likelihood=likelihood)
        return AmortizedVI(model, random_state=0).fit(train)

    def point_weights():
        model = BayesianDecoder(_LATENTS, likelihood=likelihood, weights="point")
        return AmortizedVI(model, random_state=0).fit(train)

    def of_loop(loop):
        with torch.no_grad():
            mean, log_sd = loop.encoder(x.float()).chunk(2, -1)

        def log_joint(z):
            prior = -0.5 * (z**2 + LOG_2PI).sum(-1)
            return loop.log_likelihood(x.float(), z) + prior

        root = torch.diag_embed(log_sd.exp())
        return float(importance_sampled(log_joint, mean, root, _N_DRAWS).mean())

    def of_ours(vi):
        rows = vi.posterior(test)
        draws = vi.global_posterior_.sample(_N_DRAWS, random_state=0)
        thetas = ({n: torch.as_tensor(v[i]) for n, v in draws.items()} for i in range(_N_DRAWS))

        def log_joint(z):
            return vi.model_.log_terms(next(thetas), z, x)  # another theta for each draw

        mean, root = torch.as_tensor(rows.mean), torch.diag_embed(torch.as_tensor(rows.sd))
        return float(importance_sampled(log_joint, mean, root, _N_DRAWS).mean())

    def transform(loop):
        with torch.no_grad():
            return loop.encoder(x.float())[:, :_LATENTS].numpy()

    everyone = [
        Contestant(name, fit, of_ours, lambda vi: vi.transform(test), ours=True)
        for name, fit in (("skavi A-VI", posterior_weights), ("skavi A-VI, point", point_weights))
    ]
    everyone.append(Contestant("PyTorch loop", specialist, of_loop, transform))
    pixels = "digits of two values" if binary else "digits"
    name = f"autoencoder: {pixels}, {train.shape[0]} x {train.shape[1]}, {_LATENTS} latents"
    return Job(name, LOG_LIKELIHOOD, True, everyone)
