"""Noise for an estimate of the ELBO and of its error: nearly unbiased, exact for quadratics."""

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import spherical_rule
from skavi.noise import Nodes, Noise


class RotatedSpheres(Noise):
    """Randomly rotated spheres of nodes, shared by all rows.

    Whitened Sobol points are no better, and have a bias that does not show in the spread over
    scramblings: with few points, whitening moves the outermost ones inwards.
    """

    def __init__(self, n_draws, seed):
        self.n_draws = n_draws
        self.seed = seed

    def nodes(self, n_globals, n_latents, n_rows, generator):
        nodes, weights = spherical_rule(self.n_draws, n_globals + n_latents, self.seed)
        noise = aligned(nodes)
        return Nodes(noise[:, n_latents:], noise[:, None, :n_latents], aligned(weights))
