"""Noise that estimates an ELBO and says how well: hardly biased, and exact for quadratics."""

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import spherical_rule
from skavi.noise import Nodes, Noise


class TurnedSpheres(Noise):
    """Spheres of nodes, randomly turned, shared by all rows.

    Whitened Sobol points are no better and have a bias that no number of scramblings shows:
    whitening pulls the outermost of few points inwards.
    """

    def __init__(self, n_draws, seed):
        self.n_draws = n_draws
        self.seed = seed

    def nodes(self, n_globals, n_latents, n_rows, generator):
        nodes, weights = spherical_rule(self.n_draws, n_globals + n_latents, self.seed)
        noise = aligned(nodes)
        return Nodes(noise[:, n_latents:], noise[:, None, :n_latents], aligned(weights))
