"""Amortized variational inference: one learned function from a row to its factor."""

import copy
from numbers import Real

import torch
from sklearn.base import clone
from sklearn.utils._param_validation import Interval

from skavi._estimators.base import VariationalInference
from skavi._platform.user_warnings import warn
from skavi.closability import AmortizationWarning
from skavi.closability._verdict import ideal_context
from skavi.inference_functions import InferenceFunction, Table, TorchFunction
from skavi.models import LatentVariableModel
from skavi.models._base import overrides


class AmortizedVI(VariationalInference):
    """Amortized variational inference: one learned function from a row to its factor q(z_n).

    The same model, ELBO and methods as `FactorizedVI`. A new row costs one evaluation of the
    function; what one function for all rows loses is measured by `amortization_gap`.

    Parameters
    ----------
    model : LatentVariableModel, default=None
        As in `FactorizedVI`.
    inference_function : InferenceFunction or torch.nn.Module, default=None
        `Constant`, `Polynomial`, `MLP` or any module. None: an `MLP` with two hidden layers sized
        from the factor.
    family : Family, default=None
        Family of q(z_n). None: `DiagonalNormal`.
    refine : float, default=None
        Nats: `transform`, `posterior` and `score` solve rows of their own whose factor by the
        function is estimated (by one Newton step) to miss the optimum that ascent from it reaches
        by more; models with closed-form steps, such as `TopicModel`, bring all rows so near. None:
        no row.
    global_family, noise, solver, init, n_init, max_iter, tol, output, warm_start, device, \
random_state, verbose : as in FactorizedVI
        Documented there.

    Attributes
    ----------
    elbo_, elbo_se_, elbo_curve_, n_iter_, starts_, tol_, converged_, stopped_early_, \
suboptimality_, gradient_norm_, global_posterior_, bias_note_, model_, inference_function_, \
noise_, solver_, family_, global_family_, n_features_in_, \
n_samples_fit_
        As in `FactorizedVI`.

    Notes
    -----
    `transform` evaluates the function. Where a factorized fit is cheap, the function starts from
    regression on its factors; a network is then brought nearer on a subset of rows, from several
    random starts. Where a model has closed-form updates and the function is fitted by Adam,
    q(theta) stays at the factorized optimum. Source: Margossian & Blei (2024).

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) @ np.ones((3, 4))
    >>> AmortizedVI(random_state=0).fit_transform(X).shape
    (100, 1)
    """

    _parameter_constraints: dict = {
        **VariationalInference._parameter_constraints,
        "inference_function": [InferenceFunction, torch.nn.Module, None],
        "refine": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        model=None,
        inference_function=None,
        *,
        family=None,
        global_family=None,
        noise=None,
        solver=None,
        init=None,
        n_init=None,
        max_iter=10_000,
        tol=None,
        output="mean",
        refine=None,
        warm_start=False,
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.inference_function = inference_function
        self.family = family
        self.global_family = global_family
        self.noise = noise
        self.solver = solver
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.output = output
        self.refine = refine
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _function(self):
        if isinstance(self.inference_function, torch.nn.Module):
            return TorchFunction(clone(self.inference_function, safe=False))
        return None if self.inference_function is None else clone(self.inference_function)

    def _reference(self):
        return Table()

    def _with_context(self, model, function, X):
        asked = ideal_context(model, X)
        if not overrides(model, LatentVariableModel, "context") and isinstance(asked, tuple):
            model = copy.copy(model)  # the class leaves it open: what was measured is the default
            model.context = asked
        reads = model.context if function is None else function.context or model.context
        name = type(model).__name__
        if asked is None:
            warn(
                f"No function of a window of rows closes {name}'s amortization gap "
                "(skavi.can_close_gap says why; skavi.amortization_gap measures it): use "
                "FactorizedVI, or a wider context for a smaller gap.",
                AmortizationWarning,
            )
        elif asked != "unknown" and (reads[0] < asked[0] or reads[1] < asked[1]):
            warn(
                f"The inference function reads {tuple(reads)} rows before and after, but {name}'s "
                f"factors depend on {asked}: set its context={asked} to close the amortization "
                "gap.",
                AmortizationWarning,
            )
        return model
