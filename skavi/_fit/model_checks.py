"""Checks of a model on the user's data, before the fit begins."""

import math
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch.distributions import Distribution

from skavi._data.coupling import Chain
from skavi._data.rows import Rows
from skavi._fit.start import start_globals
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.shown_values import support_in_words
from skavi.distributions import (
    LeavesTorchError,
    defaults_of,
    innermost,
    refuses_parameters,
)
from skavi.models import HierarchicalModel, MarkovModel
from skavi.models._base import overrides
from skavi.models._bijected_latents import bijection_of
from skavi.models._held_modules import fixed_modules
from skavi.models._written import check_signatures
from skavi.objective import Objective, bind


def validated_objective(model, family, global_family, rows: Rows, generator) -> Objective:
    """Return the objective, after one evaluation of the model at its start was checked.

    Raises
    ------
    TypeError, ValueError
        Naming the method of the model at fault, what it returned, and what is needed.
    """
    if family is not None and not family.random:
        raise ValueError(
            f"family={family}: q(z_n) needs a spread, or its entropy is no number; a point is for "
            "global_family."
        )
    if not bool((rows.weights > 0).any()):
        raise ValueError("X: no response is observed in any row, so there is nothing to fit.")
    check_links(model, family, global_family)
    check_signatures(model)
    n_latents = _count_latents(model, model.n_explained(rows.X))
    model = fixed_modules(model, rows.weights)
    if not bool((rows.weights == 1).all()):
        remedy = "subclass HierarchicalModel, or leave sample_weight out"
        model.coupling.require_row_terms("sample_weight", type(model).__name__, remedy)
    objective = bind(model, family, global_family, rows.X)
    if not n_latents + objective.space.size:
        raise ValueError(
            f"{type(model).__name__} has no latents (n_latents is 0) and no globals (global_prior "
            "returned an empty dict): there is nothing to infer."
        )
    with _named_faults(objective, rows):
        raw_globals = start_globals(objective, rows, generator, rough=True)
    theta = objective.space.constrain(objective.global_factor(raw_globals).mean)
    few = rows[:3]
    some = objective.some_latents(few.weights, len(few))
    some_rows = few if model.coupling.independent else rows
    batched = model.goes_through_vmap
    if batched is None:
        batched = goes_through_vmap(objective, raw_globals, some_rows)
    declared = _check_parameters(model, model.declared, theta, some, few.X)
    if objective.n_latents:
        _check_latents(objective, declared, few.X)
    _check_declared(model, declared)
    raw = objective.start_locals(raw_globals, rows.X)
    z = objective.typical_latents(raw, raw_globals, rows.X)
    terms = _check_parameters(model, model.log_terms, theta, z, rows.X)
    _check_likelihood(model, theta, z, rows.X)
    _check_support(model, theta, z, rows.X)
    _check_terms(model, terms, rows.X)
    return replace(objective, batched=batched)


def check_links(model, family, global_family):
    """Raise a ValueError for factors that know their neighbours where nothing is in a chain."""
    if global_family.links_rows:
        raise ValueError(
            f"global_family={global_family} is a family of rows' latents: use DiagonalNormal() or "
            "FullNormal() for q(theta)."
        )
    if family is not None and family.links_rows and not isinstance(model.coupling, Chain):
        raise ValueError(
            f"family={family} links each row to the row before, but the latents of "
            f"{type(model).__name__} are not in a chain: use it with a MarkovModel, or "
            "DiagonalNormal() or FullNormal() here."
        )


def _count_latents(model, n_features) -> int:
    model.check_written(n_features)
    n_latents, fewest = model.count_latents(n_features), model.fewest_latents
    if is_whole(n_latents, fewest):
        return int(n_latents)
    name = type(model).__name__
    got = f"returned {n_latents!r}" if callable(model.n_latents) else f"is {n_latents!r}"
    call = f"({n_features})" if callable(model.n_latents) else ""
    remedy = "; a chain without latents is a HierarchicalModel" if fewest else ""
    raise ValueError(f"{name}.n_latents{call} {got}: it must be an integer >= {fewest}{remedy}.")


