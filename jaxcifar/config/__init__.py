"""What the commands are asked to do: one frozen dataclass each."""

from jaxcifar.config.train import (
    AUGMENTATIONS,
    DATASETS,
    FOLDER,
    MODEL_NAMES,
    REQUIRED,
    DatasetName,
    ModelName,
    TrainConfig,
    WeightsConfig,
    choices,
    flag,
    folder_of,
    fraction,
    option,
    require_dataset,
    without_none,
)

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "FOLDER",
    "MODEL_NAMES",
    "REQUIRED",
    "DatasetName",
    "ModelName",
    "TrainConfig",
    "WeightsConfig",
    "choices",
    "flag",
    "folder_of",
    "fraction",
    "option",
    "require_dataset",
    "without_none",
]
