"""The scikit-learn layer of a fit, shared by factorized and amortized VI."""

import copy
import math
import warnings
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.callback import CallbackSupportMixin, ProgressBar, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from skavi import _fit
from skavi._choice import default_model
from skavi._compat import Interval, StrOptions, clone_parametrized, fit_context
from skavi._concurrency import check_fork
from skavi._failure import named_singularity, what_broke
from skavi._final_elbo import final_elbo
from skavi._fingerprint import described_fit
from skavi._generation import Generation
from skavi._group import ALONE, shared_by_ranks
from skavi._html import DOC_LINK_TEMPLATE
from skavi._joint import check_agreement, check_joint, group_of
from skavi._journal import Journal, StoredJournal, versions
from skavi._memory import require_memory_of_fit
from skavi._random import private_state
from skavi._reporting import Reporter, fitted_attributes
from skavi._row_inference import RowInference
from skavi._start import density_at_start
from skavi._streaming import check_streamed, stiffness_after, went_on
from skavi._user_data import validated_table
from skavi._validation import validated_objective
from skavi._version import SavedVersionWarning, __version__
from skavi.callbacks import Checkpoint
from skavi.families import DiagonalNormal, Family
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.solvers import Solver, State

_CHUNK = 65_536


class VariationalInference(
    RowInference,
    Generation,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Everything the two estimators share: all but the map from a row to its factor."""

    _doc_link_module = "skavi"
    _doc_link_template = DOC_LINK_TEMPLATE
    _parameter_constraints: dict = {
        "model": [LatentVariableModel, None],
        "family": [Family, None],
        "global_family": [Family, None],
        "noise": [Noise, None],
        "solver": [Solver, None],
        "init": [BaseEstimator, None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "output": [StrOptions({"mean", "mean_sd"})],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # --- the one difference ---------------------------------------------------------------------

    def _function(self):
        """Return the inference function to fit, or None for the default one."""
        raise NotImplementedError

    def _check_window(self, model, function, X):
        """Warn if the function reads less than its factors can depend on; a table reads nothing."""

    # --- fitting --------------------------------------------------------------------------------

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Fit q(theta) and the map from rows to factors.

        Ctrl-C ends the fit with its last complete iterate (``converged_ = False``, and a warning);
        before the first iteration, and inside a grid search, it raises KeyboardInterrupt.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data; float32 stays float32 in what `transform` returns. This rank's rows, if
            they come from `skavi.distributed.shard`: the fit is then that of all ranks' rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row's ELBO term counts; not negative, not all zero.

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
        parameters; LBFGS beside them ``2 * memory`` copies of all that it moves and, under a rule
        of nodes, tens of numbers for each row, node and latent; Newton works through the rows in
        pieces of up to about 1 GB, and holds 70 (`LinearModel`) to 1,200 (`NonlinearModel`, in
        search of other basins) numbers a row; Adam only those of a batch, and three copies of all
        rows' parameters.
        """
        check_fork()
        require_memory_of_fit(self, X)
        shared = shared_by_ranks(X)
        with self._unchanged_on_error(), self._progress_bar():
            sparse, missing = self._accepts_sparse(), self._allows_missing()
            X = validated_table(self, X, sparse, missing, reset=True)
            # Of unknown length: against max_iter a bar would stand at 0 % and then be done.
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            reporter = Reporter(self, context, X)
            with named_singularity("X"):
                group = group_of(self, X, shared)
                self.__dict__.update(self._fit(X, sample_weight, reporter, group))
            with reporter.outlasting_interrupts():
                context.call_on_fit_task_end(estimator=self, X=X, y=y)
            if not reporter.interrupted:
                reporter.journal.close()
            restored = self.__dict__.pop("_iterate", None)
            if restored is not None:
                self.elbo_, self.elbo_se_ = final_elbo(restored.problem, restored.outcome.state)
        if reporter.interrupted:
            warnings.warn(
                f"{type(self).__name__} was interrupted and keeps its last complete iterate: "
                f"n_iter_={self.n_iter_}, converged_={self.converged_}. With warm_start=True, fit "
                "goes on from there.",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif reporter.failure:
            warnings.warn(
                f"{type(self).__name__} keeps its last finite iterate, of n_iter_={self.n_iter_}: "
                f"numbers were not finite in {reporter.failure}. Check the scale of X and of the "
                "priors, or choose another solver.",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif not self.converged_ and not self.stopped_early_:
            warnings.warn(
                f"{type(self).__name__} did not converge in n_iter_={self.n_iter_} iterations: "
                f"estimated to be {self.suboptimality_:.2e} nats below the optimum, gradient norm "
                f"{self.gradient_norm_:.1e} nats a row. Raise max_iter (now {self.max_iter}), "
                f"loosen tol, or choose another solver or a finer noise (now {self.noise_}).",
                ConvergenceWarning,
                stacklevel=4,
            )
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, sample_weight=None):
        """Go on from the fit with more rows, without those it has seen; the first call is `fit`.

        What earlier rows said of theta stands where the prior was; the inference function goes on
        from its parameters. Components left at None are chosen for the first rows, as are prior
        scales and a network's units: these should be many, and typical. Callbacks hear of the first
        call only; one that fails, or is interrupted, leaves the estimator as it was.

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
            ``elbo_`` and ``elbo_curve_`` add up the calls since `fit`: an estimate of the bound for
            all rows, no bound itself; ``n_iter_`` and ``converged_`` are of this call.

        Raises
        ------
        ValueError
            If the model couples rows, q(theta) is a point, or the solver is `CoordinateAscent`,
            whose updates know the model's own prior only.

        Notes
        -----
        Earlier rows are remembered as a normal in the unconstrained globals, in their mean of the
        curvature that the ELBO has with all rows' factors optimal, from at most 2,000 rows a call.
        Where q(theta) has more than 1,000 parameters it is q(theta) itself: mean-field's
        overconfidence then has early rows count for more. Source: Broderick et al. (2013),
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
        check_streamed(self)
        if shared_by_ranks(X):
            raise ValueError(
                "partial_fit takes rows in one process, but X is this rank's part of a table: use "
                "fit."
            )
        with self._unchanged_on_error():
            first = not hasattr(self, "elbo_")
            if first:
                self.fit(X, y, sample_weight=sample_weight)
            X = self._validated(X)
            rows = self._rows(X, sample_weight)
            objective = self._objective(rows.X)
            if not first:
                require_memory_of_fit(self, X)
                single = X.dtype == np.float32 and isinstance(rows.X, torch.Tensor)
                with named_singularity("X"):
                    objective = self._go_on(rows, single)
            self._stiffness = stiffness_after(self, rows, objective)
        if not first and not self.converged_:
            warnings.warn(
                f"{type(self).__name__}.partial_fit did not converge in n_iter_={self.n_iter_} "
                f"iterations: estimated to be {self.suboptimality_:.2e} nats below the optimum. "
                f"Raise max_iter (now {self.max_iter}) or loosen tol.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _go_on(self, rows, single):
        """Fit new rows from here; return what was maximised."""
        self.model_.check_data(rows.X)
        seed = int(private_state(self.random_state).randint(2**31 - 1))
        fitted = went_on(self, rows, torch.Generator().manual_seed(seed), single)
        elbo, se = final_elbo(fitted.problem, fitted.outcome.state)
        if not math.isfinite(elbo):
            raise FloatingPointError(
                f"The ELBO of {type(self).__name__} is {elbo} after partial_fit; the estimator is "
                "as it was before. Check the scale of X."
            )
        new = fitted_attributes(fitted, elbo, se, self.n_features_in_, False)
        new["elbo_curve_"] += self.elbo_
        new["elbo_"] += self.elbo_
        new["elbo_se_"] = math.hypot(se, self.elbo_se_)
        self.__dict__.update(new)
        return fitted.problem.objective

    def _fit(self, X, sample_weight, reporter, group=ALONE):
        rows = replace(self._rows(X, sample_weight, self._accepts_sparse()), group=group)
        reporter.journal = journal = self._journal(X, sample_weight)
        reporter.joint = group.size > 1
        drawn = group.first_rank(int(private_state(self.random_state).randint(2**31 - 1)))
        generator = torch.Generator().manual_seed(journal.seed(drawn))
        model = clone(self.model) if self.model is not None else _asked(rows, default_model)
        family = clone(self.family) if self.family is not None else DiagonalNormal()
        global_family = clone(model.global_family(self.global_family))
        function, noise, solver = self._function(), self.noise, self.solver
        components = {
            "model": model,
            "inference_function": function,
            "noise": noise,
            "solver": solver,
            "family": family,
            "global_family": global_family,
        }
        for component in components.values():
            if component is not None:
                component.check()
        if reporter.joint:
            check_joint(self, model, function)
        model.check_data(rows.X)
        model = _asked(rows, model.adapted)
        objective = validated_objective(model, family, global_family, rows, generator)
        self._check_window(model, function, rows.X)
        plan = _fit.Plan(
            objective,
            function,
            clone(noise) if noise is not None else None,
            clone(solver) if solver is not None else None,
            max(self.tol, model.coarsest_tol),
            self.max_iter,
            generator,
            journal,
            single=X.dtype == np.float32 and isinstance(rows.X, torch.Tensor),
        )
        start = self._start(objective, rows)
        journal.begin(generator, lambda: density_at_start(objective, rows))
        with reporter.outlasting_interrupts():
            fitted = _fit.fit_problem(plan, rows, start, reporter)
            check_agreement(group, fitted.problem, fitted.outcome.state)
            elbo, se = final_elbo(fitted.problem, fitted.outcome.state)
        if reporter.interrupted:
            fitted = reporter.latest.fitted()
            elbo, se = _quick_elbo(fitted)
        if not math.isfinite(elbo):
            raise FloatingPointError(
                f"The ELBO of {type(self).__name__} is {elbo} after {len(fitted.outcome.curve)} "
                f"iterations: {what_broke(fitted.problem, fitted.outcome.state)}. Check the "
                "scale of X and of the priors."
            )
        reporter.failure = fitted.failure
        stopped = reporter.stopped or reporter.interrupted
        return fitted_attributes(fitted, elbo, se, X.shape[1], stopped)

    def _source(self):
        return self if self.warm_start and hasattr(self, "elbo_") else self.init

    def _journal(self, X, sample_weight):
        """Return the journal of this fit: a stored one if a `Checkpoint` is set."""
        callbacks = getattr(self, "_skl_callbacks", [])
        checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
        if checkpoint is None:
            return Journal()
        described = described_fit(self, X, sample_weight, self._source()) | versions()
        seeded, device = self.random_state is not None, torch.device(self.device)
        return StoredJournal(checkpoint.path, described, checkpoint.is_due, seeded, device)

    def _start(self, objective, rows):
        """Return the state to start from: this estimator's own, another's, or None."""
        source = self._source()
        if source is None:
            return None
        check_is_fitted(source, "elbo_", msg="init must be a fitted estimator.")
        if source.n_features_in_ != rows.X.shape[1]:
            raise ValueError(
                f"init was fitted on {source.n_features_in_} features, but X has {rows.X.shape[1]}."
            )
        theirs = source._objective(rows.X)
        if theirs.n_latents != objective.n_latents or theirs.space.shapes != objective.space.shapes:
            raise ValueError(
                "init was fitted with a model of other latents or globals: "
                f"{theirs.n_latents} latents, globals {dict(theirs.space.shapes)}; here "
                f"{objective.n_latents} latents, globals {dict(objective.space.shapes)}."
            )
        raw = source._raw_locals(rows)
        globals_ = torch.as_tensor(source._raw_globals).to(rows.weights)
        locals_ = objective.family.raw(theirs.local_factors(raw))
        globals_ = objective.global_family.raw(theirs.global_factor(globals_))
        return State({"values": locals_}, globals_)

    @contextmanager
    def _unchanged_on_error(self):
        before, grad_mode = dict(self.__dict__), torch.is_grad_enabled()
        try:
            yield
        except BaseException:
            # scikit-learn still has to tear its callbacks down.
            kept = {k: v for k, v in self.__dict__.items() if k.startswith(("_skl_", "_callback_"))}
            self.__dict__.clear()
            self.__dict__.update(before | kept)
            raise
        finally:  # Ctrl-C at the end of a `with torch.no_grad()` leaves it without leaving it
            torch.set_grad_enabled(grad_mode)

    @contextmanager
    def _progress_bar(self):
        """Show scikit-learn's progress bar while the body runs, if verbose asks for it."""
        present = list(getattr(self, "_skl_callbacks", []))
        nested = hasattr(self, "_parent_callback_ctx")
        wanted = self.verbose and not nested
        if not wanted or any(isinstance(c, ProgressBar) for c in present):
            yield
            return
        try:
            bar = ProgressBar()
        except ImportError as error:
            raise ImportError(
                f"verbose={self.verbose} shows a progress bar, which needs rich: "
                'pip install "skavi[progress]", or set verbose=0.'
            ) from error
        self.set_callbacks(*present, bar)
        try:
            yield
        finally:
            self.set_callbacks(*present)

    # --- copies ---------------------------------------------------------------------------------

    def __getstate__(self):
        return {**super().__getstate__(), "_skavi_version": __version__}

    def __setstate__(self, state):
        state = dict(state)
        saved_version = state.pop("_skavi_version", "of an unknown version")
        if saved_version != __version__:
            name = type(self).__name__
            warnings.warn(SavedVersionWarning(None, name, saved_version), stacklevel=2)
        super().__setstate__(state)

    def __sklearn_clone__(self):
        """Clone, but keep `init` as it is: a fitted estimator is data here, not a component."""
        bare = copy.copy(self)
        bare.init = None
        cloned = clone_parametrized(bare)
        cloned.init = self.init
        return cloned

    @property
    def _n_features_out(self):
        if not hasattr(self, "n_features_in_") or not hasattr(self, "model_"):
            raise AttributeError("not fitted")
        n_latents = self.model_.n_latents(self.n_features_in_)
        return n_latents * (2 if self.output == "mean_sd" else 1)

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
    """Evaluate the ELBO of an interrupted fit; interrupted again, take the solver's word."""
    try:
        return final_elbo(fitted.problem, fitted.outcome.state)
    except KeyboardInterrupt:
        return fitted.outcome.curve[-1], math.nan


def _asked(rows, method):
    return rows.ask(method, rows.X, rows.weights)
