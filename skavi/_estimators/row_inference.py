"""Inference for rows from a fit: the posteriors of their latents, and their scores."""

from collections.abc import Callable, Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.metaestimators import available_if

from skavi._data.blockwise import COPIED_ROWS
from skavi._data.grouped_rows import at_rows, shared_by_rows
from skavi._data.validated_tables import labels_of
from skavi._estimators.fitted_estimator import FittedEstimator
from skavi._fit.nonfinite import require_finite
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.array_types import Floats, Seed, TableLike, keeping_types
from skavi._platform.forks_and_threads import guarded
from skavi._platform.memory import require_memory_of_rows
from skavi.families import ChainedStates, ChainFactors
from skavi.posterior import (
    BijectedPosterior,
    GlobalPosterior,
    LatentPosterior,
    OwnScalePosterior,
    StatePosterior,
)
from skavi.posterior._draws import DrawNames, FittedPosterior, arviz_tree, check_draws
from skavi.posterior._predictive import log_predictive


def _has_states(estimator):
    """Say whether a fitted estimator's latents take finitely many values."""
    if hasattr(estimator, "model_") and not estimator._fitted_model.objective.has_states:
        raise AttributeError(
            f"predict tells the states of rows, and {type(estimator.model_).__name__} has none: "
            "transform gives the latents, impute the cells that are NaN, responses too."
        )
    return hasattr(estimator, "model_")


def _index_of(X: Any) -> Any:
    """Return the index of a pandas frame, else None."""
    return X.index if hasattr(X, "iloc") else None


