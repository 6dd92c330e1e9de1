"""Inference functions: one contract for all, and exact starts where the function allows them."""

import numpy as np
import pytest
import torch

from skavi._data.rows import Rows, windows
from skavi.inference_functions import (
    MLP,
    Constant,
    Polynomial,
    Table,
    TorchFunction,
)

N_ROWS, N_INPUTS, N_OUTPUTS = 40, 3, 4
EXACT_ACTIVATIONS = ["relu", "leaky_relu", "gelu", "silu", "softplus"]


def linear_module(n_outputs=N_OUTPUTS):
    """Return a torch module with random weights; torch draws them from its global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(N_INPUTS, n_outputs).double()


FUNCTIONS = [
    Table(),
    Constant(),
    Polynomial(1),
    Polynomial(3),
    MLP((16,)),
    MLP((16, 12), activation="tanh"),
    TorchFunction(linear_module()),
]
AMORTIZED = [f for f in FUNCTIONS if not isinstance(f, Table)]
LINEAR = [f for f in AMORTIZED if isinstance(f, Constant | Polynomial)]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, N_INPUTS, generator=generator, dtype=torch.float64)
    return 3 + x @ torch.diag(torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64))


@pytest.fixture
def weights():
    return torch.ones(N_ROWS, dtype=torch.float64)


@pytest.fixture
def targets(inputs):
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(N_INPUTS, N_OUTPUTS, generator=generator, dtype=torch.float64)
    return 0.5 + (inputs - inputs.mean(0)) / inputs.std(0) @ slope


def started(function, inputs, targets, weights, seed=0):
    """Fit the inputs' scales and the parameters; return the function, features and outputs."""
    function.check()
    fitted = function.fit_inputs(inputs, weights)
    features = fitted.features(inputs)
    generator = torch.Generator().manual_seed(seed)
    return fitted, features, fitted.start(features, targets, weights, generator)


each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
each_amortized = pytest.mark.parametrize("function", AMORTIZED, ids=repr)


# The contract


@each_function
def test_outputs_have_a_row_each_and_the_input_s_dtype(function, inputs, targets, weights):
    fitted, features, start = started(function, inputs, targets, weights)
    outputs = fitted.raw(*start, features)
    assert outputs.shape == (N_ROWS, N_OUTPUTS)
    assert outputs.dtype == inputs.dtype


@each_amortized
def test_a_row_s_output_depends_on_that_row_alone(function, inputs, targets, weights):
    fitted, _, start = started(function, inputs, targets, weights)
    whole = fitted.raw(*start, fitted.features(inputs))
    alone = torch.cat([fitted.raw(*start, fitted.features(x[None])) for x in inputs])
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)  # sums in another order


@each_amortized
def test_scales_of_the_inputs_do_not_matter(function, inputs, targets, weights):
    _, features, _ = started(function, inputs, targets, weights)
    moved = inputs * torch.tensor([1e6, 1e-6, 7.0]).double() - 2
    again = function.fit_inputs(moved, weights).features(moved)
    torch.testing.assert_close(again, features, rtol=1e-6, atol=1e-6)  # 3 / 1e-3 of the digits go


@each_amortized
def test_fit_inputs_leaves_the_function_itself_alone(function, inputs, weights):
    before = set(vars(function))
    assert function.fit_inputs(inputs, weights) is not function
    assert set(vars(function)) == before


@pytest.mark.parametrize("function", LINEAR, ids=repr)
def test_linear_functions_are_features_times_coefficients(function, inputs, targets, weights):
    fitted, features, start = started(function, inputs, targets, weights)
    _, parameters = start
    expected = features @ parameters["coefficients"]
    assert torch.equal(fitted.raw(*start, features), expected)
    assert list(parameters) == ["coefficients"]


@each_amortized
def test_constant_inputs_do_no_harm(function, inputs, targets, weights):
    inputs = torch.cat([inputs[:, :2], torch.full((N_ROWS, 1), 0.1).double()], 1)
    fitted, features, start = started(function, inputs, targets, weights)
    assert bool(torch.isfinite(features).all())
    assert bool(torch.isfinite(fitted.raw(*start, features)).all())


# Standardisation


def test_inputs_are_standardised_by_weighted_moments(inputs):
    weights = torch.linspace(0, 3, N_ROWS, dtype=torch.float64)
    features = Polynomial(1).fit_inputs(inputs, weights).standardised(inputs)
    torch.testing.assert_close(weights @ features / weights.sum(), torch.zeros(3).double())
    second = weights @ features**2 / weights.sum()
    torch.testing.assert_close(second, torch.ones(3).double(), rtol=1e-9, atol=0)


def test_inputs_too_large_to_add_up_are_refused():
    inputs = torch.tensor([[0.0, 1e308], [1.0, 1e308]], dtype=torch.float64)
    message = r"MLP cannot standardise .* the sum over all rows of 1 inputs \(first input 1\)"
    with pytest.raises(FloatingPointError, match=message):
        MLP().fit_inputs(inputs, torch.ones(2, dtype=torch.float64))


def test_new_rows_are_standardised_as_the_training_rows(inputs, weights):
    fitted = Polynomial(1).fit_inputs(inputs, weights)
    expected = (inputs[:3] - inputs.mean(0)) / inputs.std(0, correction=0)
    torch.testing.assert_close(fitted.standardised(inputs[:3]), expected)


# Starts


@pytest.mark.parametrize("activation", EXACT_ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(16,), (16, 12), (16, 12, 14)])
def test_networks_start_as_the_exact_linear_map(activation, sizes, inputs, targets, weights):
    fitted, features, start = started(MLP(sizes, activation), inputs, targets, weights)
    outputs = fitted.raw(*start, features)
    # Exact but for rounding through the layers: nothing is left for the spare units to fit.
    torch.testing.assert_close(outputs, targets, rtol=1e-9, atol=1e-9)


