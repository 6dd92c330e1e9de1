"""Every public function, method and property of skavi: which guard it has, and one call of each.

`members` finds them by themselves, so that a new one cannot be forgotten; `CALLS` has a call for
each, which a forked child must answer with a result or a `LostThreadsError` and never hang.
"""

import copy
import importlib
import inspect
import pickle
import pkgutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.base import clone
from torch.distributions import Gamma, Poisson

import skavi
from skavi import AmortizedVI, FactorizedVI
from skavi._platform.forks_and_threads import LostThreadsError
from skavi.inference_functions import Polynomial
from skavi.models import (
    FactorAnalysis,
    HierarchicalModel,
    LinearModel,
    LocalLevel,
    MixedEffects,
    MixtureModel,
    TopicModel,
)

#: Public names that need no guard, and why. A name may stand for all members of a class.
EXEMPT = {
    "skavi.callbacks": "called by a fit, which is guarded",
    "skavi.closability.GapEvidence": "plain values",
    "skavi.closability.GapVerdict": "plain values",
    "skavi.diagnostics.AmortizationGap": "numpy alone",
    "skavi.diagnostics.Calibration": "numpy alone",
    "skavi.diagnostics.InferenceGap": "numpy alone",
    "skavi.diagnostics.LinearResponse": "numpy alone",
    "skavi.diagnostics.PSISKHat": "numpy alone",
    "skavi.diagnostics.ReweightedPosterior": "numpy alone",
    "skavi.diagnostics.held_out_perplexity": "numpy alone",
    "skavi.distributed.over_ranks": "marks methods of models, which take tensors",
    "skavi.distributed.total": "takes a tensor",
    "skavi.families": "takes tensors",
    "skavi.inference_functions": "takes tensors",
    "skavi.models": "takes tensors, or a guarded posterior",
    "skavi.objective": "called by a fit, or with tensors",
    "skavi.posterior.StatePosterior": "numpy alone",
    "skavi.show_versions": "it reads names and counts",
    "skavi.noise": "called by a fit, or with torch's generators",
    "skavi.solvers": "called by a fit",
}
#: Of scikit-learn, inherited: they call guarded methods, or no torch.
INHERITED = ("fit_transform", "get_params", "set_params", "set_output", "set_callbacks")
MODULES = (
    "skavi",
    *(
        f"skavi.{m.name}"
        for m in pkgutil.iter_modules(skavi.__path__)
        if not m.name.startswith("_")
    ),
)


def members() -> Iterator[tuple[str, Any]]:
    """Yield the name of each public function, method and property, and what it is."""
    seen = set()
    for module in MODULES:
        public = importlib.import_module(module)
        for name in getattr(public, "__all__", ()):
            value, where = getattr(public, name), f"{module}.{name}"
            is_ours = getattr(value, "__module__", "").startswith("skavi")
            if not is_ours or id(value) in seen:
                continue
            seen.add(id(value))
            if inspect.isfunction(value):
                yield where, value
            elif isinstance(value, type) and not issubclass(value, Exception | Warning):
                yield from _members_of(value, where)


def _members_of(cls, where):
    for name in dir(cls):
        owner = next(c for c in cls.__mro__ if name in vars(c))
        if name.startswith("_") or not owner.__module__.startswith("skavi"):
            continue
        member = inspect.getattr_static(cls, name)
        member = getattr(member, "__func__", member)  # of a class method
        member = getattr(member, "fn", member)  # of scikit-learn's available_if
        if inspect.isfunction(member) or hasattr(member, "__get__"):
            yield f"{where}.{name}", member


def is_exempt(where: str, value) -> bool:
    """Say whether a name needs no guard."""
    parts = where.split(".")
    return (
        where.endswith("_request")  # scikit-learn's, of metadata
        or any(".".join(parts[:n]) in EXEMPT for n in range(len(parts) + 1))
    )


class Rates(HierarchicalModel):
    """A positive latent a row."""

    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Gamma(2.0, 1.0)

    def likelihood(self, z, theta):
        return Poisson(z)


# --- calls --------------------------------------------------------------------------------------


