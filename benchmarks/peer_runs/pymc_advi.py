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


MODELS = {"linear": linear, "saw": saw, "nonlinear": nonlinear}


def run(task):
    """Climb by ADVI."""
    clock = Clock(task.seconds)
    x = task.X[:, 0]
    with pm.Model():
        MODELS[task.model](x, np.r_[0.0, x[:-1]], task.constants)
        start = {"theta": 0.0, "z": np.zeros(len(x))}
        advi = pm.ADVI(random_seed=1, start=start)
        rate = pytensor.shared(np.float64(task.rate.start))
        step = advi.objective.step_function(
            obj_n_mc=task.n_draws,
            obj_optimizer=pm.adam(learning_rate=rate),
            score=True,  # as `fit` has it; without a score PyMC never renews the draws
        )
    read = _reader(advi.approx)
    step()  # compiles, and takes one step
    clock.start()
    while not clock.tick(read):
        step()
        if task.rate.decays:
            rate.set_value(task.rate.at(clock.run.n_steps))
    return clock.run


def _reader(approx):
    """Return a function that copies q(theta) and q(z) out of the one vector that PyMC keeps."""
    places = {name: where for name, (_, where, *_) in approx.ordering.items()}
    theta, z = places["theta"], places["z"]
    mean, rho = approx.params_dict["mu"], approx.params_dict["rho"]

    def read():
        m, sd = mean.get_value(), np.logaddexp(0.0, rho.get_value())
        return Factors(m[theta].copy(), sd[theta].copy(), m[z][:, None].copy(), sd[z][:, None])

    return read
