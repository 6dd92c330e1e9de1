"""The order of the gallery: what people come for first."""

from pathlib import Path

ORDER = {
    "tables": [
        "plot_imputation",
        "plot_map",
        "plot_loadings",
        "plot_mixture",
        "plot_counts",
        "plot_survey",
        "plot_covariates",
        "plot_predictive_check",
    ],
    "groups_and_series": [
        "plot_groups",
        "plot_random_effects",
        "plot_topics",
        "plot_level",
        "plot_regimes",
        "plot_volatility",
    ],
    "networks": ["plot_decoder", "plot_where_the_nats_go", "plot_calibration"],
    "paper": ["plot_linear", "plot_nonlinear", "plot_saw"],
}


def section(path):
    """Return the place of a section, by its folder; the gallery itself comes first."""
    name = Path(path).name
    return list(ORDER).index(name) if name in ORDER else -1


class Example:
    """The place of an example among those of its section, by its file."""

    def __init__(self, folder):
        self.names = ORDER.get(Path(folder).name, [])

    def __call__(self, file):
        return self.names.index(Path(file).stem)
