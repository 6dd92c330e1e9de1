"""`partial_fit`: the first call is `fit`, later calls continue it with new rows."""

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skavi._data.process_ranks import shared_by_ranks
from skavi._data.validated_tables import came_in_single, warn_of_shares
from skavi._estimators.component_names import require_fitted_components
from skavi._estimators.fitted_attributes import fitted_attributes, unchanged_on_error
from skavi._estimators.fitted_estimator import FittedEstimator
from skavi._fit.final_elbo import final_elbo
from skavi._fit.nonfinite import named_singularity
from skavi._fit.streaming import check_streamed, go_on, stiffness_after
from skavi._fit.suboptimality import nats_below
from skavi._platform.array_types import TableLike, keeping_types
from skavi._platform.forks_and_threads import guarded
from skavi._platform.memory import require_memory_of_fit
from skavi._platform.private_names import fit_context
from skavi._platform.random_state import drawn_seed, private_state
from skavi._platform.user_warnings import warn
from skavi.families import Family
from skavi.models import FactorAnalysis, LatentVariableModel
from skavi.posterior._correction import Correction
from skavi.solvers import Solver

_STREAMED = Correction.without(
    "partial_fit keeps no earlier rows, whose latents linear response needs: fit all at once."
)


@guarded
class PartialFit(FittedEstimator):
    """`partial_fit`, of an estimator that has `fit`."""

    fit: Callable[..., Any]
    max_iter: int
    random_state: Any
    elbo_: float
    elbo_se_: float
    n_iter_: int
    converged_: bool
    suboptimality_: float
    model: LatentVariableModel | None
    global_family: Family | None
    solver: Solver | None
    _stiffness: np.ndarray | None

    @keeping_types(fit_context(prefer_skip_nested_validation=True))
    def partial_fit(
        self, X: TableLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Continue the fit with new rows, without the earlier ones; the first call is `fit`.

        The information from earlier rows on theta replaces the prior; the inference function starts
        from its current parameters. Components left at None are chosen for the first rows, as are
        prior scales and a network's units, so the first rows should be many and typical. Callbacks
        are called in the first call only. A call that fails or is interrupted leaves the estimator
        unchanged.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows that no call has seen.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row's ELBO term counts.

        Returns
        -------
        self : object
            ``elbo_`` and ``elbo_curve_`` are sums over the calls since `fit`: an estimate of the
            bound for all rows, not itself a bound. ``n_iter_`` and ``converged_`` are of this call.

        Raises
        ------
        ValueError
            If the model couples rows, q(theta) is a point, the solver is `CoordinateAscent`,
            whose updates always use the model's own prior, or a component is no longer that of the
            fit.

        Notes
        -----
        Earlier rows are summarised by a normal in the unconstrained globals. Its curvature in the
        mean is that of the ELBO with all rows' factors optimal, from at most 2,000 rows a call. If
        q(theta) has more than 1,000 parameters, the normal is q(theta) itself; mean-field is
        overconfident, so early rows then count for more. Source: Broderick et al. (2013),
        "Streaming variational Bayes", equation 2.

        Examples
        --------
        >>> import numpy as np
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LinearModel
        >>> X = np.random.default_rng(0).normal(3.0, 1.5, size=(300, 1))
        >>> vi = FactorizedVI(LinearModel())
        >>> for part in np.array_split(X, 3):
        ...     _ = vi.partial_fit(part)
        >>> bool(abs(vi.global_posterior_.mean["theta"] - X.mean()) < 1e-6)
        True
        """
        model = self.model if self.model is not None else FactorAnalysis()
        check_streamed(model, self.global_family, self.solver)
        if shared_by_ranks(X):
            raise ValueError(
                "partial_fit takes rows in one process, but X is this rank's part of a table: use "
                "fit."
            )
        with unchanged_on_error(self):
            first = not hasattr(self, "elbo_")
            if first:
                self.fit(X, y, sample_weight=sample_weight)
            else:
                require_fitted_components(self)
            X = self._validate(X)
            rows = self._rows(X, sample_weight)
            objective = self._fitted_model.objective
            if not first:
                warn_of_shares(sample_weight)
                require_memory_of_fit(self, X)
                with named_singularity("X"):
                    objective = self._go_on(rows, came_in_single(X, rows))
            self._stiffness = stiffness_after(self._fitted_model, rows, objective)
        if not first and not self.converged_:
            warn(
                f"{type(self).__name__}.partial_fit did not converge in n_iter_={self.n_iter_} "
                f"iterations: estimated to be {nats_below(self.suboptimality_)} the optimum. "
                f"Raise max_iter (now {self.max_iter}) or loosen tol.",
                ConvergenceWarning,
            )
        return self

    def _go_on(self, rows, single):
        """Continue the fit with new rows; return the objective that was maximised."""
        self.model_.check_data(rows.X)
        generator = torch.Generator().manual_seed(drawn_seed(private_state(self.random_state)))
        solver = None if self.solver is None else clone(self.solver)
        fit, stiffness = self._fitted_model, self._stiffness
        fitted = go_on(fit, rows, stiffness, solver, generator, self.max_iter, single)
        elbo, se = final_elbo(fitted.problem, fitted.outcome.state)
        if not math.isfinite(elbo):
            raise FloatingPointError(
                f"The ELBO of {type(self).__name__} is {elbo} after partial_fit; the estimator is "
                "as it was before. Check the scale of X."
            )
        width, names = self._row_width, getattr(self, "feature_names_in_", None)
        new = fitted_attributes(fitted, elbo, se, width, names, False, _STREAMED)
        new["elbo_curve_"] += self.elbo_
        new["elbo_"] += self.elbo_
        new["n_samples_fit_"] = getattr(self, "n_samples_fit_", 0) + len(rows.X)
        new["elbo_se_"] = math.hypot(se, self.elbo_se_)
        self.__dict__.update(new)
        return fitted.problem.objective
