import pytest
import torch

from skavi._data.missing_cells import Cells
from skavi.models._poisson_frame import Frame, Prior
from skavi.models._poisson_rates import Counts, Side


@pytest.fixture
def frame():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, columns = (
        Side(normal(7, 2), 0.1 + normal(7, 2) ** 2),
        Side(normal(5, 3), normal(5, 3) ** 2),
    )
    prior = Prior(normal(5, 3) * torch.tensor([0.0, 0.0, 1.0]), 0.5 + normal(5, 3) ** 2)
    counts = Counts(Cells(normal(7, 5), None), normal(7, 1), 0.5 + normal(7) ** 2)
    return Frame.of(prior, counts, rows, columns, normal(7, 5) ** 2)


def change_of(frame, flat):
    return frame.changed(flat.reshape(2, 3))


def test_value_is_its_definition(frame):
    P, Q, k = frame.row_precision, frame.column_precision, 2
    of_rows = (frame.weights * (P.log() + frame.z[:, :k] ** 2)).sum()
    prior = (frame.prior.precision * (frame.w - frame.prior.loc) ** 2).sum()
    assert frame.value() == pytest.approx(-0.5 * float(of_rows + Q.log().sum() + prior))


def test_changes_keep_the_log_rates(frame):
    there = frame.changed(torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.4, -0.7]], dtype=torch.float64))
    torch.testing.assert_close(there.z @ there.w.mT, frame.z @ frame.w.mT)


def test_system_is_that_of_finite_differences(frame):
    gradient, hessian = frame.system()
    step, eye = 1e-4, torch.eye(6, dtype=torch.float64)

    def value(flat):
        return change_of(frame, flat).value()

    slopes = [(value(step * e) - value(-step * e)) / (2 * step) for e in eye]
    assert gradient.reshape(-1).tolist() == pytest.approx(slopes, abs=1e-5)
    corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    for i, a in enumerate(eye):
        for j, b in enumerate(eye):
            second = sum(p * q * value(step * (p * a + q * b)) for p, q in corners)
            assert -float(hessian[i, j]) == pytest.approx(second / (4 * step**2), abs=1e-4)


def test_turned_is_at_a_maximum(frame):
    turned, gain = frame.turned()
    assert gain > 0.1
    assert turned.value() - frame.value() == pytest.approx(gain)
    again, more = turned.turned()
    assert more < 0.02 * gain
    assert float(torch.linalg.eigvalsh(again.system()[1]).min()) > 0


def test_tangents_are_those_of_finite_differences(frame):
    step, tangents = 1e-6, frame.tangents()
    for i, e in enumerate(torch.eye(6, dtype=torch.float64)):
        there, back = change_of(frame, step * e), change_of(frame, -step * e)
        means = (there.w - back.w) / (2 * step)
        log_sds = -0.5 * (there.column_precision.log() - back.column_precision.log()) / (2 * step)
        torch.testing.assert_close(tangents[i, :, :3], means, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(tangents[i, :, 3:5], log_sds, atol=1e-6, rtol=1e-6)
        assert not tangents[i, :, 5].any()
