"""Noise rules: the draws or nodes that estimate an expectation under q.

Monte Carlo, fixed draws, quasi-Monte Carlo and Gauss-Hermite quadrature give the same ELBO formula
different (noise, weights). A rule with ``deterministic = True`` gives the same nodes at each call,
shared by all rows, so the ELBO is a function that a solver can maximise to the last digit.
"""

from abc import abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from skavi._component import Component
from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import SOBOL_MAX_DIMENSION, product_rule, rule_size, sobol_normal
from skavi._numerics.whole_numbers import is_whole

#: Nodes of a product rule, each one evaluation of all rows. Not measured: order of magnitude.
MAX_NODES = 200_000
#: Spreads of the points at which rows' slopes in theta are taken: at 0 a Poisson count of 1 has no
#: slope, and far from 0 a logistic row of large cells has none.
_SLOPE_SPREADS = (0.0, 1e-3, 0.1)


@dataclass(frozen=True)
class Nodes:
    """Standard normal noise with weights that sum to one.

    Attributes
    ----------
    globals_ : Tensor of shape (n_draws, n_globals)
    locals_ : Tensor of shape (n_draws, 1, n_latents), or (n_draws, n_rows, n_latents)
        A second dimension of 1 means shared by all rows.
    weights : Tensor of shape (n_draws,)
    slopes_at : Tensor of shape (n_points, n_globals), or None
        Given: `globals_`, of shape (n_draws, 1), is noise along each row's own direction of theta,
        the steepest slope of its log likelihood at these unconstrained points.

    Examples
    --------
    >>> from skavi.noise import GaussHermite
    >>> nodes = GaussHermite(n_nodes=3).nodes(1, 1, 1, None)
    >>> nodes.weights.sum(), (nodes.weights @ nodes.globals_**2).round(decimals=12)
    (tensor(1., dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    globals_: Tensor
    locals_: Tensor
    weights: Tensor
    slopes_at: Tensor | None = None

    def to(self, like: Tensor) -> "Nodes":
        """Move to the dtype and device of `like`."""
        at = None if self.slopes_at is None else self.slopes_at.to(like)
        return Nodes(self.globals_.to(like), self.locals_.to(like), self.weights.to(like), at)

    def in_turn(self, n_rows: int, n_blocks: int) -> "Nodes":
        """Assign the noise of n_blocks rows to n_rows in turn, independent between neighbours."""
        blocks = self.locals_.reshape(len(self.weights), n_blocks, -1)
        turn = torch.arange(n_rows, device=blocks.device) % n_blocks
        return Nodes(self.globals_, blocks[:, turn], self.weights)


class Noise(Component):
    """A rule for the nodes at which expectations under q are taken.

    Examples
    --------
    >>> from skavi.noise import GaussHermite, MonteCarlo
    >>> GaussHermite().deterministic, MonteCarlo().deterministic
    (True, False)
    """

    #: Whether every call of `nodes` gives the same answer.
    deterministic: bool = True
    #: How many draws a rule of draws takes; None for closed forms and quadrature.
    n_draws: Any = None

    @abstractmethod
    def nodes(
        self, n_globals: int, n_latents: int, n_rows: int, generator: torch.Generator | None
    ) -> Nodes | None:
        """Return the nodes for q(theta) of n_globals and n_rows factors of n_latents numbers.

        None stands for no nodes: the model's closed form is used.
        """

    def count_nodes(self, n_globals: int, n_latents: int) -> int:
        """Return how many nodes there are, without making them."""
        return 1 if self.n_draws is None else self.n_draws

    def in_single(self) -> "Noise":
        """Return the rule for steps in single precision: the same, or a faster one."""
        return self

    def refined(self) -> "list[Noise]":
        """Return finer rules of the same kind to compare with; empty if this one is exact."""
        return []

    def independent(self) -> "list[Noise]":
        """Return rules of the same size with independent errors, for where finer ones are large."""
        return []


class ClosedForm(Noise):
    """No noise: the model's expectations in closed form. Chosen where the model offers them.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> vi = FactorizedVI().fit([[0.0, 1.0], [1.0, 3.0], [2.0, 4.0]])
    >>> vi.noise_
    ClosedForm()
    """

    def nodes(self, n_globals, n_latents, n_rows, generator):
        return None


def _normal_nodes(n_draws, n_globals, n_latents, n_rows, generator, dtype=torch.float64):
    shape = n_draws, n_rows, n_latents
    globals_ = torch.randn(n_draws, n_globals, generator=generator, dtype=dtype)
    locals_ = torch.randn(shape, generator=generator, dtype=dtype)
    return Nodes(globals_, locals_, torch.full((n_draws,), 1 / n_draws, dtype=dtype))


class MonteCarlo(Noise):
    """Fresh draws at each step, independent over rows: unbiased, for stochastic solvers only.

    Parameters
    ----------
    n_draws : int, default=1
        Draws a step.

    Examples
    --------
    >>> from skavi.noise import MonteCarlo
    >>> MonteCarlo(n_draws=10).deterministic
    False
    """

    deterministic = False
    _dtype = torch.float64

    def __init__(self, n_draws=1):
        self.n_draws = n_draws

    def check(self):
        self._require_integer("n_draws", 1)

    def nodes(self, n_globals, n_latents, n_rows, generator):
        return _normal_nodes(self.n_draws, n_globals, n_latents, n_rows, generator, self._dtype)

    def in_single(self):
        return _SingleMonteCarlo(self.n_draws)


class _SingleMonteCarlo(MonteCarlo):
    """Draws in float32: different from those in float64, and six times as fast."""

    _dtype = torch.float32


class FixedDraws(Noise):
    """Draws made once and kept, shared by all rows (sample average approximation).

    Parameters
    ----------
    n_draws : int, default=64
        Number of draws. The optimum is biased by the draws' own error, of order
        one over the root of n_draws: `QuasiMonteCarlo` and `GaussHermite` are nearly always better.
    seed : int, default=0
        Seed of the draws.

    Notes
    -----
    Source: Giordano, Ingram & Broderick (2024), "Black box variational inference with a
    deterministic objective".

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.noise import FixedDraws
    >>> vi = FactorizedVI(LinearModel(), noise=FixedDraws(300), tol=0.01)
    >>> vi.fit([[0.0], [1.0], [5.0]]).converged_
    True
    >>> vi.suboptimality_ > 1e-3  # what 300 draws leave over, in nats
    True
    """

    def __init__(self, n_draws=64, seed=0):
        self.n_draws = n_draws
        self.seed = seed

    def check(self):
        self._require_integer("n_draws", 1)
        self._require_integer("seed", 0)

    def nodes(self, n_globals, n_latents, n_rows, generator):
        own = torch.Generator().manual_seed(self.seed)
        return _normal_nodes(self.n_draws, n_globals, n_latents, 1, own)

    def refined(self):
        return [FixedDraws(16 * self.n_draws, self.seed + 1)]

    def independent(self):
        return [FixedDraws(self.n_draws, self.seed + i) for i in (1, 2)]


class QuasiMonteCarlo(Noise):
    """Scrambled Sobol points as normals, shared by all rows, in antithetic pairs, whitened.

    Means and covariances of the points are exact, so quadratic log densities are integrated
    without error; the rest converges nearly as 1 / n_draws.

    Parameters
    ----------
    n_draws : int, default=256
        Number of points, rounded down to an even number; powers of two are best.
    seed : int, default=0
        Seed of the scrambling.

    Notes
    -----
    Source: Buchholz, Wenzel & Mandt (2018), "Quasi-Monte Carlo variational inference"; the points
    are `scipy.stats.qmc.Sobol`'s.

    Examples
    --------
    >>> from skavi.noise import QuasiMonteCarlo
    >>> QuasiMonteCarlo(128).deterministic
    True
    """

    def __init__(self, n_draws=256, seed=0):
        self.n_draws = n_draws
        self.seed = seed

    def check(self):
        self._require_integer("n_draws", 2)
        self._require_integer("seed", 0)

    def nodes(self, n_globals, n_latents, n_rows, generator):
        dimension = n_globals + n_latents
        if dimension > SOBOL_MAX_DIMENSION:
            raise ValueError(
                f"QuasiMonteCarlo reaches {SOBOL_MAX_DIMENSION} dimensions, but this model has "
                f"{n_globals} globals + {n_latents} latents: use noise=MonteCarlo()."
            )
        noise = aligned(sobol_normal(self.n_draws, dimension, self.seed))
        weights = torch.full((len(noise),), 1 / len(noise), dtype=noise.dtype)
        return Nodes(noise[:, n_latents:], noise[:, None, :n_latents], weights)

    def refined(self):
        return [QuasiMonteCarlo(4 * self.n_draws, self.seed + 1)]

    def independent(self):
        return [QuasiMonteCarlo(self.n_draws, self.seed + i) for i in (1, 2)]


class GaussHermite(Noise):
    """Product Gauss-Hermite quadrature over a row's latents and the globals.

    Exact with n nodes for log densities that are polynomials of degree :math:`2n - 1` in every
    coordinate. It is meant for few of them: k latents and globals together take :math:`n^k` nodes.

    Parameters
    ----------
    n_nodes : int or (int, int), default=5
        Nodes a dimension, or (nodes a latent, nodes a global).
    shared : tuple of int, default=None
        For each unconstrained global, the number of its dimension of noise; None: one for each.
        Those that share one need fewer nodes; under independent factors that changes nothing if no
        term of the log joint holds two of them together, as with the difficulties of different
        questions. Where ``noise`` is left at None, the fit finds such globals. Three nodes a global
        in 3 to 7 dimensions are those of Lu & Darmofal (2004): 31 for 81 in four, of degree 5.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.noise import GaussHermite
    >>> vi = FactorizedVI(LinearModel(), noise=GaussHermite(3)).fit([[0.0], [1.0], [5.0]])
    >>> vi.noise_
    GaussHermite(n_nodes=3)
    """

    def __init__(self, n_nodes=5, shared=None):
        self.n_nodes = n_nodes
        self.shared = shared

    def check(self):
        pair = self._counts()
        if not all(isinstance(n, Integral) and not isinstance(n, bool) for n in pair):
            raise TypeError(f"{self._got('n_nodes')}: need an int, or two of them.")
        self._require("n_nodes", len(pair) == 2 and min(pair) >= 1, ">= 1, an int or two of them")
        found = () if self.shared is None else self.shared
        numbered = isinstance(found, tuple | list) and all(is_whole(i, 0) for i in found)
        numbered = numbered and set(found) == set(range(len(set(found))))
        self._require("shared", numbered, "None, or integers 0, 1, ... without a gap")

    def nodes(self, n_globals, n_latents, n_rows, generator):
        which, *counts = self._counts_of(n_globals, n_latents)
        if (size := rule_size(*counts)) > MAX_NODES:
            raise ValueError(
                f"GaussHermite(n_nodes={self.n_nodes!r}) over {n_latents} latents and {n_globals} "
                f"globals needs {float(size):.1e} nodes, more than {MAX_NODES}: use fewer nodes, "
                "or noise=QuasiMonteCarlo()."
            )
        noise, weights = map(aligned, product_rule(*counts))
        return Nodes(noise[:, n_latents:][:, which], noise[:, None, :n_latents], weights)

    def count_nodes(self, n_globals, n_latents):
        return rule_size(*self._counts_of(n_globals, n_latents)[1:])

    def _counts_of(self, n_globals, n_latents):
        """Return each global's dimension, nodes a dimension, and how many have one rule at last."""
        which, (n_local, n_global) = self._dimensions(n_globals), self._counts()
        size = len(set(which))
        together = size if self.shared is not None and n_global == 3 and 3 <= size <= 7 else 0
        return which, (n_local,) * n_latents + (n_global,) * (size - together), together

    def _dimensions(self, n_globals):
        """Return the dimension of noise of each global; a q(theta) that is a point has none."""
        if self.shared is None or not n_globals:
            return list(range(n_globals))
        if len(self.shared) != n_globals:
            raise ValueError(
                f"noise={self!r} shares nodes between {len(self.shared)} globals, but this model "
                f"has {n_globals}: leave shared at None, or noise."
            )
        return list(self.shared)

    def refined(self):
        n_local, n_global = self._counts()
        # Less than twice as many, since there may be four globals; one more of three shared ones.
        few = self.shared is None or len(set(self.shared)) < 3
        more = max(2, 2 * n_global - 1) if few else n_global + 1
        return [GaussHermite(n, self.shared) for n in ((2 * n_local, n_global), (n_local, more))]

    def _counts(self):
        n = self.n_nodes
        return tuple(n) if isinstance(n, tuple | list) else (n, n)


