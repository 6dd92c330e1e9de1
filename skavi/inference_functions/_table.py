"""A free factor for every row: the function that makes the method factorized VI."""

from skavi._data.process_ranks import over_ranks
from skavi.inference_functions._base import InferenceFunction


class Table(InferenceFunction):
    """A free factor for every row, which makes the method factorized VI.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]]).inference_function_
    Table()
    """

    learning_rate = 0.05
    context = (0, 0)

    @over_ranks
    def fit_inputs(self, inputs, weights):
        return Table()

    def features(self, inputs):
        return inputs

    def n_parameters(self, n_features, n_outputs):
        return 0  # the factors belong to the rows

    def parameter_shapes(self, n_inputs, n_outputs):
        return {}

    @over_ranks
    def start(self, features, targets, weights, generator):
        return targets.clone(), {}

    def raw(self, raw_locals, shared, features):
        return raw_locals

    def reading(self, model, q_theta):
        return model

    def targets(self, problem, state):
        return problem.objective.free(state.raw_locals)

    def row_factors(self, fit, rows):
        return fit.solve_locals(rows)
