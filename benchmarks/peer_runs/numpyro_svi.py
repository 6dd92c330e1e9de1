"""NumPyro: SVI compiled by JAX, twenty steps a call, analytic KL where there is one, float32."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.distributions import constraints
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.optim import Adam

from .task import Clock, Factors

_STEPS = 20


def linear(x, previous, c):
    theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta + c["tau"] * z, c["sigma"]), obs=x)


def saw(x, previous, c):
    theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(previous, 1.0))
        numpyro.sample("x", dist.Normal(c["a"] * (theta + z), 1.0), obs=x)


def nonlinear(x, previous, c):
    """The published density: the likelihood without its -log sd = -cos z."""
    theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real, (), ()))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        mean, log_sd = theta + z * jnp.sin(z) + z, jnp.cos(z)
        numpyro.sample("x", dist.Normal(mean, jnp.exp(log_sd)), obs=x)
        numpyro.factor("published", log_sd)


def factors(x, previous, c):
    variance = numpyro.sample("variance", dist.InverseGamma(c["noise_shape"], c["noise_scale"]))
    scale = jnp.full((c["n_features"], c["n_latents"]), c["loading_scale"])
    loadings = numpyro.sample("loadings", dist.Normal(0.0, scale).to_event(2))
    mean = numpyro.sample("mean", dist.Normal(c["mean_loc"], c["mean_scale"]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(scale.shape[1]), 1.0).to_event(1))
        cells = dist.Normal(z @ loadings.T + mean, jnp.sqrt(variance)).to_event(1)
        numpyro.sample("x", cells, obs=x)


MODELS = {"linear": linear, "saw": saw, "nonlinear": nonlinear, "factors": factors}


def sample_theta(mean, sd, c):
    """Sample the one global of the paper's models."""
    numpyro.sample("theta", dist.Normal(mean[0], sd[0]))


def sample_factors_theta(mean, sd, c):
    """Sample the noise variance, the loadings and the mean: in this order in one vector."""
    numpyro.sample("variance", dist.LogNormal(mean[0], sd[0]))
    n, shape = c["n_features"], (c["n_features"], c["n_latents"])
    loadings = dist.Normal(mean[1:-n].reshape(shape), sd[1:-n].reshape(shape))
    numpyro.sample("loadings", loadings.to_event(2))
    numpyro.sample("mean", dist.Normal(mean[-n:], sd[-n:]).to_event(1))


GLOBALS = {"factors": sample_factors_theta}


def start(task):
    """Return the guide's parameters to start from."""
    n_inputs = task.inputs.shape[1]
    globals_ = {"theta": jnp.array(task.start, dtype=jnp.float32)}
    if not task.amortized:
        return globals_ | {"free": jnp.zeros((2, *task.latents_shape))}
    if task.width == 0:
        return globals_ | {"slope": jnp.zeros(n_inputs), "level": jnp.zeros(2)}
    rng, sizes = np.random.default_rng(1), (n_inputs, task.width, task.width, 2)
    for layer, (i, o) in enumerate(itertools.pairwise(sizes)):
        limit = i**-0.5  # torch.nn.Linear's own start, as the others have
        globals_[f"weight_{layer}"] = jnp.array(rng.uniform(-limit, limit, (i, o)))
        globals_[f"bias_{layer}"] = jnp.array(rng.uniform(-limit, limit, o))
    return globals_


def local(p, inputs):
    """Return means and log sds of q(z)."""
    if "free" in p:
        return p["free"][0], p["free"][1]
    if "slope" in p:
        return inputs @ p["slope"] + p["level"][0], jnp.broadcast_to(p["level"][1], len(inputs))
    for layer in range(2):
        inputs = jax.nn.relu(inputs @ p[f"weight_{layer}"] + p[f"bias_{layer}"])
    outputs = inputs @ p["weight_2"] + p["bias_2"]
    return outputs[:, 0], outputs[:, 1]


def run(task):
    """Climb by SVI."""
    clock = Clock(task.seconds)
    x = jnp.array(task.cells, dtype=jnp.float32)
    inputs = jnp.array(task.inputs, dtype=jnp.float32)
    data = x, jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), task.constants
    begun = start(task)

    def guide(x, previous, c):
        p = {name: numpyro.param(f"q_{name}", value) for name, value in begun.items()}
        GLOBALS.get(task.model, sample_theta)(p["theta"][0], jnp.exp(p["theta"][1]), c)
        mean, log_sd = local(p, inputs)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(mean.ndim - 1))

    svi = SVI(MODELS[task.model], guide, Adam(task.rate.at), TraceMeanField_ELBO(task.n_draws))
    state = svi.init(random.PRNGKey(1), *data)
    climb = jax.jit(
        lambda state: lax.fori_loop(0, _STEPS, lambda _, s: svi.update(s, *data)[0], state)
    )
    jax.block_until_ready(climb(state))  # compiles; what it computes is thrown away
    clock.start()
    while not clock.tick(partial(_read, svi, state, inputs), _STEPS):
        state = jax.block_until_ready(climb(state))
    return clock.run


def _read(svi, state, inputs):
    p = {name.removeprefix("q_"): value for name, value in svi.get_params(state).items()}
    mean, log_sd = local(p, inputs)
    theta, n = p["theta"], len(mean)
    numbers = theta[0], jnp.exp(theta[1]), mean.reshape(n, -1), jnp.exp(log_sd).reshape(n, -1)
    return Factors(*(np.array(number, dtype=np.float64) for number in numbers))