def goes_through_vmap(objective, raw_globals, rows) -> bool:
    """Say whether the log joint works under vmap; some distributions (Multinomial) do not.

    Whatever else is wrong is found later, with better words.

    Raises
    ------
    LeavesTorchError
        If a method takes values out of torch.
    """
    u = objective.global_factor(raw_globals).mean
    z = objective.some_latents(rows.weights, len(rows))
    try:
        objective.evaluate_batch(torch.stack([u, u]), torch.stack([z, z]), rows.X)
    except LeavesTorchError:
        raise
    except Exception:
        return False
    return True


@contextmanager
def _named_faults(objective, rows):
    """If the body fails, say what the model's methods return wrongly, where that is the reason."""
    try:
        yield
    except LeavesTorchError:
        raise
    except Exception:
        few, model = rows[:3], objective.model
        some = objective.some_latents(few.weights, len(few))
        u, _ = objective.space.start(torch.Generator().manual_seed(0))
        theta = objective.space.constrain(u.to(few.weights))
        _check_declared(model, _check_parameters(model, model.declared, theta, some, few.X))
        raise


def _check_parameters(model, method, theta, z, X):
    """Call a method of the model; if torch rejects a distribution's parameters, name the row.

    torch's own message would print all the parameters.
    """
    try:
        return method(theta, z, X)
    except LeavesTorchError:
        raise
    except RuntimeError as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} cannot be evaluated at the start: {said}. Check the shapes: "
            "z is (n_rows, n_latents), local_prior covers (n_latents,), and likelihood (n_rows, "
            "n_features)."
        ) from error
    except ValueError as error:
        if not refuses_parameters(error):
            raise
        row = next((n for n in range(len(X)) if _refuses(method, theta, z, X, n)), None)
        where = "for all rows together" if row is None else f"first at row {row}"
        raise ValueError(
            f"{type(model).__name__} makes a distribution with parameters that are not valid at "
            f"the start ({where}): {str(error).split(', but found')[0]}."
        ) from None


def _refuses(method, theta, z, X, row):
    try:
        method(theta, z[: row + 1], X[: row + 1])
    except ValueError:
        return True
    return False


def _check_declared(model, declared):
    """Compare each distribution's shape with that of its values."""
    for method, (distribution, values) in declared.items():
        name = f"{type(model).__name__}.{method}"
        if not isinstance(distribution, Distribution):
            got = "None" if distribution is None else f"a {type(distribution).__name__}"
            raise TypeError(f"{name} returned {got}: it must return one of torch.distributions.")
        shape, needed = tuple(distribution.batch_shape + distribution.event_shape), values.shape
        of_rows = method == "likelihood"
        if method == "local_prior" and shape != needed and math.prod(shape[:-1]) != 1:
            raise ValueError(
                f"{name} has shape {shape} for {needed[0]} rows, but it is one prior for every "
                f"row: its shape must be ({needed[-1]},), without a dimension of rows."
            )
        if shape[-1:] != needed[-1:] or (of_rows and shape != needed):
            raise ValueError(
                f"{name} has shape {shape} for {needed[0]} rows, but it must cover "
                f"{tuple(needed)}: its last dimension is "
                f"{'n_features' if of_rows else 'n_latents'}={needed[-1]}."
            )


#: Methods whose values are latents.
_LATENT_METHODS = ("local_prior", "initial_prior", "transition")


def _check_latents(objective, declared, X):
    """Refuse distributions of latents that no normal q fits, nor a bijection of it."""
    model = objective.model
    for method in _LATENT_METHODS:
        distribution, _ = declared.get(method, (None, None))
        if not isinstance(distribution, Distribution):  # the next check tells
            continue
        with suppress(NotImplementedError):  # a distribution that does not say
            _ = distribution.support
            if (remedy := _refusal(objective, method, distribution, X)) is not None:
                kind = type(innermost(distribution)).__name__
                raise ValueError(
                    f"{type(model).__name__}.{method} returned {kind} with support "
                    f"{support_in_words(distribution.support)}, {remedy}."
                )


