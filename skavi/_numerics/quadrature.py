"""Standard normal nodes: Gauss-Hermite rules, moment-matched Sobol points, turned spheres."""

import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri, roots_genlaguerre, roots_hermitenorm
from scipy.stats import qmc
from torch import Tensor

from skavi._numerics.aligned import aligned

#: Dimensions for which scipy's Sobol points have direction numbers (Joe & Kuo 2008).
SOBOL_MAX_DIMENSION = 21201
#: Nodes: numpy's weights overflow beyond about 370; scipy's are slower, and right at any number.
_LAST_BY_NUMPY = 150
#: Sds within which all but 1e-17 of a normal lies.
_REACH = 8.5


@lru_cache(maxsize=256)
def hermite_rule(n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rule that integrates polynomials of degree 2 n_nodes - 1 against N(0, 1)."""
    if n_nodes <= _LAST_BY_NUMPY:
        nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    else:
        nodes, weights = roots_hermitenorm(n_nodes)
    return nodes, weights / weights.sum()


def hermite_nodes(n_nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of `hermite_rule` in the dtype and on the device of a tensor.

    They are shared: nobody may write into them.
    """
    return _hermite_tensors(n_nodes, like.dtype, like.device)


@lru_cache(maxsize=64)
def _hermite_tensors(n_nodes: int, dtype: torch.dtype, device: torch.device):
    nodes, weights = (aligned(part).to(device, dtype) for part in hermite_rule(n_nodes))
    return nodes, weights


@lru_cache(maxsize=64)
def trapezoidal_rule(step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return equally spaced nodes against N(0, 1), for functions with poles near the real line.

    For a function analytic where |Im| < a the error falls as exp(-2 pi a / step). Source: Trefethen
    & Weideman (2014), "The exponentially convergent trapezoidal rule", section 5.
    """
    half = np.arange(step, _REACH + step, step)
    nodes = np.concatenate([-half[::-1], [0.0], half])
    weights = np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


@lru_cache(maxsize=64)
def product_rule(counts: tuple[int, ...], together: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the tensor product of Gauss-Hermite rules: nodes (D, len(counts)), weights (D,).

    `together`: as many dimensions more, the last ones, have `few_node_rule`.
    """
    rules = [(nodes[:, None], weights) for nodes, weights in map(hermite_rule, counts)]
    if together:
        rules.append(few_node_rule(together))
    nodes, weights = np.zeros((1, 0)), np.ones(1)
    for more, shares in rules:
        outer = np.repeat(nodes, len(shares), 0), np.tile(more, (len(nodes), 1))
        nodes, weights = np.concatenate(outer, 1), np.outer(weights, shares).reshape(-1)
    return nodes, weights


def rule_size(counts: tuple[int, ...], together: int = 0) -> int:
    """Return how many nodes `product_rule` has, without making them."""
    return math.prod(counts) * (len(few_node_rule(together)[1]) if together else 1)


@lru_cache(maxsize=8)
def few_node_rule(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a rule against N(0, I), exact to degree 5: d ** 2 + 3 d + 3 nodes, 3 <= d <= 7.

    Its nodes are the centre, the vertices of a regular simplex, the middles of its edges, and the
    mirror images of both, on one sphere; all weights are at least 0. Source: Lu & Darmofal (2004),
    "Higher-dimensional integration with Gaussian weight for applications in probabilistic design",
    section 3, after Mysovskikh (1980).
    """
    d = dimension
    # Corners of a simplex: the unit vectors of one dimension more, less their mean, as rows.
    corners = np.eye(d + 1) - 1 / (d + 1)
    corners = corners @ np.linalg.svd(corners)[2][:d].T
    i, j = np.triu_indices(d + 1, 1)
    edges = corners[i] + corners[j]
    sphere = [points / np.linalg.norm(points[0]) for points in (corners, edges)]
    nodes = np.sqrt(d + 2) * np.concatenate(sphere)
    of_corner = d**2 * (7 - d) / (2 * (d + 1) ** 2 * (d + 2) ** 2)
    of_edge = 2 * (d - 1) ** 2 / ((d + 1) ** 2 * (d + 2) ** 2)
    shares = [2 / (d + 2)] + 2 * ([of_corner] * len(corners) + [of_edge] * len(edges))
    return np.concatenate([np.zeros((1, d)), nodes, -nodes]), np.array(shares)


def sobol_normal(n_draws: int, dimension: int, seed) -> np.ndarray:
    """Return scrambled Sobol points as standard normals, (n_draws, dimension), moments matched.

    Points come in antithetic pairs (odd moments vanish); where there are enough of them they are
    whitened, so that means and covariances are exact and a quadratic is integrated without error.
    Source: Owen (2013), Monte Carlo theory, methods and examples, ch. 16-17 (scrambling), 8.2.
    """
    half = max(n_draws // 2, 1)
    if dimension == 0:
        return np.zeros((2 * half, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scipy warns unless n is a power of two
        points = qmc.Sobol(dimension, scramble=True, rng=seed).random(half)
    noise = ndtri(np.clip(points, 1e-12, 1 - 1e-12))
    if half > dimension:
        noise = noise @ np.linalg.inv(np.linalg.cholesky(noise.T @ noise / half)).T
    else:
        noise /= np.sqrt((noise**2).mean(0))
    return np.concatenate([noise, -noise])


def spherical_rule(n_draws: int, dimension: int, seed) -> tuple[np.ndarray, np.ndarray]:
    """Return a random rule against N(0, I): nodes (about n_draws, dimension), and their weights.

    The squared radius, chi-square, is integrated by Gauss-Laguerre quadrature; on every sphere the
    nodes are the ends of randomly rotated axes. So means and covariances are exact, whatever is
    random has mean zero, and the radii are exact for polynomials of degree 7 (3 in many dimensions,
    where they hardly vary). Source: Genz & Monahan (1998), "Stochastic integration rules for
    infinite regions", section 3, with quadrature of the radius in place of their random one.
    """
    if dimension == 0:
        return np.zeros((1, 0)), np.ones(1)
    n_radii = 4 if n_draws >= 8 * dimension else 2
    n_frames = max(1, n_draws // (2 * dimension * n_radii))
    halves, shares = roots_genlaguerre(n_radii, dimension / 2 - 1)
    rng = np.random.default_rng(seed)
    frames, factors = np.linalg.qr(rng.normal(size=(n_radii * n_frames, dimension, dimension)))
    signs = np.sign(np.diagonal(factors, axis1=1, axis2=2))
    frames *= signs[:, None]  # else rotations are not uniform (Stewart, 1980)
    frames *= np.repeat(np.sqrt(2 * halves), n_frames)[:, None, None]
    nodes = frames.reshape(-1, dimension)
    weights = np.repeat(shares / shares.sum(), n_frames * dimension) / (2 * n_frames * dimension)
    return np.concatenate([nodes, -nodes]), np.concatenate([weights, weights])
