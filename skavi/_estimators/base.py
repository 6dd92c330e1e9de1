"""The scikit-learn layer of a fit, shared by factorized and amortized VI."""

import copy
import math
from dataclasses import replace
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils.validation import check_is_fitted

from skavi._data.grouped_rows import GroupedRows
from skavi._data.process_ranks import shared_by_ranks
from skavi._data.validated_tables import (
    came_in_single,
    device_named,
    rows_of,
    warn_of_shares,
)
from skavi._estimators.component_names import with_public_names
from skavi._estimators.fit_identity import describe_fit
from skavi._estimators.fit_summary import Summarised
from skavi._estimators.fitted_attributes import fitted_attributes, learn_use, unchanged_on_error
from skavi._estimators.forecasting import Forecasting
from skavi._estimators.generation import Generation
from skavi._estimators.partial_fit import PartialFit
from skavi._estimators.process_rank_checks import check_agreement, check_joint, ranks_of
from skavi._estimators.reporting import Reporter, progress_bar, warn_of_end, warn_of_model
from skavi._estimators.row_inference import RowInference
from skavi._fit.algorithm import Plan, best_of, fit_every_start, simplified, with_suboptimality
from skavi._fit.checkpoint_journal import Journal, StoredJournal, versions
from skavi._fit.defaults import default_family, default_model, is_network, tolerance
from skavi._fit.final_elbo import final_elbo
from skavi._fit.linear_response import correction_of
from skavi._fit.model_checks import validated_objective
from skavi._fit.nonfinite import named_singularity, what_broke
from skavi._fit.parametrisation import with_best_parametrisation
from skavi._fit.start import density_at_start
from skavi._platform.array_types import TableLike, keeping_types
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import DOC_LINK_TEMPLATE
from skavi._platform.memory import require_memory_of_fit
from skavi._platform.private_names import (
    Interval,
    StrOptions,
    clone_parametrized,
    fit_context,
    keep_lines_wrapped,
)
from skavi._platform.random_state import drawn_seed, private_state
from skavi._platform.user_warnings import warn
from skavi._platform.version import SavedVersionWarning, __version__
from skavi.callbacks import Checkpoint
from skavi.families import Family
from skavi.inference_functions import Table
from skavi.models import LatentVariableModel, PriorConflictWarning
from skavi.noise import Noise
from skavi.solvers import Solver


