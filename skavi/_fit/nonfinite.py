"""Diagnosis of numbers that are not finite: which term of the ELBO, and which rows."""

import math
from contextlib import contextmanager

import numpy as np
import torch

from skavi.distributions import defaults_of
from skavi.models import HierarchicalModel
from skavi.models._base import overrides
from skavi.objective import Objective
from skavi.solvers import State


@contextmanager
def named_singularity(what: str):
    """Turn the error of a singular matrix into a FloatingPointError that names its cause `what`."""
    try:
        yield
    except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
        raise FloatingPointError(
            f"A matrix that {what} leads to is singular or not finite "
            f"({str(error).splitlines()[0]}): check the scale of X and of the priors."
        ) from error


def elbo_or_lowest(problem, state: State) -> float:
    """Return the ELBO, in nats; minus infinity where it is not a number."""
    with torch.no_grad():
        value = float(problem.elbo(state))
    return -math.inf if math.isnan(value) else value


def what_broke(problem, state: State) -> str:
    """Name the term of the ELBO, or of its gradient, that is not finite, and the first bad rows."""
    problem = problem.apart()
    objective, raw = problem.objective, problem.raw(state)
    factors = objective.local_factors(raw)
    if not bool(torch.isfinite(state.raw_globals).all()):
        return f"q(theta) of {_globals_that_broke(objective, state.raw_globals)} is not finite"
    if not bool(torch.isfinite(raw).all()):
        return f"the inference function is not finite {_rows(raw)}"
    if not bool(torch.isfinite(objective.global_term(state.raw_globals)).all()):
        return "the prior of the globals is not finite"
    terms = problem.row_terms(raw, state.raw_globals)
    if not bool(torch.isfinite(terms).all()):
        term = _term_that_broke(problem, factors, state.raw_globals)
        return f"the {term} is not finite {_rows(terms)}"
    slopes = _gradient(problem, raw, state.raw_globals)
    if all(bool(torch.isfinite(slope).all()) for slope in slopes):
        return "the ELBO and its gradient are finite, but not its second derivatives"
    rows = slopes[0]
    bad = "" if bool(torch.isfinite(rows).all()) else f" {_rows(rows)}"
    return f"the ELBO is finite, but not its derivatives{bad}"


def _gradient(problem, raw, raw_globals):
    with torch.enable_grad():
        unknowns = [each.detach().requires_grad_(True) for each in (raw, raw_globals)]
        elbo = problem.elbo_of(*unknowns)
        return torch.autograd.grad(elbo, unknowns, materialize_grads=True)


def _rows(values):
    """Name the entries along the first dimension that are not finite."""
    if not values.dim():
        return "for all rows together"
    bad = (~torch.isfinite(values.reshape(len(values), -1)).all(1)).nonzero()[:, 0].tolist()
    return f"for {len(bad)} rows (rows {', '.join(map(str, bad[:5]))}{', ...' * (len(bad) > 5)})"


def _globals_that_broke(objective: Objective, raw):
    factor = objective.global_factor(raw)
    broken = ~torch.isfinite(factor.mean + factor.sd)
    names = [n for n, where in objective.space.slices.items() if bool(broken[where].any())]
    return ", ".join(map(repr, names)) or "the globals"


def _term_that_broke(problem, factors, raw_globals):
    """Evaluate prior and likelihood separately, at the means of the factors."""
    model, X = problem.objective.model, problem.rows.X
    if not isinstance(model, HierarchicalModel) or overrides(model, HierarchicalModel, "log_local"):
        return "log joint"
    theta = problem.objective.space.constrain(problem.objective.global_factor(raw_globals).mean)
    latents = model.bounded(theta, factors.mean, X)
    for name, density, z in (
        ("prior", model.log_prior, factors.mean),
        ("likelihood", model.log_likelihood, latents),
    ):
        try:
            with defaults_of(factors.mean):
                values = density(theta, z, X)
        except ValueError:  # torch rejects the parameters
            return name
        if not bool(torch.isfinite(values).all()):
            return name
    return "log joint, away from the factors' centres,"


def require_finite(values: torch.Tensor, what: str) -> None:
    """Raise a FloatingPointError if a result of `transform` or `score` is not finite."""
    if bool(torch.isfinite(values.sum())):
        return
    bad = (~torch.isfinite(values.reshape(len(values) if values.dim() else 1, -1)).all(1)).nonzero()
    if len(bad):
        where = f"of {len(bad)} rows (first at row {int(bad[0])})" if values.dim() else "of X"
        raise FloatingPointError(
            f"The {what} {where} is not finite: their values are too far from those of the fit, or "
            "not possible under the model."
        )