# scikit-learn's set_output wraps `transform` only in subclasses of TransformerMixin.
@guarded
class RowInference(FittedEstimator, TransformerMixin):
    """`transform`, `posterior` and `score`, of training rows or of new ones."""

    output: str
    global_posterior_: GlobalPosterior
    elbo_: float
    get_feature_names_out: Callable[[], np.ndarray]

    def transform(self, X: TableLike) -> Floats:
        """Return the posterior means of the rows' latents, on the model's own scale.

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
        For models that do not couple rows, rows are processed in chunks: two copies of X and about
        100 MB are held in addition to X. Threads may share one fitted estimator.
        """
        return self._call_in_pieces(X, self._transform_rows)

    def _transform_rows(self, fit, X):
        here = fit.at(self._rows(X))
        mean, sd = here.own_moments()
        columns = [mean, sd] if self.output == "mean_sd" else [mean]
        return (
            at_rows(here.rows.X, torch.cat(columns, -1)).cpu().numpy().astype(X.dtype, copy=False)
        )

    @keeping_types(available_if(_has_states))
    @guarded
    def predict(self, X: TableLike) -> NDArray[np.integer[Any]]:
        """Return the rows' most probable states, where latents take finitely many values.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of int of shape (n_samples,)
            Numbers of `transform`'s columns.
        """
        return self._call_in_pieces(X, self._predict_rows)

    def _predict_rows(self, fit, X):
        return fit.at(self._rows(X)).raw_states()

    def _call_in_pieces(self, X, method):
        """Call a method on pieces of X, so that memory beside X is bounded; join the results."""
        X, fit = self._validate(X), self._fitted_model
        n = X.shape[0]
        pieces = fit.model.coupling.table_pieces(n, COPIED_ROWS)
        if len(pieces) == 1:
            return method(fit, X)
        results = None
        for piece in pieces:
            try:
                part = method(fit, X[piece])
            except (ValueError, FloatingPointError) as error:
                error.add_note(f"Rows are counted from row {piece.start} of X.")
                raise
            if results is None:
                results = np.empty((n, *part.shape[1:]), dtype=part.dtype)
            results[piece] = part
        return results

    def posterior(self, X: TableLike) -> LatentPosterior:
        """Return the posterior of the rows' latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        LatentPosterior
            On the model's own scale, if it has one: `OwnScalePosterior`; of latents with bounds:
            `BijectedPosterior`; of those that take finitely many values: `StatePosterior`.
        """
        index, table = _index_of(X), self._with_idle_columns(X)
        X = self._validate(table)
        require_memory_of_rows(self, X, covariances=True)
        here = self._fitted_model.at(self._rows(X))
        groups = labels_of(table, self.model_.columns_, here.rows.X)
        index = index if groups is None else groups
        factors = here.factors()
        if here.objective.has_states:  # probabilities of states
            atoms = factors.atoms.cpu().numpy().copy()
            names = tuple(map(str, self.get_feature_names_out()[: len(atoms)]))
            mean, linked = factors.mean.cpu().numpy().copy(), isinstance(factors, ChainedStates)
            moves = factors.log_conditionals.exp().cpu().numpy().copy() if linked else None
            states = StatePosterior(mean, atoms, index, names, conditionals=moves, groups=groups)
            return cast("LatentPosterior", states)  # most of whose methods it has
        scale = torch.linalg.cholesky(factors.covariance())
        mean, sd, scale = (t.cpu().numpy().copy() for t in (factors.mean, factors.sd, scale))
        names = tuple(map(str, self.get_feature_names_out()[: mean.shape[1]]))
        link = factors.link.cpu().numpy().copy() if isinstance(factors, ChainFactors) else None
        latents = LatentPosterior(mean, sd, scale, index, names, link=link, groups=groups)
        if (bijection := here.latent_bijection()) is not None:
            mean, sd = (t.cpu().numpy().copy() for t in here.own_moments())
            return BijectedPosterior.through(bijection, latents, mean, sd)
        if not self.model_.has_own_scale:
            return latents
        mean, sd = (t.cpu().numpy().copy() for t in here.own_moments())
        globals_ = self.global_posterior_ if self.model_.own_scale_reads_theta else None
        given = tuple(t.cpu() for t in self.model_.own_given(here.rows.X))
        own_scale = self.model_.own_scale
        return OwnScalePosterior.of(latents, globals_, own_scale, mean, sd, given)

    def to_arviz(self, X: TableLike, n_draws: int = 1000, random_state: Seed = None) -> Any:
        r"""Return draws from q, predictions and log likelihoods as ArviZ's DataTree.

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
            One chain. "posterior": the globals by name, and the latents "z" (row, latent), both on
            the model's scale; "observed_data" and "posterior_predictive": the rows "x" (row,
            feature); "log_likelihood": :math:`\log p(x_n \mid z_n, \theta)` as "x" (row), nats;
            "sample_stats": "lp", which is :math:`\log p(X, z, \theta)`, and "log_q", both on the
            scale where q is normal. Predictions and log likelihoods are left out for a model that
            gives only its log joint.

        Raises
        ------
        ImportError
            If arviz-base is not installed: ``pip install "skavi[arviz]"``.
        ValueError
            If n_draws is not an integer >= 1, or a global is named "x" or "z".

        Notes
        -----
        The draws are independent and from q, not from the posterior: ArviZ's r-hat and effective
        sample sizes do not measure q's error (`skavi.diagnostics.psis_khat` does). The likelihood
        is that of a row given its own latents, so PSIS-LOO estimates how well a q(z_n) that had not
        seen the row would predict it. With latents for each row its k-hat is often high; ArviZ then
        warns.

        Examples
        --------
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LinearModel
        >>> X = [[0.0], [1.0], [5.0]]
        >>> tree = FactorizedVI(LinearModel()).fit(X).to_arviz(X, n_draws=10, random_state=0)
        >>> dict(tree["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 10, 'row': 3, 'latent': 1}
        """
        index = _index_of(X)
        check_draws(n_draws, 1)
        X = self._validate(X)
        names = DrawNames(
            rows=index,
            features=self._explained_names,
            latents=self._latent_names(),
        )
        fitted = FittedPosterior.of(self._fitted_model.at(self._rows(X)))
        return arviz_tree(fitted, X, names, self.elbo_, n_draws, random_state)

    def _latent_names(self):
        """Return names of the latents themselves, as draws have them."""
        names, k = self.get_feature_names_out(), self.model_.count_latents(self._n_explained)
        return (
            names
            if k == self._fitted_model.objective.n_latents
            else np.array([f"latent{i}" for i in range(k)])
        )

    def score_samples(self, X: TableLike, n_draws: int | None = None) -> Floats:
        r"""Return each row's held-out ELBO with q(theta) fixed, in nats.

        :math:`\mathrm{E}_q[\log p(x_n, z_n \mid \theta)] + \mathrm{H}[q(z_n)]`: a lower bound of
        the row's expected log likelihood under q(theta).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_draws : int, default=None
            None: the ELBO. Else the row's log posterior predictive density,
            :math:`\log \mathrm{E}_{q(\theta)} p(x_n \mid \theta)`, over that many draws of theta
            (rounded down to an even number; a few dozen do). No looseness of the bound enters it:
            models of different families, or with different functions, can be compared.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If the model gives no terms of rows, or n_draws is not an integer >= 2.

        Notes
        -----
        Draws are fixed and shared by all rows, so that results repeat. The rows' latents are
        integrated out as in `skavi.diagnostics.reweighted`, exactly or by quadrature; where neither
        is possible (more than 4 latents that are not normal given theta), with n_draws, by
        importance weights :math:`p(x_n, z_n \mid \theta) / q(z_n)` of draws from q, whose log mean
        is a bound. Latents in a chain: a series' density, shared out equally over its rows. Source
        of the bound: Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders",
        eq. 8.

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
            return self._predictive_terms(X, n_draws)
        terms = self._terms(X)
        if terms.ndim == 0:
            raise ValueError(
                f"{type(self.model_).__name__} gives one log joint for all rows: its ELBO has no "
                "term a row. Use score, or subclass HierarchicalModel or MarkovModel."
            )
        return terms

    def _predictive_terms(self, X, n_draws):
        if not is_whole(n_draws, 2):
            raise ValueError(f"n_draws={n_draws!r} must be None or an integer >= 2.")
        X = self._validate(X)
        name = type(self.model_).__name__
        self.model_.coupling.require_row_terms(f"n_draws={n_draws}", name, "leave n_draws at None")
        here = self._fitted_model.at(self._rows(X), recall=False)
        with torch.no_grad():
            terms = log_predictive(
                here.objective, here.raw, here.raw_globals, here.rows, int(n_draws)
            )
        return shared_by_rows(here.rows.X, terms).cpu().numpy()

    def score(self, X: TableLike, y: object = None) -> float:
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
        return float(terms.mean() if terms.ndim else terms / len(cast("Sized", X)))

    def _terms(self, X):
        return self._call_in_pieces(X, self._terms_of)

    def _terms_of(self, fit, X):
        here = fit.at(self._rows(X), recall=False)
        terms = shared_by_rows(here.rows.X, here.terms())
        require_finite(terms, "ELBO")
        return terms.cpu().numpy()
