"""The scikit-learn layer: `FactorizedVI` and `AmortizedVI`, one algorithm, one object apart."""

import copy
import sys
import warnings
from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.callback import CallbackSupportMixin, ProgressBar, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from skavi import _fit
from skavi._choice import default_model, evaluation_noise
from skavi._compat import Interval, StrOptions, clone_parametrized, fit_context
from skavi._problem import Problem
from skavi._random import private_state
from skavi._rows import Rows, distinct
from skavi._validation import validated_objective
from skavi.closability import AmortizationWarning, ideal_context
from skavi.distributions import defaults_of
from skavi.families import DiagonalNormal, Family
from skavi.inference_functions import InferenceFunction, Table, TorchFunction
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.posterior import GlobalPosterior, LatentPosterior
from skavi.solvers import Solver, State

_CHUNK = 65_536


class _VariationalInference(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, CallbackSupportMixin, BaseEstimator
):
    """Everything the two estimators share: all but the map from a row to its factor."""

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

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data; float32 stays float32 in what `transform` returns.
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
        """
        with self._unchanged_on_error(), self._progress_bar():
            X = validate_data(self, X, dtype=[np.float64, np.float32])
            # Of unknown length: against max_iter a bar would stand at 0 % and then be done.
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            self.__dict__.update(self._fit(X, sample_weight, context))
            context.call_on_fit_task_end(estimator=self, X=X, y=y)
            restored = self.__dict__.pop("_iterate", None)
            if restored is not None:
                self.elbo_, self.elbo_se_ = _fit.final_elbo(
                    restored.problem, restored.outcome.state
                )
        if not self.converged_ and not self.stopped_early_:
            warnings.warn(
                f"{type(self).__name__} did not converge in n_iter_={self.n_iter_} iterations: "
                f"estimated to be {self.suboptimality_:.2e} nats below the optimum, gradient norm "
                f"{self.gradient_norm_:.1e} nats a row. Raise max_iter (now {self.max_iter}), "
                "loosen tol, or choose another solver.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return self

    def _fit(self, X, sample_weight, context):
        rows = self._rows(X, sample_weight)
        generator = torch.Generator().manual_seed(
            int(private_state(self.random_state).randint(2**31 - 1))
        )
        model = clone(self.model) if self.model is not None else default_model(*_pair(rows))
        family, global_family = (
            clone(f) if f is not None else DiagonalNormal()
            for f in (self.family, self.global_family)
        )
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
        model.check_data(rows.X)
        model = model.adapted(*_pair(rows))
        objective = validated_objective(model, family, global_family, rows, generator)
        self._check_window(model, function, rows.X)
        plan = _fit.Plan(
            objective,
            function,
            clone(noise) if noise is not None else None,
            clone(solver) if solver is not None else None,
            self.tol,
            self.max_iter,
            generator,
        )
        start = self._start(objective, rows)
        reporter = _Reporter(self, context, X)
        fitted = _fit.fit_problem(plan, rows, start, reporter)
        elbo, se = _fit.final_elbo(fitted.problem, fitted.outcome.state)
        return _attributes(fitted, elbo, se, X.shape[1], stopped_early=reporter.stopped)

    def _rows(self, X, sample_weight=None):
        # Into torch's own, aligned memory: sums over unaligned rows may round differently each run.
        tensor = torch.tensor(np.array(X, dtype=np.float64, order="C")).to(self._device())
        if sample_weight is None:
            weights = np.ones(len(X))
        else:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            if not (weights > 0).any():
                raise ValueError("sample_weight is zero for every row: nothing to fit.")
        return Rows(tensor, torch.tensor(weights).to(tensor))

    def _device(self):
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _start(self, objective, rows):
        """Return the state to start from: this estimator's own, another's, or None."""
        source = self if self.warm_start and hasattr(self, "elbo_") else self.init
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
        globals_ = torch.as_tensor(source._raw_globals).to(rows.X)
        locals_ = objective.family.raw(theirs.local_factors(raw))
        globals_ = objective.global_family.raw(theirs.global_factor(globals_))
        return State({"values": locals_}, globals_)

    @contextmanager
    def _unchanged_on_error(self):
        before = {k: v for k, v in self.__dict__.items() if k.endswith("_in_")}
        try:
            yield
        except BaseException:
            for name in [k for k in self.__dict__ if k.endswith("_in_")]:
                del self.__dict__[name]
            self.__dict__.update(before)
            raise

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

    # --- using a fit ----------------------------------------------------------------------------

    def transform(self, X):
        """Return the posterior means of the rows' latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_latents)
            With ``output="mean_sd"`` followed by the standard deviations:
            (n_samples, 2 * n_latents). In the dtype of X.
        """
        X = self._validated(X)
        factors = self._factors(X)
        columns = [factors.mean, factors.sd] if self.output == "mean_sd" else [factors.mean]
        return torch.cat(columns, -1).cpu().numpy().astype(X.dtype, copy=False)

    def posterior(self, X):
        """Return the posterior of the rows' latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        LatentPosterior
        """
        X = self._validated(X)
        factors = self._factors(X)
        scale = torch.linalg.cholesky(factors.covariance())
        mean, sd, scale = (t.cpu().numpy().copy() for t in (factors.mean, factors.sd, scale))
        return LatentPosterior(mean=mean, sd=sd, scale=scale)

    def score_samples(self, X):
        """Return each row's held-out ELBO with q(theta) fixed, in nats.

        E_q[log p(x_n, z_n | theta)] + H[q(z_n)]: a lower bound of the row's expected log
        likelihood under q(theta).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        terms = self._terms(X)
        if terms.ndim == 0:
            raise ValueError(
                f"{type(self.model_).__name__} gives one log joint for all rows: its ELBO has no "
                "term a row. Use score, or subclass HierarchicalModel or MarkovModel."
            )
        return terms

    def score(self, X, y=None):
        """Return the mean held-out ELBO a row, in nats; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : None
            Ignored.

        Returns
        -------
        float
        """
        terms = self._terms(X)
        return float(terms.mean() if terms.ndim else terms / len(X))

    def _terms(self, X):
        X = self._validated(X)
        rows = self._rows(X)
        self.model_.check_data(rows.X)
        problem = self._frozen_problem(rows)
        with torch.no_grad():
            terms = problem.row_terms(self._raw_locals(rows), self._globals(rows.X))
        return terms.cpu().numpy()

    def inverse_transform(self, Z):
        """Return E[x | z] under q(theta).

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_latents)
            Latents, as `transform` returns them (standard deviations, if any, are ignored).

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        Z = np.asarray(Z)
        k = self.model_.n_latents(self.n_features_in_)
        if Z.ndim != 2 or Z.shape[1] not in (k, 2 * k):
            raise ValueError(f"Z has shape {Z.shape}, but the model has {k} latents a row.")
        z = torch.as_tensor(np.array(Z[:, :k], dtype=np.float64))
        total, draws = z.new_zeros(()), self._theta_draws(32)
        for theta in draws:
            with defaults_of(z):
                total = total + self.model_.predicted_mean(theta, z)
        dtype = Z.dtype if Z.dtype == np.float32 else np.float64
        return (total / len(draws)).numpy().astype(dtype, copy=False)

    def sample(self, n_samples=1, random_state=None):
        """Draw new rows from the fitted model: theta from q(theta), then z, then x.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows. All share one draw of theta, as rows of one data set do.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        Z : ndarray of shape (n_samples, n_latents)
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} must be an integer >= 1.")
        state = private_state(random_state)
        space = self.model_.global_space(torch.zeros(1, self.n_features_in_, dtype=torch.float64))
        u = self.global_posterior_.draw_unconstrained(state.standard_normal((1, space.size)))
        theta = space.constrain(torch.as_tensor(u[0]))
        seed = int(state.randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]), defaults_of(torch.as_tensor(u)):
            torch.manual_seed(seed)
            X, Z = self.model_.simulate(theta, n_samples, self.n_features_in_)
        return X.numpy(), Z.numpy()

    def _theta_draws(self, n_draws):
        objective = self._objective(torch.zeros(1, self.n_features_in_, dtype=torch.float64))
        factor = objective.global_factor(torch.as_tensor(self._raw_globals))
        noise = _fit.antithetic(n_draws, objective.space.size)
        return [objective.space.constrain(u) for u in factor.draw(noise)]

    # --- the fitted problem, rebuilt from numpy -------------------------------------------------

    def _validated(self, X):
        """Return X as a float array of the fitted width."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)

    def _objective(self, X):
        return _fit.bind(self.model_, self.family_, self.global_family_, X)

    def _globals(self, like):
        return torch.as_tensor(self._raw_globals).to(like)

    def _frozen_problem(self, rows):
        objective, noise = self._objective(rows.X), self.noise_
        if not noise.deterministic:
            noise = evaluation_noise(objective, len(rows))
        generator = torch.Generator().manual_seed(0)
        return Problem(objective, Table(), rows, rows.X, noise, generator, frozen_globals=True)

    def _factors(self, X):
        rows = self._rows(X)
        self.model_.check_data(rows.X)
        objective = self._objective(rows.X)
        with torch.no_grad():
            return objective.local_factors(self._raw_locals(rows))

    def _raw_locals(self, rows):
        """Return raw local parameters of any rows: the function's output, or their solutions."""
        function = self.inference_function_
        if function.tabular:
            return self._solved_locals(rows)
        parameters = {n: torch.as_tensor(v).to(rows.X) for n, v in self._parameters.items()}
        inputs, index = distinct(_fit.inputs_of(self.model_, function, rows.X))
        with torch.no_grad():
            parts = [
                function.evaluate(parameters, function.features(part))
                for part in inputs.split(_CHUNK)
            ]
        return torch.cat(parts)[index]

    def _solved_locals(self, rows):
        globals_, solved, converged = self._globals(rows.X), [], True
        whole = self.model_.ordered or not self.model_.rowwise
        index = torch.arange(len(rows), device=rows.X.device)
        if not whole:  # each distinct row once: equal rows are equal to the last bit, in any order
            X, index = distinct(rows.X)
            rows = Rows(X, X.new_ones(len(X)))
        size = len(rows)
        if not whole:
            noise = self._frozen_problem(rows).noise
            size = _fit.chunk_size(self._objective(rows.X), noise, rows.X.shape[1])
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            ones = Rows(part.X, torch.ones_like(part.weights))
            raw, fine = _fit.solve_rows(self._frozen_problem(ones), globals_, min(self.tol, 1e-9))
            solved.append(raw)
            converged &= fine
        if not converged:
            warnings.warn(
                "Some rows' local problems did not converge: their posteriors are approximate.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return torch.cat(solved)[index]

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

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = self.model is not None and self.model.allows_missing
        return tags


class FactorizedVI(_VariationalInference):
    """Factorized (mean-field) variational inference: a free factor q(z_n) for every row.

    Parameters
    ----------
    model : LatentVariableModel, default=None
        The model. None: `FactorAnalysis` with as many components as have more than average
        variance (at most 20).
    family : Family, default=None
        Family of q(z_n). None: `DiagonalNormal`.
    global_family : Family, default=None
        Family of q(theta) on the unconstrained scale. None: `DiagonalNormal`.
    noise : Noise, default=None
        How expectations are taken. None: in closed form, by quadrature or by quasi-Monte Carlo,
        refined until the ELBO stands still; fresh draws only for large problems.
    solver : Solver, default=None
        None: chosen for model, noise and size.
    init : fitted estimator, default=None
        A fit of either kind to start from.
    max_iter : int, default=10000
        Most iterations: sweeps, Newton or L-BFGS iterations, or steps of Adam.
    tol : float, default=1e-8
        Estimated suboptimality at which a deterministic solver stops, in nats a row.
    output : {"mean", "mean_sd"}, default="mean"
        What `transform` returns: posterior means, or means followed by standard deviations.
    warm_start : bool, default=False
        Whether `fit` starts from the previous fit's solution.
    device : str, default="cpu"
        Where tensors live: "cpu", "cuda", or "auto".
    random_state : int, RandomState or None, default=None
        For random starts, draws and batches; the global state is never touched.
    verbose : int, default=0
        1 shows scikit-learn's progress bar (needs ``skavi[progress]``).

    Attributes
    ----------
    elbo_ : float
        ELBO of the training set, in nats, all constants kept.
    elbo_se_ : float
        Its standard error: 0 where it is exact.
    elbo_curve_ : ndarray of shape (n_iter_,)
        ELBO after each iteration, in nats (estimates where the noise is random).
    n_iter_ : int
        Number of iterations.
    converged_ : bool
        Whether the solver's stopping rule was met.
    stopped_early_ : bool
        Whether a callback ended the fit, or put an earlier iterate back: then ``converged_`` is
        False, no ConvergenceWarning is given, and ``suboptimality_`` may be NaN.
    suboptimality_ : float
        Estimate of how far ``elbo_`` is below the optimum, in nats.
    gradient_norm_ : float
        Norm of the gradient in natural units, in nats a row.
    global_posterior_ : GlobalPosterior
        q(theta) on the model's own scale.
    model_, inference_function_, noise_, solver_, family_, global_family_ : objects
        The components that were used.
    n_features_in_ : int
        Number of columns seen in fit.

    Notes
    -----
    `transform` solves each row's local problem with q(theta) frozen, for new rows and training
    rows alike. Source: Margossian & Blei (2024), "Amortized variational inference: when and why?".

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) @ np.ones((3, 4))
    >>> FactorizedVI(random_state=0).fit_transform(X).shape
    (100, 1)
    """

    def __init__(
        self,
        model=None,
        *,
        family=None,
        global_family=None,
        noise=None,
        solver=None,
        init=None,
        max_iter=10_000,
        tol=1e-8,
        output="mean",
        warm_start=False,
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.family = family
        self.global_family = global_family
        self.noise = noise
        self.solver = solver
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.output = output
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _function(self):
        return Table()


class AmortizedVI(_VariationalInference):
    """Amortized variational inference: one learned function from a row to its factor q(z_n).

    Parameters
    ----------
    model : LatentVariableModel, default=None
        As in `FactorizedVI`.
    inference_function : InferenceFunction or torch.nn.Module, default=None
        `Constant`, `Polynomial`, `MLP` or any module. None: an `MLP` with two hidden layers sized
        from the factor.
    family, global_family, noise, solver, init, max_iter, tol, output, warm_start, device, \
random_state, verbose
        As in `FactorizedVI`.

    Attributes
    ----------
    elbo_, elbo_se_, elbo_curve_, n_iter_, converged_, stopped_early_, \
suboptimality_, gradient_norm_, global_posterior_, model_, inference_function_, noise_, solver_, \
family_, global_family_, n_features_in_
        As in `FactorizedVI`.

    Notes
    -----
    `transform` evaluates the function. Where a factorized fit is cheap, the function starts from
    regression on its factors. Source: Margossian & Blei (2024).

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) @ np.ones((3, 4))
    >>> AmortizedVI(random_state=0).fit_transform(X).shape
    (100, 1)
    """

    _parameter_constraints: dict = {
        **_VariationalInference._parameter_constraints,
        "inference_function": [InferenceFunction, torch.nn.Module, None],
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
        max_iter=10_000,
        tol=1e-8,
        output="mean",
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
        self.max_iter = max_iter
        self.tol = tol
        self.output = output
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _function(self):
        if isinstance(self.inference_function, torch.nn.Module):
            return TorchFunction(clone(self.inference_function, safe=False))
        return None if self.inference_function is None else clone(self.inference_function)

    def _check_window(self, model, function, X):
        asked = ideal_context(model, X)
        if type(model).context is LatentVariableModel.context and isinstance(asked, tuple):
            model.context = asked  # the class leaves it open: what was measured is the default
        reads = model.context if function is None else function.context or model.context
        name = type(model).__name__
        if asked is None:
            message = (
                f"No function of a window of rows closes {name}'s amortization gap "
                "(skavi.can_close_gap says why; skavi.amortization_gap measures it): use "
                "FactorizedVI, or a wider context for a smaller gap."
            )
        elif asked != "unknown" and (reads[0] < asked[0] or reads[1] < asked[1]):
            message = (
                f"The inference function reads {tuple(reads)} rows before and after, but {name}'s "
                f"factors depend on {asked}: set its context={asked} to close the amortization gap."
            )
        else:
            return
        warnings.warn(message, AmortizationWarning, stacklevel=_users_level())


def _users_level():
    """Return the stacklevel, for the caller, of the first line outside skavi and scikit-learn."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in {"skavi", "sklearn"}:
        frame, level = frame.f_back, level + 1
    return level


def _pair(rows):
    return rows.X, rows.weights


def _attributes(fitted, elbo, se, n_features, stopped_early):
    """Return every fitted attribute, as numpy arrays and plain numbers."""
    problem, outcome = fitted.problem, fitted.outcome
    objective, state = problem.objective, outcome.state
    raw_globals = state.globals_.detach().cpu().numpy().copy()
    values = {n: v.detach().cpu().numpy().copy() for n, v in state.parameters.items()}
    return {
        "model_": objective.model,
        "family_": objective.family,
        "global_family_": objective.global_family,
        "inference_function_": problem.function,
        "noise_": problem.noise,
        "solver_": fitted.solver,
        "elbo_": elbo,
        "elbo_se_": se,
        "elbo_curve_": np.array(outcome.curve),
        "n_iter_": len(outcome.curve),
        "converged_": bool(outcome.converged),
        "stopped_early_": stopped_early and not outcome.converged,
        "suboptimality_": float(outcome.suboptimality),
        "gradient_norm_": float(outcome.gradient_norm),
        "global_posterior_": GlobalPosterior(
            objective.model, objective.global_family, raw_globals, n_features
        ),
        "_raw_globals": raw_globals,
        "_parameters": {} if problem.function.tabular else values,
    }


class _Reporter:
    """Tell scikit-learn's callbacks of every iteration; a hook that returns True stops the fit."""

    def __init__(self, estimator, context, X):
        self.estimator, self.context, self.X = estimator, context, X
        self.listening = bool(getattr(estimator, "_skl_callbacks", []))
        self.noise, self.stage, self.stopped = None, 0, False

    def __call__(self, iterate):
        if not self.listening:
            return False
        if iterate.problem.noise is not self.noise:
            self.noise, self.stage = iterate.problem.noise, self.stage + 1
        task = self.context.subcontext(task_name="iteration")
        task.call_on_fit_task_begin(estimator=self.estimator, X=self.X)
        self.stopped = task.call_on_fit_task_end(
            estimator=self.estimator,
            X=self.X,
            metadata={
                "elbo": iterate.curve[-1],
                "iteration": len(iterate.curve),
                "stage": self.stage,
            },
            reconstruction_attributes=lambda: self._attributes(iterate.fitted()),
        )
        return self.stopped

    def _attributes(self, fitted):
        """Return the fitted attributes as if the fit had stopped here.

        The ELBO is the solver's own, an estimate where the noise is random; ``_iterate`` lets
        `fit` evaluate it properly should a callback put this iterate back.
        """
        elbo, n_features = fitted.outcome.curve[-1], self.X.shape[1]
        return _attributes(fitted, elbo, np.nan, n_features, True) | {"_iterate": fitted}
