"""One fit over several processes or machines, each with rows of its own.

The engine is torch.distributed: gloo between CPUs, NCCL between GPUs. Ranks own their rows and
their rows' factors; what they add up are ELBO terms, and the derivatives in q(theta) and in the
inference function. So the result is that of one process, up to rounding.
"""

from skavi._data.ranks import LostRankError, over_ranks, total
from skavi.distributed._launch import fit
from skavi.distributed._shard import shard
from skavi.distributed._watch import DeadRankError

__all__ = ["DeadRankError", "LostRankError", "fit", "over_ranks", "shard", "total"]
