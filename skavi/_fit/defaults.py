"""What is chosen when the user leaves a component at None.

======================================  ==========================  ==============================
situation                               noise                       solver
======================================  ==========================  ==============================
model knows its expectations            ClosedForm                  CoordinateAscent where offered
no latents, one linear predictor a row  LinearPredictor, refined    Newton up to 40 globals
cells of linear predictors, latents     LinearPredictor, refined    Newton up to 2,500 numbers
few latents a row and few globals       GaussHermite, refined       Newton
more of them, small data                QuasiMonteCarlo, refined    Newton up to 40 globals
Markov models, few globals              any of the above            Newton (banded)
coupled rows, up to 600 unknowns        any of the above            Newton
networks of up to 2,000 parameters      any of the above            Newton (Gauss-Newton)
larger ones, coupled rows               any of the above            LBFGS
many globals                            any of the above            LBFGS
functions with over 20,000 globals      ClosedForm                  Adam, minibatches, falling
regressed functions of summaries        ClosedForm                  the same
decoders                                MonteCarlo                  Adam, minibatches
rows x nodes beyond the budget          MonteCarlo                  Adam, minibatches
======================================  ==========================  ==============================
"""

import torch

from skavi._data.coupling import Chain as Chained
from skavi._data.coupling import Joint
from skavi._data.missing_cells import Cells
from skavi._fit.spherical_noise import RotatedSpheres
from skavi.families import Chain, Family
from skavi.inference_functions import MLP, InferenceFunction, Table
from skavi.inference_functions._linear import LinearFunction
from skavi.models import FactorAnalysis, LatentVariableModel
from skavi.noise import (
    ClosedForm,
    FixedDraws,
    GaussHermite,
    LinearPredictor,
    MonteCarlo,
    Noise,
    QuasiMonteCarlo,
)
from skavi.objective import Objective
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton, Setting, Solver

#: Numbers (rows x nodes x latents a row) that one evaluation of a deterministic ELBO may hold:
#: 64 MB an array, of which autograd holds several; beyond, fresh draws and Adam. Not measured.
BUDGET = 8_000_000
#: Dimensions (latents of a row + drawn globals) up to which product quadrature is chosen: 81
#: nodes (3 each) are fewer than the 256 Sobol points, the 243 of one more dimension hardly.
_MAX_PRODUCT_DIMENSION = 4
#: One dimension more where latents are few, since 3 nodes are enough for a narrow q(theta): two
#: Bernoulli items end within 10 tol (test_suboptimality); 4,096 Sobol points cost more.
_MAX_NARROW_DIMENSION = 5
#: Latents of these dimensions at most: each may need up to 24 nodes. Not measured alone.
_MAX_WIDE_LATENTS = 2
#: Rows from which on cells have nodes of their own with one latent, too: A-VI of 10,000 Student t
#: rows takes 6.8 s in place of 21.5, of answers 2.0 for 11.5; of 1,000 answers .7 for .5.
_LONG = 4000
#: Of a cell's predictor: five, for each of which there are five more.
_PREDICTOR_NODES = 25
#: Drawn globals: in more dimensions Sobol points are hardly better than random ones, so fresh
#: draws and Adam are chosen. Not measured (2,000 before b7ea308).
_MAX_QUASI_GLOBALS = 100
#: Sobol points: the largest rule that refinement reaches; Bernoulli items were then 1.9e-4 nats
#: off, a tenth of what is allowed (7168335).
_MAX_DRAWS = 4096
#: Dimensions of randomly turned spheres, beyond which draws are independent: a random rotation
#: takes d ** 3 operations, here 1e9. The limit itself is not measured.
_MAX_ROTATED_DIMENSION = 1000
#: Globals, beyond which sweeps are not mixed: mixing holds 34 copies of q(theta)'s parameters,
#: 27 MB here.
_MAX_MIXED_GLOBALS = 50_000
#: Globals, beyond which functions take Adam on minibatches, since a step on all rows is slow.
#: Not measured: order of magnitude.
MAX_FULL_GLOBALS = 20_000
#: Steps after which a falling learning rate is half of the first one. Not measured alone; such
#: fits of topics end after 400 steps (topics.json).
_FALLING = 100
#: Rows up to which functions that read a summary of counts are fitted as others are, to the tol:
#: equal weighted data then agree to 1e-9. Not measured: order of magnitude.
_FEW_ROWS = 100
#: Rows a step of Adam: the minibatch of the paper's decoder (Margossian & Blei 2024).
_BATCH = 1000
#: Rows a step where both row and latents pass networks. Of 1,400 digits held-out ones get 32.3 nats
#: with 128 rows, 34.9 with 256 (both at a rate of 0.02).
_NETWORK_BATCH = 256
#: Rows times draws of theta a step at least: three rows of five columns, with one draw each, ended
#: anywhere from -69 to -110 nats, and end at -31 to -33 with 42.
_FEWEST_DRAWN_ROWS = 128
#: The same as BUDGET where Newton's system is put together in pieces, so that only time counts:
#: about 3 minutes an iteration, at 0.17 us a number (scaling.json).
_MOST_NUMBERS = 1_000_000_000
#: Nats a row: far below what sampling noise leaves of any estimate, and two steps of Newton's
#: method from 1e-4.
_TOL = 1e-8
#: Nats a row of a network, which keeps a gap anyway; and that share of its gap.
_NETWORK_TOL, _SHARE_OF_GAP = 1e-4, 0.01
#: Nodes a dimension of the first product rule: exact for polynomials of degree 5, and refined
#: where that is too coarse.
_FIRST_NODES = 3
#: Sobol points of the first rule: 128 pairs, refined where they are too few. Not measured.
_FIRST_DRAWS = 256
#: Times the mean variance: equal variances differ by rounding, and none of them should count.
_ABOVE_AVERAGE = 1.0001
#: Components of the default model: as many as can be read. Not measured.
_MOST_COMPONENTS = 20
#: Units a layer at least; networks of 4 and more come within 1 % of factorized VI
#: (nonlinear.json).
_FEWEST_UNITS = 16
#: Draws for each dimension: two spheres at least, with two ends of each axis (Genz & Monahan
#: 1998).
_DRAWS_PER_DIMENSION = 4


