"""Planted bugs of numbers: each a change of one line, and the test that must fail on it.

The entries before "Neighbours" once left every test green. `test_mutants.py` plants others.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """A line of skavi that is changed, and a test that sees it.

    Attributes
    ----------
    file : str
        Below skavi/.
    right, wrong : str
        The code, which the file has once, and what is put in its place.
    test : str
        Below tests/.
    """

    file: str
    right: str
    wrong: str
    test: str


_PRIORS = "models/test_models.py::test_priors_are_those_stated"
_GAP = "diagnostics/test_gap.py::"
_RATES = "models/test_cellwise.py::test_rates_are_the_exposure_times_exp_eta"
_STREAM = "_estimators/test_partial_fit.py::"
_FINAL = "_fit/test_final_elbo.py::test_the_standard_error_is_that_of_the_mean_of_the_evaluations"
_STAND = (
    "solvers/test_newton.py::test_a_fit_that_cannot_move_has_not_converged_far_from_the_optimum"
)

BUGS = {
    "Student t: rate of the degrees of freedom .01 for .1": Bug(
        "models/_likelihoods.py",
        "Gamma(torch.tensor(2.0), torch.tensor(0.1))",
        "Gamma(torch.tensor(2.0), torch.tensor(0.01))",
        _PRIORS,
    ),
    "negative binomial: rate of the dispersion 2 for 1": Bug(
        "models/_likelihoods.py",
        "Exponential(torch.ones(shape))",
        "Exponential(2 * torch.ones(shape))",
        _PRIORS,
    ),
    "exposure ignored where loadings are integrated out": Bug(
        "models/_poisson_closed_forms.py",
        "fit = ((x @ mean) * design).sum(-1) + (x * counts.log_exposure).sum(-1)",
        "fit = ((x @ mean) * design).sum(-1)",
        "models/test_cellwise.py::test_scores_of_counts_with_everything_linear_integrated_out",
    ),
    "exposure ignored in replicated rows": Bug(
        "models/_cellwise.py",
        "self.cell.distribution(*self._seen(theta, z, X)).sample()",
        "self.observation(z, theta).sample()",
        _RATES,
    ),
    "priors of equal loc merged whatever their scale": Bug(
        "models/_global_space.py",
        "(one.loc == other.loc) & (one.scale == other.scale)",
        "one.loc == other.loc",
        "test_distributions.py::test_normal_priors_side_by_side_keep_their_own_loc_and_scale",
    ),
    "weight_scale ignored for biases": Bug(
        "models/_decoder.py",
        "Normal(torch.zeros(n_out), scale)",
        "Normal(torch.zeros(n_out), 1.0)",
        _PRIORS,
    ),
    "importance bound with log n where fewer draws count": Bug(
        "posterior/_predictive.py",
        "math.log(2 * max(n_draws // 2, 1))",
        "math.log(n_draws)",
        "models/test_likelihoods.py::test_many_latents_have_the_importance_weighted_bound",
    ),
    "standard error over n for n - 1": Bug(
        "_fit/final_elbo.py", "(len(values) - 1)", "len(values)", _FINAL
    ),
    "gap: rows not also solved at the amortized theta": Bug(
        "diagnostics/gap.py",
        "for fit in fits), replace(start, raw=solved)]",
        "for fit in fits)]",
        _GAP + "test_rows_solved_at_the_amortized_globals_stand_in_for_a_worse_fit",
    ),
    "gap: the worst of the factorized fits": Bug(
        "diagnostics/gap.py",
        ".mean(0).argmax()",
        ".mean(0).argmin()",
        _GAP + "test_a_fit_that_moves_the_globals_is_the_better_one",
    ),
    "gap: standard error without the root of n": Bug(
        "diagnostics/gap.py",
        "np.std(difference, ddof=1) / math.sqrt(len(rules))",
        "np.std(difference, ddof=1)",
        _GAP + "test_the_standard_error_is_that_of_the_mean_over_eight_scramblings",
    ),
    "weights ignored in minibatches": Bug(
        "solvers/_minibatches.py",
        "weights = batch.scale * weights[batch.lead :]",
        "weights = batch.scale * weights[batch.lead :] ** 0",
        "solvers/test_adam.py::test_minibatches_weigh_rows",
    ),
    "representatives' weights not scaled up": Bug(
        "_data/rows.py",
        "few.weights * self.total_weight / max(float(few.weights.sum()), 1e-300)",
        "few.weights",
        "_data/test_rows.py::test_representatives_weigh_as_much_as_all_and_each_by_its_own_weight",
    ),
    "coordinate ascent stops at one small gain": Bug(
        "solvers/_coordinate_ascent.py",
        "finished=calm >= (2 if self.tol > _COARSE and not newton else 1)",
        "finished=calm >= 1",
        "solvers/test_coordinate_ascent.py::test_one_small_gain_is_not_the_end",
    ),
    "Newton converged 10,000 times too far where it cannot move": Bug(
        "solvers/_newton.py", "_AT_A_STAND = 10\n", "_AT_A_STAND = 10_000\n", _STAND
    ),
    "Adam stops at 20 standard errors for 2": Bug(
        "solvers/_adam.py",
        "noise = 2 * math.sqrt",
        "noise = 20 * math.sqrt",
        "solvers/test_adam.py::test_adam_stops_where_a_window_does_not_rise_by_two_standard_errors",
    ),
    "rows' problems converged at 1e-3": Bug(
        "_fit/fitted_model.py",
        "_TOL = 1e-9\n",
        "_TOL = 1e-3\n",
        "_fit/test_fitted_model.py::test_rows_are_solved_beyond_the_fits_own_tolerance",
    ),
    "Adam averages its last stage by 1 / (n + 1)": Bug(
        "solvers/_adam.py",
        "torch.lerp(*pair, 1 / n)",
        "torch.lerp(*pair, 1 / (n + 1))",
        "solvers/test_adam.py::test_iterates_of_the_last_stage_are_averaged",
    ),
    # Neighbours.
    "model: an effect's mean and its sd taken as independent": Bug(
        "models/_random_effects.py",
        "of_theta = spread + 2 * covariance * z",
        "of_theta = spread + 0 * covariance * z",
        "models/test_random_effects.py::test_effects_of_the_noncentred_form_have_the_moments_of_q",
    ),
    "model: a covariate's scale of coefficients in its variance": Bug(
        "models/_random_effects.py",
        "WEAK * estimate.std(correction=0) / known.std(0, correction=0)",
        "WEAK * estimate.std(correction=0) / known.var(0, correction=0)",
        "models/test_random_effects.py::test_coefficients_have_a_scale_of_sds_of_their_own_columns",
    ),
    "model: documents' weights ignored where topics' losses are compared": Bug(
        "models/_sought_topics.py",
        "cells, shares = self.weights[X.row] * X.values, shares[X.row]",
        "cells, shares = X.values, shares[X.row]",
        "models/test_topic_start.py::test_losses_of_merges_are_those_at_unchanged_proportions",
    ),
    "objective: series cut one row late in the forward algorithm": Bug(
        "objective/_chain_integrals.py",
        "log_sum(steps[i:j]) for i, j",
        "log_sum(steps[i + 1 : j]) for i, j",
        "objective/test_chain_integrals.py",
    ),
    "solver: coordinate ascent puts a falling step in": Bug(
        "solvers/_coordinate_ascent.py",
        "new >= value - _MAY_LOSE * abs(value)",
        "new >= value - 1e-3 * abs(value)",
        "models/test_models.py::test_coordinate_ascent_never_lowers_the_elbo",
    ),
    "solver: pieces of a series not scaled up": Bug(
        "_data/coupling.py",
        "min(first + size, n_rows)), lead, float(n_pieces)",
        "min(first + size, n_rows)), lead, 1.0",
        "solvers/test_solvers.py::test_pieces_of_a_series_add_up_to_its_elbo",
    ),
    "diagnostics: the series' rows share a gain once": Bug(
        "_data/coupling.py",
        "return padded[index] + padded[index + 1]",
        "return padded[index]",
        _GAP + "test_a_rows_gain_is_that_of_its_factor_alone",
    ),
    "diagnostics: linear response by the sds' rows": Bug(
        "diagnostics/response.py",
        "response.of_rows()[:, :k, :k]",
        "response.of_rows()[:, -k:, -k:]",
        "diagnostics/test_response.py",
    ),
    "correction: sds on the model's scale at slopes of one": Bug(
        "posterior/_correction.py",
        "variance = ((J @ covariance) * J).sum(1)",
        "variance = ((J @ covariance) * J.sign()).sum(1)",
        "posterior/test_correction.py",
    ),
    "streaming: errors of calls added up": Bug(
        "_estimators/partial_fit.py",
        "math.hypot(se, self.elbo_se_)",
        "se + self.elbo_se_",
        _STREAM + "test_errors_of_all_calls_add_up_in_squares",
    ),
    "streaming: a call's curve begins at zero": Bug(
        "_estimators/partial_fit.py",
        'new["elbo_curve_"] += self.elbo_\n',
        'new["elbo_curve_"] += 0.0\n',
        _STREAM + "test_the_curve_of_a_call_goes_on_from_the_elbo_of_those_before",
    ),
    "callbacks: every value is a gain, however small": Bug(
        "callbacks/_early_stopping.py",
        "if value > self.last_gain + min_delta:",
        "if value > self.last_gain:",
        "callbacks/test_callbacks.py::test_a_gain_is_more_than_min_delta_above_the_last_one",
    ),
    "callbacks: the best iterate is not put back": Bug(
        "callbacks/_early_stopping.py",
        "if not last >= watch.best_value - _ROUNDING * abs(watch.best_value):",
        "if last > watch.best_value:",
        "callbacks/test_callbacks.py::test_early_stopping_restores_the_best_held_out_iterate",
    ),
    "distributed: a rank's first row counted with its own rows": Bug(
        "_data/process_ranks.py",
        "self.first = sum(self.counts[: self.rank])",
        "self.first = sum(self.counts[: self.rank + 1])",
        "distributed/test_distributed.py::test_ranks_with_uneven_shards_find_what_one_process_does",
    ),
}
