"""What a mixed model is told: columns, priors, designs of rows, and where a fit starts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, HalfNormal, constraints

from skavi._data.grouped_rows import GroupedRows
from skavi._data.process_ranks import over_ranks, stacked
from skavi.distributions import Flat
from skavi.families import FullNormal
from skavi.models._binomial_cells import BinomialCells
from skavi.models._correlation import LKJ
from skavi.models._grouped import GroupedModel
from skavi.models._likelihood import Likelihood
from skavi.models._likelihoods import LIKELIHOODS
from skavi.models._scale_priors import WEAK, check_scale, scale_prior

#: By name; "binomial" counts successes out of `trials`.
CELLS: dict[str, Likelihood] = {**LIKELIHOODS, "binomial": BinomialCells()}
#: Of the mean variance of a column: added where a start is solved for.
_RIDGE = 1e-6


class MixedPriors(GroupedModel):
    """The arguments of `MixedEffects`, the priors that they stand for, and the designs of rows."""

    roles = ("fixed", "random", "group_covariates", "trials", "response", "groups")
    roles_together = ("fixed", "random")
    row_roles = ("fixed", "random", "trials")
    learned = (*GroupedModel.learned, "group_scale_")
    #: Prior sd of the group coefficients.
    group_scale_: np.ndarray | None = None
    response: Any
    fixed: Any
    random: Any
    likelihood: Any
    trials: Any
    correlated: bool
    centred: Any
    fixed_scale: Any
    random_scale: Any
    noise_scale: Any

    # --- arguments ------------------------------------------------------------------------------

    def check_roles(self):
        super().check_roles()
        need = "the name or the place of the one column of X to explain"
        self._require("response", len(self.named_columns().get("response", ())) == 1, need)
        binomial = self.likelihood == "binomial"
        fine = len(self.named_columns().get("trials", ())) == binomial
        self._require(
            "trials", fine, 'the one column of trials for likelihood="binomial", else None'
        )

    def check(self):
        known = self.likelihood in list(CELLS)
        self._require("likelihood", known, f"one of {list(CELLS)}")
        self._require("correlated", isinstance(self.correlated, bool | np.bool_), "True or False")
        fine = self.centred is None or np.asarray(self.centred).dtype.kind == "b"
        fine = fine and np.size(self.centred) in (1, self.n_latents(1))
        self._require("centred", fine, "True, False, None, or one of them for each effect")
        for name in ("fixed_scale", "random_scale", "noise_scale"):
            check_scale(self, name)

    def check_learned(self, n_features):
        super().check_learned(n_features)
        if self.group_scale_ is not None and self._n_given("group_covariates"):
            shape = self.n_latents(1), self._n_given("group_covariates")
            self._require_learned("group_scale_", shape, positive=True)

    def check_data(self, X):
        super().check_data(X)
        X, name = GroupedRows.of(X), f"MixedEffects(likelihood={self.likelihood!r})"
        y = self.explained(X)
        self.cell.require_valid(y[~y.isnan()].unsqueeze(-1), name)
        if self.names_columns("trials"):
            trials = self.given_columns(X, "trials")
            bad = ((y > trials) | (trials < 0)).nonzero()
            if len(bad):
                raise ValueError(
                    f"X has {len(bad)} rows with more successes than trials (first at row "
                    f"{int(bad[0, 0])})."
                )

    @property
    def cell(self):
        """The likelihood that the argument names."""
        return CELLS[self.likelihood]

    def _n_given(self, role):
        return self.columns_.widths.get(role, 0)

    def n_latents(self, n_features):
        return 1 + self._n_given("random")

    def own_family(self):
        """Return full covariances of several effects: independent ones bias their sds.

        Corrected sds of lme4's sleepstudy, with raw days, were then 0.87 of REML's.
        """
        return FullNormal() if self.n_latents(1) > 1 else None

    # --- priors and starts ----------------------------------------------------------------------

    @over_ranks
    def adapted(self, X, weights):
        model, X = self.with_arguments({}), GroupedRows.of(X)
        y, seen = self._pseudo(X)
        y = stacked(y[seen])
        spread = y.std(correction=0).clamp_min(1e-8) if len(y) > 1 else y.new_ones(())
        centre = y.mean().abs()
        F, R = (stacked(each[:, 1:]) for each in self._designs(X.table))
        scales = [_sds(each) for each in (F, R)]
        H = stacked(self.given_columns(X.table[X.first], "group_covariates"))
        of_group = _sds(H)
        far = (F.mean(0).abs() / scales[0]).sum()
        one, unit = y.new_ones(1), WEAK * spread
        random = unit / torch.cat([one, scales[1]])
        if self.fixed_scale is None:
            intercept = (WEAK * (centre + spread * (1 + far))).reshape(1)
            model.fixed_scale = torch.cat([intercept, unit / scales[0]]).cpu().numpy()
        if self.random_scale is None:
            model.random_scale = random.cpu().numpy()
        if self.noise_scale is None:
            model.noise_scale = float(unit)
        model.group_scale_ = (random[:, None] / of_group).cpu().numpy()
        return model

    def _pseudo(self, X):
        """Return responses on the scale of eta, and which are observed."""
        y = self.explained(X)[:, 0]
        seen = ~y.isnan() & (X.weights > 0)
        y = torch.where(seen, y, y[seen][:1] if bool(seen.any()) else torch.zeros_like(y[:1]))
        if self.names_columns("trials"):
            trials = self.given_columns(X, "trials")[:, 0]
            return torch.log((y + 0.5) / (trials - y + 0.5)), seen
        return self.cell.pseudo(y), seen

    def global_prior(self, n_features):
        k, q = self.n_latents(1), self._n_given("group_covariates")
        prior = {"random_sd": positive_prior(self.random_scale, (k,))}
        if self._n_correlations:
            prior["correlation"] = LKJ(k, 2.0)
        if self.cell.has_variance:
            prior["noise_sd"] = positive_prior(self.noise_scale, ())
        if self.likelihood == "student_t":
            prior["degrees_of_freedom"] = Gamma(2.0, 0.1)
        if self.likelihood == "negative_binomial":
            prior["dispersion"] = Exponential(1.0)
        fixed = 1.0 if self.fixed_scale is None else self.fixed_scale
        prior["fixed"] = scale_prior(fixed, (1 + self._n_given("fixed"),))
        if q:
            scale = 1.0 if self.group_scale_ is None else self.group_scale_
            prior["group_coefficients"] = scale_prior(scale, (k, q))
        return prior

    @property
    def _n_correlations(self):
        k = self.n_latents(1)
        return k * (k - 1) // 2 if self.correlated else 0

    @over_ranks
    def initial_globals(self, X, weights):
        """Return pooled least squares on the scale of eta, and a share of what is left."""
        X = GroupedRows.of(X)
        y, seen = self._pseudo(X)
        F, R = (stacked(each) for each in self._designs(X.table))
        y, w = stacked(y), stacked((X.weights * seen)[:, None])
        ridge = _RIDGE * torch.diag((w * F**2).sum(0).clamp_min(1e-12))
        beta = torch.linalg.solve((w * F).mT @ F + ridge, (w * F).mT @ y)
        left = (w[:, 0] * (y - F @ beta) ** 2).sum() / w.sum()
        sd = left.sqrt().clamp_min(1e-6)
        found = {"random_sd": 0.5 * sd / (R**2).mean(0).sqrt().clamp_min(1e-8), "fixed": beta}
        k = self.n_latents(1)
        known = {
            "correlation": torch.eye(k).to(beta),
            "noise_sd": 0.8 * sd,
            "degrees_of_freedom": beta.new_tensor(5.0),
            "dispersion": beta.new_tensor(0.3),
            "group_coefficients": beta.new_zeros(k, self._n_given("group_covariates")),
        }
        return found | {name: known[name] for name in self.global_prior(1) if name not in found}

    def first_form(self):
        """Return which effects are centred first: a fit then takes half as many steps."""
        return () if self.centred is not None else (True,) * self.n_latents(1)

    def in_form(self, chosen):
        if not chosen:
            return self
        return self.with_arguments({"centred": chosen[0] if len(set(chosen)) == 1 else chosen})

    # --- designs --------------------------------------------------------------------------------

    def _designs(self, table):
        """Return (1, fixed) and (1, random) of rows."""
        return self._with_ones(*(self.given_columns(table, role) for role in ("fixed", "random")))

    def _with_ones(self, fixed, random):
        one = fixed.new_ones(len(fixed), 1)
        return torch.cat([one, fixed], 1), torch.cat([one, random], 1)

    def _centring(self, like):
        """Return which effects are centred, and which fixed effects are the means of these."""
        k = self.n_latents(1)
        given = False if self.centred is None else self.centred
        centred = torch.as_tensor(np.broadcast_to(np.asarray(given), (k,)).copy()).to(like)
        fixed, random = (["", *self.columns_.labels(role)] for role in ("fixed", "random"))
        same = torch.tensor([[one == other for other in fixed] for one in random]).to(like)
        return centred, centred[:, None] * same


def _sds(columns: Tensor) -> Tensor:
    """Return the sds of columns, at least 1e-8 and 1 for a single row."""
    if len(columns) < 2:
        return columns.new_ones(columns.shape[1])
    away = columns - columns.mean(0)
    return (away**2).mean(0).sqrt().clamp_min(1e-8)


def positive_prior(value, shape: tuple[int, ...]) -> Distribution:
    """Return the prior of positive numbers that an argument stands for: half-normal of a scale."""
    if isinstance(value, Flat):
        return Flat(shape, constraints.positive)
    if isinstance(value, Distribution):
        return value.expand(torch.Size(shape))
    scale = torch.as_tensor(1.0 if value is None else value)
    return HalfNormal(scale.expand(torch.Size(shape)))