def default_model(X, weights, noise="isotropic"):
    """Choose factor analysis with as many components as have more than average variance.

    The average is over the directions that rows can span, one fewer than those that a covariance
    is from: with more columns than that the others have none, and every one would be above average.
    With a noise variance for each column units do not matter, so these are standardised columns'.
    """
    cells = Cells.of(X)
    mean, variance = cells.mean_and_variance(weights)
    one = torch.ones_like(mean)
    scale = one if noise == "isotropic" else torch.where(variance > 0, variance.sqrt(), one)
    variances = torch.linalg.eigvalsh(cells.covariance(weights, mean, scale))
    n_spanned = max(1.0, min(float(cells.rows_a_pair(weights)) - 1, len(variances)))
    above = int((variances > _ABOVE_AVERAGE * variances.sum() / n_spanned).sum())
    return FactorAnalysis(max(1, min(above, X.shape[1] - 1, _MOST_COMPONENTS)), noise)


def default_function(n_outputs, model):
    """Choose a network wide enough to carry any linear map of the row to the factor.

    For a model's summary of sparse rows one layer of half the width is enough: the summary has as
    many numbers as the factor has means, and is close to them. Where all rows meet in one log joint
    units are smooth: 20 or 40 rows of a `GaussianProcess` then converge, to 0.03 to 2.5 nats below
    F-VI, where with kinks none of 1,400 to 2,100 Newton steps got there.
    """
    sizes = (n_outputs,) if model.accepts_sparse else (2 * n_outputs,) * 2
    activation = "tanh" if isinstance(model.coupling, Joint) else "relu"
    return MLP(tuple(max(_FEWEST_UNITS, size) for size in sizes), activation)


