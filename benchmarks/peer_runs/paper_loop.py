"""The paper's own Adam loop, as `paper_experiments` has it: plain torch, 100 draws, float32."""

import torch

from benchmarks.paper_experiments import log_joints
from benchmarks.paper_experiments.decoder_loop import Decoder, FreeLatents, NetworkLatents, step
from benchmarks.paper_experiments.published_loop import (
    FreeFactors,
    PolynomialFactors,
    Step,
    TwoHeads,
    TwoNetworks,
    seeded,
)
from benchmarks.paper_experiments.published_loop import run as run_loop

from .decoder import timed
from .task import Clock, Factors

_DRAWN = {"linear": torch.rand, "nonlinear": torch.rand, "saw": torch.randn}


def run(task):
    """Climb by the published loop."""
    clock = Clock(task.seconds)
    with seeded(1):
        x = torch.tensor(task.X[:, 0], dtype=torch.float32)
        factors = _factors(task, x)
        step = Step(getattr(log_joints, task.model)(x), task.n_draws, 10**9)
        clock.start()

        def watch(theta_mean, theta_log_sd, adam):
            adam.param_groups[0]["lr"] = task.rate.at(clock.run.n_steps)
            return clock.tick(lambda: _read(theta_mean, theta_log_sd, factors))

        run_loop(step, factors, task.rate.start, watch=watch)
    return clock.run


def _factors(task, x):
    if not task.amortized:
        return FreeFactors(len(x), _DRAWN[task.model])
    if task.width == 0:
        return PolynomialFactors(x, 1)
    inputs = torch.tensor(task.inputs, dtype=torch.float32)
    return (TwoHeads if task.model == "saw" else TwoNetworks)(inputs, task.width)


@torch.no_grad()
def _read(theta_mean, theta_log_sd, factors):
    mean, log_sd = factors()
    numbers = theta_mean, theta_log_sd.exp(), mean[:, None], log_sd.exp()[:, None]
    return Factors(*(number.double().numpy().copy() for number in numbers))


def run_decoder(task):
    """Return seconds of each step of the decoder; the latents of all rows move in every step."""
    with seeded(1):
        X = torch.tensor(task.X)
        decoder = Decoder(task.sizes)
        if task.amortized:
            latents = NetworkLatents(X, task.n_latents, task.hidden[0])
        else:
            latents = FreeLatents(X, task.n_latents)
        adam = torch.optim.Adam([*latents.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

        def one():
            step(latents, decoder, X, torch.randint(len(X), (task.n_batch,)), adam)

        return timed(one, task.n_steps)
