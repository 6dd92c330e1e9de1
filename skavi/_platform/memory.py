"""Checks that a request can fit in memory, before anything is allocated.

They count the least that must be held at one time, with 8 bytes for each number: a request that
passes may still run out of memory; one that fails could never fit.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from numbers import Integral
from pathlib import Path

#: Bytes of a float64, the type of all fits.
_BYTES = 8
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def available_bytes() -> float:
    """Return the memory that this process can still allocate, within the limits of its group."""
    return min(_bounds(), default=math.inf)


def _bounds() -> Iterator[float]:
    with suppress(OSError, ValueError, AttributeError):  # Linux and other Unix systems
        yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024.0 * int(line.split()[1])
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # "max" means no limit
            yield float(Path(limit).read_text())


def require_memory(n_numbers: int, request: str, remedy: str) -> None:
    """Raise a MemoryError that names the request if `n_numbers` numbers do not fit in memory."""
    needed, available = _BYTES * n_numbers, available_bytes()
    if needed > available:
        raise MemoryError(
            f"{request} needs at least {_format_bytes(needed)} of memory, but "
            f"{_format_bytes(available)} are available: {remedy}."
        )


def _format_bytes(n_bytes: float) -> str:
    power = min(int(math.log10(max(n_bytes, 1)) // 3), len(_UNITS) - 1)
    return f"{n_bytes / 1000**power:.3g} {_UNITS[power]}"


def require_memory_of_fit(estimator, X) -> None:
    """Check the least memory of a fit: factors, inference function and one set of draws."""
    sizes = _sizes(estimator.model, estimator.family, X)
    if sizes is None or str(estimator.device) != "cpu":
        return
    n_rows, n_features, n_latents, n_outputs = sizes
    function = getattr(estimator, "inference_function", None)
    noise, batch = estimator.noise, _count(estimator.solver, "batch_size")
    n_drawn = _count(noise, "n_draws") * n_latents * min(n_rows, batch or n_rows)
    require_memory(
        n_rows * n_outputs + 2 * _numbers_of(function, *sizes) + n_drawn,
        f"{type(estimator).__name__}.fit of {n_rows} rows with {n_features} features and "
        f"{n_latents} latents, inference_function={function}, noise={noise}",
        "use fewer rows, latents, units or draws, or Adam(batch_size=...) where it is the draws",
    )


def require_memory_of_rows(estimator, X, covariances: bool = False) -> None:
    """Check the memory of the rows' factors, which a fitted estimator returns."""
    sizes = _sizes(estimator.model_, estimator.family_, X)
    if sizes is None:
        return
    n_rows, _, n_latents, n_outputs = sizes
    require_memory(
        n_rows * max(n_outputs, n_latents * (2 * n_latents if covariances else 1)),
        f"X of {n_rows} rows with {n_latents} latents",
        "pass fewer rows at a time",
    )


def _count(component, name):
    """Return a component's integer attribute; 0 if it is missing or not an integer."""
    value = getattr(component, name, 0)
    return int(value) if isinstance(value, Integral) else 0


def _sizes(model, family, X):
    """Return rows, features, latents a row and parameters a row; None if one is not known."""
    shape: tuple[int, ...] = tuple(getattr(X, "shape", ()))
    if len(shape) != 2:
        return None
    n_rows, n_features = shape
    try:
        n_latents = 1 if model is None else int(model.count_latents(n_features))
        n_outputs = 2 * n_latents if family is None else family.n_parameters(n_latents)
    except Exception:  # fit itself reports wrong arguments
        return None
    return n_rows, n_features, n_latents, int(n_outputs)


def _numbers_of(function, n_rows, n_features, n_latents, n_outputs):
    """Return how many numbers an inference function holds; 0 if not known."""
    try:
        return int(function.n_numbers(n_rows, n_features, n_outputs))
    except Exception:  # None, a torch module, or wrong arguments, which fit reports
        return 0