def default_family(model: LatentVariableModel, function: InferenceFunction | None) -> Family | None:
    """Choose factors that know their neighbours in factorized VI of a chain; else the model's own.

    None is the independent factors that suit the latents (`skavi.objective.bind`).
    Independent ones give the Nile's level variance as 12,200 where the posterior has 2,500.
    """
    chained = isinstance(model.coupling, Chained) and isinstance(function, Table)
    return Chain() if chained else model.own_family()


def is_network(function: InferenceFunction | None) -> bool:
    """Say whether a function is neither a table nor linear in its parameters; None: the default."""
    return not isinstance(function, Table | LinearFunction)


def tolerance(
    tol: float | None,
    model: LatentVariableModel,
    function: InferenceFunction | None,
    noise: Noise | None = None,
    n_features: int = 1,
) -> float:
    """Return the nats a row to solve to: those given, or the function's, or the model's coarser.

    A network is solved to 1 % of its amortization gap where that is more (`tolerance_of_gap`), and
    a model that takes stochastic steps until they gain little.
    """
    if tol is not None:
        return float(tol)  # whole numbers overflow where they count nats
    if model.stochastic and (noise is None or not noise.deterministic):
        return max(model.least_gain * n_features, model.coarsest_tol)
    return max(_NETWORK_TOL if is_network(function) else _TOL, model.coarsest_tol)


def tolerance_of_gap(least: float, gap: float) -> float:
    """Return the nats a row to solve a network to that misses `gap` nats a row anyway."""
    return max(least, _SHARE_OF_GAP * gap)


def budget(setting: Setting) -> int:
    """Return how many numbers (rows x nodes x latents) a deterministic evaluation may take.

    Newton's systems of tables and linear functions are built piece by piece, so only time limits
    them.
    """
    in_pieces = setting.function is not None and Newton().works_in_pieces(setting)
    return _MOST_NUMBERS if in_pieces else BUDGET


