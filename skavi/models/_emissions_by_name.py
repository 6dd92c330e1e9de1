"""The emissions of states by the names of their likelihood and covariance."""

from skavi.models._emissions import (
    BernoulliEmissions,
    Emissions,
    NormalEmissions,
    PoissonEmissions,
)
from skavi.models._emissions_dense import DenseNormalEmissions, TiedNormalEmissions

EMISSIONS: dict[str, type[Emissions]] = {
    each.likelihood: each for each in (NormalEmissions, PoissonEmissions, BernoulliEmissions)
}
#: Of normal cells.
COVARIANCES: dict[str, type[Emissions]] = {
    "diagonal": NormalEmissions,
    "tied": TiedNormalEmissions,
    "full": DenseNormalEmissions,
}


def emissions_of(likelihood: str, covariance: str) -> type[Emissions]:
    """Return the class of emissions; a covariance is that of normal cells."""
    return COVARIANCES[covariance] if likelihood == "normal" else EMISSIONS[likelihood]
