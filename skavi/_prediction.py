"""What a fitted estimator does with rows: posteriors, scores, predictions and draws."""

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from skavi._blocks import evaluated
from skavi._choice import evaluation_noise
from skavi._concurrency import check_fork, seeded
from skavi._draws import arviz_tree
from skavi._failure import named_singularity
from skavi._inputs import inputs_of, windows_of
from skavi._local_problems import chunk_size, solve_rows
from skavi._memory import require_memory, require_memory_of_rows
from skavi._predictive import cell_moments, importance_bound
from skavi._problem import Problem
from skavi._random import private_state
from skavi._rows import Cells, Rows, cells_a_row, distinct
from skavi._sparse import SparseRows
from skavi.distributions import defaults_of
from skavi.families import Family
from skavi.inference_functions import InferenceFunction, Table
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.objective import bind
from skavi.posterior import GlobalPosterior, LatentPosterior

_PIECE = 131_072


class Prediction(TransformerMixin):  # set_output reaches what a TransformerMixin defines itself
    """Everything that works on a fit: its numpy state goes in, numpy comes out."""

    model_: LatentVariableModel
    inference_function_: InferenceFunction
    noise_: Noise
    family_: Family
    global_family_: Family
    global_posterior_: GlobalPosterior
    n_features_in_: int
    output: str
    tol: float
    device: str | torch.device
    get_feature_names_out: Callable[[], np.ndarray]
    _raw_globals: np.ndarray
    _parameters: dict[str, np.ndarray]

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

        Raises
        ------
        MemoryError
            If the rows' factors cannot be held.

        Notes
        -----
        Rows are worked on in chunks: beside X, two copies of it and about 100 MB are held, for
        models that do not couple rows. Threads may share one fitted estimator.
        """
        return self._in_pieces(self._validated(X), self._transformed)

    def _transformed(self, X):
        factors = self._factors(X)
        columns = [factors.mean, factors.sd] if self.output == "mean_sd" else [factors.mean]
        return torch.cat(columns, -1).cpu().numpy().astype(X.dtype, copy=False)

    def _in_pieces(self, X, method):
        """Call a method on pieces of many rows, so that what it holds beside X is bounded."""
        n = X.shape[0]
        if n <= _PIECE or self.model_.ordered or not self.model_.rowwise:
            return method(X)
        results = None
        for first in range(0, n, _PIECE):
            try:
                part = method(X[first : first + _PIECE])
            except (ValueError, FloatingPointError) as error:
                error.add_note(f"Rows are counted from row {first} of X.")
                raise
            if results is None:
                results = np.empty((n, *part.shape[1:]), dtype=part.dtype)
            results[first : first + len(part)] = part
        return results

    def posterior(self, X):
        """Return the posterior of the rows' latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        LatentPosterior
        """
        index = X.index if hasattr(X, "iloc") else None
        X = self._validated(X)
        require_memory_of_rows(self, X, covariances=True)
        factors = self._factors(X)
        scale = torch.linalg.cholesky(factors.covariance())
        mean, sd, scale = (t.cpu().numpy().copy() for t in (factors.mean, factors.sd, scale))
        names = tuple(map(str, self.get_feature_names_out()[: mean.shape[1]]))
        return LatentPosterior(mean=mean, sd=sd, scale=scale, index=index, names=names)

    def to_arviz(self, X, n_draws=1000, random_state=None):
        """Return draws from q, predictions and log likelihoods as ArviZ's DataTree.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; a frame's index and column names label the dimensions "row" and "feature".
        n_draws : int, default=1000
            Number of draws; the tree holds n_draws copies of X's size.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        xarray.DataTree
            One chain. "posterior": the globals by name, on the model's scale, and the latents "z"
            (row, latent); "observed_data" and "posterior_predictive": the rows "x" (row, feature);
            "log_likelihood": log p(x_n | z_n, theta) as "x" (row), nats; "sample_stats": "lp" =
            log p(X, z, theta) and "log_q", both on the scale where q is normal. Predictions and log
            likelihoods are left out for a model that does not define them (one given by its log
            joint alone).

        Raises
        ------
        ImportError
            If arviz-base is not installed: ``pip install "skavi[arviz]"``.
        ValueError
            If n_draws is not an integer >= 1, or a global is named "x" or "z".

        Notes
        -----
        The draws are independent and from q, not from the posterior: ArviZ's r-hat and effective
        sample sizes say nothing of q's error (`skavi.diagnostics.psis_khat` does). The likelihood
        is that of a row given its own latents, so PSIS-LOO asks how well a row's x would be
        predicted by a q(z_n) that had not seen it, and its k-hat is often high for models with
        latents a row: ArviZ then says so itself.

        Examples
        --------
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LinearModel
        >>> X = [[0.0], [1.0], [5.0]]
        >>> tree = FactorizedVI(LinearModel()).fit(X).to_arviz(X, n_draws=10, random_state=0)
        >>> dict(tree["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 10, 'row': 3, 'latent': 1}
        """
        index = X.index if hasattr(X, "iloc") else None
        return arviz_tree(self, self._validated(X), index, n_draws, random_state)

    def score_samples(self, X, n_draws=None):
        """Return each row's held-out ELBO with q(theta) fixed, in nats.

        E_q[log p(x_n, z_n | theta)] + H[q(z_n)]: a lower bound of the row's expected log
        likelihood under q(theta).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_draws : int, default=None
            None: the ELBO. Else the importance-weighted bound with that many draws of (theta, z_n)
            from q, rounded down to an even number: the log of the mean of
            p(x_n, z_n | theta) / q(z_n). It lies between the ELBO and the log posterior predictive
            density of the row, log E_q(theta) p(x_n | theta), which it reaches with many draws.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If the model gives no term a row, or n_draws is set and it couples rows.

        Notes
        -----
        Draws are fixed and shared by all rows, so that results repeat. Source: Burda, Grosse &
        Salakhutdinov (2016), "Importance weighted autoencoders", eq. 8.

        Examples
        --------
        >>> import numpy as np
        >>> from skavi import FactorizedVI
        >>> from skavi.models import FactorAnalysis
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> vi = FactorizedVI(FactorAnalysis(2)).fit(X)
        >>> bool((vi.score_samples(X, n_draws=1000) > vi.score_samples(X)).all())
        True
        """
        if n_draws is not None:
            return self._importance_terms(X, n_draws)
        terms = self._terms(X)
        if terms.ndim == 0:
            raise ValueError(
                f"{type(self.model_).__name__} gives one log joint for all rows: its ELBO has no "
                "term a row. Use score, or subclass HierarchicalModel or MarkovModel."
            )
        return terms

    def _importance_terms(self, X, n_draws):
        if not isinstance(n_draws, Integral) or n_draws < 2:
            raise ValueError(f"n_draws={n_draws!r} must be None or an integer >= 2.")
        X = self._validated(X)
        if not self.model_.rowwise:
            raise ValueError(
                f"n_draws={n_draws} needs rows that are independent given theta, but "
                f"{type(self.model_).__name__} couples them: leave n_draws at None."
            )
        rows = self._rows(X)
        self.model_.check_data(rows.X)
        objective, globals_ = self._objective(rows.X), self._globals(rows.weights)
        with torch.no_grad():
            terms = importance_bound(
                objective, self._raw_locals(rows), globals_, rows, int(n_draws)
            )
        return terms.cpu().numpy()

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
        return self._in_pieces(self._validated(X), self._terms_of)

    def _terms_of(self, X):
        rows = self._rows(X)
        self.model_.check_data(rows.X)
        raw, globals_ = self._raw_locals(rows), self._globals(rows.weights)
        with torch.no_grad():
            parts = [
                self._frozen_problem(rows[where]).row_terms(raw[where], globals_)
                for where in self._chunks(rows)
            ]
        terms = torch.cat(parts) if len(parts) > 1 else parts[0]
        _require_finite(terms, "ELBO")
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

        Raises
        ------
        FloatingPointError
            If draws of q(theta) are so far out that their mean is no number.
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
                total = total + self.model_.predicted_mean(theta, z) / len(draws)
        if bool(total.isnan().any()):
            widest = max((float(sd.max()) for sd in self.global_posterior_.sd.values()), default=0)
            raise FloatingPointError(
                f"E[x | z] is no number: q(theta) has sds of up to {widest:.1e}. Check Z, and fit "
                "again with a finer noise or narrower priors."
            )
        dtype = Z.dtype if Z.dtype == np.float32 else np.float64
        return total.numpy().astype(dtype, copy=False)

    def impute(self, X, return_sd=False):
        """Fill the missing cells of X with their posterior predictive means.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with NaN where a cell is missing; training rows or others.
        return_sd : bool, default=False
            Whether to return the cells' predictive standard deviations as well.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Observed cells as they were, in the dtype of X.
        sd : ndarray of shape (n_samples, n_features)
            0 where a cell is observed. Only with ``return_sd=True``.

        Notes
        -----
        Law of total variance: the likelihood's own variance, plus that of its mean under q(z_n) and
        q(theta). Counts are filled with means, which are no whole numbers.

        Examples
        --------
        >>> import numpy as np
        >>> from skavi import FactorizedVI
        >>> from skavi.models import FactorAnalysis
        >>> X = np.outer(np.arange(30.0), [1.0, 2.0, -1.0])
        >>> X[4, 1] = np.nan
        >>> vi = FactorizedVI(FactorAnalysis(1)).fit(X)
        >>> filled, sd = vi.impute(X, return_sd=True)
        >>> bool(abs(filled[4, 1] - 8.0) < 3 * sd[4, 1])
        True
        """
        X = self._validated(X)
        rows, missing = self._rows(X), np.isnan(X)
        self.model_.check_data(rows.X)
        with torch.no_grad():
            problem, raw = self._frozen_problem(rows), self._raw_locals(rows)
            moments = cell_moments(problem.objective, raw, self._globals(rows.X), rows.X)
        mean, variance = (moment.cpu().numpy() for moment in moments)
        filled = np.where(missing, mean, X).astype(X.dtype)
        if not return_sd:
            return filled
        return filled, np.where(missing, np.sqrt(variance), 0).astype(X.dtype)

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
        check_fork()
        width = self.n_features_in_ + self.model_.n_latents(self.n_features_in_)
        request = f"{type(self).__name__}.sample(n_samples={n_samples})"
        require_memory(int(n_samples) * width, request, "draw fewer samples at a time")
        state = private_state(random_state)
        space = self.model_.global_space(torch.zeros(1, self.n_features_in_, dtype=torch.float64))
        u = self.global_posterior_.draw_unconstrained(state.standard_normal((1, space.size)))
        theta = space.constrain(torch.as_tensor(u[0]))
        seed = int(state.randint(2**31 - 1))
        with seeded(seed), defaults_of(torch.as_tensor(u)):
            X, Z = self.model_.simulate(theta, int(n_samples), self.n_features_in_)
        return X.numpy(), Z.numpy()

    def _theta_draws(self, n_draws):
        objective = self._objective(torch.zeros(1, self.n_features_in_, dtype=torch.float64))
        factor = objective.global_factor(torch.as_tensor(self._raw_globals))
        noise = _antithetic(n_draws, objective.space.size)
        return [objective.space.constrain(u) for u in factor.draw(noise)]

    # --- the fitted problem, rebuilt from numpy -------------------------------------------------

    def _validated(self, X):
        """Return X as a float array of the fitted width."""
        check_is_fitted(self)
        check_fork()
        require_memory_of_rows(self, X)
        sparse = "csr" if self.model_.accepts_sparse else False
        finite = "allow-nan" if self.model_.allows_missing else True
        with np.errstate(invalid="ignore"):  # scikit-learn adds up infinities to find them
            return validate_data(
                self,
                X,
                dtype=[np.float64, np.float32],
                accept_sparse=sparse,
                ensure_all_finite=finite,
                reset=False,
            )

    def _rows(self, X, sample_weight=None, sparse=None):
        # Into torch's own, aligned memory: sums over unaligned rows may round differently each run.
        if self.model_.accepts_sparse if sparse is None else sparse:
            held: Any = SparseRows.from_scipy(X, self._device())
        else:
            copied = torch.empty(X.shape, dtype=torch.float64)
            copied.numpy()[...] = X
            held = copied.to(self._device())
        if sample_weight is None:
            weights = np.ones(X.shape[0])
        else:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            if not (weights > 0).any():
                raise ValueError("sample_weight is zero for every row: nothing to fit.")
        return Rows(held, torch.tensor(weights).to(self._device()))

    def _device(self):
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.zeros(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:  # torch's own, of many texts
            raise ValueError(
                f"device={str(self.device)!r} cannot be used here: {str(error).splitlines()[0]} "
                'Use "cpu", "cuda" or "auto".'
            ) from None

    def _objective(self, X):
        return bind(self.model_, self.family_, self.global_family_, X)

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
            raw = self._raw_locals(rows)
            factors = objective.local_factors(raw)
        spread = factors.sd + factors.sd.reciprocal()
        if not bool(torch.isfinite(raw.sum() + spread.sum())):
            _require_finite(raw + spread.sum(-1, keepdim=True), "posterior")
        return factors

    def _raw_locals(self, rows):
        """Return raw local parameters of any rows: the function's output, or their solutions.

        A row that lacks a cell of a column without holes at fit is solved: no function learned it.
        """
        function = self.inference_function_
        if function.tabular:
            with named_singularity("X"):
                return self._solved_locals(rows)
        raw = self._evaluated_locals(rows)
        if self.model_.allows_missing and Cells.of(rows.X).observed is not None:
            unreadable = function.unreadable(windows_of(self.model_, function, rows.X))
            if bool(unreadable.any()):
                raw[unreadable] = self._solved_locals(rows[unreadable])
        return raw

    def _evaluated_locals(self, rows):
        function = self.inference_function_
        parameters = {n: torch.as_tensor(v).to(rows.weights) for n, v in self._parameters.items()}
        inputs = inputs_of(self.model_, function, rows.X)
        with torch.no_grad():
            return evaluated(
                lambda part: function.evaluate(parameters, function.features(part)), inputs
            )

    def _solved_locals(self, rows):
        globals_, solved, converged = self._globals(rows.weights), [], True
        whole = self.model_.ordered or not self.model_.rowwise
        index = torch.arange(len(rows), device=rows.X.device)
        if not whole:  # each distinct row once: equal rows are equal to the last bit, in any order
            X, index = distinct(rows.X)
            rows = Rows(X, rows.weights.new_ones(len(X)))
        for where in self._chunks(rows):
            part = rows[where]
            ones = Rows(part.X, torch.ones_like(part.weights))
            raw, fine = solve_rows(self._frozen_problem(ones), globals_, min(self.tol, 1e-9))
            solved.append(raw)
            converged &= fine
        if not converged:
            warnings.warn(
                "Some rows' local problems did not converge: their posteriors are approximate.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return torch.cat(solved)[index]

    def _chunks(self, rows):
        """Cut rows into slices of bounded memory; where rows are coupled there is but one."""
        size = len(rows)
        if self.model_.rowwise and not self.model_.ordered:
            noise = self._frozen_problem(rows).noise
            size = chunk_size(self._objective(rows.X), noise, cells_a_row(rows.X))
        return [slice(first, first + size) for first in range(0, len(rows), size)]


def _require_finite(values, what):
    """Raise before a number that is none leaves `transform` or `score`."""
    if bool(torch.isfinite(values.sum())):
        return
    bad = (~torch.isfinite(values.reshape(len(values) if values.dim() else 1, -1)).all(1)).nonzero()
    if len(bad):
        where = f"of {len(bad)} rows (first at row {int(bad[0])})" if values.dim() else "of X"
        raise FloatingPointError(
            f"The {what} {where} is not finite: their values are too far from those of the fit, or "
            "not possible under the model."
        )


def _antithetic(n_draws: int, dimension: int) -> Tensor:
    """Return fixed pairs of standard normals (+e, -e): means of linear functions are exact."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_draws // 2, dimension, generator=generator, dtype=torch.float64)
    return torch.cat([noise, -noise])
