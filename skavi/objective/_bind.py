"""The choice of a model's objective: by what its latents are, and how its rows meet."""

from torch import Tensor

from skavi._data.coupling import Chain as CoupledInAChain
from skavi.families import Categorical, Chain, DiagonalNormal, Family
from skavi.objective._chained import chained
from skavi.objective._elbo import Objective
from skavi.objective._finite import FiniteObjective


def bind(model, family: Family | None, global_family: Family, X: Tensor) -> Objective:
    """Return the objective of a model for data like X; None: the family that its latents need.

    Raises
    ------
    ValueError
        If `family` does not suit the model's latents.
    """
    n_latents, space = model.count_latents(model.n_explained(X)), model.global_space(X)
    atoms = model.atoms(space, X) if n_latents else None
    if atoms is None:
        family = DiagonalNormal() if family is None else family
        if isinstance(family, Categorical):
            raise ValueError(
                f"family={family}: {type(model).__name__} has no latents of finite support, as "
                "torch.distributions' Categorical or Bernoulli: leave family at None."
            )
        return Objective(model, space, family, global_family, n_latents)
    family, known = Categorical() if family is None else family, [Categorical]
    in_chain = isinstance(model.coupling, CoupledInAChain)
    known += [Chain] if in_chain else []
    if type(family) not in known:
        names = " or ".join(f"families.{kind.__name__}()" for kind in known)
        raise ValueError(
            f"family={family}: the latents of {type(model).__name__} take {len(atoms)} values, "
            f"which only {names} describes: leave family at None."
        )
    kind = chained(family) if in_chain else FiniteObjective
    return kind(model, space, family, global_family, 0, atoms=atoms)
