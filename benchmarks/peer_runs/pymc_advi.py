"""PyMC: mean-field ADVI by Adam, in its own float64. F-VI only."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from .task import Clock, Factors


def linear(x, previous, c):
    theta, z = pm.Flat("theta"), pm.Normal("z", 0.0, 1.0, shape=len(x))
    pm.Normal("x", theta + c["tau"] * z, c["sigma"], observed=x)


def saw(x, previous, c):
    theta, z = pm.Flat("theta"), pm.Normal("z", previous, 1.0, shape=len(x))
    pm.Normal("x", c["a"] * (theta + z), 1.0, observed=x)


def nonlinear(x, previous, c):
    """The published density: the likelihood without its -log sd = -cos z."""
    theta, z = pm.Flat("theta"), pm.Normal("z", 0.0, 1.0, shape=len(x))
    pm.Normal("x", theta + z * pt.sin(z) + z, pt.exp(pt.cos(z)), observed=x)
    pm.Potential("published", pt.cos(z).sum())


def factors(x, previous, c):
    shape = c["n_features"], c["n_latents"]
    variance = pm.InverseGamma("variance", c["noise_shape"], c["noise_scale"])
    loadings = pm.Normal("loadings", 0.0, c["loading_scale"], shape=shape)
    mean = pm.Normal("mean", c["mean_loc"], c["mean_scale"], shape=shape[0])
    z = pm.Normal("z", 0.0, 1.0, shape=(len(x), shape[1]))
    pm.Normal("x", z @ loadings.T + mean, pt.sqrt(variance), observed=x)


MODELS = {"linear": linear, "saw": saw, "nonlinear": nonlinear, "factors": factors}


def theta_start(start, c):
    """Return the one global of the paper's models."""
    return {"theta": start[0]}


def factors_start(start, c):
    """Return the noise variance, the loadings and the mean, out of one vector."""
    n, shape = c["n_features"], (c["n_features"], c["n_latents"])
    loadings, mean = start[1:-n].reshape(shape), start[-n:]
    return {"variance_log__": start[0], "loadings": loadings, "mean": mean}


GLOBALS = {"factors": factors_start}


def run(task):
    """Climb by ADVI."""
    clock = Clock(task.seconds)
    x = task.cells
    with pm.Model():
        MODELS[task.model](x, np.concatenate([np.zeros_like(x[:1]), x[:-1]]), task.constants)
        start = GLOBALS.get(task.model, theta_start)(task.start[0], task.constants)
        start["z"] = np.zeros(task.latents_shape)
        advi = pm.ADVI(random_seed=1, start=start)
        rate = pytensor.shared(np.float64(task.rate.start))
        step = advi.objective.step_function(
            obj_n_mc=task.n_draws,
            obj_optimizer=pm.adam(learning_rate=rate),
            score=True,  # as `fit` has it; without a score PyMC never renews the draws
        )
    read = _reader(advi.approx, list(start)[:-1], len(x))
    step()  # compiles, and takes one step
    clock.start()
    while not clock.tick(read):
        step()
        if task.rate.decays:
            rate.set_value(task.rate.at(clock.run.n_steps))
    return clock.run


def _reader(approx, names, n_rows):
    """Return a function that copies q(theta) and q(z) out of the one vector that PyMC keeps."""
    size = len(approx.params_dict["mu"].get_value())
    places = {name: where for name, (_, where, *_) in approx.ordering.items()}
    theta = np.concatenate([np.arange(size)[places[name]] for name in names])
    z = places["z"]
    mean, rho = approx.params_dict["mu"], approx.params_dict["rho"]

    def read():
        m, sd = mean.get_value(), np.logaddexp(0.0, rho.get_value())
        return Factors(
            m[theta], sd[theta], m[z].reshape(n_rows, -1).copy(), sd[z].reshape(n_rows, -1)
        )

    return read