def make_fits() -> SimpleNamespace:
    """Return fitted estimators, posteriors and rows, to call things on."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 3)) @ np.ones((3, 8)) + rng.normal(size=(20_000, 8))
    few, counts = X[:40], rng.poisson(2.0, size=(30, 6)).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factorized = FactorizedVI(FactorAnalysis(2), random_state=0).fit(few)
        amortized = AmortizedVI(FactorAnalysis(2), Polynomial(1), random_state=0).fit(few)
        simple = FactorizedVI(FactorAnalysis(1), max_iter=3).fit(few[:, :2])
        imputer = skavi.Imputer(FactorAnalysis(1)).fit(few)
        level = LocalLevel(1.0, 1.0)
        levels = {
            "FactorizedVI": FactorizedVI(level).fit(few[:, :1]),
            "AmortizedVI": AmortizedVI(level, Polynomial(1)).fit(few[:, :1]),
        }
        mixture = MixtureModel(2)
        states = {
            "FactorizedVI": FactorizedVI(mixture, random_state=0).fit(few),
            "AmortizedVI": AmortizedVI(mixture, Polynomial(1), max_iter=3, random_state=0).fit(few),
        }
        rates = FactorizedVI(Rates()).fit(counts[:, :1])
        table = np.column_stack([few[:, 0], np.arange(len(few)) % 8])
        grouped = FactorizedVI(MixedEffects(centred=True)).fit(table)
        topics = FactorizedVI(TopicModel(2), max_iter=3, n_init=1, random_state=0).fit(counts)
    fits = SimpleNamespace(
        X=X,
        few=few,
        simple=simple,
        levels=levels,
        states=states,
        levels_apart=FactorizedVI(LinearModel()).fit(few[:, :1]),
        counts=counts,
        skavi_FactorizedVI=factorized,
        skavi_AmortizedVI=amortized,
        skavi_Imputer=imputer,
        skavi_posterior_GlobalPosterior=factorized.global_posterior_,
        skavi_posterior_LatentPosterior=factorized.posterior(few),
        skavi_posterior_OwnScalePosterior=topics.posterior(counts),
        skavi_posterior_BijectedPosterior=rates.posterior(counts[:, :1]),
        grouped=grouped,
        topics=topics,
        table=table,
        Z=rng.normal(size=(20_000, 2)),
        path=str(Path(tempfile.mkdtemp(prefix="skavi-calls-")) / "fit.skavi"),
    )
    skavi.save(factorized, fits.path)
    return fits


def _inverse(fits, kind):
    return getattr(fits, kind).inverse_transform(fits.Z)


def _of_estimator(name: str) -> dict[str, Callable]:
    """Return a call of each member of an estimator; `name` is FactorizedVI or AmortizedVI."""
    at = f"skavi_{name}"
    calls: dict[str, Callable] = {
        "fit": lambda f: clone(getattr(f, at)).fit(f.few),
        "partial_fit": lambda f: copy.copy(getattr(f, at)).partial_fit(f.few),
        "transform": lambda f: getattr(f, at).transform(f.X),
        "posterior": lambda f: getattr(f, at).posterior(f.X),
        "score": lambda f: getattr(f, at).score(f.X),
        "score_samples": lambda f: getattr(f, at).score_samples(f.X, n_draws=4),
        "inverse_transform": lambda f: getattr(f, at).inverse_transform(f.Z),
        "impute": lambda f: getattr(f, at).impute(f.X),
        "predict": lambda f: f.states[name].predict(f.few),
        "forecast": lambda f: f.levels[name].forecast(f.few[:, :1], 5),
        "sample": lambda f: getattr(f, at).sample(20_000),
        "to_arviz": lambda f: getattr(f, at).to_arviz(f.few, n_draws=2000),
        "get_feature_names_out": lambda f: getattr(f, at).get_feature_names_out(),
        "summary": lambda f: getattr(f, at).summary(),
        "bias_note_": lambda f: getattr(f, at).bias_note_,
        "fit_transform": lambda f: clone(getattr(f, at)).fit_transform(f.few),
        "get_params": lambda f: getattr(f, at).get_params(),
        "set_params": lambda f: getattr(f, at).set_params(),
        "set_output": lambda f: clone(getattr(f, at)).set_output(transform="default"),
        "set_callbacks": lambda f: clone(getattr(f, at)).set_callbacks(),
        "__repr__": lambda f: repr(getattr(f, at)),
        "__getstate__": lambda f: pickle.dumps(getattr(f, at)),
    }
    return {f"skavi.{name}.{member}": call for member, call in calls.items()}


def _of_globals() -> dict[str, Callable]:
    at = "skavi_posterior_GlobalPosterior"
    attributes = ("mean", "sd", "size", "note", "corrected_sd", "corrected_reason")
    attributes += ("unconstrained_mean", "unconstrained_sd", "unconstrained_corrected_sd")
    calls: dict[str, Callable] = {
        name: lambda f, name=name: getattr(getattr(f, at), name) for name in attributes
    }
    calls |= {
        "sample": lambda f: getattr(f, at).sample(5000, random_state=0),
        "quantile": lambda f: getattr(f, at).quantile(np.linspace(0.01, 0.99, 5000)),
        "summary": lambda f: getattr(f, at).summary(),
        "rows": lambda f: list(getattr(f, at).rows()),
        "to_frame": lambda f: getattr(f, at).to_frame(),
        "to_arviz": lambda f: getattr(f, at).to_arviz(n_draws=2000),
        "draws": lambda f: getattr(f, at).draws(np.zeros((5000, getattr(f, at).size))),
        "draw_unconstrained": lambda f: getattr(f, at).draw_unconstrained(
            np.zeros((5000, getattr(f, at).size))
        ),
        "widest_factor": lambda f: getattr(f, at).widest_factor(),
        "__repr__": lambda f: repr(getattr(f, at)),
        "_repr_html_": lambda f: getattr(f, at)._repr_html_(),
    }
    return {f"skavi.posterior.GlobalPosterior.{name}": call for name, call in calls.items()}


def _of_latents(name: str) -> dict[str, Callable]:
    at = f"skavi_posterior_{name}"
    calls: dict[str, Callable] = {
        "sample": lambda f: getattr(f, at).sample(2000, random_state=0),
        "quantile": lambda f: getattr(f, at).quantile(0.5),
        "cdf": lambda f: getattr(f, at).cdf(getattr(f, at).mean),
        "to_frame": lambda f: getattr(f, at).to_frame(),
        "to_arviz": lambda f: getattr(f, at).to_arviz(n_draws=2000),
        "coords": lambda f: getattr(f, at).coords,
    }
    own = ["bijection"] if name == "BijectedPosterior" else []
    if own:
        calls["through"] = lambda f: type(getattr(f, at)).through(
            getattr(f, at).bijection, getattr(f, at).latents, getattr(f, at).mean, None
        )
    if name != "LatentPosterior":
        calls["logits"] = lambda f: getattr(f, at).logits
        calls["of"] = lambda f: type(getattr(f, at)).of(
            getattr(f, at).latents,
            None,
            getattr(f, at).own_scale,
            getattr(f, at).mean,
            None,
            **{each: getattr(getattr(f, at), each) for each in own},
        )
    return {f"skavi.posterior.{name}.{member}": call for member, call in calls.items()}


def _of_displays() -> dict[str, Callable]:
    from skavi import displays

    gap, curve = displays.AmortizationGapDisplay, displays.ElboCurveDisplay
    latent, function = displays.LatentPosteriorDisplay, displays.InferenceFunctionDisplay
    parts, loadings = displays.InferenceGapDisplay, displays.LoadingsDisplay
    one, other = "skavi_AmortizedVI", "skavi_FactorizedVI"
    made = {
        gap: lambda f: gap(np.ones(5)),
        curve: lambda f: curve.from_estimator(getattr(f, other)),
        latent: lambda f: latent(f.skavi_posterior_LatentPosterior),
    }
    calls: dict[str, Callable] = {
        "AmortizationGapDisplay.from_estimator": lambda f: gap.from_estimator(
            getattr(f, one), f.few
        ),
        "AmortizationGapDisplay.from_estimators": lambda f: gap.from_estimators(
            [getattr(f, one)], f.few
        ),
        "AmortizationGapDisplay.from_settings": lambda f: gap.from_settings(
            [getattr(f, one)], f.few, [1]
        ),
        "CalibrationDisplay.from_estimator": lambda f: displays.CalibrationDisplay.from_estimator(
            f.simple, 20
        ),
        "ElboCurveDisplay.from_estimator": made[curve],
        "ElboCurveDisplay.from_estimators": lambda f: curve.from_estimators([getattr(f, other)]),
        "InferenceFunctionDisplay.from_estimator": lambda f: function.from_estimator(
            getattr(f, one), f.few
        ),
        "GroupEffectsDisplay.from_estimator": (
            lambda f: displays.GroupEffectsDisplay.from_estimator(f.grouped, f.table)
        ),
        "GlobalsDisplay.from_estimator": lambda f: displays.GlobalsDisplay.from_estimator(
            getattr(f, other)
        ),
        "InferenceGapDisplay.from_estimator": lambda f: parts.from_estimator(
            getattr(f, one), f.few
        ),
        "InferenceGapDisplay.from_estimators": lambda f: parts.from_estimators(
            [getattr(f, one)], f.few
        ),
        "MixtureDisplay.from_estimator": lambda f: displays.MixtureDisplay.from_estimator(
            f.states["FactorizedVI"], f.few
        ),
        "LatentPosteriorDisplay.from_estimator": lambda f: latent.from_estimator(
            getattr(f, other), f.few
        ),
        "ImputationDisplay.from_estimator": lambda f: displays.ImputationDisplay.from_estimator(
            getattr(f, other), np.where(np.eye(40, 8, dtype=bool), np.nan, f.few)
        ),
        "LoadingsDisplay.from_estimator": lambda f: loadings.from_estimator(getattr(f, other)),
        "LoadingsDisplay.plot_biplot": lambda f: loadings(
            np.ones((2, 2)), ["a", "b"], ["f", "g"]
        ).plot_biplot(f.skavi_posterior_LatentPosterior),
        "PredictiveCheckDisplay.from_estimator": (
            lambda f: displays.PredictiveCheckDisplay.from_estimator(
                getattr(f, other), f.few, n_draws=2
            )
        ),
        "TopicWordsDisplay.from_estimator": lambda f: displays.TopicWordsDisplay.from_estimator(
            f.topics, X=f.counts
        ),
        "LatentPosteriorDisplay.plot": lambda f: made[latent](f).plot(),
        "LatentPosteriorDisplay.plot_pairs": lambda f: made[latent](f).plot_pairs(),
        "LatentPosteriorDisplay.plot_intervals": lambda f: made[latent](f).plot_intervals(),
    }
    return {f"skavi.displays.{name}": call for name, call in calls.items()}


def _of_functions() -> dict[str, Callable]:
    from skavi import diagnostics, distributed

    factorized = "skavi_FactorizedVI"
    return {
        "skavi.amortization_gap": lambda f: skavi.amortization_gap(
            f.skavi_AmortizedVI, f.few, f.skavi_FactorizedVI
        ),
        "skavi.can_close_gap": lambda f: skavi.can_close_gap(FactorAnalysis(1), f.few),
        "skavi.Imputer.fit": lambda f: skavi.Imputer(FactorAnalysis(1)).fit(f.few),
        "skavi.Imputer.transform": lambda f: f.skavi_Imputer.transform(f.X),
        "skavi.save": lambda f: skavi.save(getattr(f, factorized), f.path),
        "skavi.load": lambda f: skavi.load(f.path),
        "skavi.diagnostics.calibration": lambda f: diagnostics.calibration(
            f.simple, n_simulations=20
        ),
        "skavi.diagnostics.linear_response": lambda f: diagnostics.linear_response(
            getattr(f, factorized), f.few
        ),
        "skavi.diagnostics.psis_khat": lambda f: diagnostics.psis_khat(
            getattr(f, factorized), f.few, n_draws=200
        ),
        "skavi.diagnostics.inference_gap": lambda f: diagnostics.inference_gap(
            f.levels_apart, f.few[:, :1]
        ),
        "skavi.diagnostics.score_known_groups": lambda f: diagnostics.score_known_groups(
            f.grouped, f.table
        ),
        "skavi.diagnostics.reweighted": lambda f: diagnostics.reweighted(
            f.levels_apart, f.few[:, :1], n_draws=200
        ),
        "skavi.distributed.fit": lambda f: distributed.fit(
            clone(getattr(f, factorized)), f.few, n_workers=1
        ),
        "skavi.distributed.shard": lambda f: distributed.shard(f.few),
    }


CALLS: dict[str, Callable] = {
    **_of_estimator("FactorizedVI"),
    **_of_estimator("AmortizedVI"),
    **_of_globals(),
    **_of_latents("LatentPosterior"),
    **_of_latents("OwnScalePosterior"),
    **_of_latents("BijectedPosterior"),
    **_of_displays(),
    **_of_functions(),
}
#: Guarded, and called by others above: they draw what is already there.
DRAWN = (".plot", ".plot_histogram", ".plot_feature", ".plot_settings", ".plot_series")
DRAWN += (".from_monitor", ".from_calibration", ".from_result", ".plot_intervals")


def answers(fits=None) -> dict[str, str]:
    """Return what each call says: "works", "refuses" for lost threads, or another error."""
    fits, said = fits or make_fits(), dict[str, str]()
    for where, call in CALLS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(fits)
            said[where] = "works"
        except LostThreadsError:
            said[where] = "refuses"
        except Exception as error:
            said[where] = f"{type(error).__name__}: {error}"
    return said


def answers_of_threads(fits, n_threads: int = 2) -> dict[str, str]:
    """Return the answers of several threads that share the fits: an error of any, else "works"."""
    with ThreadPoolExecutor(n_threads) as pool:
        said = list(pool.map(answers, [fits] * n_threads))
    return {w: next((s[w] for s in said if s[w] != "works"), "works") for w in CALLS}
