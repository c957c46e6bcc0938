"""Knowledge transfer graph (Minami et al., ACCV 2020) by somebody who has not seen its implementation: slow loops in
float64, after the authors' release (somaminami/DCL at b9c5cf1a, lib/loss_func.py), whose values are below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max())
    return np.asarray(e / e.sum())


def ce(z: Array, y: Array) -> Array:
    return np.array([-math.log(softmax(a)[k]) for a, k in zip(z, y, strict=True)])


def kl(z: Array, source: Array, T: float, eps: float) -> Array:
    """Of each sample KL(source || target) at temperature T; eps as in the release, 0 the clean one."""
    out = []
    for a, b in zip(z, source, strict=True):
        p, q = softmax(a / T), softmax(b / T)
        out.append(sum(y * math.log(y / (x + eps) + eps) for x, y in zip(p, q, strict=True)))
    return np.array(out)


def gate(name: str, values: Array, source: Array, y: Array, it: int, end: int) -> float:
    if name == "cutoff":
        return 0.0
    if name == "correct":  # divided by the batch size
        kept = [v for v, b, k in zip(values, source, y, strict=True) if b.argmax() == k]
        return float(sum(kept)) / len(values)
    return float(values.mean()) * (it / end if name == "linear" else 1.0)


def node_loss(
    i: int, zs: Sequence[Array], y: Array, gates: Sequence[str], T: float, it: int, end: int, eps: float = 1e-10,
) -> float:  # fmt: skip
    """gates[j] is that of the edge from j to i; of i itself, of the labels'."""
    total = 0.0
    for j, z in enumerate(zs):
        if j == i:
            total += gate(gates[j], ce(zs[i], y), np.eye(zs[i].shape[1])[y], y, it, end)
        else:
            total += T * T * gate(gates[j], kl(zs[i], z, T, eps), z, y, it, end)
    return total


def inputs(seed: int = 0) -> tuple[list[Array], Array]:
    r = np.random.RandomState(seed)
    return [r.randn(6, 4) * 2 for _ in range(3)], r.randint(0, 4, 6)


NAMES = {"t": "through", "c": "cutoff", "l": "linear", "r": "correct"}
#: The release's loss of node 0 of three, at iteration 4 of 10, T = 2, by the gates of labels, node 1 and node 2.
LOSSES: dict[str, float] = {
    "ttt": 7.243595760876, "ttc": 5.74328290876, "ttl": 6.343408049607, "ttr": 6.378207160613,
    "tct": 3.901629612881, "tcc": 2.401316760764, "tcl": 3.001441901611, "tcr": 3.036241012617,
    "tlt": 5.238416072079, "tlc": 3.738103219963, "tll": 4.338228360809, "tlr": 4.373027471815,
    "trt": 5.910592474038, "trc": 4.410279621922, "trl": 5.010404762769, "trr": 5.045203873775,
    "ctt": 4.842279000112, "ctc": 3.341966147995, "ctl": 3.942091288842, "ctr": 3.976890399848,
    "cct": 1.500312852116, "ccc": 0.0, "ccl": 0.6001251408465, "ccr": 0.6349242518528,
    "clt": 2.837099311315, "clc": 1.336786459198, "cll": 1.936911600045, "clr": 1.971710711051,
    "crt": 3.509275713274, "crc": 2.008962861158, "crl": 2.609088002004, "crr": 2.64388711301,
    "ltt": 5.802805704418, "ltc": 4.302492852301, "ltl": 4.902617993148, "ltr": 4.937417104154,
    "lct": 2.460839556422, "lcc": 0.9605267043058, "lcl": 1.560651845152, "lcr": 1.595450956159,
    "llt": 3.79762601562, "llc": 2.297313163504, "lll": 2.897438304351, "llr": 2.932237415357,
    "lrt": 4.46980241758, "lrc": 2.969489565463, "lrl": 3.56961470631, "lrr": 3.604413817316,
    "rtt": 7.243595760876, "rtc": 5.74328290876, "rtl": 6.343408049607, "rtr": 6.378207160613,
    "rct": 3.901629612881, "rcc": 2.401316760764, "rcl": 3.001441901611, "rcr": 3.036241012617,
    "rlt": 5.238416072079, "rlc": 3.738103219963, "rll": 4.338228360809, "rlr": 4.373027471815,
    "rrt": 5.910592474038, "rrc": 4.410279621922, "rrl": 5.010404762769, "rrr": 5.045203873775,
}  # fmt: skip
#: Its gradient at the first sample's scores.
GRADIENTS: dict[str, list[float]] = {
    "ttt": [-0.0529221036541, -0.0457831302221, 0.0237077570219, 0.0749974768543],
    "trl": [0.0740202138097, -0.0242411856986, 0.00840158648886, -0.0581806146],
    "lcr": [0.0945767755115, -0.0665166517376, 0.00219316704418, -0.0302532908181],
}  # fmt: skip