@keep_lines_wrapped
@guarded
class VariationalInference(
    RowInference,
    Generation,
    Forecasting,
    PartialFit,
    Summarised,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """What the two estimators share: everything except the map from a row to its factor."""

    _doc_link_module = "skavi"
    _doc_link_template = DOC_LINK_TEMPLATE
    _parameter_constraints: dict = {
        "model": [LatentVariableModel, None],
        "family": [Family, None],
        "global_family": [Family, None],
        "noise": [Noise, None],
        "solver": [Solver, None],
        "init": [BaseEstimator, None],
        "n_init": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither"), None],
        "output": [StrOptions({"mean", "mean_sd"})],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # --- where the two estimators differ --------------------------------------------------------

    def _function(self):
        """Return the inference function to fit, or None for the default one."""
        raise NotImplementedError

    def _reference(self):
        """Return the function to fit first, near whose factors the other one starts, or None."""
        return None

    def _with_context(self, model, function, X):
        """Return the model with the default window of functions; a table has no window.

        It warns if the function reads fewer rows than its factors can depend on.
        """
        return model

    def _validate_params(self):
        """Let scikit-learn check the types of all parameters; say what to write instead."""
        try:
            super()._validate_params()
        except ValueError as error:
            raise type(error)(with_public_names(self, str(error))) from None

    # --- fitting --------------------------------------------------------------------------------

    @keeping_types(with_callbacks)
    @keeping_types(fit_context(prefer_skip_nested_validation=True))
    def fit(self, X: TableLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit q(theta) and the map from rows to factors.

        Ctrl-C ends the fit with its last complete iterate (``converged_ = False``), or the best
        start that has converged, and a warning; before the first iteration, and inside a grid
        search, it raises KeyboardInterrupt.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data; for float32 `transform` returns float32. If X is this rank's part of a
            table (`skavi.distributed.shard`), all ranks' rows are fitted together.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row's ELBO term counts: 2 is the row twice. Not negative, not all zero.
            Survey weights that sum to 1 are to be multiplied by n_samples
            (`skavi.diagnostics.SampleWeightWarning`).

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, the weights or a component cannot be used; what and why is in the message.
        MemoryError
            If the least that the fit must hold is more than the memory available.
        RuntimeError
            In a forked process whose torch would wait for lost threads; what to do is in the
            message.

        Notes
        -----
        Memory, in numbers of 8 bytes: closed forms hold a few copies of X and of the rows'
        parameters. LBFGS also holds ``2 * memory`` copies of all parameters and, with nodes, tens
        of numbers for each row, node and latent. Newton evaluates rows in pieces of up to about
        1 GB, and holds 70 (`LinearModel`) to 1,200 (`NonlinearModel`, in search of other optima)
        numbers a row. Adam holds those of a batch, and three copies of all rows' parameters.
        """
        require_memory_of_fit(self, X)
        shared, source = shared_by_ranks(X), self._source_fit()
        with unchanged_on_error(self), progress_bar(self):
            X, roles = self._training_table(X, shared)
            # The number of iterations is unknown; relative to max_iter the bar would stay near 0 %.
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            reporter = Reporter(self, context, X)
            with named_singularity("X"):
                plan, rows, start = self._prepare(X, roles, sample_weight, reporter, shared, source)
                fits: list = []
                with reporter.outlasting_interrupts():
                    plan, start = with_best_parametrisation(plan, rows, start)
                    fit_every_start(plan, rows, start, reporter, fits)
                    fit = with_suboptimality(best_of(plan, fits))
                    check_agreement(rows.ranks, fit.solution.outcome.state)
                if reporter.interrupted and reporter.latest is not None:
                    solution = reporter.latest.fitted()
                    fits.append((solution, *_quick_elbo(solution)))
                    fit = best_of(plan, fits)
                self.__dict__.update(self._results(fit, reporter))
                self._remember_groups(fit.solution)
            self._kept_stage = fit.solution.stage  # for EarlyStopping
            try:
                with reporter.outlasting_interrupts():
                    context.call_on_fit_task_end(estimator=self, X=X, y=y)
            finally:
                del self._kept_stage
            if not reporter.interrupted:
                reporter.journal.close()
            restored = self.__dict__.pop("_iterate", None)
            if restored is not None:
                there = restored.outcome.state
                self.elbo_, self.elbo_se_ = final_elbo(restored.problem, there, restored.tol)
        warn_of_end(self, reporter)
        warn_of_model(self)
        return self

    def _prepare(self, X, roles, sample_weight, reporter, shared, source):
        """Validate everything before work begins; return plan, rows, and start or None."""
        ranks = ranks_of(self, X, shared)
        sparse, device = self._accepts_sparse(), device_named(self.device)
        rows = rows_of(X, sample_weight, device, sparse, roles)
        warn_of_shares(sample_weight)
        of_rows = ranks.of_rows(*rows.X.shape) if isinstance(rows.X, GroupedRows) else ranks
        rows = replace(rows, ranks=of_rows)
        reporter.n_samples = ranks.count(X.shape[0])
        reporter.journal = self._journal(X, sample_weight)
        reporter.joint = ranks.size > 1
        plan = self._plan(X, roles, rows, reporter.journal)
        start, giver = None, "init" if self._source() is self.init else "warm_start"
        if source is not None and self.n_init is not None:
            raise ValueError(
                f"n_init={self.n_init} asks for starts of theta, but {giver} gives the start: "
                "leave n_init at None."
            )
        plan, rows = simplified(plan, rows)
        if source is not None:
            start = source.start_for(plan.objective, rows, giver)
        plan.journal.begin(plan.generator, lambda: density_at_start(plan.objective, rows))
        return plan, rows, start

    def _results(self, fit, reporter):
        """Return every fitted attribute."""
        fitted, elbo = fit.solution, fit.elbo
        if not math.isfinite(elbo):
            raise FloatingPointError(
                f"The ELBO of {type(self).__name__} is {elbo} after {len(fitted.outcome.curve)} "
                f"iterations: {what_broke(fitted.problem, fitted.outcome.state)}. Check the "
                "scale of X and of the priors."
            )
        reporter.failure, reporter.missed, reporter.alone = fitted.failure, fitted.missed, fit.alone
        stopped = reporter.stopped or reporter.interrupted
        width, correction = fitted.problem.rows.X.shape[1], correction_of(fitted)
        learn_use(fitted)
        names = getattr(self, "feature_names_in_", None)
        named = fitted_attributes(fitted, elbo, fit.elbo_se, width, names, stopped, correction)
        own = {"starts_": np.array(fit.reached), "n_samples_fit_": reporter.n_samples}
        return named | own

    def _plan(self, X, roles, rows, journal):
        """Clone and check the components, try the model on the rows, and return the plan."""
        drawn = rows.ranks.first_rank(drawn_seed(private_state(self.random_state)))
        generator = torch.Generator().manual_seed(journal.seed(drawn))
        model = clone(self.model) if self.model is not None else _ask(rows, default_model)
        if roles.told:
            model.columns_ = roles
        function = self._function()
        family = default_family(model, function) if self.family is None else clone(self.family)
        global_family = clone(model.global_family(self.global_family))
        for component in (model, function, self.noise, self.solver, family, global_family):
            if component is not None:
                component.check()
        if rows.ranks.size > 1:
            check_joint(self, model, function)
        model.check_data(rows.X)
        if conflict := _ask(rows, model.prior_conflict):
            warn(conflict, PriorConflictWarning)
        model = _ask(rows, model.adapted)
        objective = validated_objective(model, family, global_family, rows, generator)
        model = self._with_context(objective.model, function, rows.X)
        no_factors = not objective.has_factors  # which a function could give
        function = Table() if no_factors else function
        return Plan(
            replace(objective, model=model),
            function,
            None if no_factors else self._reference(),
            clone(self.noise) if self.noise is not None else None,
            clone(self.solver) if self.solver is not None else None,
            tolerance(self.tol, model, function, self.noise, rows.X.shape[1]),
            self.max_iter,
            generator,
            self.n_init,
            journal,
            single=came_in_single(X, rows),
            gap_counts=self.tol is None and is_network(function),
        )

    def _source(self):
        return self if self.warm_start and hasattr(self, "elbo_") else self.init

    def _source_fit(self):
        """Return the fit to start from, as it is before this one overwrites the estimator's."""
        source = self._source()
        if source is None:
            return None
        check_is_fitted(source, "elbo_", msg="init must be a fitted estimator.")
        return source._fitted_model

    def _journal(self, X, sample_weight):
        """Return the journal of this fit, stored in a file if a `Checkpoint` is set."""
        callbacks = getattr(self, "_skl_callbacks", [])
        checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
        if checkpoint is None:
            return Journal()
        described = describe_fit(self, X, sample_weight, self._source()) | versions()
        seeded, device = self.random_state is not None, device_named(self.device)
        return StoredJournal(checkpoint.path, described, checkpoint.is_due, seeded, device)

    # --- copies ---------------------------------------------------------------------------------

    def __getstate__(self):
        return {**super().__getstate__(), "_skavi_version": __version__}

    def __setstate__(self, state):
        state = dict(state)
        saved_version = state.pop("_skavi_version", "of an unknown version")
        if saved_version != __version__:
            name = type(self).__name__
            warn(SavedVersionWarning(None, name, saved_version))
        super().__setstate__(state)

    def __sklearn_clone__(self):
        """Clone, but keep the same `init`: a fitted estimator is data here, not a component."""
        bare = copy.copy(self)
        bare.init = None
        cloned = clone_parametrized(bare)
        cloned.init = self.init
        return cloned

    @property
    def _n_features_out(self):
        if not hasattr(self, "n_features_in_") or not hasattr(self, "model_"):
            raise AttributeError("not fitted")
        return self._fitted_model.objective.n_columns * (2 if self.output == "mean_sd" else 1)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Return the names of `transform`'s columns: the model's, or the estimator's own.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only compared with what was fitted.

        Returns
        -------
        ndarray of str
            With ``output="mean_sd"`` a model's own names come twice, the second time with "_sd".
        """
        check_is_fitted(self)
        self._validate_params()
        own = super().get_feature_names_out(input_features)  # type: ignore[call-arg]
        names = self._fitted_model.objective.column_names(self._n_explained)
        if names is None:
            return own
        sds = [f"{name}_sd" for name in names] if self.output == "mean_sd" else []
        return np.asarray([*names, *sds], dtype=object)

    def _allows_missing(self):
        return self.model.allows_missing if self.model is not None else True  # `default_model`

    def _accepts_sparse(self):
        return self.model is not None and self.model.accepts_sparse

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = self._allows_missing()
        tags.input_tags.sparse = self._accepts_sparse()
        tags.input_tags.positive_only = self.model is not None and self.model.positive_only
        return tags


def _quick_elbo(fitted):
    """Evaluate the ELBO of an interrupted fit; if interrupted again, use the solver's ELBO."""
    try:
        return final_elbo(fitted.problem, fitted.outcome.state, fitted.tol)
    except KeyboardInterrupt:
        return fitted.outcome.curve[-1], math.nan


def _ask(rows, method):
    return rows.ask(method, rows.X, rows.weights)
