"""Models to subclass and models to use: one latent vector a row."""

from skavi.models._base import HierarchicalModel, LatentVariableModel
from skavi.models._conditional import ConditionalModel
from skavi.models._decoder import BayesianDecoder
from skavi.models._factor_analysis import FactorAnalysis
from skavi.models._gaussian_process import GaussianProcess
from skavi.models._grouped import GroupedModel
from skavi.models._hidden_markov import HiddenMarkovModel
from skavi.models._local_level import LocalLevel
from skavi.models._mixed_effects import MixedEffects
from skavi.models._mixture import MixtureModel
from skavi.models._one_column import LinearModel, NonlinearModel
from skavi.models._random_effects import RandomEffects
from skavi.models._time_series import (
    CouplingBiasWarning,
    MarkovModel,
    SawTimeSeries,
    TimeSeriesModel,
)
from skavi.models._topic import TopicModel
from skavi.models._warnings import PriorConflictWarning, UnusedLatentsWarning

__all__ = [
    "BayesianDecoder",
    "ConditionalModel",
    "CouplingBiasWarning",
    "FactorAnalysis",
    "GaussianProcess",
    "GroupedModel",
    "HiddenMarkovModel",
    "HierarchicalModel",
    "LatentVariableModel",
    "LinearModel",
    "LocalLevel",
    "MarkovModel",
    "MixedEffects",
    "MixtureModel",
    "NonlinearModel",
    "PriorConflictWarning",
    "RandomEffects",
    "SawTimeSeries",
    "TimeSeriesModel",
    "TopicModel",
    "UnusedLatentsWarning",
]
