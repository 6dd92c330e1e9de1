"""The components and sizes on which the choice of a solver depends."""

from dataclasses import dataclass
from typing import Any

#: Globals up to which Newton is chosen: each of the two parameters of q is one backward pass a
#: step. Not measured.
_MAX_NEWTON_GLOBALS = 40
#: Parameters of q(theta) up to which Newton is chosen where the model knows all derivatives: the
#: corner is 50 MB. 300 x 100 overdispersed counts with five components (1,202) take 21 s, by L-BFGS
#: 66; with ten (2,402) 131 and 185.
_MAX_KNOWN_PARAMETERS = 2500
#: Numbers of the border then: 800 MB, of which a step holds four copies. 100,000 rows of 20 columns
#: and two latents hold 48 million (1.7 to 2.5 GB in all); L-BFGS takes as much, and many steps.
_MAX_BORDER = 100_000_000
#: Latents a row up to which Newton is chosen: each adds two backward passes, and a row's block
#: has (2 x latents) ** 2 numbers. Not measured.
_MAX_NEWTON_LATENTS = 10
#: Unknowns of one dense system of all rows: one backward pass a step for each. Not measured.
FEW_UNKNOWNS = 600


@dataclass(frozen=True)
class Setting:
    """A problem's components and sizes.

    Attributes
    ----------
    objective : Objective
    function : InferenceFunction
    noise : Noise
    n_rows : int
        Of all ranks.
    n_parameters : int
        Of the function, 0 for a table.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import DiagonalNormal
    >>> from skavi.inference_functions import Table
    >>> from skavi.models import LinearModel
    >>> from skavi.noise import ClosedForm
    >>> from skavi.objective import bind
    >>> from skavi.solvers import Setting
    >>> objective = bind(LinearModel(), DiagonalNormal(), DiagonalNormal(), torch.zeros(1, 1))
    >>> Setting(objective, Table(), ClosedForm(), n_rows=100).n_unknowns  # means and log sds
    202
    """

    objective: Any
    function: Any
    noise: Any
    n_rows: int
    n_parameters: int = 0

    @property
    def coupling(self):
        """How the model couples its rows."""
        return self.objective.coupling_under(self.function)

    @property
    def n_outputs(self) -> int:
        """Count the numbers that describe the factors of all rows."""
        return self.n_rows * self.objective.n_outputs

    @property
    def n_unknowns(self) -> int:
        """Count the parameters of all factors in factorized VI."""
        objective = self.objective
        return self.n_outputs + objective.global_family.n_parameters(objective.space.size)

    @property
    def few_unknowns(self) -> bool:
        """Whether one dense matrix of all factors' parameters is small enough."""
        return self.n_unknowns <= FEW_UNKNOWNS

    @property
    def small(self) -> bool:
        """Whether a row's block and the border of globals are small."""
        objective = self.objective
        n_global = objective.global_family.n_parameters(objective.space.size)
        few = n_global <= 2 * _MAX_NEWTON_GLOBALS
        if objective.knows_row_derivatives and self.noise.deterministic:
            few = n_global <= _MAX_KNOWN_PARAMETERS and self.n_outputs * n_global <= _MAX_BORDER
        return few and objective.n_latents <= _MAX_NEWTON_LATENTS
