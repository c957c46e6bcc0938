"""A diffusion room without images: vectors, sequences or cubes, and a network of two layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.method import Context, Stage


class Net(nn.Module):
    """Any shape, flattened; the time beside it."""

    def __init__(self, shape: Sequence[int], width: int = 12, classes: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, size = tuple(shape), prod(shape)
        self.body = nn.Linear(size + 1, width)
        self.classes = nn.Embedding(classes, width) if classes else None
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, size)

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        h = self.body(torch.cat([z.flatten(1), (t.to(z.dtype) / 100)[:, None]], dim=1))
        if self.classes is not None and class_labels is not None:
            h = h + self.classes(class_labels)
        return self.head(self.drop(torch.tanh(h))).reshape(z.shape)


def denoiser(
    shape: Sequence[int] = (3,), *, seed: int = 0, width: int = 12, prediction: str = "v_prediction", classes: int = 0,
    process: Process | None = None, steps: int = 8, dropout: float = 0.0,
) -> Denoiser:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(shape, width, classes, dropout)
    process = process or Process.cosine(64)
    return Denoiser(net, process, prediction, shape, classes=classes or None, sampling=Sampling("ddim", steps))


class Source:
    """Two clusters; noise and time as functions of (epoch, index)."""

    def __init__(
        self, shape: Sequence[int], streams: Streams, size: int = 24, batch: int = 6, classes: int = 0
    ) -> None:
        self.shape, self.streams, self.size, self.batch, self.classes = tuple(shape), streams, size, batch, classes

    def __len__(self) -> int:
        return self.size

    def plan(self, epoch: int) -> list[list[int]]:
        order = self.streams.numpy("order", epoch).permutation(self.size).tolist()
        return [order[i : i + self.batch] for i in range(0, self.size, self.batch)]

    def sample(self, index: int, epoch: int) -> tuple[int, Tensor, Tensor, Tensor]:
        x = torch.full(self.shape, 0.5 if index % 2 else -0.5)
        draw = self.streams.torch("noise", epoch, index)
        return index, x, torch.randn(self.shape, generator=draw), torch.rand((), generator=draw)

    def collate(self, samples: Any) -> dict[str, Any]:
        ids, x, noise, u = zip(*samples, strict=True)
        batch = {"ids": torch.tensor(ids), "x": torch.stack(x), "noise": torch.stack(noise), "u": torch.stack(u)}
        return batch | ({"labels": batch["ids"] % self.classes} if self.classes else {})


class Samples:
    """Two clusters without labels, as a split's images."""

    labels = class_names = None

    def __init__(self, shape: Sequence[int], count: int = 40) -> None:
        signs = np.where(np.arange(count) % 2, 0.5, -0.5).reshape(-1, *[1] * len(shape))
        self.x = (signs + 0.1 * np.random.default_rng(0).normal(size=(count, *shape))).astype(np.float32)

    def tensor(self, indexes: Any) -> Tensor:
        return torch.from_numpy(self.x[indexes])


class Adapter:
    """As much of an adapter as the methods ask for."""

    def __init__(self, steps: int = 8, solver: str = "ddim", shape: Sequence[int] = (3,)) -> None:
        self.config = SimpleNamespace(sampling=SimpleNamespace(solver=solver, steps=steps))
        self.shape = tuple(shape)

    def data(self, split: str) -> Any:
        return SimpleNamespace(images=Samples(self.shape))

    def signals(self, role: str, model: Denoiser, batch: Any, features: Sequence[str] = ()) -> Signals:
        process = model.process
        t = (batch["u"] * process.T).long()
        z = process.add_noise(batch["x"], batch["noise"], t)
        v, true = (
            model.predict("v_prediction", z, t, batch.get("labels")),
            process.velocity(batch["x"], batch["noise"], t),
        )
        layout = Layout.samples(len(z))
        said = Signals(batch["ids"]).add("prediction", v.flatten(1), layout)
        return said.add("labels", true.flatten(1), layout)


def said_by(model: Denoiser, shape: Sequence[int]) -> Callable[[np.ndarray, float], np.ndarray]:
    """A denoiser as the oracles call it: one sample, NumPy."""

    def predict(z: np.ndarray, t: float) -> np.ndarray:
        with torch.no_grad():
            return model.predict_x(torch.tensor(z).reshape(1, *shape), torch.tensor([t]))[0].numpy()

    return predict


def context(stage: Stage, step: int = 0) -> Context:
    return Context(stage, step, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())
