"""Early stopping of a fit that no longer improves."""

import math
from numbers import Real

from skavi._numerics.whole_numbers import is_whole
from skavi._platform.shown_values import shown

#: Relative: values this close count as equal, since near an optimum the ELBO varies by rounding.
_ROUNDING = 1e-10


class EarlyStopping:
    """Stop a fit that no longer improves, and restore its best iterate.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), default=None
        Held-out rows, as the estimator itself would receive them: their `score` (nats a row) is
        monitored. None: the training ELBO (nats). Use it with deterministic noise only: the best of
        noisy estimates is biased upwards.
    patience : int, default=10
        Evaluations without gain after which the fit stops.
    min_delta : float, default=0.0
        Least rise above the value at the last gain that counts as a gain, in its unit.
    every : int, default=1
        Iterations between evaluations.

    Notes
    -----
    If the best iterate is not the last one (the fit ended by patience, by ``max_iter``, or by
    convergence, since held-out scores peak before the ELBO does), the estimator is left as if the
    fit had stopped at the best iterate: fitted attributes, ``n_iter_`` and ``elbo_curve_``
    included, with ``stopped_early_ = True`` and ``converged_ = False``. Values under different
    noise rules are not compared: the best is that under the last rule. Every start of theta has its
    own count; a stop ends the whole fit, which is then the best of the starts so far. In a grid
    search set this on the inner estimator; each fit has its own count. Source: Prechelt (1998),
    "Early stopping - but when?", criterion UP with the best weights kept.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> from skavi.callbacks import EarlyStopping
    >>> from skavi.inference_functions import MLP
    >>> X = np.random.default_rng(0).normal(size=(60, 3)) @ np.ones((3, 4))
    >>> vi = AmortizedVI(inference_function=MLP((8,)), random_state=0)
    >>> vi = vi.set_callbacks(EarlyStopping(X[40:], patience=3)).fit(X[:40])
    >>> vi.converged_ or vi.stopped_early_
    True
    """

    def __init__(self, X=None, patience=10, min_delta=0.0, every=1):
        for name, value in (("patience", patience), ("every", every)):
            if not is_whole(value, 1):
                raise ValueError(
                    f"EarlyStopping({name}={shown(value)}): {name} must be an integer >= 1."
                )
        if not isinstance(min_delta, Real) or not 0 <= float(min_delta) < math.inf:
            raise ValueError(
                f"EarlyStopping(min_delta={shown(min_delta)}): min_delta must be >= 0."
            )
        self.X, self.patience, self.min_delta, self.every = X, patience, min_delta, every
        # For each current fit, since clones share their callbacks: one watch a stage.
        self._watches = {}

    def __getstate__(self):
        return {**self.__dict__, "_watches": {}}

    def setup(self, estimator, context):
        """Begin a new watch."""
        self._watches[estimator] = {}

    def teardown(self, estimator, context):
        """Forget the watch."""
        self._watches.pop(estimator, None)

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        """Evaluate an iterate; at the end of the fit restore the best one."""
        watches = self._watches[estimator]
        if metadata is None:
            # The best start's: a later one may be worse.
            kept = vars(estimator).get("_kept_stage", max(watches, default=None))
            self._put_best_back(watches.get(kept, _Watch()), estimator)
            return False
        watch = watches.setdefault(metadata["stage"], _Watch())
        watch.last_elbo = metadata["elbo"]
        if metadata["iteration"] % self.every:
            return False
        value = metadata["elbo"] if self.X is None else self._score(fitted_estimator)
        watch.see(value, fitted_estimator, self.min_delta)
        return watch.misses >= self.patience

    def _score(self, estimator):
        """Score held-out rows, or say whose they are where that is refused."""
        try:
            return estimator.score(self.X)
        except (ValueError, TypeError) as error:
            raise type(error)(
                f"EarlyStopping(X={shown(self.X)}): X must be held-out rows of the fit's columns. "
                f"{str(error).rstrip('.')}."
            ) from error

    def _put_best_back(self, watch, estimator):
        if watch.best is None:
            return
        last = watch.last_elbo if self.X is None else self._score(estimator)
        if not last >= watch.best_value - _ROUNDING * abs(watch.best_value):
            vars(estimator).update(vars(watch.best))


class _Watch:
    """The best value, and the count without a gain, of one stage of one fit."""

    def __init__(self):
        self.misses, self.last_elbo = 0, -math.inf
        self.best, self.best_value, self.last_gain = None, -math.inf, -math.inf

    def see(self, value, fitted_estimator, min_delta):
        if value > self.best_value:
            self.best, self.best_value = fitted_estimator, value
        if value > self.last_gain + min_delta:
            self.last_gain, self.misses = value, 0
        else:
            self.misses += 1
