"""What a model is: a prior over globals and a log joint over rows, for one draw of theta.

The library adds the draws (`torch.func.vmap`), so nobody writes a draw dimension by hand.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from skavi._component import Component
from skavi._data.coupling import INDEPENDENT, JOINT, Coupling
from skavi._numerics.whole_numbers import is_whole
from skavi.distributions import defaults_of, expected_log_prob, log_prob
from skavi.families import DiagonalNormal, Family, NormalFactors
from skavi.families._categorical import atoms_of
from skavi.models._bijected_latents import BijectedLatents
from skavi.models._closed_forms import ClosedForms
from skavi.models._given_columns import GivenColumns
from skavi.models._global_space import GlobalSpace, Theta
from skavi.models._held_modules import take_weights
from skavi.models._own_scale import OwnScale
from skavi.models._predictions import Predictions
from skavi.models._priors_of_rows import for_latents, no_latents
from skavi.models._reading import ReadByFunctions
from skavi.models._written import left_open, require_written

#: What a model lacks that says nothing of its rows.
LIKELIHOOD_NEEDED = (
    "give it likelihood(self, z, theta), the distribution of the rows, or "
    "log_likelihood(self, theta, z, X), of shape (n_rows,)"
)

#: Prior sds from its centre (a chance of 1e-23) at which a prior and the data contradict.
FAR = 10.0


class LatentVariableModel(
    ReadByFunctions, ClosedForms, Predictions, OwnScale, GivenColumns, Component, ABC
):
    """A model with one latent vector a row, given by its log joint.

    Subclasses store their arguments in ``__init__`` (scikit-learn's convention) and implement
    `n_latents` (a method, or an int), `global_prior` and `log_joint`. Where rows are independent
    given theta, subclass `HierarchicalModel` instead: it needs only distributions, and fits faster.

    Methods are written with torch's functions, for one draw of theta and z. They are run under
    vmap and autograd, where tensors have no values yet: `LeavesTorchError` says which method uses
    a numpy function or an ``if`` on values. Constants may be in single precision; torch modules
    that a model holds are evaluated, not trained, as copies in the fit's precision.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LatentVariableModel
    >>> class Walk(LatentVariableModel):  # each latent is near the one before
    ...     def n_latents(self, n_features):
    ...         return 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def log_joint(self, theta, z, X):
    ...         steps = torch.diff(z, dim=0, prepend=torch.zeros(1, 1, dtype=z.dtype))
    ...         return Normal(0.0, 1.0).log_prob(steps).sum() + Normal(z, 1.0).log_prob(X).sum()
    >>> FactorizedVI(Walk()).fit([[1.0], [2.0], [2.0]]).transform([[1.0], [2.0], [2.0]]).round(3)
    array([[0.846],
           [1.538],
           [1.769]])
    """

    #: How rows meet given theta.
    coupling: Coupling = JOINT
    #: Whether missing cells (NaN in X) are marginalised.
    allows_missing: bool = False
    #: Whether the log joint works under `torch.func.vmap`; None: that is tried before a fit.
    goes_through_vmap: bool | None = None
    #: Whether X may be CSR: the model then sees `SparseRows`, of a dense X too; `summary` is dense.
    accepts_sparse: bool = False
    #: Whether X must not be negative, as counts.
    positive_only: bool = False
    #: The least number of latents a row.
    fewest_latents: int = 0
    #: Whether steps draw rows and theta afresh: for thousands of globals, which no rule integrates.
    stochastic: bool = False
    #: Nats a cell that 200 stochastic steps gain at least before their rate falls.
    least_gain: Any = 0.001
    #: Adam's first rate of such a fit.
    network_rate: Any = 0.015
    #: Of the priors' sds: how wide q(theta) starts. Not measured: order of magnitude.
    start_share: float = 0.1

    learned: tuple[str, ...] = ("context", "columns_")
    #: How independent factors bias globals that are free, a sentence; empty: no bias is known.
    bias_of_globals: str = ""

    @left_open
    def n_latents(self, n_features: int) -> int:
        """Return the number of latents a row, which may be 0; an attribute, an int, serves, too."""
        raise NotImplementedError

    @abstractmethod
    def global_prior(self, n_features: int) -> dict[str, Distribution]:
        """Return the priors of the globals by name; may be empty."""

    @abstractmethod
    def log_joint(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        r"""Return :math:`\log p(z, X \mid \theta)` of all rows, a scalar, in nats."""

    # --- what a model may add -------------------------------------------------------------------

    def least_globals(self, n_features: int) -> int:
        """Return a lower bound of how many numbers theta has, without making their prior."""
        return 0

    def check_learned(self, n_features):
        context = self.context
        pair = (
            isinstance(context, tuple)
            and len(context) == 2
            and all(is_whole(n, 0) for n in context)
        )
        self._require("context", pair, "two integers >= 0, (rows before, rows after)")

    def adapted(self, X: Tensor, weights: Tensor) -> "LatentVariableModel":
        """Return the model with every argument left open (None) set from the training data."""
        return self

    def check_data(self, X: Tensor) -> None:
        """Raise a ValueError that says which rows of X the model cannot take."""

    def prior_conflict(self, X: Tensor, weights: Tensor) -> str:
        """Return a sentence that says which prior the data contradict outright, or nothing."""
        return ""

    def declared(
        self, theta: Theta, z: Tensor, X: Tensor
    ) -> dict[str, tuple[Distribution, Tensor]]:
        """Return each distribution that the log joint is made of, and the values it explains.

        By the name of the method that returns it. A fit checks that they belong together.
        """
        return {}

    def learn_use(self, means: Tensor) -> None:
        """Keep, on the fitted model, what the means of all rows' factors say of its latents."""

    @property
    def note(self) -> str:
        """What a reader of a fit must know of the model, a sentence; empty: nothing."""
        return ""

    def initial_globals(self, X: Tensor, weights: Tensor) -> dict[str, Tensor] | None:
        """Return globals to start from, on the model's scale; None starts at the prior's centre."""
        return None

    def drawn_globals(
        self, X: Tensor, weights: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor] | None:
        """Return globals to start from, drawn by chance; by default `initial_globals`.

        `generator` draws on the CPU.
        """
        return self.initial_globals(X, weights)

    def n_starts(self, X: Tensor) -> int:
        """Return from how many of its own starts a fit is made, where the user does not say."""
        return 1

    def initial_locals(self, theta: Theta, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and sds, shape (n_rows, n_latents), that local factors start from."""
        shape = len(X), self.count_latents(self.n_explained(X))
        return X.new_zeros(shape), X.new_ones(shape)

    def global_family(self, asked: Family | None) -> Family:
        """Return the family of q(theta): the one asked for, or the default."""
        return DiagonalNormal() if asked is None else asked

    @property
    def widening(self) -> float:
        """How many times narrower than usual q(theta) starts."""
        return LatentVariableModel.start_share / self.start_share

    # --- what the library calls -----------------------------------------------------------------

    def __sklearn_clone__(self):
        cloned = super().__sklearn_clone__()
        take_weights(cloned, self)
        return cloned

    def count_latents(self, n_features: int) -> int:
        """Return the number of latents a row, whether `n_latents` is a method or an attribute."""
        declared: Any = self.n_latents
        return declared(n_features) if callable(declared) else declared

    def check_written(self, n_features: int) -> None:
        """Raise a TypeError that names the first method that the model does without in vain."""
        need = "give it n_latents(self, n_features), or an int of that name (0: no latents)"
        require_written(self, "n_latents", need)

    def global_space(self, X: Tensor) -> GlobalSpace:
        """Return the space of the globals for data like X."""
        with defaults_of(X):
            return GlobalSpace(self.global_prior(self.n_explained(X)))

    def log_terms(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        r"""Return :math:`\log p(z, X \mid \theta)`: a term a row, (n_rows,), or one for all."""
        with defaults_of(z):
            return self.log_joint(theta, z, X)

    def half_expected_terms(
        self, theta: Theta, z: Tensor, factors: NormalFactors, rest: NormalFactors, X: Tensor
    ) -> Tensor:
        """Return `log_terms` with whatever is known in closed form given the draws not sampled.

        `rest` is the factor of all globals given those that were drawn: theta holds its mean.
        """
        return self.log_terms(theta, z, X)


def overrides(model: LatentVariableModel, base: type, name: str) -> bool:
    """Say whether a model's class has a version of its own of what `base` defines."""
    return getattr(type(model), name) is not getattr(base, name)


class HierarchicalModel(BijectedLatents, LatentVariableModel):
    r"""Rows that are independent given the globals.

    .. math:: p(\theta) \prod_n p(z_n \mid \theta) \, p(x_n \mid z_n, \theta)

    Subclasses give `n_latents`, `global_prior`, `local_prior` and `likelihood`, or in place of the
    last one ``log_likelihood(theta, z, X)``, of shape (n_rows,); they may override `log_local` for
    speed. Univariate distributions are read as independent over the last dimension; a local prior
    of one number serves one latent. Where its support is bounded (Gamma, Beta, Uniform, ...), q is
    normal on the scale of torch's bijection, and z, `transform` and `posterior` are on the prior's
    own. Latents may take finitely many values (Categorical, Bernoulli): z then holds one of them
    for all rows, of the dtype of draws, and q(z_n) is `skavi.families.Categorical`. Any other
    support is refused. With `n_latents` 0 there is no `local_prior`, and nothing has latents.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HierarchicalModel
    >>> class Shift(HierarchicalModel):
    ...     def n_latents(self, n_features):
    ...         return 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {"theta": Normal(0.0, 10.0)}
    ...
    ...     def local_prior(self, theta):
    ...         return Normal(torch.zeros(1), 1.0)
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(theta["theta"] + z, 0.5)
    >>> FactorizedVI(Shift()).fit_transform([[1.0], [2.0], [3.0]]).shape
    (3, 1)

    Without latents: logistic regression of the last column on the others.

    >>> from torch.distributions import Bernoulli
    >>> class Logistic(HierarchicalModel):
    ...     n_latents = 0
    ...
    ...     def global_prior(self, n_features):
    ...         return {"slopes": Normal(torch.zeros(n_features - 1), 1.0)}
    ...
    ...     def log_likelihood(self, theta, z, X):
    ...         return Bernoulli(logits=X[:, :-1] @ theta["slopes"]).log_prob(X[:, -1])
    >>> X = [[-2.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [2.0, 1.0]]
    >>> vi = FactorizedVI(Logistic()).fit(X)
    >>> vi.global_posterior_.mean["slopes"].round(1), vi.transform(X).shape
    (array([1.2]), (4, 0))
    """

    ideal_context = (0, 0)
    coupling: Coupling = INDEPENDENT

    @left_open
    def local_prior(self, theta: Theta) -> Distribution:
        r"""Return :math:`p(z_n \mid \theta)`, event shape (n_latents,), if there are latents."""
        raise NotImplementedError

    @left_open
    def likelihood(self, z: Tensor, theta: Theta) -> Distribution:
        r"""Return :math:`p(x_n \mid z_n, \theta)` for z of shape (n_rows, n_latents)."""
        raise NotImplementedError

    def check_written(self, n_features):
        super().check_written(n_features)
        if self.count_latents(n_features):
            need = "it is the distribution of a row's latents (a model with n_latents 0 has none)"
            require_written(self, "local_prior", need)
        written_out = overrides(self, HierarchicalModel, "log_local")
        if not written_out and not overrides(self, HierarchicalModel, "log_likelihood"):
            require_written(self, "likelihood", LIKELIHOOD_NEEDED)

    def observation(self, z: Tensor, theta: Theta) -> Distribution:
        """Return the likelihood; models with an *argument* named likelihood override this."""
        return self.likelihood(z, theta)

    def log_local(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        r"""Return :math:`\log p(z_n, x_n \mid \theta)`, shape (n_rows,)."""
        if self.writes_prior_out:
            return self.log_prior(theta, z, X) + self.log_likelihood(theta, z, X)
        with defaults_of(z):
            prior = self.prior_of_rows(theta, X)
        latents, log_jacobian = self.within(prior, z)
        with defaults_of(z):
            density = log_prob(prior, latents)
        return density + log_jacobian + self.log_likelihood(theta, latents, X)

    def latent_prior(self, n_features, theta, *conditions):
        """Return `local_prior` given theta and `conditions`, or the prior of no latents."""
        n_latents = self.count_latents(n_features)
        if not n_latents:
            return no_latents()
        return for_latents(self.local_prior(theta, *conditions), n_latents)

    def prior_of_rows(self, theta, X):
        """Return the local prior of the rows of X, whatever it conditions on."""
        return self.latent_prior(self.n_explained(X), theta)

    def log_prior(self, theta, z, X):
        r"""Return :math:`\log p(z_n \mid \theta)`, shape (n_rows,)."""
        with defaults_of(z):
            prior = self.prior_of_rows(theta, X)
            latents, log_jacobian = self.within(prior, z)
            return log_prob(prior, latents) + log_jacobian

    @property
    def writes_prior_out(self) -> bool:
        """Whether `log_prior`, or all of `log_local`, is the model's own."""
        return any(overrides(self, HierarchicalModel, name) for name in ("log_local", "log_prior"))

    def observation_of_rows(self, z, theta, X):
        """Return the likelihood of the rows of X, whatever it conditions on."""
        return self.observation(z, theta)

    def log_likelihood(self, theta, z, X):
        r"""Return :math:`\log p(x_n \mid z_n, \theta)`, shape (n_rows,)."""
        with defaults_of(z):
            return log_prob(self.observation_of_rows(z, theta, X), self.explained(X))

    def atoms(self, space, X):
        if self.writes_prior_out:
            return None
        theta = space.start(torch.Generator().manual_seed(0))[0].to(X.device, X.dtype)
        try:
            with defaults_of(X):
                prior = self.prior_of_rows(space.constrain(theta), X[:1])
        except (ValueError, TypeError, RuntimeError, AttributeError):  # a fit's checks tell
            return None
        return atoms_of(prior) if isinstance(prior, Distribution) else None

    def log_joint(self, theta, z, X):
        return self.log_local(theta, z, X).sum()

    def log_terms(self, theta, z, X):
        with defaults_of(z):
            return self.log_local(theta, z, X)

    def half_expected_terms(self, theta, z, factors, rest, X):
        if overrides(self, HierarchicalModel, "log_local"):
            return self.log_terms(theta, z, X)  # written out: nothing to take apart
        with defaults_of(z):
            prior = self.expected_log_prior(theta, z, factors, X)
            return prior + self.log_likelihood(theta, self.bounded(theta, z, X), X)

    def expected_log_prior(self, theta, z, factors, X):
        """E_q log p(z_n | theta), shape (n_rows,); at the draw z where it is not known."""
        if overrides(self, HierarchicalModel, "log_prior"):
            return self.log_prior(theta, z, X)
        with defaults_of(z):
            prior = self.prior_of_rows(theta, X)
            free = self.bijection_onto(prior) is None
            closed = expected_log_prob(prior, factors.mean, factors.sd) if free else None
        return self.log_prior(theta, z, X) if closed is None else closed.sum(-1)

    def declared(self, theta, z, X):
        found: dict[str, tuple[Distribution, Tensor]] = {}
        if overrides(self, HierarchicalModel, "log_local"):
            return found
        with defaults_of(z):
            z = self.bounded(theta, z, X)
            if not overrides(self, HierarchicalModel, "log_prior"):
                found["local_prior"] = self.prior_of_rows(theta, X), z
            if not overrides(self, HierarchicalModel, "log_likelihood"):
                found["likelihood"] = self.observation_of_rows(z, theta, X), self.explained(X)
        return found

    def predicted_mean(self, theta, z):
        with defaults_of(z):
            return self.observation(z, theta).mean
