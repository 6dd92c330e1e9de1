"""What a Markov model says of latents that take finitely many values."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from skavi.distributions import defaults_of, innermost, log_prob, unvalidated
from skavi.families import NormalFactors
from skavi.families._categorical import atoms_of
from skavi.models._global_space import GlobalSpace, Theta
from skavi.models._own_scale import fixed_noise

#: Draws of theta under which a forecast follows the states: a mean is a hundredth of an sd off.
_THETAS = 200


class StatesInAChain:
    """Tables of a chain's log probabilities, read off `initial_prior` and `transition`."""

    def atoms(self, space: GlobalSpace, X: Tensor) -> Tensor | None:
        """Return the values of latents of finite support, (n_states, n_latents); None: real ones.

        Raises
        ------
        ValueError
            If `transition` has other values than `initial_prior`.
        """
        theta = space.start(torch.Generator().manual_seed(0))[0].to(X.device, X.dtype)
        try:
            with defaults_of(X):
                named = space.constrain(theta)
                first = self.first_prior(named, self.count_latents(X.shape[1]))  # type: ignore[attr-defined]
                atoms = atoms_of(first) if isinstance(first, Distribution) else None
                if atoms is None:
                    return None
                later = self.transition(atoms, named)  # type: ignore[attr-defined]
        except (TypeError, RuntimeError, AttributeError, IndexError):  # a fit's checks tell
            return None
        self._check_transition(later, atoms)
        return atoms

    def _check_transition(self, later, atoms):
        if not isinstance(later, Distribution):
            return
        values = _values(later)
        wanted = torch.unique(atoms) if not innermost(later).event_shape else atoms
        if values is None or values.shape != wanted.shape or not bool((values == wanted).all()):
            found = "real numbers" if values is None else f"{len(values)} values"
            raise ValueError(
                f"{type(self).__name__}.transition has {found}, but initial_prior "
                f"{len(wanted)}: a state before and after a step must be of one kind."
            )

    def log_chain(self, theta: Theta, atoms: Tensor) -> Tensor:
        """Return log probabilities of first states, and below them of moves from each state.

        Shape (1 + n_states, n_states).
        """
        k = len(atoms)
        with defaults_of(next(iter(theta.values()), torch.zeros((), dtype=torch.float64))):
            first = log_prob(self.initial_prior(theta), atoms)  # type: ignore[attr-defined]
            before = atoms.repeat_interleave(k, 0)
            moves = log_prob_of_rows(self.transition(before, theta), atoms.repeat(k, 1))  # type: ignore[attr-defined]
        return torch.cat([first.reshape(1, k), moves.reshape(k, k)])

    def begins(self, X: Tensor) -> Tensor:
        """Return which rows begin a series, shape (n_rows,): the first one."""
        return torch.arange(len(X), device=X.device) == 0

    def last_rows(self, X: Tensor) -> Tensor:
        """Return the places of the rows at which the series in X end."""
        return self.begins(X).roll(-1).nonzero()[:, 0]

    def forecast_of_states(
        self,
        now: Tensor,
        atoms: Tensor,
        q_theta: NormalFactors,
        space: GlobalSpace,
        n_steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Return means and variances, (n_series, n_steps, n_features), of the rows that follow.

        `now` are the probabilities of the states of series' last rows, (n_series, n_states); they
        are followed exactly for each draw of theta.
        """
        points = fixed_noise(_THETAS if space.size else 1, max(space.size, 1))[:, 0, : space.size]
        means, squares = [], []
        for u in q_theta.draw(points.to(now)):
            theta, chance = space.constrain(u), now
            moves = self.log_chain(theta, atoms)[1:].exp()
            mean, variance = self._next_row(theta, atoms)  # type: ignore[attr-defined]
            ahead = []
            for _ in range(n_steps):
                chance = chance @ moves
                ahead.append(chance)
            chances = torch.stack(ahead, 1)
            means.append(chances @ mean)
            squares.append(chances @ (variance + mean**2))
        mean = torch.stack(means).mean(0)
        return mean, (torch.stack(squares).mean(0) - mean**2).clamp_min(0)


def log_prob_of_rows(distribution: Distribution, z: Tensor) -> Tensor:
    """Return log p(z_n), shape (n_rows,): a distribution of one number a row serves one latent."""
    if _is_of_one_number(distribution, z):
        return unvalidated(distribution).log_prob(z[:, 0])
    return log_prob(distribution, z)


def in_its_shape(distribution: Distribution, z: Tensor) -> Tensor:
    """Return latents as the distribution counts them: without columns if it has none."""
    return z[:, 0] if _is_of_one_number(distribution, z) else z


def _is_of_one_number(distribution, z):
    if not isinstance(distribution, Distribution) or z.shape[1] != 1 or distribution.event_shape:
        return False
    return distribution.has_enumerate_support and distribution.batch_shape == z.shape[:1]


def _values(distribution):
    try:
        return (
            innermost(distribution)
            .enumerate_support(expand=False)
            .reshape(-1, *innermost(distribution).event_shape)
        )
    except NotImplementedError:
        return None