def default_noise(setting: Setting) -> Noise:
    """Choose a deterministic rule if one evaluation stays within the budget."""
    objective, n_rows = setting.objective, setting.n_rows
    if objective.model.has_closed_form(objective.family, objective.global_family):
        return ClosedForm()
    if objective.model.stochastic:
        return MonteCarlo(max(1, _FEWEST_DRAWN_ROWS // max(1, n_rows)))
    if objective.linear_predictor and objective.n_drawn_globals:
        return LinearPredictor()
    enough = objective.n_latents > 1 or (objective.n_latents == 1 and n_rows >= _LONG)
    by_cells = enough and objective.knows_row_derivatives
    if by_cells and n_rows * objective.width * _PREDICTOR_NODES <= budget(setting):
        return LinearPredictor()
    return _noise_of_draws(setting)


def _noise_of_draws(setting):
    objective, n_rows = setting.objective, setting.n_rows
    n_latents, dimension = objective.n_latents, _dimension(objective, n_rows)
    most, shared = budget(setting), _shared(objective)
    product = dimension
    if shared is not None:
        product += len(set(shared)) - objective.n_drawn_globals
    narrow = product <= _MAX_NARROW_DIMENSION and n_latents <= _MAX_WIDE_LATENTS
    few = product <= _MAX_PRODUCT_DIMENSION or narrow
    if few and n_rows * objective.width * _FIRST_NODES**product <= most:
        return GaussHermite(_FIRST_NODES, shared)
    n_draws = _FIRST_DRAWS
    while n_draws <= 2 * dimension and n_draws < _MAX_DRAWS:
        n_draws *= 2  # covariances are exact with more pairs than dimensions
    quasi = objective.n_drawn_globals <= _MAX_QUASI_GLOBALS
    if quasi and n_rows * objective.width * n_draws <= most:
        return QuasiMonteCarlo(n_draws)
    return MonteCarlo()


def default_solver(setting: Setting) -> Solver:
    """Choose the fastest solver that fits the model, the noise and the inference function."""
    objective, n_rows = setting.objective, setting.n_rows
    if objective.model.stochastic and not setting.noise.deterministic:
        size = setting.coupling.batch_size(n_rows, _NETWORK_BATCH)
        return Adam(objective.model.network_rate, size)
    if not setting.noise.deterministic:
        return Adam(batch_size=setting.coupling.batch_size(n_rows, _BATCH))
    near = setting.function.regressed
    # What the function reads is nearly the factor, and so is its start.
    summed_up = objective.model.second_order_sweeps and n_rows > _FEW_ROWS
    coarse = near and (objective.model.coarsest_tol > 0 or summed_up)
    long = objective.space.size > MAX_FULL_GLOBALS  # a pass over all rows takes long
    if setting.n_parameters > 0 and (coarse or long):
        schedule = falling if near else None
        # All rows at once leave no scatter by which Adam could end before a fine tol.
        most = (n_rows + 1) // 2 if summed_up else n_rows
        return Adam(batch_size=min(most, _BATCH // 4), schedule=schedule)
    many = objective.space.size > _MAX_MIXED_GLOBALS
    sweeps = CoordinateAscent(memory=0) if many else CoordinateAscent()
    return next(solver for solver in (sweeps, Newton(), LBFGS()) if solver.suits(setting))


def falling(iteration):
    """Return the multiplier of a learning rate that falls as 1 / (1 + iteration / 100)."""
    return 1 / (1 + iteration / _FALLING)


def evaluation_noise(objective: Objective, n_rows: int, n_draws: int = 128, seed: int = 0):
    """Choose deterministic noise for an ELBO that was maximised with fresh draws.

    For independent rows the rule does not depend on their number, so that no row's result depends
    on which other rows are present.
    """
    dimension = _dimension(objective, n_rows)
    if dimension > _MAX_ROTATED_DIMENSION:
        return FixedDraws(n_draws, seed)
    return RotatedSpheres(max(n_draws, _DRAWS_PER_DIMENSION * dimension), seed)


def final_noise(objective: Objective, n_rows: int, n_draws: int, seed: int = 0) -> Noise:
    """Choose the noise for an ELBO of all rows: beyond the dimensions of spheres, each row's own.

    Errors of draws that rows share add up: 128 of them leave 36 to 760 times the variance on
    1,000 to 1,400 rows of a decoder.
    """
    noise = evaluation_noise(objective, n_rows, n_draws, seed)
    return MonteCarlo(n_draws) if isinstance(noise, FixedDraws) else noise


def nearly_exact(noise, objective: Objective, n_rows: int) -> bool:
    """Say whether refinement makes a rule practically exact: quadrature in few dimensions."""
    if isinstance(noise, LinearPredictor):
        return True
    dimension = _dimension(objective, n_rows)
    if isinstance(noise, GaussHermite) and noise.shared is not None:
        dimension += len(set(noise.shared)) - objective.n_drawn_globals
    return dimension <= _MAX_PRODUCT_DIMENSION and not isinstance(noise, QuasiMonteCarlo)


def _shared(objective):
    """Return the dimensions of noise that globals share, of all that need any; None: none do."""
    return objective.shared if objective.n_drawn_globals == len(objective.shared or ()) else None


def _dimension(objective, n_rows):
    """Count the dimensions of a row's noise, including those of the globals."""
    return objective.n_latents * objective.n_colours(n_rows) + objective.n_drawn_globals


def affordable(noise, setting: Setting) -> bool:
    """Say whether one evaluation under `noise` stays within the budget."""
    objective, n_rows = setting.objective, setting.n_rows
    try:
        n_noise = objective.n_latents * objective.n_colours(n_rows)
        nodes = noise.nodes(objective.n_drawn_globals, n_noise, 1, None)
    except ValueError:
        return False
    n_nodes = 1 if nodes is None else len(nodes.weights)
    if isinstance(noise, QuasiMonteCarlo) and n_nodes > _MAX_DRAWS:
        return False
    return n_rows * objective.width * n_nodes <= budget(setting)


def finer_rules(noise: Noise, setting: Setting) -> list[Noise]:
    """Return the rules to compare with that are affordable, and have more nodes here."""
    sizes = setting.objective.n_drawn_globals, setting.objective.n_latents
    here = noise.count_nodes(*sizes)
    return [
        finer
        for finer in noise.refined()
        if affordable(finer, setting) and finer.count_nodes(*sizes) > here
    ]
