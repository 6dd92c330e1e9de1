"""Factorized variational inference: a free factor for every row."""

from skavi._estimators.base import VariationalInference
from skavi.inference_functions import Table


class FactorizedVI(VariationalInference):
    """Factorized (mean-field) variational inference: a free factor q(z_n) for every row.

    A factor is a simple distribution, by default normal, that stands in for the posterior of a
    row's latents; q(theta) does so for the globals, which all rows share. `fit` finds both,
    `transform` returns the means of any rows' latents, and `posterior` their whole factors.

    Parameters
    ----------
    model : LatentVariableModel, default=None
        The model. None: `FactorAnalysis` with as many components as have more than average
        variance (at most 20).
    family : Family, default=None
        Family of q(z_n). None: `Chain` for a `MarkovModel`, else `DiagonalNormal` (the paper's).
    global_family : Family, default=None
        Family of q(theta) on the unconstrained scale. None: `DiagonalNormal`.
    noise : Noise, default=None
        How expectations are taken. None: in closed form, by quadrature or by quasi-Monte Carlo,
        refined until the ELBO stands still; fresh draws only for large problems.
    solver : Solver, default=None
        None: chosen for model, noise and size.
    init : fitted estimator, default=None
        A fit of either kind to start from.
    n_init : int, default=None
        How many starts of theta are fitted; the fit with the highest ELBO is kept. None: chosen.
        Where the model gives no start of its own and has at most 20 globals, many points are
        screened, and each of the best few maxima of theta is fitted; else one start. Must be None
        with ``init`` or ``warm_start``.
    max_iter : int, default=10000
        Most iterations from a start: sweeps, Newton or L-BFGS iterations, or steps of Adam.
    tol : float, default=None
        Estimated suboptimality at which a deterministic solver stops, in nats a row. None: 1e-8 for
        `FactorizedVI` and functions linear in their parameters; for other functions 1e-4, or 1 % of
        their amortization gap if that is more; or the model's own coarser one (`TopicModel`).
        Decoders: 0.003 nats a cell, below which 200 steps must not gain more.
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
    elbo_curve_ : ndarray of shape (n_iterations,)
        ELBO after each iteration, in nats (estimates where the noise is random).
    n_iter_ : int
        Number of iterations.
    starts_ : ndarray of shape (n_starts,)
        ELBOs that the fits from several starts reached, in nats, best first; only of those that
        converged.
    tol_ : float
        The tolerance of the fit, in nats a row.
    converged_ : bool
        Whether the solver's stopping rule was met: ``suboptimality_ <= tol_ * n_rows``, or up to
        2e-3 nats in all that the noise rule may cost; of random steps, that a window of them gains
        no more than two of its standard errors, which ``suboptimality_`` then is.
    stopped_early_ : bool
        Whether a callback or Ctrl-C ended the fit, or a callback restored an earlier iterate. Then
        ``converged_`` is False, and ``suboptimality_`` may be NaN; there is no ConvergenceWarning
        after a callback.
    suboptimality_ : float
        Estimate of how far ``elbo_`` is below the optimum, in nats.
    gradient_norm_ : float
        Norm of the gradient in natural units, in nats a row.
    global_posterior_ : GlobalPosterior
        q(theta) on the model's own scale.
    bias_note_ : str
        How independent factors bias the globals of a `MarkovModel`, of which `fit` also warns; else
        empty.
    model_, inference_function_, noise_, solver_, family_, global_family_ : objects
        The components that were used.
    n_features_in_, n_samples_fit_ : int
        Number of columns, and of rows, seen in fit (of rows by all calls of `partial_fit`).

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
        n_init=None,
        max_iter=10_000,
        tol=None,
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
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.output = output
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _function(self):
        return Table()
