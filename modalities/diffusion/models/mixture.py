"""A Gaussian mixture under noise, exactly: a teacher that nobody has to train, and whose samples are known.

Of z = alpha x + sigma eps with x from the mixture everything that a network approximates has a closed form. So a method
can be measured in seconds, and what it misses is its own fault, not that of a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError

from ..data.condition import Condition
from .denoiser import Denoiser, Sampling
from .process import Process, expand


class Mixture(nn.Module):
    """sum_i weights_i N(means_i, covariances_i) in d dimensions, in float64.

    Args:
        weights: ``(m,)``, positive; they are scaled to the sum 1.
        means: ``(m, d)``.
        covariances: ``(m, d, d)``, symmetric and positive definite.
        classes: ``(m,)``, the class that a part belongs to; None for a mixture without classes.
    """

    def __init__(
        self, weights: Sequence[float] | Tensor, means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor, classes: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        w, m, c = (torch.as_tensor(given, dtype=torch.float64) for given in (weights, means, covariances))
        if m.ndim != 2 or w.shape != m.shape[:1] or c.shape != (*m.shape, m.shape[1]):
            raise ValueError(f"weights {tuple(w.shape)}, means {tuple(m.shape)}, covariances {tuple(c.shape)}")
        variances, axes = torch.linalg.eigh(c)
        if not bool((w > 0).all() and (variances > 0).all()):
            raise ValueError("weights must be positive, covariances positive definite")
        labels = torch.as_tensor(classes if classes is not None else [0] * len(w))
        if labels.shape != w.shape or labels.unique().tolist() != list(range(int(labels.max()) + 1)):
            raise ValueError(f"classes {labels.tolist()}: give every part one of 0, 1, ..., and leave none out")
        self.classes = int(labels.max()) + 1 if classes is not None else None
        for name, value in (("log_weights", (w / w.sum()).log()), ("means", m), ("variances", variances),
                            ("axes", axes), ("labels", labels)):  # fmt: skip
            self.register_buffer(name, value)

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    labels: Tensor

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Clean points ``(count, d)`` in float64 and their classes ``(count,)``, on the CPU."""
        parts = torch.multinomial(self.log_weights.exp().cpu(), count, replacement=True, generator=generator)
        normal = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        along = normal * self.variances.cpu()[parts].sqrt()
        x = self.means.cpu()[parts] + torch.einsum("nij,nj->ni", self.axes.cpu()[parts], along)
        return x, self.labels.cpu()[parts] if self.classes is not None else None

    def denoise(self, z: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x | z] of points z ``(b, d)`` at alpha and sigma ``()`` or ``(b,)``, float64; labels ``(b,)`` condition it.

        alpha = 0 and sigma = 0 are allowed.
        """
        shares, _, pull = self._parts(z, alpha, sigma, labels)
        alpha = torch.as_tensor(alpha, dtype=torch.float64, device=z.device).reshape(-1, 1, 1)
        moved = torch.einsum("mij,bmj->bmi", self.axes, self.variances * pull)
        return (shares[:, :, None] * (self.means + alpha * moved)).sum(dim=1)

    def guided(self, z: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor, scale: float | Tensor) -> Tensor:
        """x_u + scale (x_c - x_u): classifier-free guidance (Ho and Salimans, 2022) without an error in either.

        `scale` is one for all, or ``(b,)``.
        """
        scale = expand(torch.as_tensor(scale, dtype=torch.float64), z.double())
        free = self.denoise(z, alpha, sigma)
        return free + scale * (self.denoise(z, alpha, sigma, labels) - free)

    def score(self, z: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """d log p(z) / dz ``(b, d)``."""
        shares, _, pull = self._parts(z, alpha, sigma, labels)
        return -(shares[:, :, None] * torch.einsum("mij,bmj->bmi", self.axes, pull)).sum(dim=1)

    def log_density(self, z: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z) ``(b,)``."""
        return self._parts(z, alpha, sigma, labels)[1]

    def _parts(self, z: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """p(part | z) ``(b, m)``, log p(z) ``(b,)`` and C_z^-1 (z - alpha mean) along each part's axes ``(b, m, d)``.

        A part's covariance under noise has the axes of its clean one, so no matrix is inverted.
        """
        z = z.double()
        alpha, sigma = (torch.as_tensor(c, dtype=torch.float64, device=z.device).reshape(-1, 1, 1)
                        for c in (alpha, sigma))  # fmt: skip
        off = torch.einsum("mji,bmj->bmi", self.axes, z[:, None] - alpha * self.means)
        spread = alpha.square() * self.variances + sigma.square()
        logs = self.log_weights - 0.5 * (off.square() / spread + (2 * math.pi * spread).log()).sum(dim=2)
        if labels is not None:
            own = self.labels == labels[:, None].to(z.device)
            of_class = self.log_weights.masked_fill(~own, -torch.inf).logsumexp(dim=1, keepdim=True)
            logs = logs.masked_fill(~own, -torch.inf) - of_class
        return logs.softmax(dim=1), logs.logsumexp(dim=1), off / spread


class ExactDenoiser(Denoiser):
    """A mixture's denoiser in the place of a network: it says exactly what a perfect one would.

    Args:
        mixture: with classes, the denoiser is conditioned on them.
        guidance: scale of classifier-free guidance; 1 is the condition alone.
    """

    def __init__(
        self, mixture: Mixture, process: Process, prediction: str = "v_prediction", *, guidance: float = 1.0,
        sampling: Sampling | None = None,
    ) -> None:  # fmt: skip
        super().__init__(mixture, process, prediction, (mixture.dimension,), classes=mixture.classes, sampling=sampling)
        if guidance != 1 and mixture.classes is None:
            raise UserError(f"guidance {guidance} of a mixture without classes: there is nothing to guide by")
        self.guidance = guidance

    def forward(
        self, z: Tensor, t: Tensor | int, labels: Condition | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """As a network would say it, in z's type, of z ``(b, d)`` at times t ``(b,)`` from 0 on."""
        self.check_labels(labels)
        times = torch.as_tensor(t, device=z.device).expand(len(z))
        alpha, sigma = self.process.alpha(times), self.process.sigma(times)
        mixture, wide = self.mixture, z.double()
        scale = self.guidance if guidance is None else guidance
        assert labels is None or isinstance(labels, Tensor)
        x = (
            mixture.denoise(wide, alpha, sigma, labels)
            if labels is None or (not isinstance(scale, Tensor) and scale == 1)
            else mixture.guided(wide, alpha, sigma, labels, scale)
        )
        return self.process.convert(x, wide, times, "sample", self.prediction).to(z.dtype)

    @property
    def mixture(self) -> Mixture:
        assert isinstance(self.net, Mixture)
        return self.net


class PointNet(nn.Module):
    """A residual network of a few thousand weights for points of d dimensions, called as diffusers' UNets are.

    Args:
        dimension: d.
        classes: how many it is conditioned on; None for none.
        guidance_width: at which it is told the scale of guidance; None: it is not.
    """

    def __init__(
        self, dimension: int, width: int = 64, depth: int = 2, classes: int | None = None,
        guidance_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.guidance_width = guidance_width
        self.register_buffer("rates", torch.logspace(0, -3.5, width // 2), persistent=False)
        self.stem = nn.Linear(dimension, width)
        self.times = nn.Linear(width, width)
        self.labels = nn.Embedding(classes, width) if classes is not None else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, dimension)
        if guidance_width is not None:
            self.scale = nn.Linear(guidance_width, width, bias=False)

    rates: Tensor

    def forward(
        self, z: Tensor, t: Tensor, class_labels: Tensor | None = None, timestep_cond: Tensor | None = None
    ) -> Tensor:
        """``(b, d)`` of z ``(b, d)`` at times t ``(b,)``."""
        angles = t[:, None].float() * self.rates
        time = self.times(torch.cat([angles.sin(), angles.cos()], dim=1).to(z.dtype))
        if self.labels is not None and class_labels is not None:
            time = time + self.labels(class_labels)
        if timestep_cond is not None:
            time = time + self.scale(timestep_cond)
        h: Tensor = self.stem(z) + time
        for block in self.blocks:
            h = h + block(h + time)
        out: Tensor = self.head(h)
        return out


__all__ = ["ExactDenoiser", "Mixture", "PointNet"]