def _refusal(objective, method, distribution, X):
    """Return why a distribution of latents is refused and what to do, or None."""
    try:
        bijection = bijection_of(distribution)
    except NotImplementedError as error:
        return f"but q has no factor for {error}: {_instead(distribution)}"
    if bijection is None:
        return None
    if method != "local_prior" or not objective.model.bijects_latents:
        return f"but latents in a series are real numbers: {_BIJECTED}"
    u, spread = objective.space.start(torch.Generator().manual_seed(0))
    there = objective.model.latent_bijection(objective.space.constrain((u + spread).to(X)), X)
    if there != bijection:
        return (
            "which depends on the globals, but q of a row's latents is bounded by known numbers: "
            f"{_BIJECTED}, times such a global"
        )
    return None


_BIJECTED = (
    "put them through a bijection: a Normal prior of z, and in the likelihood torch.exp(z) for "
    "a positive number, torch.sigmoid(z) for one between 0 and 1"
)


def _instead(distribution):
    """Say what to write in place of latents with such a support."""
    support, kind = distribution.support, type(innermost(distribution)).__name__
    if support.is_discrete:
        return (
            "sum a discrete latent out in log_likelihood (torch.logsumexp over its values), give "
            "it a largest value (Categorical), or leave it out"
        )
    if kind == "GeneralizedPareto":
        return "use Pareto, or Normal latents, and in the likelihood torch.exp of them"
    if kind == "VonMises":
        return "use two Normal latents, the angle being torch.atan2 of them"
    if support.event_dim == 1:
        return "use Normal latents, and in the likelihood torch.softmax of them for proportions"
    return "use Normal latents, and in the likelihood a matrix made of them"


def _check_support(model, theta, z, X):
    """Compare X with the support of a declared likelihood, which torch does not do under vmap."""
    declared = model.declared(theta, z, X)
    if "likelihood" not in declared:
        return
    likelihood, values = declared["likelihood"]
    support = likelihood.support
    bad = (~support.check(values)).nonzero()
    if len(bad):
        column = f", column {int(bad[0, 1])}" if bad.shape[1] > 1 else ""
        raise ValueError(
            f"X has {len(bad)} values (first at row {int(bad[0, 0])}{column}) outside the support "
            f"of {type(model).__name__}.likelihood, {support}."
        )


def _check_likelihood(model, theta, z, X):
    """Ask for one log likelihood a row: a sum over rows would be added to each row's prior."""
    written_out = isinstance(model, HierarchicalModel) and overrides(
        model, HierarchicalModel, "log_local"
    )
    if written_out or not isinstance(model, HierarchicalModel | MarkovModel):
        return
    with defaults_of(z):
        shape = tuple(model.log_likelihood(theta, model.bounded(theta, z, X), X).shape)
    if shape != (len(X),):
        raise ValueError(
            f"{type(model).__name__}.log_likelihood has shape {shape} for {len(X)} rows: it must "
            f"give one number a row, ({len(X)},)."
        )


def _check_terms(model, terms, X):
    name = type(model).__name__
    if not isinstance(terms, torch.Tensor):
        raise TypeError(
            f"{name}'s log density is a {type(terms).__name__}: log_joint must return a tensor, a "
            "scalar."
        )
    if tuple(terms.shape) not in {(), (len(X),)}:
        raise ValueError(
            f"{name}'s log density has shape {tuple(terms.shape)} for {len(X)} rows: log_local "
            f"must give ({len(X)},), log_joint a scalar."
        )
    bad = (~torch.isfinite(terms)).nonzero()
    if len(bad):
        where = f"first at row {int(bad[0, 0])}" if terms.dim() else "for all rows together"
        raise ValueError(
            f"{name}'s log joint is not finite at the start ({where}): check that X lies in the "
            "support of the likelihood and that no density overflows."
        )
