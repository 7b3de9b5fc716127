"""The state of ``torch.optim.Adam`` as optax's, without torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from jaxcifar.errors import UserError
from jaxcifar.files import torch_names

# Of core.state.make_optimizer.
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False}
MOMENTS = ("exp_avg", "exp_avg_sq")


def adam_to_flax(
    optimizer: Mapping[str, Any], model: nn.Module
) -> tuple[optax.ScaleByAdamState, float]:
    """Map ``{"state": {0: {"step", "exp_avg", "exp_avg_sq"}, ...}, "param_groups": [...]}``.

    Parameters are matched by ``param_names`` if torch has saved them, else by position, as of
    ``Adam(model.parameters())``. Returns the moments and count, and the learning rate of the next
    update. Raises ``UserError`` if it is not Adam with the settings of training for this model.
    """
    leaves = {k: leaf for k, leaf in torch_names.leaves(model).items() if leaf.path[0] == "params"}
    groups, states = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, Sequence) or not isinstance(states, Mapping) or not groups:
        raise UserError("the optimizer's state has no param_groups or no state")
    for name, expected in ADAM.items():
        for value in (group.get(name, expected) for group in groups):
            if (tuple(value) if isinstance(value, Sequence) else value) != expected:
                raise UserError(f"the optimizer has {name} {value}, training has {expected}")
    indices = [index for group in groups for index in group["params"]]
    if len(indices) != len(leaves) or set(states) != set(indices):
        raise UserError(
            f"the optimizer has a state for {len(states)} of {len(indices)} parameters, the"
            f" model has {len(leaves)}"
        )
    names = [name for group in groups for name in group.get("param_names", ())]
    if set(names) != leaves.keys():
        names = list(leaves)
        if indices != list(range(len(leaves))):
            raise UserError("the optimizer does not have its parameters in the model's order")
    if not all({"step", *MOMENTS} <= set(state) for state in states.values()):
        raise UserError("the optimizer is not Adam: it keeps no step, exp_avg and exp_avg_sq")
    steps = sorted({float(state["step"]) for state in states.values()})
    rates = sorted({float(group["lr"]) for group in groups})
    if len(steps) > 1 or len(rates) > 1 or not (0 <= steps[0] < 2**31 and 0 <= rates[0] < math.inf):
        raise UserError(f"the optimizer has steps {steps} and rates {rates}: expected one of each")

    def moment(which: str) -> Any:
        arrays = {name: states[index][which] for name, index in zip(names, indices, strict=True)}
        return torch_names.to_tree("not Adam's moments of the model", leaves, arrays)["params"]

    count = np.asarray(steps[0], np.int32)
    return optax.ScaleByAdamState(count, *map(moment, MOMENTS)), rates[0]  # type: ignore[arg-type]
