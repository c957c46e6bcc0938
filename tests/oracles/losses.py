"""One float64 oracle a loss, named as in the registry, in loops that follow the paper's formula.

An oracle takes NumPy arrays by the same names as the loss (`xmodal_kd.losses.base.INPUTS`) and returns what the loss's
reduction says: ``(n,)`` for rows, ``(b,)`` for items (0 for an item without rows), a scalar for a batch.
0/0 (a constant vector has no direction and no correlation) counts as 0 here, without the small constants of fast code;
those that a formula itself has are kept. What a module owns is handed over as `state`, its state_dict in NumPy, and
what it draws at random by a name of its own (`keep`, `drawn`), both by keyword. The functions are in the module of
their family, beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .adversarial_losses import adv_feature, adv_logit, skd_adv
from .contrastive_losses import crd, crd_exact, infonce, infonce_regions
from .feature_losses import at, cwd, hint, nst, pearson
from .graph_losses import fsp, irg, kdsvd, mhgd
from .learned_losses import ab, delta, jacobian, n_to_one, ofd, srrl, vid
from .logit_losses import (
    dkd,
    gjsd,
    kd,
    kd_lskd,
    logit_mse,
    multi_label,
    ofa,
    skew_kl,
    skew_rkl,
    tfkd_reg,
    weighted_ce,
    wsld,
)
from .map_losses import catkd, dmkd, fgfi, ft, mgd, reviewkd, simkd
from .relation_losses import cka, dist, pkt, rkd, sp
from .structure_losses import cc, darkrank, darkrank_soft, ickd, ifvd, intra_kd, lsp, rcka, skd_pair
from .target_losses import bounded_reg, ctkd, lelp, mlkd
from .transformer_losses import distilbert, minilm, minilmv2, mobilebert, pkd, tinybert

ORACLES: Mapping[str, Callable[..., Any]] = {
    "ab": ab,
    "adv_feature": adv_feature,
    "adv_logit": adv_logit,
    "at": at,
    "bounded_reg": bounded_reg,
    "catkd": catkd,
    "cc": cc,
    "cka": cka,
    "crd": crd,
    "crd_exact": crd_exact,
    "ctkd": ctkd,
    "cwd": cwd,
    "darkrank": darkrank,
    "darkrank_soft": darkrank_soft,
    "delta": delta,
    "dist": dist,
    "distilbert": distilbert,
    "dkd": dkd,
    "dmkd": dmkd,
    "fgfi": fgfi,
    "fsp": fsp,
    "ft": ft,
    "gjsd": gjsd,
    "hint": hint,
    "ickd": ickd,
    "ifvd": ifvd,
    "infonce": infonce,
    "infonce_regions": infonce_regions,
    "intra_kd": intra_kd,
    "irg": irg,
    "jacobian": jacobian,
    "kd": kd,
    "kd_lskd": kd_lskd,
    "kdsvd": kdsvd,
    "lelp": lelp,
    "logit_mse": logit_mse,
    "lsp": lsp,
    "mgd": mgd,
    "mhgd": mhgd,
    "minilm": minilm,
    "minilmv2": minilmv2,
    "mlkd": mlkd,
    "mobilebert": mobilebert,
    "multi_label": multi_label,
    "norm": n_to_one,
    "nst": nst,
    "ofa": ofa,
    "ofd": ofd,
    "pearson": pearson,
    "pkd": pkd,
    "pkt": pkt,
    "rcka": rcka,
    "reviewkd": reviewkd,
    "rkd": rkd,
    "simkd": simkd,
    "skd_adv": skd_adv,
    "skd_pair": skd_pair,
    "skew_kl": skew_kl,
    "skew_rkl": skew_rkl,
    "sp": sp,
    "srrl": srrl,
    "tfkd_reg": tfkd_reg,
    "tinybert": tinybert,
    "vid": vid,
    "weighted_ce": weighted_ce,
    "wsld": wsld,
}

#: Hyper-parameters to compare at. The first are the loss's own defaults; a loss that is not here is tested at those.
SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "ab": [{}, {"margin": 0.0}, {"margin": 2.0}, {"norm": "layer"}, {"norm": "none"}],
    "adv_feature": [{}, {"game": "bce"}, {"spectral": False}],
    "adv_logit": [{}, {"game": "bce"}, {"spectral": False}],
    "at": [{}, {"p": 1.0}, {"p": 3.0}],
    "bounded_reg": [{}, {"margin": 2.0}],
    "catkd": [{}, {"normalise": False}, {"cells": 3}, {"cells": 1, "normalise": False}],
    "cc": [{}, {"order": 3, "gamma": 1.0}, {"order": 1}],
    "cka": [{}, {"centre": False}],
    "crd": [{}, {"temperature": 0.5}],
    "crd_exact": [{}, {"temperature": 0.5}],
    "ctkd": [{}, {"mode": "instance"}, {"start": 2.0, "span": 5.0}],
    "cwd": [{}, {"temperature": 1.0}, {"temperature": 0.5}],
    "darkrank": [{}, {"normalise": False, "alpha": 0.1, "beta": 1.0}, {"nearest": 2}],
    "darkrank_soft": [{}, {"normalise": False, "alpha": 0.1, "beta": 1.0}, {"nearest": 2}],
    "delta": [{}, {"channel_weights": [0.1, 0.3, 0.05, 0.25, 0.2, 0.1]}],
    "dist": [{}, {"temperature": 4.0}, {"beta": 2.0, "gamma": 0.5}, {"temperature": 0.5, "beta": 0.0, "gamma": 3.0}],
    "dkd": [{}, {"temperature": 1.0, "beta": 2.0}, {"alpha": 0.0}, {"temperature": 0.5, "alpha": 3.0, "beta": 0.0}],
    "dmkd": [{}, {"drop": 0.3, "reduce": "mean"}, {"kernel": 1, "drop": 0.7}],
    "fgfi": [{}, {"relu": False, "kernel": 1}],
    "ft": [{}, {"factor": "attention"}, {"k": 1.3, "kernel": 1}, {"reconstruction": 3.0}],
    "gjsd": [
        {},
        {"beta": 0.0},
        {"beta": 1.0},
        {"beta": 0.1},
        {"beta": 0.9, "temperature": 2.0},
        {"beta": 0.0, "temperature": 3.0},
        {"beta": 1.0, "temperature": 3.0},
    ],
    "ickd": [{}, {"normalise": False}],
    "infonce": [{}, {"symmetric": False}, {"temperature": 1.0}],
    "infonce_regions": [{}, {"symmetric": False}, {"temperature": 1.0}],
    "intra_kd": [{}, {"least": 3}],
    "irg": [{}, {"vertex": 1.0, "edge": 0.0}, {"transform": 0.0}],
    "kd": [
        {},
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 20.0},
        {"standardise": True},
        {"standardise": True, "temperature": 1.0},
        {"per_sample": True},
        {"per_sample": True, "temperature": 1.0},
        {"standardise": True, "per_sample": True},
    ],
    "kd_lskd": [{}, {"temperature": 1.0}, {"temperature": 4.0}],
    "kdsvd": [{}, {"relative": False}, {"k": 2, "extra": 0}, {"k": 3, "relative": False}],
    "logit_mse": [{}, {"centre": True}],
    "lsp": [{}, {"neighbours": 2}, {"sigma": 3.0}],
    "mgd": [{}, {"mask": "channel", "drop": 0.4}, {"reduce": "mean", "kernel": 1}],
    "minilm": [{}, {"heads": 3}],
    "minilmv2": [{}, {"heads": 3}],
    "mlkd": [
        {},
        {"confident": "half"},
        {"confident": "release"},
        {"temperatures": (1.0, 4.0), "instance": 0.5, "batch": 2.0, "classes": 3.0},
    ],
    "mobilebert": [{}, {"heads": 2}, {"layers": "last"}, {"layers": "skip"}],
    "multi_label": [{}, {"temperature": 4.0}, {"temperature": 0.5}],
    "norm": [{"segments": 2}],
    "ofa": [{}, {"eps": 1.5}, {"eps": 2.0}],
    "ofd": [{}, {"norm": "layer"}, {"norm": "none"}, {"margins": [-0.1 * c for c in range(9)]}],
    "pkd": [{}, {"layers": "last"}, {"layers": "uniform"}],
    "reviewkd": [{}, {"mid": 2, "norm": "layer"}, {"kernel": 1, "norm": "none"}],
    "rkd": [{}, {"distance": 1.0, "angle": 2.0}, {"angle": 0.0}, {"distance": 0.0}],
    "simkd": [{}, {"kernel": 1, "norm": "layer"}, {"kernel": 5, "norm": "none"}],
    "skd_pair": [{}, {"pool": 0.25}, {"pooling": "mean"}, {"pool": 1.0}],
    "skew_kl": [{}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 2.0}, {"temperature": 4.0}],
    "skew_rkl": [{}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 2.0}, {"temperature": 4.0}],
    "srrl": [{}, {"weight": 0.0, "norm": "layer"}, {"pool": False}, {"norm": "none", "weight": 2.0}],
    "tfkd_reg": [{}, {"temperature": 1.0}, {"temperature": 40.0, "correct": 0.9}, {"temperature": 0.2, "correct": 0.5}],
    "tinybert": [{}, {"heads": 2}, {"layers": "last"}, {"layers": "skip"}],
    "vid": [{}, {"variance": 1.0, "eps": 0.1}],
    "weighted_ce": [{}, {"background": 2, "background_weight": 0.5}, {"background_weight": 1.0}],
    "wsld": [{}, {"temperature": 1.0}, {"temperature": 4.0}],
}
