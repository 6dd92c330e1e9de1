"""benchmarks/specialists.py: the evaluator against closed forms, and what its tables hold."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, nbinom, norm, t

from benchmarks import specialists
from benchmarks.specialist_runs import evaluation
from benchmarks.specialist_runs.contest import Contestant, Job, Run, hold, ratios
from skavi.families import DiagonalFactors, DiagonalNormal, PointFactors
from skavi.models import FactorAnalysis

RNG = np.random.default_rng(0)
LOADINGS, CENTRE = RNG.normal(size=(3, 1)), RNG.normal(size=3)


def by_quadrature(log_kernel, X):
    """Nats a row, by a sum over a fine grid of the one latent."""
    z = np.linspace(-10, 10, 4001)
    eta = z[:, None] * LOADINGS[:, 0] + CENTRE
    return np.mean(
        [
            math.log(np.exp(norm.logpdf(z) + log_kernel(x, eta).sum(1)).sum() * (z[1] - z[0]))
            for x in X
        ]
    )


def test_normal_rows_get_their_density_with_cells_missing():
    X, W, variance = RNG.normal(size=(20, 3)), RNG.normal(size=(3, 2)), np.array([0.5, 1.0, 2.0])
    X[:10, 0] = np.nan
    covariance = W @ W.T + np.diag(variance)
    exact = [
        multivariate_normal(CENTRE[there], covariance[np.ix_(there, there)]).logpdf(x[there])
        for x, there in ((x, ~np.isnan(x)) for x in X)
    ]
    # A proposal wider than the posterior: 1,000 draws leave a hundredth of a nat in 20 rows.
    assert evaluation.numbers(X, W, CENTRE, variance) == pytest.approx(np.mean(exact), abs=0.03)


def test_answers_and_counts_agree_with_quadrature():
    answers = (RNG.random((30, 3)) < 0.5).astype(float)
    counts = RNG.poisson(3.0, (30, 3)).astype(float)
    softplus = np.logaddexp
    found = evaluation.answers(answers, LOADINGS, CENTRE)
    exact = by_quadrature(lambda x, eta: x * eta - softplus(0, eta), answers)
    assert found == pytest.approx(exact, abs=0.03)
    found = evaluation.counts(counts, LOADINGS, CENTRE)
    factorials = np.vectorize(math.lgamma)(counts + 1).sum(1).mean()
    exact = by_quadrature(lambda x, eta: x * eta - np.exp(eta), counts) - factorials
    assert found == pytest.approx(exact, abs=0.03)


def test_overdispersed_counts_agree_with_quadrature():
    """Each column has a dispersion of its own; scipy's density has n = 1 / a, p = 1 / (1 + a m)."""
    counts, a = RNG.negative_binomial(2, 0.3, (30, 3)).astype(float), np.array([0.1, 0.5, 2.0])
    found = evaluation.overdispersed(counts, LOADINGS, CENTRE, a)

    def log_kernel(x, eta):
        return nbinom.logpmf(x, 1 / a, 1 / (1 + a * np.exp(eta)))

    assert found == pytest.approx(by_quadrature(log_kernel, counts), abs=0.03)


def test_own_factors_agree_with_quadrature():
    """A proposal that is not the posterior: the prior."""
    X = RNG.normal(size=(30, 3))
    x, W, centre = (torch.as_tensor(each) for each in (X, LOADINGS, CENTRE))

    def log_joint(z):
        cells = torch.distributions.StudentT(4.0, z @ W.mT + centre).log_prob(x)
        return cells.sum(-1) + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)

    found = evaluation.own_factors(log_joint, np.zeros((30, 1)), np.ones((30, 1)))
    exact = by_quadrature(lambda x, eta: t.logpdf(x, 4.0, eta), X)
    assert found == pytest.approx(exact, abs=0.03)


def test_terms_of_counted_rows_are_the_best_bounds():
    """As `FactorAnalysis` finds them by Newton's method of its own; below the marginal density."""
    rng = np.random.default_rng(0)
    X, W, centre = rng.poisson(3.0, (30, 3)).astype(float), rng.normal(size=(3, 2)), np.zeros(3)
    found = evaluation.row_terms(X, W, centre)
    model = FactorAnalysis(2, likelihood="poisson", exposure="unit", mean_loc=0.0)
    rows = torch.as_tensor(X)
    model = model.adapted(rows, torch.ones(30).double())
    theta = torch.cat([torch.as_tensor(W).reshape(-1), torch.as_tensor(centre)])
    q_theta, family = PointFactors(theta, torch.zeros_like(theta)), DiagonalNormal()
    start = DiagonalFactors(torch.zeros(30, 2).double(), torch.ones(30, 2).double())
    best = model.nearest_locals(q_theta, rows, family, start)
    terms = model.expected_log_local(best, q_theta, rows) + best.entropy()
    assert found == pytest.approx(float(terms.mean()), abs=1e-6)
    assert found < evaluation.counts(X, W, centre)


def test_everyone_fits_in_turn_and_failures_stop_nobody():
    asked = []

    def fit(name):
        def fitted():
            asked.append(name)
            print("what a specialist says is not shown")
            if name == "broken":
                raise ValueError("no such luck")
            return 2.0

        return fitted

    everyone = [
        Contestant("ours", fit("ours"), lambda v: v, lambda v: v, ours=True),
        Contestant("broken", fit("broken"), lambda v: v),
        Contestant("theirs", fit("theirs"), lambda v: v),
    ]
    ours, broken, theirs, absent = hold(Job("job", "a number", True, everyone, ["girth"]), 2)
    assert asked == ["ours", "broken", "theirs", "ours", "theirs", "ours", "theirs"]
    assert (ours.value, theirs.value, theirs.transform_seconds) == (2.0, 2.0, None)
    assert ours.fit_seconds >= 0 and ours.transform_seconds >= 0 and ours.n_lines == 5
    assert broken.value is None and broken.remark == "ValueError: no such luck"
    assert absent.remark == "not installed"


def test_ratios_are_of_the_fastest_on_either_side():
    runs = [
        Run("a", "one", True, 0.0, 4.0, 3.0, None, 1),
        Run("a", "two", True, 0.0, 6.0, 9.0, None, 1),
        Run("a", "rival", False, 0.0, 2.0, 1.0, None, 1),
        Run("b", "one", True, 0.0, 4.0, 3.0, None, 1),
    ]
    assert ratios(runs) == {"a": [2.0, 3.0]}


def test_a_job_is_written_and_a_missing_specialist_named(tmp_path, monkeypatch, capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'girth'", name="girth")

    monkeypatch.setitem(specialists.JOBS, "answers", (missing, "girth"))
    threads = torch.get_num_threads()
    specialists.main(["holes", "answers", "--quick", "--write", str(tmp_path)])
    torch.set_num_threads(threads)
    written = json.loads((tmp_path / "specialists.json").read_text())
    ours, rival, absent = written["runs"]
    assert ours["value"] < rival["value"] < 1.1  # sds: better than filling in the mean
    assert absent["remark"] == "not installed" and absent["fit_seconds"] is None
    assert (tmp_path / "specialists_seconds.png").stat().st_size > 1000
    assert "girth is not installed" in capsys.readouterr().out


def test_unknown_jobs_are_refused(capsys):
    with pytest.raises(SystemExit):
        specialists.main(["knitting"])
    assert "unknown jobs ['knitting']" in capsys.readouterr().err
