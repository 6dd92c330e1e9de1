"""One fit over several processes or machines, each with a part of the rows.

It uses torch.distributed: gloo between CPUs, NCCL between GPUs. Each rank holds its rows and their
factors; ELBO terms, and derivatives in q(theta) and in the inference function, are summed over
ranks. So the result is that of one process, up to rounding.
"""

from skavi._data.process_ranks import LostRankError, over_ranks, total
from skavi.distributed._launch import fit
from skavi.distributed._shard import shard
from skavi.distributed._watch import DeadRankError

__all__ = ["DeadRankError", "LostRankError", "fit", "over_ranks", "shard", "total"]
