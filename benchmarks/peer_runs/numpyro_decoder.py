"""The decoder's step in NumPyro, compiled: one draw, analytic KL, rows of the batch only."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.optim import Adam

from .decoder import timed


def run_decoder(task):
    """Return seconds of each step."""
    X, rng = jnp.array(task.X), np.random.default_rng(1)
    n, k = len(X), task.n_latents
    start = {}
    for layer, (i, o) in enumerate(itertools.pairwise(task.sizes)):
        for kind, shape in (("weight", (i, o)), ("bias", (o,))):
            start[f"{kind}_{layer}"] = jnp.array(0.05 * rng.normal(size=shape), jnp.float32)
    local = {"table": jnp.zeros((n, 2 * k))}
    if task.amortized:
        local = {}
        for layer, (i, o) in enumerate(itertools.pairwise(task.encoder_sizes)):
            limit = i**-0.5
            local[f"to_{layer}"] = jnp.array(rng.uniform(-limit, limit, (i, o)), jnp.float32)
            local[f"at_{layer}"] = jnp.zeros(o)

    def model(batch, X):
        theta = {
            name: numpyro.sample(
                name, dist.Normal(jnp.zeros(value.shape), 1.0).to_event(value.ndim)
            )
            for name, value in start.items()
        }
        with numpyro.plate("rows", n, subsample_size=len(batch)):
            h = numpyro.sample("z", dist.Normal(jnp.zeros((len(batch), k)), 1.0).to_event(1))
            for layer in range(len(task.sizes) - 1):
                h = h if layer == 0 else jax.nn.leaky_relu(h, 0.2)
                h = h @ theta[f"weight_{layer}"] + theta[f"bias_{layer}"]
            numpyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=X[batch])

    def guide(batch, X):
        for name, value in start.items():
            mean = numpyro.param(f"{name}_mean", value)
            log_sd = numpyro.param(f"{name}_log_sd", jnp.full(value.shape, -4.0))
            numpyro.sample(name, dist.Normal(mean, jnp.exp(log_sd)).to_event(value.ndim))
        p = {name: numpyro.param(name, value) for name, value in local.items()}
        raw = _encode(p, X[batch]) if task.amortized else p["table"][batch]
        mean, log_sd = jnp.split(raw, 2, 1)
        with numpyro.plate("rows", n, subsample_size=len(batch)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))

    svi = SVI(model, guide, Adam(1e-3), TraceMeanField_ELBO())
    state = svi.init(random.PRNGKey(1), jnp.arange(task.n_batch), X)

    @jax.jit
    def climb(state, key, X):
        key, now = random.split(key)
        return svi.update(state, random.randint(now, (task.n_batch,), 0, n), X)[0], key

    held = [state, random.PRNGKey(2)]

    def step():
        held[:] = jax.block_until_ready(climb(*held, X))

    return timed(step, task.n_steps)


def _encode(p, inputs):
    last = len(p) // 2 - 1
    for layer in range(last + 1):
        inputs = inputs @ p[f"to_{layer}"] + p[f"at_{layer}"]
        inputs = inputs if layer == last else jax.nn.relu(inputs)
    return inputs
