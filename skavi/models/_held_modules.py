"""Torch modules that a model holds: their weights go along in clones, and are fixed in a fit."""

import copy

from torch import Tensor
from torch.nn import Module


def fixed_modules(model, like: Tensor):
    """Return a model whose modules are copies for a fit: evaluated, not trained, in its dtype.

    The user's own modules stay as they are; a model without modules is returned itself.
    """
    attributes: dict[str, object] = {}
    for owner in reversed(type(model).__mro__):
        attributes |= vars(owner)
    attributes |= vars(model)
    copies = {name: _fixed(value, like) for name, value in attributes.items() if _holds(value)}
    if not copies:
        return model
    model = copy.copy(model)
    vars(model).update(copies)
    return model


def take_weights(model, source) -> None:
    """Give the modules that a clone has built itself the weights of those in its `source`."""
    for name, module in vars(source).items():
        own = vars(model).get(name)
        if not isinstance(module, Module) or not isinstance(own, Module) or own is module:
            continue
        weights, shapes = module.state_dict(), own.state_dict()
        # Other arguments, set since, may have made another network.
        if [(n, w.shape) for n, w in weights.items()] == [(n, w.shape) for n, w in shapes.items()]:
            own.load_state_dict(weights)


def _holds(value) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    if isinstance(value, dict):
        return any(map(_holds, value.values()))
    return isinstance(value, Module)


def _fixed(value, like):
    if isinstance(value, Module):
        module = copy.deepcopy(value).to(like.device, like.dtype)
        return module.eval().requires_grad_(False)
    if isinstance(value, list | tuple):
        return type(value)(_fixed(each, like) for each in value)
    if isinstance(value, dict):
        return {key: _fixed(each, like) for key, each in value.items()}
    return value
