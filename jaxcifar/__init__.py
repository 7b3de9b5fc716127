"""jaxcifar: a PyTorch CIFAR-10 program (VGG16, ResNet50_layer4) as pure JAX and Flax."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from jaxcifar.config.train import TrainConfig
    from jaxcifar.core.inference import logits
    from jaxcifar.core.models import create_model
    from jaxcifar.core.state import TrainState, create_state
    from jaxcifar.core.steps import Examples, loss_fn, train_step
    from jaxcifar.errors import UserError
    from jaxcifar.files.weights import load as load_weights
    from jaxcifar.train import train_and_evaluate

__version__ = "0.1.0"
__all__ = ["Examples", "TrainConfig", "TrainState", "UserError", "create_model", "create_state"]
__all__ += ["load_weights", "logits", "loss_fn", "train_and_evaluate", "train_step"]