def test_networks_too_narrow_for_the_linear_map_still_come_close(inputs, targets, weights):
    fitted, features, start = started(MLP((4,)), inputs, targets, weights)
    left = targets - fitted.raw(*start, features)
    assert left.square().mean() < targets.var(0).mean()


def test_spare_units_take_up_what_is_not_linear(inputs, targets, weights):
    curved = targets + torch.sin(3 * (inputs[:, 1:2] - 3))
    left = {}
    for function in (Polynomial(1), MLP((64,))):
        fitted, features, start = started(function, inputs, curved, weights)
        left[type(function)] = (curved - fitted.raw(*start, features)).square().mean()
    assert left[MLP] < 0.2 * left[Polynomial]


def test_the_seed_draws_the_spare_units(inputs, targets, weights):
    one, two, other = (
        started(MLP((16,)), inputs, targets, weights, seed)[2][1]["weight_0"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_polynomial_features_are_all_monomials(inputs, weights):
    fitted = Polynomial(2).fit_inputs(inputs, weights)
    a, b, c = fitted.standardised(inputs).unbind(1)
    one = torch.ones_like(a)
    expected = [one, a, b, c, a * a, a * b, a * c, b * b, b * c, c * c]
    assert torch.equal(fitted.features(inputs), torch.stack(expected, 1))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomials_start_at_weighted_least_squares(degree, inputs, targets):
    weights = torch.linspace(0, 2, N_ROWS, dtype=torch.float64)
    _, features, (_, parameters) = started(Polynomial(degree), inputs, targets**2, weights)
    root = weights.sqrt().numpy()[:, None]
    expected = np.linalg.lstsq(root * features.numpy(), root * targets.numpy() ** 2, rcond=None)[0]
    np.testing.assert_allclose(parameters["coefficients"].numpy(), expected, atol=1e-9)


def test_a_constant_starts_at_the_weighted_mean(inputs, targets):
    weights = torch.linspace(0, 2, N_ROWS, dtype=torch.float64)
    fitted, features, start = started(Constant(), inputs, targets, weights)
    expected = (weights @ targets / weights.sum()).expand(N_ROWS, -1)
    torch.testing.assert_close(fitted.raw(*start, features), expected)


def test_a_table_is_its_targets(inputs, targets, weights):
    fitted, features, start = started(Table(), inputs, targets, weights)
    assert torch.equal(fitted.raw(*start, features), targets)
    assert start[0] is not targets


def test_a_module_starts_from_its_own_weights(inputs, targets, weights):
    module = linear_module()
    fitted, features, start = started(TorchFunction(module), inputs, targets, weights)
    with torch.no_grad():
        expected = module((inputs - inputs.mean(0)) / inputs.std(0, correction=0))
    torch.testing.assert_close(fitted.raw(*start, features), expected)


def test_a_module_of_the_wrong_shape_is_told_which(inputs, targets, weights):
    function = TorchFunction(linear_module(N_OUTPUTS + 1))
    message = r"maps 2 rows of 3 inputs to shape \(2, 5\), but the factors need \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        started(function, inputs, targets, weights)


# Rows and windows


def test_windows_put_neighbours_side_by_side_oldest_first():
    X = torch.tensor([[1.0, 10], [2, 20], [3, 30]])
    expected = torch.tensor([[0.0, 0, 1, 10, 2, 20], [1, 10, 2, 20, 3, 30], [2, 20, 3, 30, 0, 0]])
    assert torch.equal(windows(X, (1, 1)), expected)
    assert windows(X, (0, 0)) is X
    assert torch.equal(windows(X, (0, 1), padding=-1.0)[-1], torch.tensor([3.0, 30, -1, -1]))
    assert windows(X[:1], (2, 3)).shape == (1, 12)


def test_rows_are_cut_with_their_weights():
    rows = Rows(torch.arange(6.0).reshape(3, 2), torch.tensor([1.0, 2.0, 4.0]))
    assert (len(rows), rows.total_weight) == (3, 7.0)
    part = rows[torch.tensor([2, 0])]
    assert torch.equal(part.X, torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    assert torch.equal(part.weights, torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize(
    "function",
    [MLP((5, 4), activation=a) for a in (*EXACT_ACTIVATIONS, "tanh")]
    + [Polynomial(2), TorchFunction(linear_module())],
    ids=repr,
)
def test_jacobians_are_those_of_torch(function, inputs, weights, targets):
    """Beside central differences, a parameter at a time."""
    function = function.fit_inputs(inputs, weights)
    features = function.features(inputs)
    generator = torch.Generator().manual_seed(0)
    _, parameters = function.start(features, targets, weights, generator)
    jacobian = function.jacobian(parameters, features)
    columns = []
    for name, value in parameters.items():
        for k in range(value.numel()):

            def moved(step, name=name, value=value, k=k):
                along = torch.zeros(value.numel()).to(value)
                along[k] = 1.0
                there = parameters | {name: value + step * along.reshape(value.shape)}
                return function.evaluate(there, features)

            h = 1e-6
            columns.append((moved(h) - moved(-h)) / (2 * h))
    expected = torch.stack(columns, -1)
    assert jacobian.shape == (
        N_ROWS,
        N_OUTPUTS,
        function.n_parameters(features.shape[1], N_OUTPUTS),
    )
    # Central differences: rounding 1e-16 / h, and no kink of these random units is within h.
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-7)
