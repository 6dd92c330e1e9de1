"""The emissions of states by the names of their likelihood and covariance."""

from collections.abc import Callable
from functools import partial
from typing import Any

from skavi._data.column_kinds import Kind
from skavi.models._emissions import (
    BernoulliEmissions,
    Emissions,
    NormalEmissions,
    PoissonEmissions,
)
from skavi.models._emissions_dense import DenseNormalEmissions, TiedNormalEmissions
from skavi.models._emissions_noisy import NegativeBinomialEmissions, StudentTEmissions
from skavi.models._mixed_emissions import MixedEmissions

EMISSIONS: dict[str, type[Emissions]] = {
    each.likelihood: each
    for each in (
        NormalEmissions,
        StudentTEmissions,
        BernoulliEmissions,
        PoissonEmissions,
        NegativeBinomialEmissions,
    )
}
#: Of normal cells.
COVARIANCES: dict[str, type[Emissions]] = {
    "diagonal": NormalEmissions,
    "tied": TiedNormalEmissions,
    "full": DenseNormalEmissions,
}


def emissions_of(
    likelihood: Any, covariance: str, kinds: tuple[Kind, ...]
) -> Callable[..., Emissions]:
    """Return what makes emissions; a covariance is that of normal cells, kinds are of columns."""
    if kinds:
        return partial(MixedEmissions, kinds)
    return COVARIANCES[covariance] if likelihood == "normal" else EMISSIONS[likelihood]
