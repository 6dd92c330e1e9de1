"""Factors over finitely many states: one probability for each, and exact sums in place of draws."""

import math
from dataclasses import dataclass

import torch
from scipy.special import ndtr
from torch import Tensor
from torch.distributions import Distribution

from skavi.distributions import innermost
from skavi.families._normal import Apart, Family

#: Combinations of a row's states that are summed over. Not measured: order of magnitude.
_MOST_ATOMS = 4096
#: Of p (1 - p), for the length of a step in a logit: rows that are nearly sure have no length.
_LEAST_INFORMATION = 1e-2
#: Logits beyond are as good as infinite: an exact zero has no finite logit.
LARGEST_LOGIT = 1e6


@dataclass(frozen=True)
class CategoricalFactors(Apart):
    """A batch of distributions over the same states.

    Attributes
    ----------
    log_probabilities : Tensor of shape (n_rows, n_states)
        Sums of probabilities are 1.
    atoms : Tensor of shape (n_states, n_latents)
        The value of a row's latents in each state.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import CategoricalFactors
    >>> factors = CategoricalFactors(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0], [1]]))
    >>> factors.mean, factors.most_probable()
    (tensor([[0.2500, 0.7500]]), tensor([[1]]))
    """

    log_probabilities: Tensor
    atoms: Tensor

    @property
    def mean(self) -> Tensor:
        """Probabilities, shape (n_rows, n_states): the means of the states' indicators."""
        return self.log_probabilities.exp()

    @property
    def sd(self) -> Tensor:
        """Standard deviations of the states' indicators, shape (n_rows, n_states)."""
        return (self.mean * (1 - self.mean)).clamp_min(0).sqrt()

    def size(self) -> Tensor:
        """Return a number a factor, not finite where a probability is not, shape (n_rows,)."""
        return self.mean.sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats, shape (n_rows,)."""
        return torch.special.entr(self.mean).sum(-1)

    def most_probable(self) -> Tensor:
        """Return the latents in each row's most probable state, shape (n_rows, n_latents)."""
        return self.atoms[self.log_probabilities.argmax(-1)]

    def drawn_states(self, noise: Tensor) -> Tensor:
        """Return the states that standard normal noise (..., n_rows, n_states) draws.

        By Gumbel's trick: Maddison, Tarlow & Minka (2014), "A* sampling", section 2.
        """
        uniform = torch.as_tensor(ndtr(noise.cpu().numpy())).to(noise)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        return (self.log_probabilities + gumbel).argmax(-1)

    def draw(self, noise: Tensor) -> Tensor:
        """Map standard normal noise (..., n_rows, n_states) to latents (..., n_rows, n_latents)."""
        return self.atoms[self.drawn_states(noise)]

    def log_prob(self, noise: Tensor) -> Tensor:
        """Log probability of ``draw(noise)``, in nats, shape (..., n_rows)."""
        states = self.drawn_states(noise).unsqueeze(-1)
        logs = self.log_probabilities.expand(*states.shape[:-1], -1)
        return logs.gather(-1, states).squeeze(-1)


class Categorical(Family):
    """Any distribution over finitely many states: the factor of latents that are no real numbers.

    It is chosen where a model's local prior has a finite support, as `torch.distributions`'
    Categorical, OneHotCategorical, Bernoulli and Binomial have. Several latents a row share one
    factor over all combinations of their values. Expectations are exact sums over the states.
    Parameters of one factor: log probability ratios of each state but the first to the first.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Bernoulli, Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HierarchicalModel
    >>> class Switch(HierarchicalModel):
    ...     n_latents = 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def local_prior(self, theta):
    ...         return Bernoulli(0.5)
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(2 * z, 1.0)
    >>> vi = FactorizedVI(Switch()).fit([[0.0], [1.0], [2.0]])
    >>> vi.family_, vi.transform([[0.0], [1.0]]).round(3)  # the probabilities of 0 and of 1
    (Categorical(), array([[0.881, 0.119],
           [0.5  , 0.5  ]]))
    >>> vi.predict([[0.0], [2.0]])
    array([0, 1])
    """

    def n_parameters(self, n_latents):
        """Count the numbers that describe one factor of `n_latents` states."""
        return n_latents - 1

    @staticmethod
    def of_logits(raw: Tensor, atoms: Tensor) -> CategoricalFactors:
        """Read logits (n_rows, n_states - 1) as factors over the states `atoms`."""
        logits = torch.nn.functional.pad(raw, (1, 0))
        return CategoricalFactors(torch.log_softmax(logits, -1), atoms)

    def factors(self, raw, n_latents):
        return self.of_logits(raw, torch.arange(n_latents, device=raw.device)[:, None])

    def raw(self, factors):
        logs = torch.nan_to_num(factors.log_probabilities, neginf=-math.inf)
        ratios = torch.nan_to_num(logs[:, 1:] - logs[:, :1])
        return ratios.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)

    def steps(self, factors):
        return self.length(factors.mean[:, 1:])

    @staticmethod
    def length(p: Tensor) -> Tensor:
        """Return the natural step in the logits of probabilities."""
        return (p * (1 - p)).clamp_min(_LEAST_INFORMATION).rsqrt()


def atoms_of(distribution: Distribution) -> Tensor | None:
    """Return all values of a distribution of finite support, (n_values, n); None for any other.

    A univariate one is read as independent over its last dimension: these are all combinations.
    """
    base = innermost(distribution)
    try:
        values = base.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    if base.event_shape:
        return values.reshape(-1, *base.event_shape)
    values, n = values.flatten(), [*distribution.batch_shape, *distribution.event_shape, 1][0]
    if len(values) ** n > _MOST_ATOMS:
        raise ValueError(
            f"{n} latents of {len(values)} values each have {float(len(values)) ** n:.3g} "
            f"combinations, but sums over a row's states take up to {_MOST_ATOMS}: use fewer "
            "latents."
        )
    return torch.cartesian_prod(*[values] * n).reshape(-1, n)
