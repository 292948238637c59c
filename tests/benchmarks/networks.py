"""Networks, made-up data for them, and Pyro models of them: every weight tensor is a sample site."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

CLASSES = 10
NUM_DATA, BATCH = 10_000, 128


class LastStep(nn.Module):
    """Classes from the last state of an LSTM."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.output = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.output(states[:, -1])


class Block(nn.Module):
    """Two convolutions and a way around them: He, Zhang, Ren & Sun (2016), Deep residual learning, CVPR."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.way(x) + self.around(x))


def residual() -> nn.Module:
    """Of the size of ResNet-18, for images of 32 x 32; batch norms as they are after training."""
    blocks: list[nn.Module] = []
    for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *blocks,
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)),
    ).eval()


def perceptron(*sizes: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Two convolutions with pooling, and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, CLASSES)),
    )


# shape of a row, and the network
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "tiny": ((784,), lambda: perceptron(784, 8, CLASSES)),
    "small": ((784,), lambda: perceptron(784, 32, CLASSES)),
    "mlp": ((784,), lambda: perceptron(784, 256, 256, CLASSES)),
    "cnn": ((1, 28, 28), convolutional),
    "lstm": ((20, 32), lambda: LastStep(32, 128)),
    "resnet": ((3, 32, 32), residual),
    "wide": ((784,), lambda: perceptron(784, 2048, 2048, 2048, CLASSES)),
}


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with its first weights, and rows with their classes; the same in every call."""
    torch.manual_seed(0)
    shape, network = NETWORKS[name]
    return network(), torch.randn(NUM_DATA, *shape), torch.randint(CLASSES, (NUM_DATA,))


def classifier(network: nn.Module) -> Callable[..., None]:
    """The Pyro model of a network with normal weights."""
    shapes = {name: weights.shape for name, weights in network.named_parameters()}

    def model(x: Tensor, y: Tensor | None = None) -> None:
        weights = {
            name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
            for name, shape in shapes.items()
        }
        logits = functional_call(network, weights, (x,))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Categorical(logits=logits), obs=y)

    return model
