"""Documents drawn from their words' probabilities."""

import numpy as np
import torch
from torch import Tensor

#: Words: float64 holds every whole number up to 2 ** 53.
_LONGEST = 2.0**53


def drawn_counts(probabilities: Tensor, lengths: Tensor) -> Tensor:
    """Draw counts of words (n_rows, n_features), `lengths` of them a row, rounded.

    However long a document, in the memory of the counts; a length of more than 2^53, to which
    numbers are exact, is drawn as that many and scaled up.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    p = probabilities.detach().to("cpu", torch.float64).numpy()
    totals = lengths.detach().to("cpu", torch.float64).round().numpy()
    drawn = np.minimum(totals, _LONGEST)
    counts = rng.multinomial(drawn.astype(np.int64), p / p.sum(-1, keepdims=True))
    scale = np.divide(totals, drawn, out=np.ones_like(drawn), where=drawn > 0)
    return torch.as_tensor(counts * scale[:, None]).to(probabilities)
