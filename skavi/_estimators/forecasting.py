"""Forecasts of a series: the rows that follow it."""

import torch

from skavi._estimators.fitted_estimator import FittedEstimator
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.array_types import Floats, TableLike
from skavi._platform.forks_and_threads import guarded, seeded


@guarded
class Forecasting(FittedEstimator):
    """`forecast`: what follows series, under q(theta)."""

    def forecast(self, X: TableLike, steps: int) -> tuple[Floats, Floats]:
        """Predict the rows that follow a series, or each of several, of a `MarkovModel`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            A series in time order: that of the fit, or another one of the same model. Where the
            model's `series` names a column, X may hold several.
        steps : int
            How many rows ahead.

        Returns
        -------
        mean, sd : ndarray of shape (steps, n_features)
            Predictive means and standard deviations, in units of X. Of several series: of shape
            (n_series, steps, n_features), in the order in which X has them.

        Raises
        ------
        ValueError
            If steps is not an integer >= 1.
        NotImplementedError
            If the model's latents are not in a chain.

        Notes
        -----
        `LocalLevel` integrates over q in closed form. Latents of finitely many values are followed
        exactly, given each of 200 fixed draws of theta. Other models are followed along 10,000
        paths, which start at fixed draws of theta and of the last row's latent, so that results
        repeat; means are then a hundredth of a standard deviation off.

        Examples
        --------
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LocalLevel
        >>> X = [[1.0], [2.0], [1.5]]
        >>> vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit(X)
        >>> mean, sd = vi.forecast(X, 2)
        >>> mean.round(2), sd.round(2)
        (array([[1.56],
               [1.56]]), array([[1.62],
               [1.9 ]]))
        """
        if not is_whole(steps, 1):
            raise ValueError(f"steps={steps!r} must be an integer >= 1.")
        table = self._validate(X)
        rows = self._rows(table)
        here = self._fitted_model.at(rows)
        objective = here.objective
        last_rows = objective.model.last_rows(rows.X)
        with torch.no_grad(), seeded(0):
            q_theta = objective.global_factor(here.raw_globals)
            moments = objective.forecast(here.raw, last_rows, q_theta, int(steps))
        mean, variance = (each.cpu().numpy().astype(table.dtype) for each in moments)
        several = slice(None) if len(last_rows) > 1 else 0
        return mean[several], variance[several] ** 0.5
