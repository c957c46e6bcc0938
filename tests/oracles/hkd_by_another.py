"""HKD (Zhou et al., ICCV 2021) by somebody who has not seen its implementation: slow loops in float64, after the
release (wyc-ruiker/HKD at 9434fd85, distiller_zoo/GNN.py). Its values are below, with a stand-in for its graph library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max())
    return np.asarray(e / e.sum())


def unit(v: Array) -> Array:
    return np.asarray(v / math.sqrt(float((v**2).sum())))


def neighbours(logits: Array, k: int) -> list[list[int]]:
    """The k rows nearest by 1 - cos of their softmax; the row itself is always among them."""
    n, p, out = len(logits), [softmax(z) for z in logits], []
    for i in range(n):
        apart = [1 - p[i] @ p[j] / max(math.sqrt(p[i] @ p[i]) * math.sqrt(p[j] @ p[j]), 1e-7) for j in range(n)]
        apart[i] = -1.0
        out.append(sorted(range(n), key=lambda j, apart=apart: (apart[j], j))[:k])
    return out


def tag(h: Array, nb: Sequence[Sequence[int]], w: Array, b: Array) -> Array:
    """One hop: unit(W [h_i ; mean over its k neighbours of h_j] + b)."""
    rows = []
    for i, near in enumerate(nb):
        mean = np.sum([h[j] for j in near], axis=0) / len(near)
        rows.append(unit(w @ np.concatenate([h[i], mean]) + b))
    return np.stack(rows)


def nce(anchor: Array, pos: Array, negs: Sequence[Array], temperature: float) -> float:
    total = 0.0
    for i in range(len(anchor)):
        z = np.array([anchor[i] @ pos[i], *(anchor[i] @ n for n in negs[i])]) / temperature
        m = z.max()
        total -= float(z[0] - m - math.log(np.exp(z - m).sum()))
    return total / len(anchor)


def loss(
    x: Mapping[str, Array], p: Mapping[str, Array], negatives: Sequence[Sequence[int]], k: int = 8,
    temperature: float = 0.07, smoothing: float = 0.75, release_negatives: bool = True,
) -> float:  # fmt: skip
    """``x``: features, logits, ids and banks of both sides; ``p``: weights; `negatives` the ids of each row's."""
    e_s = np.stack([unit(p["Es"] @ f + p["bs"]) for f in x["f_s"]])
    e_t = np.stack([unit(p["Et"] @ f + p["bt"]) for f in x["f_t"]])
    mem_s, mem_t, idx = x["mem_s"], x["mem_t"], x["idx"]
    near, far = (mem_s, mem_t) if release_negatives else (mem_t, mem_s)
    ns, nt = ([bank[list(own)] for own in negatives] for bank in (near, far))
    individual = nce(e_s, mem_t[idx], ns, temperature) + nce(e_t, mem_s[idx], nt, temperature)
    if len(idx) < k:
        return individual
    g_s = tag(e_s, neighbours(x["l_s"], k), p["Gs"], p["gs"])
    g_t = tag(e_t, neighbours(x["l_t"], k), p["Gt"], p["gt"])
    old, new = smoothing, 1 - smoothing
    smooth_s = np.stack([unit(old * mem_s[i] + new * g) for i, g in zip(idx, g_s, strict=True)])
    smooth_t = np.stack([unit(old * mem_t[i] + new * g) for i, g in zip(idx, g_t, strict=True)])
    return individual + nce(g_s, smooth_t, ns, temperature) + nce(g_t, smooth_s, nt, temperature)


def inputs(seed: int, B: int, n: int) -> tuple[dict[str, Array], dict[str, Array]]:
    r, ds, dt, classes, width, negatives = np.random.RandomState(seed), 5, 6, 4, 3, 7
    x = {
        "f_s": r.randn(B, ds), "l_s": r.randn(B, classes) * 2, "f_t": r.randn(B, dt), "l_t": r.randn(B, classes) * 2,
        "idx": r.permutation(n)[:B], "neg": r.randint(0, n, (B, negatives)), "mem_s": r.uniform(-1, 1, (n, width)),
        "mem_t": r.uniform(-1, 1, (n, width)),
    }  # fmt: skip
    shapes = {"Es": (width, ds), "bs": (width,), "Et": (width, dt), "bt": (width,)}
    shapes |= {"Gs": (width, 2 * width), "gs": (width,), "Gt": (width, 2 * width), "gt": (width,)}
    return x, {name: r.randn(*shape) for name, shape in shapes.items()}


def hkd(
    student: Sequence[Array], teacher: Sequence[Array], item: Sequence[Array], ids: Array, labels: Array, *,
    state: Mapping[str, Array], drawn: Array, samples: int = 50000, negatives: int = 16384, width: int = 128,
    temperature: float = 0.07, momentum: float = 0.9, smoothing: float = 0.75, neighbours: int = 8,
    released: bool = False,
) -> float:  # fmt: skip
    """`loss` of a registered loss's inputs: one draw of negatives for all rows, of which those of its class are left
    out, as far as classes are known."""
    own, known = ids[item[0]], state["known"].copy()
    known[own] = labels
    x = {"l_s": student[0], "f_s": student[1], "l_t": teacher[0], "f_t": teacher[1], "idx": own}
    x |= {"mem_s": state["bank_s"], "mem_t": state["bank_t"]}
    p = {name: state[path] for name, path in WEIGHTS.items()}
    kept = [[j for j in drawn if j != i and known[j] != label] for i, label in zip(own, labels, strict=True)]
    return loss(x, p, kept, neighbours, temperature, smoothing, released)


#: Of the oracle's weights, those of the module.
WEIGHTS = {
    "Es": "embed_s.weight", "bs": "embed_s.bias", "Et": "embed_t.weight", "bt": "embed_t.bias",
    "Gs": "graph_s.weight", "gs": "graph_s.bias", "Gt": "graph_t.weight", "gt": "graph_t.bias",
}  # fmt: skip

#: Seed, rows, samples; the release's loss, its gradient at the first student's features and at the first row of the
#: student's graph network.
RELEASED: tuple[tuple[Any, ...], ...] = (
    (0, 10, 20, 47.6411048584073,
     [0.110410053866, -0.0405478968488, 0.000432885413496, -0.0190335034135, 0.0938638828657],
     [-1.25178876544, 0.699502532608, 0.608667832662, 0.20528938104, 0.368165757501, -0.186678740684]),
    (1, 10, 20, 46.5827501175975,
     [0.238557621547, -0.00103900357034, 0.017683504535, 0.0336024495908, -0.393589268889],
     [0.395241669227, 0.1406442517, 0.0910704751045, 0.378597336681, 0.155482308078, 0.0680465850472]),
    (2, 16, 30, 50.4524456604757,
     [0.0795482508416, -0.0483391911073, 0.0907211867503, 0.225864058398, -0.00733515432678],
     [-0.400961373514, -0.257308559363, 1.1144045442, -0.459570475759, -0.261100442349, 0.198470972903]),
    (3, 5, 20, 22.9132320700998,
     [0.413833937705, 0.551786577467, 1.10980087788, 0.9846493127, 1.48621866811],
     None),
)  # fmt: skip
