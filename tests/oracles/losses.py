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
    "at": [{}, {"p": 1.0}, {"p": 3.0}],
    "cka": [{}, {"centre": False}],
    "cwd": [{}, {"temperature": 1.0}, {"temperature": 0.5}],
    "dist": [{}, {"temperature": 4.0}, {"beta": 2.0, "gamma": 0.5}, {"temperature": 0.5, "beta": 0.0, "gamma": 3.0}],
    "dkd": [{}, {"temperature": 1.0, "beta": 2.0}, {"alpha": 0.0}, {"temperature": 0.5, "alpha": 3.0, "beta": 0.0}],
    "gjsd": [
        {},
        {"beta": 0.0},
        {"beta": 1.0},
        {"beta": 0.1},
        {"beta": 0.9, "temperature": 2.0},
        {"beta": 0.0, "temperature": 3.0},
        {"beta": 1.0, "temperature": 3.0},
    ],
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
    "logit_mse": [{}, {"centre": True}],
    "multi_label": [{}, {"temperature": 4.0}, {"temperature": 0.5}],
    "ofa": [{}, {"eps": 1.5}, {"eps": 2.0}],
    "rkd": [{}, {"distance": 1.0, "angle": 2.0}, {"angle": 0.0}, {"distance": 0.0}],
    "skew_kl": [{}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 2.0}, {"temperature": 4.0}],
    "skew_rkl": [{}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 2.0}, {"temperature": 4.0}],
    "tfkd_reg": [{}, {"temperature": 1.0}, {"temperature": 40.0, "correct": 0.9}, {"temperature": 0.2, "correct": 0.5}],
    "weighted_ce": [{}, {"background": 2, "background_weight": 0.5}, {"background_weight": 1.0}],
    "wsld": [{}, {"temperature": 1.0}, {"temperature": 4.0}],
}