class LinearPredictor(Noise):
    """Gauss-Hermite quadrature over the linear predictor of a row, or of each of its cells.

    For regressions: a row without latents reads theta through a predictor linear in the
    unconstrained globals, as in ``Bernoulli(logits=x @ theta["slopes"])``. Under q(theta) it is
    normal, along the row's steepest slope. And for `FactorAnalysis` of answers, overdispersed
    counts or mixed columns: each cell has nodes of its own. Other models refuse the rule.

    Parameters
    ----------
    n_nodes : int, default=5
        Nodes a row; of a cell whose row has latents as many, or five times as many where loadings
        are not narrow.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal, Poisson
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HierarchicalModel
    >>> class Counts(HierarchicalModel):
    ...     n_latents = 0
    ...
    ...     def global_prior(self, n_features):
    ...         return {"slopes": Normal(torch.zeros(n_features - 1), 1.0)}
    ...
    ...     def log_likelihood(self, theta, z, X):
    ...         return Poisson((X[:, :-1] @ theta["slopes"]).exp()).log_prob(X[:, -1])
    >>> X = [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [2.0, 1.0, 6.0]]
    >>> FactorizedVI(Counts()).fit(X).noise_
    LinearPredictor()
    """

    def __init__(self, n_nodes=5):
        self.n_nodes = n_nodes

    def check(self):
        self._require_integer("n_nodes", 1)

    def nodes(self, n_globals, n_latents, n_rows, generator):
        nodes, weights = product_rule((self.n_nodes,))
        noise, own = aligned(nodes), torch.Generator().manual_seed(0)
        spread = torch.tensor(_SLOPE_SPREADS, dtype=noise.dtype)[:, None]
        at = spread * torch.randn(len(spread), n_globals, generator=own, dtype=noise.dtype)
        return Nodes(noise, noise.new_zeros(len(noise), 1, n_latents), aligned(weights), at)

    def count_nodes(self, n_globals, n_latents):
        return self.n_nodes

    def refined(self):
        return [LinearPredictor(2 * self.n_nodes)]
