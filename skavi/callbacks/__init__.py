"""Callbacks for scikit-learn's protocol, called during a fit.

``estimator.set_callbacks(...)`` takes these, scikit-learn's own `ProgressBar`, or any object that
follows `sklearn.callback.FitCallback`. After each iteration a hook may ask for

* ``metadata``: a dict with "elbo" (nats, under the solver's noise), "iteration" (from 1) and
  "stage" (which rises when the noise rule is refined, and with every start of theta; ELBOs of
  two stages are not comparable);
* ``fitted_estimator``: the estimator ready to `transform`, as if the fit had stopped there.

A hook that returns True stops the fit, which then gives no ConvergenceWarning: ``stopped_early_``
is True and ``converged_`` False.
"""

from skavi.callbacks._checkpoint import Checkpoint
from skavi.callbacks._early_stopping import EarlyStopping
from skavi.callbacks._monitor import ElboLog, ElboMonitor

__all__ = ["Checkpoint", "EarlyStopping", "ElboLog", "ElboMonitor"]
