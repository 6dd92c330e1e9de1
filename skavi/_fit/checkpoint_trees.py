"""Conversion of trees of tensors to JSON and arrays, and back, with exact values and layout."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi.solvers import Outcome, State

_RECORDS = {"State": State, "Outcome": Outcome}


class Encoder:
    """Convert a tree: each tensor to one array, and the rest to JSON."""

    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}
        self.seen: dict[int, tuple[Any, dict]] = {}

    def encode(self, value):
        """Return the tree for JSON."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, list) and len(value) > 16 and all(type(v) is float for v in value):
            return {"floats": self._tensor(torch.tensor(value, dtype=torch.float64))["tensor"]}
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if isinstance(value, tuple):
            return {"tuple": [self.encode(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": {name: self.encode(item) for name, item in value.items()}}
        if type(value).__name__ in _RECORDS:
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {type(value).__name__: self.encode(fields)["dict"]}
        assert value is None or type(value) in {bool, int, float, str}, type(value)
        return value

    def _tensor(self, tensor):
        if id(tensor) not in self.seen:
            # Keep the order of axes in memory: sums over another layout may round differently.
            order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
            name = f"t{len(self.arrays)}"
            self.arrays[name] = tensor.detach().permute(order).contiguous().cpu().numpy()
            self.seen[id(tensor)] = tensor, {"tensor": [name, order]}
        return self.seen[id(tensor)][1]


class Decoder:
    """Restore a tree from JSON and arrays."""

    def __init__(self, arrays, device):
        self.tensors = {name: torch.tensor(array).to(device) for name, array in arrays.items()}
        self.host = arrays

    def decode(self, value):
        """Return the tree that was encoded."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return self._tensor(*content)
        if kind == "floats":
            return self.host[content[0]].tolist()
        if kind == "tuple":
            return tuple(self.decode(item) for item in content)
        fields = {name: self.decode(item) for name, item in content.items()}
        return fields if kind == "dict" else _RECORDS[kind](**fields)

    def _tensor(self, name, order):
        inverse = [order.index(axis) for axis in range(len(order))]
        return self.tensors[name].permute(inverse)
