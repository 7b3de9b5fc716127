"""The original program's networks in torch, for comparison: ``VGG16`` and ``ResNet50_layer4``."""

from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions before a pool


class VGG16(nn.Sequential):
    """Thirteen convolutions and the head; with a batch norm after each it is vgg16_bn."""

    def __init__(self, batch_norm: bool = False, dropout: float = 0.5, num_classes: int = 10):
        super().__init__()
        layers, channels = list[nn.Module](), 3
        for width, count in STAGES:
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(512, num_classes)),
        )


def _unit(cin: int, cout: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, padding)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


class Block(nn.Module):
    """A bottleneck whose shortcut always has a unit; no ReLU after the addition."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int):
        super().__init__()
        units = _unit(cin, mid, 1, stride), _unit(mid, mid, 3, 1, 1), _unit(mid, cout, 1)
        self.layer = nn.Sequential(*units)
        self.shortcut = "make_equal_channel" if stride == 1 else "downsize"
        self.add_module(self.shortcut, _unit(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.get_submodule(self.shortcut)(x)


def _stage(cin: int, mid: int, cout: int, count: int, stride: int) -> nn.Sequential:
    blocks = [Block(cin if i == 0 else cout, mid, cout, 1) for i in range(count - 1)]
    return nn.Sequential(*blocks, Block(cout, mid, cout, stride))


class ResNet50_layer4(nn.Sequential):
    """ResNet50 cut after its layer 4."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.layer1 = nn.Sequential(*_unit(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.layer2 = _stage(64, 64, 256, 3, stride=2)
        self.layer3 = _stage(256, 128, 512, 4, stride=2)
        self.layer4 = _stage(512, 256, 1024, 6, stride=1)
        self.avgpool = nn.AvgPool2d(2, 2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(1024, num_classes)


def create_torch_model(name: str, *, num_classes: int = 10, dropout: float = 0.5) -> nn.Module:
    """Return the torch module of one of jaxcifar's models."""
    if name == "resnet50_layer4":
        return ResNet50_layer4(num_classes)
    return VGG16(name == "vgg16_bn", dropout, num_classes)
