"""The half of factor analysis that is for likelihoods with a bend: everything goes cell by cell."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal
from skavi.models._factor_analysis_start import LinearStart
from skavi.models._linear_cells import LinearCells, rows_of_cells, scattered
from skavi.models._mixed_cells import Part
from skavi.models._poisson_rates import Side
from skavi.models._predictor_nodes import narrow
from skavi.models._rows_at_rest import nodes_of_curvature, rows_at_rest

#: Cells times nodes of their noise and of e at once. Autograd keeps some ten arrays of five times
#: as many numbers, 20 MB each. Not measured: order of magnitude.
_NUMBERS = 500_000


class BentCells(LinearStart):
    """Adds expectations and derivatives of cells whose kernel is linear but for a bend.

    They are averages over nodes of z, or over nodes of every cell's predictor
    (`skavi.models._predictor_nodes`).
    """

    learned = (*LinearStart.learned, "theta_read_")
    #: Means and sds of the training q(theta), which functions read rows by.
    theta_read_: np.ndarray | None = None
    #: Whether second derivatives beside exact slopes are those of normal predictors.
    quick = False
    #: Whether a subclass has its own version of what this integrates and differentiates.
    changed: bool

    @property
    def concave_in_latents(self):  # type: ignore[override]
        """Whether all kernels are concave in eta, in which latents are linear: but Student t's."""
        return not (self.cell.narrow or self.changed)

    # --- expectations ---------------------------------------------------------------------------

    def expected_along_predictors(self, factors, globals_, X, nodes):
        parts, terms = self._pieces(X, nodes), partial(self._terms, globals_, _rule(nodes))
        sloped = factors.mean.requires_grad or globals_.mean.requires_grad
        if sloped and len(parts) > 1:  # nodes are found anew for the gradient
            terms = partial(checkpoint, terms, use_reentrant=False, preserve_rng_state=False)
        found = [terms(factors.mean[part], factors.sd[part], X[part]) for part in parts]
        return torch.cat(found) if found else factors.mean.sum(-1)

    def _pieces(self, X, nodes):
        """Split the rows, for their cells' nodes and what autograd keeps of these."""
        levels = self.cell.n_noise_nodes if self.cell.own_globals else 1
        width = self.n_predictors(self.n_explained(X)) * levels * len(nodes.weights)
        size = max(1, _NUMBERS // max(1, width))
        return [slice(first, first + size) for first in range(0, len(X), size)]

    def _terms(self, globals_, rule, mean, sd, X):
        """Return the rows' expected log joint densities, (n_rows,)."""
        rows, ones = Side(mean, sd**2), X.new_ones(len(X))
        prior = -0.5 * (mean**2 + sd**2 + LOG_2PI).sum(-1)
        return prior + sum(
            cells.expected_rows(rows, *sides, rule) + constant
            for cells, constant, _, *sides in self._linear_cells(globals_, X, ones)
        )

    def half_expected_terms(self, theta, z, factors, rest, X):
        """Integrate W, B and m out, given z: eta is normal, its mean at theta; and the noise."""
        design = torch.nn.functional.pad(self._design(z, X), (0, 1), value=1.0)
        variance = rest.variance_along(design, self._linear_index(rest, X))
        eta = self.eta(theta, z, X)
        if self._integrates(rest):
            mean, sd = rest.mean, rest.sd
            fit = sum(
                part.over_noise(eta, variance, part.noise_factors(mean, sd))
                for part in self._parts(rest, X)
            )
        else:
            fit = self.cell.expected_log_rows(self.cells_of(X), eta, variance, theta)
        return self.expected_log_prior(theta, z, factors, X) + fit

    # --- derivatives ------------------------------------------------------------------------------

    def with_quick_curvature(self):
        model = copy.copy(self)
        model.quick = True
        return model

    def _integrates(self, rest):
        """Say whether the noise is integrated with eta: where it is independent of it."""
        return self.cell.bends and type(rest) is DiagonalFactors

    def _parts(self, globals_, X):
        """Return the cells of X by their likelihoods."""
        cells = self.cells_of(X)
        if self.mixed is not None:
            return self.mixed.parts(cells)
        return [Part(self.cell, cells, slice(None), self._noise_index(globals_, X))]

    def _noise_index(self, globals_, X):
        """Return the places in theta of a column's noise, (n_features, h), before all else."""
        linear, own = self._linear_index(globals_, X), self.cell.own_globals
        first, columns = int(linear.min()), torch.arange(len(linear), device=X.device)
        places: list[Tensor] = []
        for name in reversed(own):
            each = self.by_column and name != "degrees_of_freedom"
            first -= len(columns) if each else 1
            places.insert(0, first + columns if each else torch.full_like(columns, first))
        return torch.stack(places, -1) if places else linear[:, :0]

    def row_derivatives(self, factors, globals_, X, nodes, weights, frozen):
        """Differentiate cell by cell, where nothing but the rows' latents is drawn.

        Along predictors slopes are exact, and second derivatives those at a few nodes of z:
        Newton's method ends where slopes are 0, a few steps later.
        """
        if not self._alone(factors, nodes) or not self._by_cells(globals_):
            return None
        rows, size = Side(factors.mean, factors.sd**2), globals_.mean.shape[-1]
        few = nodes.slopes_at is not None
        reading = nodes.locals_[:, 0], nodes.weights
        if few and self.quick:
            reading = None, None
        elif few:
            reading = nodes_of_curvature(self.n_components, X, self.cell.narrow)
        if frozen:
            found = self.row_slopes(rows, globals_, X, *reading, few=few)
            of_theta = [None] * 3
        else:
            parts = [
                scattered(cells.derivatives(rows, *sides, *reading), where, 2 * size, weights)
                for cells, _, where, *sides in self._linear_cells(
                    globals_, X, weights, few, given_latents=reading[0] is not None
                )
            ]
            *found, C, g, H = (sum(each[1:], each[0]) for each in zip(*parts, strict=True))
            of_theta = [C, g, H]
        slope, block = rows_of_cells(rows, found[0], found[1], weights)
        if few:
            exact, of_globals = self._slopes(factors, globals_, X, nodes, weights, frozen)
            if self.quick:
                _add_to_logs(block, exact - slope)
                if not frozen:
                    _add_to_logs(of_theta[2], of_globals - of_theta[1])
            slope, of_theta[1] = exact, of_globals
        return slope, block, *of_theta

    def row_gradient(self, factors, globals_, X, nodes, weights, frozen):
        known = self._alone(factors, nodes) and self._by_cells(globals_)
        if nodes.slopes_at is None or not known:
            return None
        return self._slopes(factors, globals_, X, nodes, weights, frozen)

    def _slopes(self, factors, globals_, X, nodes, weights, frozen):
        """Return the exact slopes of the rows' weighted terms in all raw numbers."""
        raw = torch.cat([factors.mean, factors.sd.log()], -1)
        of_theta = torch.stack([globals_.mean, globals_.sd.log()]).detach()
        of_theta.requires_grad_(not frozen)
        rule, unknowns = _rule(nodes), [] if frozen else [of_theta]
        slopes, sums = [raw.new_empty(0, raw.shape[-1])], torch.zeros_like(of_theta)
        for part in self._pieces(X, nodes):
            with torch.enable_grad():
                here = raw[part].detach().requires_grad_(True)
                mean, log_sd = here.chunk(2, -1)
                there = DiagonalFactors(of_theta[0], of_theta[1].exp())
                terms = self._terms(there, rule, mean, log_sd.exp(), X[part]) + log_sd.sum(-1)
                found = torch.autograd.grad(weights[part] @ terms, [here, *unknowns])
            slopes.append(found[0])
            sums += 0.0 if frozen else found[1]
        return torch.cat(slopes), None if frozen else sums.flatten()

    def _alone(self, factors, nodes):
        """Say whether rows' latents are independent, under nodes that all rows share."""
        return nodes is not None and type(factors) is DiagonalFactors and len(nodes.locals_[0]) == 1

    def _by_cells(self, globals_):
        """Say whether the rows' terms are sums over cells with derivatives in closed form."""
        return self._integrates(globals_) and not self.changed

    def knows_row_derivatives(self, family, global_family):
        diagonal = type(family) is type(global_family) is DiagonalNormal
        return diagonal and self.cell.bends and not self.changed

    def row_slopes(self, rows: Side, globals_, X, noise: Tensor, weights: Tensor, few=False):
        """Return slopes and Hessians of each row's expected log density in its means and log sds.

        At nodes of its latents, as `LinearCells.derivatives_of_rows` has them.
        """
        ones, given = X.new_ones(len(X)), noise is not None
        found = [
            cells.derivatives_of_rows(rows, *sides, noise, weights)
            for cells, _, _, *sides in self._linear_cells(globals_, X, ones, few, given)
        ]
        return [sum(each[1:], each[0]) for each in zip(*found, strict=True)]

    def _linear_cells(self, globals_, X, weights, few=False, given_latents=False):
        """Yield cells by likelihoods, their constants, places of their raw numbers, and these.

        `few`: with few nodes of the predictor, which varies little given the latents.
        """
        offset, known = X.new_zeros(len(X), 1) + self.shift(X), self._known(X)
        every, size = self._linear_index(globals_, X), globals_.mean.shape[-1]
        for part in self._parts(globals_, X):
            index, at = every[part.predictors], part.noise
            columns = Side(globals_.mean[index], globals_.sd[index] ** 2)
            if few:
                noise = part.noise_factors(globals_.mean, globals_.sd)
                thin = given_latents and self._are_narrow(columns, part.likelihood, noise)
                part = replace(part, likelihood=part.likelihood.with_few_nodes(thin))
            of_cells = offset if offset.shape[1] == 1 else offset[:, part.predictors]
            cells = LinearCells(part.likelihood, part.cells, known, of_cells, weights)
            where = torch.cat([index, index + size, at, at + size], -1)
            yield (
                cells,
                part.constant,
                where,
                columns,
                part.noise_factors(globals_.mean, globals_.sd).with_enough_nodes(),
            )

    def _are_narrow(self, columns, likelihood, noise):
        """Say whether loadings are narrow beside the bend of a likelihood."""
        loadings = columns.first(self.n_components)
        return narrow(loadings, likelihood.width(likelihood.levels_along(noise)))

    def check_learned(self, n_features):
        super().check_learned(n_features)
        if self.theta_read_ is not None:
            self._require_learned("theta_read_", (2, None))

    # --- what inference functions read ----------------------------------------------------------

    def reading(self, globals_):
        if not self._by_cells(globals_):
            return super().reading(globals_)
        model = copy.copy(self)
        model.theta_read_ = torch.stack([globals_.mean, globals_.sd]).cpu().numpy()
        return model

    @property
    def summary_is_factor(self):  # type: ignore[override]
        return self.theta_read_ is not None or super().summary_is_factor

    def summary(self, X):
        """Return a row's own factor given the training q(theta): means and log sds; covariates.

        Functions of the cells themselves take minutes to come near it.
        """
        if self.theta_read_ is None:
            return super().summary(X)
        globals_ = DiagonalFactors(*torch.as_tensor(self.theta_read_).to(X))

        def slopes(rows, index, nodes, weights):
            return self.row_slopes(rows, globals_, X[index], nodes, weights, few=True)

        rows = rows_at_rest(slopes, len(X), self.n_components, X)
        return torch.cat([rows.mean, 0.5 * rows.variance.log(), self.given_columns(X)], -1)


def _add_to_logs(blocks, slopes):
    """Mend second derivatives in log sds, in place, by how much slopes were off.

    Where s^2 is small beside the width of a bend f, d/dlog s is s^2 E f'', and d^2/dlog^2 s twice
    that: it is off by twice as much.
    """
    k = slopes.shape[-1] // 2
    blocks.diagonal(dim1=-2, dim2=-1)[..., k:] += 2 * slopes[..., k:]


def _rule(nodes):
    """Return the nodes of e, each with its weight."""
    return list(zip(nodes.globals_[:, 0].tolist(), nodes.weights.tolist(), strict=True))
