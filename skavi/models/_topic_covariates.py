"""How the topics' logits move with covariates of the documents: priors, means, best coefficients.

The prior mean of a document's logits is B (c_n - centre), with the covariates' means in the
training data for the centre: where covariates are as usual, no topic is preferred, as without them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.sparse_rows import SparseRows
from skavi._numerics.positive_definite import least_solution
from skavi.families import DiagonalFactors, NormalFactors
from skavi.models._base import HierarchicalModel
from skavi.models._centred_coefficients import CentredCoefficients, basis
from skavi.models._scale_priors import (
    WEAK,
    check_scale,
    is_centred_normal,
    normal_precision,
    scale_prior,
)


class DocumentsWithCovariates(HierarchicalModel):
    """Documents' words, explained, beside their covariates, given; logits z_n that move with these.

    Globals are the topics' logits, then the free numbers of the coefficients, one topic fewer.
    """

    roles = ("covariates",)
    learned = (*HierarchicalModel.learned, "covariate_centre_")

    n_components: int
    proportion_scale: float
    covariates: Any
    coefficient_scale: Any
    #: Of the training data: means of the covariates.
    covariate_centre_: np.ndarray | None = None

    @property
    def n_covariates(self) -> int:
        """How many columns of a row are covariates."""
        return self.columns_.widths.get("covariates", 0)

    def check_covariates(self):
        """Raise unless covariates can move the topics, and coefficients have a usable prior."""
        check_scale(self, "coefficient_scale")
        fine = is_centred_normal(self.coefficient_scale)
        need = "positive numbers, a normal about 0, a flat prior, or None, as all topics are alike"
        self._require("coefficient_scale", fine and np.ndim(self._scales) <= 1, need)
        self.check_roles()
        if self.named_columns():
            need = "at least 2 with covariates, which move the shares of topics"
            self._require("n_components", self.n_components > 1, need)

    @property
    def _scales(self):
        """The argument, where it is numbers."""
        is_distribution = isinstance(self.coefficient_scale, torch.distributions.Distribution)
        return None if is_distribution else self.coefficient_scale

    def check_learned(self, n_features):
        super().check_learned(n_features)
        if self.n_covariates:
            self._require_learned("covariate_centre_", (self.n_covariates,))

    def check_number_of_scales(self):
        """Raise unless there is one scale, or one for each covariate."""
        size = np.size(self._scales)
        if size not in (1, self.n_covariates):
            raise ValueError(
                f"TopicModel(coefficient_scale=...): coefficient_scale has {size} numbers, but "
                f"there are {self.n_covariates} covariates: give one number, or one a covariate."
            )

    def coefficient_prior(self):
        """Return the prior of the coefficients by name; of nothing without covariates."""
        p = self.n_covariates
        if not p:
            return {}
        scale = WEAK * self.proportion_scale if self._is_open else self.coefficient_scale
        free = scale_prior(scale, (self.n_components - 1, p))
        return {"coefficients": CentredCoefficients(free)}

    @property
    def _is_open(self):
        return self.coefficient_scale is None

    def adapt_to_covariates(self, X, weights):
        """Set, on a model of its own, the covariates' centre and what is open of their prior."""
        if not self.n_covariates:
            return
        centre, variance = Cells(self.given_columns(X), None).mean_and_variance(weights)
        self.covariate_centre_ = centre.cpu().numpy().copy()
        if self._is_open:
            scale = WEAK * self.proportion_scale / variance.sqrt()
            self.coefficient_scale = scale.cpu().numpy()

    # --- rows -----------------------------------------------------------------------------------

    def given_columns(self, X, role="covariates"):
        known = super().given_columns(X, role)
        return known.dense() if isinstance(known, SparseRows) else known

    def _documents(self, X) -> SparseRows:
        return SparseRows.of(self.explained(X))

    def _centred(self, covariates: Tensor) -> Tensor:
        if self.covariate_centre_ is None:
            return covariates
        return covariates - torch.as_tensor(self.covariate_centre_).to(covariates)

    # --- q(theta) -------------------------------------------------------------------------------

    def _topics(self, numbers: Tensor) -> Tensor:
        """Return the topics' part of numbers of theta, shape (n_topics, n_features)."""
        n_free = (self.n_components - 1) * self.n_covariates
        return numbers[: len(numbers) - n_free].reshape(self.n_components, -1)

    def _free(self, numbers: Tensor) -> Tensor:
        """Return the coefficients' part, free numbers (n_topics - 1, n_covariates)."""
        n_free = (self.n_components - 1) * self.n_covariates
        return numbers[len(numbers) - n_free :].reshape(self.n_components - 1, -1)

    def _prior_means(self, globals_: NormalFactors, X) -> Tensor:
        """Return E B (c_n - centre), shape (n_rows, n_topics); zeros without covariates."""
        if not self.n_covariates:
            return X.new_zeros(len(X), self.n_components)
        free = self._free(globals_.mean)
        return self._centred(self.given_columns(X)) @ (basis(self.n_components, free) @ free).mT

    def _prior_spread(self, globals_: NormalFactors, X) -> Tensor:
        """Return the variances of B (c_n - centre) under q, summed over topics, shape (n_rows,)."""
        if not self.n_covariates:
            return X.new_zeros(len(X))
        c, size = self._centred(self.given_columns(X)), globals_.mean.shape[-1]
        places = self._free(torch.arange(size, device=c.device))
        covariance = globals_.block_covariance(places).sum(0)  # the basis is orthonormal
        return ((c @ covariance) * c).sum(-1)

    def _best_coefficients(self, factors: DiagonalFactors, covariates: Tensor, weights: Tensor):
        """Return means and variances of the free numbers at their optimum given the documents'.

        For every topic it is a regression of the logits' means, of noise proportion_scale, with the
        same precision A = S^-2 + C' W C / proportion_scale^2: the means are A^-1 of the right-hand
        side, and variances of independent factors 1 / A_pp.
        """
        k, p = self.n_components, self.n_covariates
        if not p:
            nothing = weights.new_zeros(k - 1, 0)
            return nothing, nothing
        c = self._centred(covariates)
        weighted = (weights.unsqueeze(-1) * c).mT / self.proportion_scale**2
        prior = normal_precision(self.coefficient_scale, (k - 1, p), c)[0]
        precision = weighted @ c + torch.diag(prior)
        right = (weighted @ factors.mean @ basis(k, c)).mT
        variance = 1 / precision.diagonal().expand(k - 1, p)
        return least_solution(precision, right.mT).mT, variance
