"""Filling of missing cells as a step of a pipeline."""

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from skavi._estimators.base import VariationalInference
from skavi._estimators.factorized import FactorizedVI
from skavi._fit.defaults import default_model
from skavi._numerics.aligned import aligned
from skavi._platform.array_types import Floats, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import DOC_LINK_TEMPLATE
from skavi._platform.private_names import in_set_output
from skavi._platform.shown_values import shown
from skavi.models import LatentVariableModel

#: Nats a row below the optimum: a thousandth of what one cell's noise costs, and a fit of many
#: columns takes a tenth of the sweeps that 1e-8 would. Not measured: order of magnitude.
_TOL = 1e-4


@guarded
class Imputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill missing cells with their posterior predictive means under a latent variable model.

    Parameters
    ----------
    estimator : FactorizedVI, AmortizedVI or LatentVariableModel, default=None
        What predicts the missing cells. A model is fitted by `FactorizedVI`, to 1e-4 nats a row.
        None: `FactorAnalysis` with one noise variance a column, so that units do not matter, and as
        many components as have more than average variance among the standardised columns.
    random_state : int, RandomState or None, default=None
        For the fit, unless `estimator` is an estimator, which has its own.

    Attributes
    ----------
    estimator_ : FactorizedVI or AmortizedVI
        The fit: ``estimator_.impute(X, return_sd=True)`` tells how sure the cells are,
        ``estimator_.summary()`` how far the fit came.
    n_features_in_ : int
        Number of columns seen in fit.

    See Also
    --------
    FactorizedVI.impute : The same, with standard deviations.

    Notes
    -----
    Observed cells stay as they were. `transform` fills new rows as it does those of the fit, each
    from its own observed cells. A model that names columns (covariates, groups) needs them in X;
    they are returned in their places, without being filled. Counts are filled with means, which
    are not integers; in tables of mixed columns, with whole numbers and levels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skavi import Imputer
    >>> whole = np.outer(np.arange(30.0), [1.0, 2.0, -1.0])
    >>> X = whole.copy()
    >>> X[4, 1] = X[7, 0] = np.nan
    >>> filled = Imputer().fit_transform(X)
    >>> bool(abs(filled[4, 1] - 8.0) < 0.1)
    True
    >>> pipeline = make_pipeline(Imputer(), LinearRegression()).fit(X, whole[:, 0])
    >>> bool(pipeline.score(X, whole[:, 0]) > 0.999)
    True

    A model of counts, and names:

    >>> from skavi.models import FactorAnalysis
    >>> imputer = Imputer(FactorAnalysis(1, likelihood="poisson")).fit(np.abs(X))
    >>> list(imputer.get_feature_names_out(["a", "b", "c"]))
    ['a', 'b', 'c']
    """

    _doc_link_module = "skavi"
    _doc_link_template = DOC_LINK_TEMPLATE

    def __init__(self, estimator=None, random_state=None):
        self.estimator = estimator
        self.random_state = random_state

    def fit(self, X: TableLike, y: object = None) -> Self:
        """Fit the model that predicts missing cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with NaN where a cell is missing. A column needs at least one value.
        y : None
            Ignored.

        Returns
        -------
        self : object
            The fitted imputer.

        Raises
        ------
        TypeError
            If `estimator` is neither an estimator of skavi's nor a model.
        ValueError
            If the model takes no missing cells, or X cannot be used.
        """
        self.estimator_ = self._made(X).fit(X)
        validate_data(self, X, skip_check_array=True)  # for the names of its columns
        return self

    def transform(self, X: TableLike) -> Floats:
        """Fill the missing cells of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            In the dtype of X; a frame after `set_output`.
        """
        check_is_fitted(self)
        return in_set_output(self, np.asarray(self.estimator_.impute(X)), X)

    def _made(self, X):
        """Return the estimator to fit."""
        given = self.estimator
        if given is None:
            table = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
            rows = aligned(table)
            given = default_model(rows, rows.new_ones(len(rows)), "diagonal")
        if isinstance(given, LatentVariableModel):
            given = FactorizedVI(given, tol=_TOL, random_state=self.random_state)
        if not isinstance(given, VariationalInference):
            raise TypeError(
                f"estimator={shown(given)}: Imputer needs FactorizedVI(...), AmortizedVI(...), a "
                "model such as FactorAnalysis(2), or None."
            )
        if not given._allows_missing():
            name = type(given.model).__name__
            raise ValueError(
                f"estimator={name}: {name} takes no missing cells. Use FactorAnalysis, "
                "BayesianDecoder or MixtureModel."
            )
        return clone(given)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = self.estimator
        model = inner.model if isinstance(inner, VariationalInference) else inner
        tags.input_tags.allow_nan = True
        tags.input_tags.positive_only = getattr(model, "positive_only", False)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
