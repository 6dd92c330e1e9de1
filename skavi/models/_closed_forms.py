"""What a model may know in closed form: expectations, and the best factors of some families."""

from typing import Self

from torch import Tensor

from skavi.families import Family, NormalFactors


class ClosedForms:
    """No closed forms: a model overrides what it knows, and says for which families."""

    #: The last globals of `global_prior`, if `half_expected_terms` needs no draws of them.
    integrated_globals: tuple[str, ...] = ()
    #: Nats a row below which no fit of the model is asked to come; the estimator's ``tol`` if more.
    coarsest_tol: float = 0.0
    #: Whether rows' problems have several optima, which `best_locals` then searches.
    several_optima: bool = False
    #: Whether log p(z_n, x_n | theta) is known to be concave in z_n, so that the ELBO of a row has
    #: one optimum (Challis & Barber 2013), and no other is searched for.
    concave_in_latents: bool = False
    #: What a cell costs in closed form, in passes of normal cells.
    passes_a_cell: int = 1
    #: Whether `swept` moves rows and globals together by second-order steps.
    second_order_sweeps: bool = False
    #: Whether `approached_locals` holds bounded memory, however many rows it is given.
    approaches_all_rows: bool = False

    def own_family(self) -> Family | None:
        """Return the family of local factors that suits the model; None: the usual one."""
        return None

    # --- expectations ---------------------------------------------------------------------------

    def integrated(self, global_family: Family) -> tuple[str, ...]:
        """Return the last globals, of which `half_expected_terms` needs no draws under a family."""
        return self.integrated_globals

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        """Say whether `expected_log_local` is available for these families."""
        return False

    def expected_log_local(self, factors: NormalFactors, globals_: NormalFactors, X: Tensor):
        """Return E_q log p(z_n, x_n | theta) in closed form, shape (n_rows,)."""
        raise NotImplementedError

    def expected_log_joints(self, globals_: NormalFactors, X: Tensor) -> Tensor:
        """Return E_q log p(x_n, s | theta) of all states in closed form, (n_rows, n_states)."""
        raise NotImplementedError

    def expected_along_predictors(
        self, factors: NormalFactors, globals_: NormalFactors, X: Tensor, nodes
    ) -> Tensor:
        """Return E_q log p(z_n, x_n | theta) by nodes of cells' linear predictors.

        For models that know their rows' derivatives.
        """
        raise NotImplementedError

    def knows_row_derivatives(self, family: Family, global_family: Family) -> bool:
        """Say whether `row_derivatives` serves factors of these families."""
        return False

    def row_derivatives(
        self,
        factors: NormalFactors,
        globals_: NormalFactors,
        X: Tensor,
        nodes,
        weights: Tensor,
        frozen: bool,
    ) -> tuple | None:
        """Return derivatives of the rows' ELBO terms, where known.

        At nodes in the latents alone, or of closed forms where `nodes` is None.
        In raw parameters: slopes (n_rows, P) and Hessians (n_rows, P, P) of each row's weighted
        term, mixed derivatives (n_rows, P, Q), and what the rows add up to in q(theta): slope (Q,)
        and Hessian (Q, Q). The last three are None where q(theta) is `frozen`.
        """
        return None

    def row_gradient(self, factors, globals_, X: Tensor, nodes, weights: Tensor, frozen: bool):
        """Return the slopes among `row_derivatives`, by rows and in q(theta), or None.

        None as well where automatic differentiation takes no longer.
        """
        return None

    def with_quick_curvature(self):
        """Return the model with second derivatives that are near enough for steps, if cheaper."""
        return self

    # --- optima ---------------------------------------------------------------------------------

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        """Say whether `local_optimum` and `global_optimum` are available for these families."""
        return False

    def local_optimum(
        self,
        globals_: NormalFactors,
        X: Tensor,
        family: Family,
        start: NormalFactors | None = None,
    ) -> NormalFactors:
        """Return every row's best factor given q(theta), in closed form.

        A model that gets there by iteration gives factors no worse than `start` at once.
        """
        raise NotImplementedError

    def best_locals(
        self,
        globals_: NormalFactors,
        X: Tensor,
        family: Family,
        start: NormalFactors | None = None,
    ) -> NormalFactors:
        """Return every row's best factor given q(theta), searched for beyond the nearest optimum.

        No row ends below its `start`.
        """
        return self.local_optimum(globals_, X, family)

    def nearest_locals(
        self, globals_: NormalFactors, X: Tensor, family: Family, start: NormalFactors
    ) -> NormalFactors:
        """Return every row's optimal factor given q(theta), at the optimum nearest to `start`."""
        return self.local_optimum(globals_, X, family)

    def approached_locals(
        self, globals_: NormalFactors, X: Tensor, family: Family, start: NormalFactors, nats: float
    ) -> NormalFactors:
        """Return factors uphill from `start`, each within about `nats` of the nearest optimum."""
        return self.nearest_locals(globals_, X, family, start)

    def global_optimum(
        self, globals_: NormalFactors, factors: NormalFactors, X: Tensor, weights: Tensor
    ) -> NormalFactors:
        """Return q(theta) after one closed-form sweep over its blocks, given the local factors."""
        raise NotImplementedError

    def swept(
        self, globals_: NormalFactors, factors: NormalFactors, X: Tensor, weights: Tensor
    ) -> tuple[NormalFactors, NormalFactors, float]:
        """Return q(theta) after a sweep, factors for the rows to start from, and a gain.

        The gain is what a second-order step promises, in nats; 0 for other sweeps.
        """
        return self.global_optimum(globals_, factors, X, weights), factors, 0.0

    def compressed(self, X: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return fewer weighted rows that give F-VI the same problem in theta, or X as it is."""
        return X, weights

    def given(self, globals_: NormalFactors) -> Self:
        """Return the model for this q(theta) alone, what `expected_log_local` makes of it kept."""
        return self


def log_inverse_gamma(shape: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the normal q(log v) for the density v^-shape exp(-scale / v).

    The variance is 1 / shape; E[1/v] = shape / scale then fixes the mean.
    """
    return (scale / shape).log() + 0.5 / shape, 1 / shape
