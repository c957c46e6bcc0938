"""Blank rules of CTC distillation, and CTC between blocks through one head, by somebody who has not seen their
implementation: slow NumPy after Hilmes et al. (2025) and Lee, Watanabe (2021), equal to the code of either where that
does what its paper says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
#: What the code of Hilmes et al. gives of `inputs` at T = 2: by seed and ratio of random blanks.
RANDOM = {
    (0, ("random", 0.5)): 1.8074916246699635,
    (0, ("random", 1.0)): 1.7450038135389399,
    (0, ("random", 3.0)): 1.7688497305584985,
    (1, ("random", 0.5)): 1.7450283468504058,
    (1, ("random", 1.0)): 1.7074061409987054,
    (1, ("random", 3.0)): 1.6951975720689172,
    (2, ("random", 0.5)): 1.7578634428300528,
    (2, ("random", 1.0)): 1.8219895460075228,
    (2, ("random", 3.0)): 1.8219895460075228,
}
#: What ESPnet gives of `blocks`, a weight of 0.3 and both blocks: CTC of the last layer, of each block, the whole, and
#: the gradient of the head that they share. In the second an utterance is too short for its labels.
SHARED: dict[int, tuple[float, list[float], float, list[list[float]]]] = {
    0: (
        6.670847212983115,
        [8.63452771699904, 6.984144040155247],
        7.0123938126613234,
        [
            [-0.5415433336694035, 0.7879830034505907, 0.43531088241574517, 0.027581531663564945],
            [0.3636861244398125, -0.7195905041650879, -0.4416618083235107, 0.04839612989239053],
            [0.2050686753958126, -0.006454874286008883, 0.10016185210884024, 0.5445705244240547],
            [-0.6003835003642037, 0.4078787119547206, -0.03400786739634809, 0.08089895663919618],
            [0.5731720341979821, -0.4698163369542147, -0.0598030588047267, -0.7014471426192064],
        ],
    ),
    1: (
        6.914542063924464,
        [4.399296990290478, 6.489626565043046],
        6.473517978047153,
        [
            [0.08836760062066228, 0.0780542221513502, 0.11844940106635211, -0.476632434921166],
            [0.4018077491744777, 0.4109235816495709, 0.32808675314447555, -0.46328634606817254],
            [-0.5400354743975214, -0.5103536025142479, -0.642878936887484, 0.29408287104351943],
            [-0.22120259597150832, 0.3355223495759439, 0.10172154397020428, -0.28371621310226347],
            [0.2710627205738899, -0.314146550862617, 0.09462123870645181, 0.9295521230480827],
        ],
    ),
}


def log_softmax(z: Array) -> Array:
    m = z.max()
    return np.asarray(z - m - math.log(np.exp(z - m).sum()))


def inputs(seed: int = 0) -> dict[str, Any]:
    """Three utterances of 8 frames and 5 symbols, the last the blank; in odd seeds one has nothing else."""
    r = np.random.RandomState(seed)
    t, s = r.randn(3, 8, 5) * 2, r.randn(3, 8, 5)
    t[..., -1] += 2.0
    if seed % 2:
        t[2, :, -1] += 9.0
    p = r.rand(5) + 0.1
    p[-1] += 2
    return {"teacher": t, "student": s, "prior": p / p.sum(), "perm": [r.permutation(8) for _ in range(3)]}


def blank_frames(t: Array, prior: Array | None = None, scale: float = 0.0) -> Any:
    """Where the best symbol is blank, by ``log p(c) - scale log prior(c)``."""
    out = np.zeros(t.shape[:2], bool)
    for b in range(t.shape[0]):
        for i in range(t.shape[1]):
            v = log_softmax(t[b, i]) - (scale * np.log(prior) if prior is not None else 0.0)
            out[b, i] = int(np.argmax(v)) == t.shape[2] - 1
    return out


def keep_random(blank: Any, ratio: float, perm: Sequence[Sequence[int]]) -> Any:
    """Frames that are not blank, and of each utterance as many blank ones as `ratio` times these, by a permutation."""
    m = ~blank
    for b in range(len(blank)):
        where = [i for i in range(blank.shape[1]) if blank[b, i]]
        for k in perm[b][: int(np.rint(ratio * (~blank[b]).sum()))]:
            m[b, where[k]] = True
    return m


def perm_of(d: Any, blank: Any) -> list[list[int]]:
    """A permutation of each utterance's blank frames."""
    return [[int(k) for k in d["perm"][b] if k < blank[b].sum()] for b in range(len(blank))]


def kd(s: Array, t: Array, mask: Any, T: float = 2.0) -> float:
    """T^2 times the mean over selected frames of KL(softmax(t / T) || softmax(s / T)); 0 if none."""
    total, n = 0.0, 0
    for b in range(s.shape[0]):
        for i in range(s.shape[1]):
            if mask[b, i]:
                q, p = log_softmax(s[b, i] / T), log_softmax(t[b, i] / T)
                total += float((np.exp(p) * (p - q)).sum())
                n += 1
    return T * T * total / n if n else 0.0


def blocks(seed: int = 0) -> dict[str, Any]:
    """Three utterances of 7, 5 and 4 frames of width 4 after three layers, and the head from there to 5 symbols."""
    r = np.random.RandomState(seed)
    d = {
        "hidden": {k: r.randn(3, 7, 4) for k in (2, 4, 6)}, "W": r.randn(5, 4), "b": r.randn(5) * 0.1,
        "frames": [7, 5, 4], "labels": [[1, 2, 2], [3], [4, 1]],
    }  # fmt: skip
    if seed % 2:
        d["labels"][2] = [4, 4, 4, 1]
    return d
