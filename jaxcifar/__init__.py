"""jaxcifar: a PyTorch CIFAR-10 program (VGG16, ResNet50_layer4) as pure JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcifar.config import TrainConfig as TrainConfig
    from jaxcifar.core.models import create_model as create_model
    from jaxcifar.core.state import TrainState as TrainState
    from jaxcifar.core.state import create_state as create_state
    from jaxcifar.core.steps import eval_step as eval_step
    from jaxcifar.core.steps import train_step as train_step
    from jaxcifar.errors import UserError as UserError
    from jaxcifar.train import train_and_evaluate as train_and_evaluate

__version__ = "0.1.0"

# Imported on first use: `import jaxcifar` and every `--help` stay instant.
_HOMES = {
    "TrainConfig": "config",
    "TrainState": "core.state",
    "UserError": "errors",
    "create_model": "core.models",
    "create_state": "core.state",
    "eval_step": "core.steps",
    "train_and_evaluate": "train",
    "train_step": "core.steps",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
