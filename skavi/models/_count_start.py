"""Log rates that counts suggest, each beside its column's regression, for a start.

The log of a count tells little where it is 0, as most are in some tables. Here column d has mean
mu_nd, log-linear in what is known of the row, and variance mu + phi mu^2, as log-normal rates have
(quasi-likelihood: Wedderburn 1974); and a cell's log rate is log mu_nd + e, where e is the mode
under e ~ N(0, log(1 + phi)) of a Poisson count with that rate.
"""

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import total

#: Steps of the regression, and of the cells' modes: a start need not be at rest.
_REGRESSION_STEPS, _MODE_STEPS = 4, 6
#: Longest steps in log rates: exp is far from its tangent beyond.
_LONGEST, _LONGEST_MODE = 1.0, 2.0
#: Of phi: columns that vary less, or more, than that are taken as these.
_LEAST, _MOST = 0.05, 20.0


def suggested_log_rates(
    cells: Cells,
    weights: Tensor,
    known: Tensor,
    shift: Tensor,
    loc: Tensor,
    precision: Tensor,
) -> tuple[Cells, Tensor]:
    """Return log rates at `known` = (0, .., 0, 1) that the cells suggest, and the coefficients.

    Parameters
    ----------
    cells : Cells
        Counts.
    weights : Tensor of shape (n_rows,)
    known : Tensor of shape (n_rows, q)
        What is known of a row, and 1 for the mean.
    shift : Tensor of shape (n_rows, 1) or (n_rows, n_columns)
        Added to log rates: exposure and offset.
    loc, precision : Tensor of shape (n_columns, q)
        Prior of the coefficients, where they start from.

    Returns
    -------
    suggested : Cells
    coefficients : Tensor of shape (n_columns, q)
    """
    x, weighted = cells.values, cells.masked(weights.unsqueeze(-1).expand_as(cells.values))
    squares = (known.unsqueeze(-1) * known.unsqueeze(-2)).flatten(1)
    coefficients, phi = loc.clone(), x.new_ones(x.shape[1])
    for _ in range(_REGRESSION_STEPS):
        rates = (known @ coefficients.mT + shift).exp()
        quasi = weighted / (1 + phi * rates)
        slope = total((quasi * (x - rates)).mT @ known) - precision * (coefficients - loc)
        bent = total((quasi * rates).mT @ squares).unflatten(-1, known.shape[1:] * 2)
        bent = bent + torch.diag_embed(precision)
        step = torch.linalg.solve(bent, slope.unsqueeze(-1)).squeeze(-1)
        longest = step.abs().amax(-1, keepdim=True)
        coefficients = coefficients + step * (_LONGEST / longest.clamp_min(_LONGEST))
        rates = (known @ coefficients.mT + shift).exp()
        spread = total((weighted * ((x - rates) ** 2 - x)).sum(0))
        phi = (spread / total((weighted * rates**2).sum(0))).nan_to_num(1.0).clamp(_LEAST, _MOST)
    tight, e = 1 / phi.log1p(), torch.zeros_like(x)
    for _ in range(_MODE_STEPS):
        now = rates * e.exp()
        step = (x - now - tight * e) / (now + tight)
        e = e + step.clamp(-_LONGEST_MODE, _LONGEST_MODE)
    return Cells(cells.masked(e + coefficients[:, -1]), cells.observed), coefficients
