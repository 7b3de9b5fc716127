"""The original program's networks in torch, for comparing: ``VGG16`` and ``ResNet50_layer4``."""

from torch import nn

CFG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


class VGG16(nn.Module):
    """Thirteen convolutions and the head; ``batch_norm`` after each makes it vgg16_bn."""

    def __init__(self, batch_norm=False, dropout=0.5, num_classes=10):
        super().__init__()
        layers, channels = [], 3
        for v in CFG:
            if v == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(channels, v, 3, padding=1))
            layers += [nn.BatchNorm2d(v), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = v
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, num_classes),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def unit(cin, cout, kernel, stride=1, padding=0):
    """Convolution with bias, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, padding), nn.BatchNorm2d(cout), nn.ReLU()
    )


class Block(nn.Module):
    """A bottleneck whose shortcut always runs its own unit; no ReLU after the addition."""

    def __init__(self, cin, mid, cout, downsample):
        super().__init__()
        stride = 2 if downsample else 1
        self.layer = nn.Sequential(
            unit(cin, mid, 1, stride), unit(mid, mid, 3, 1, 1), unit(mid, cout, 1)
        )
        shortcut = unit(cin, cout, 1, stride)
        if downsample:
            self.downsize = shortcut
        else:
            self.make_equal_channel = shortcut
        self.shortcut = [shortcut]  # in a list: registered once, under its own name

    def forward(self, x):
        return self.layer(x) + self.shortcut[0](x)


class ResNet50_layer4(nn.Module):  # the original's spelling
    """ResNet50 cut after its layer 4."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.layer1 = nn.Sequential(*unit(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.layer2 = nn.Sequential(
            Block(64, 64, 256, False), Block(256, 64, 256, False), Block(256, 64, 256, True)
        )
        self.layer3 = nn.Sequential(
            Block(256, 128, 512, False),
            *(Block(512, 128, 512, False) for _ in range(2)),
            Block(512, 128, 512, True),
        )
        self.layer4 = nn.Sequential(
            Block(512, 256, 1024, False), *(Block(1024, 256, 1024, False) for _ in range(5))
        )
        self.avgpool = nn.AvgPool2d(2, 2)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def create_torch_model(name, *, num_classes=10, dropout=0.5):
    """The torch module of one of jaxcifar's models."""
    if name == "resnet50_layer4":
        return ResNet50_layer4(num_classes)
    return VGG16(name == "vgg16_bn", dropout, num_classes)
