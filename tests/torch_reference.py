"""The original program's networks, written for the tests from the facts of the original."""

import torch
from torch import nn

CFG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


class VGG16(nn.Module):
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
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, padding), nn.BatchNorm2d(cout), nn.ReLU()
    )


class Block(nn.Module):
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


class ResNet50Layer4(nn.Module):
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


MODELS = {
    "vgg16": lambda: VGG16(dropout=0.0),
    "vgg16_bn": lambda: VGG16(batch_norm=True, dropout=0.0),
    "resnet50_layer4": ResNet50Layer4,
}


def randomize(module, seed=0):
    """Random statistics, scales and biases: fresh ones would hide errors of mapping."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.3, 0.3),
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, generator=generator)
            layer.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return module


def to_flax(tensors, module):
    """Tensors by their names in a module, as ``(params, batch_stats)`` of the same names."""
    params, batch_stats = {}, {}
    norms = {n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    for key, tensor in tensors.items():
        *path, name = key.split(".")
        array = tensor.detach().numpy()
        if name == "num_batches_tracked":
            continue
        tree = batch_stats if name.startswith("running") else params
        if name == "weight":
            name = "scale" if ".".join(path) in norms else "kernel"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        for part in path:
            tree = tree.setdefault(part, {})
        tree[name.removeprefix("running_")] = array.copy()
    return params, batch_stats
