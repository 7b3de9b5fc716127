"""The options of each command, one frozen dataclass each. Imports nothing heavy."""

from jaxcifar.config.commands import (
    EvaluateConfig,
    ExportConfig,
    PortConfig,
    PredictConfig,
    ReportConfig,
)
from jaxcifar.config.options import REQUIRED, Options, option
from jaxcifar.config.train import (
    CONFIG_FILE,
    DATASET_NAMES,
    DATASETS,
    FOLDER_PREFIX,
    MODEL_NAMES,
    ModelName,
    TrainConfig,
    folder_path,
    is_dataset,
)

__all__ = [
    "CONFIG_FILE",
    "DATASETS",
    "DATASET_NAMES",
    "FOLDER_PREFIX",
    "MODEL_NAMES",
    "REQUIRED",
    "EvaluateConfig",
    "ExportConfig",
    "ModelName",
    "Options",
    "PortConfig",
    "PredictConfig",
    "ReportConfig",
    "TrainConfig",
    "folder_path",
    "is_dataset",
    "option",
]
