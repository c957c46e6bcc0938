"""FitHuBERT's loss, slow and in float64, by somebody who had read the release and not the code.

Lee, Jang, Goo, Jung, Kim, "FitHuBERT", Interspeech 2022. Release: glory20h/FitHuBERT at 36d999c050e1, whose
`calculate_loss` and `LayerWiseProjHead` were run in float64 for `cases`. A head of its own for each of the student's
blocks: a transposed convolution over time (kernel and stride 2), then a linear map where widths differ. The sum over
blocks of w_l mean (prediction - target)^2, w = 1 for the last block, 0.1 for the others; padded frames are not masked.
"""

import numpy as np


def hint_head(x, Wu, bu, Wl=None, bl=None, f=2):
    """x (B,T,C); Wu (Cin,Cout,f) transposed conv; Wl (D,Cout) -> (B, T*f, D)."""
    x = np.asarray(x, np.float64)
    B, T, _ = x.shape
    up = np.zeros((B, T * f, Wu.shape[1]))
    for n in range(B):
        for t in range(T):
            for j in range(f):
                up[n, t * f + j] = x[n, t] @ Wu[:, :, j] + bu
    return up if Wl is None else up @ Wl.T + bl


def hint_loss(preds, targets, random_weight=0.1):
    """preds: list over layers of (B,Tp,D), LAST entry = last block (weight 1); targets the same, Tt >= Tp."""
    per = []
    for i, (p, t) in enumerate(zip(preds, targets, strict=True)):
        p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)[:, : np.shape(p)[1]]
        per.append(float(((p - t) ** 2).mean()) * (1.0 if i == len(preds) - 1 else random_weight))
    return sum(per), per


def inputs(seed):
    r = np.random.RandomState(seed)
    B, T, C, D, L = 2, [6, 7, 9][seed % 3], 3, 4, 4
    r.randn(B, T, C), r.randn(C, C, 2), r.randn(C)  # of the time reduction, which is the student's own front end here
    return {
        "h": r.randn(L, B, T // 2, C), "Wu": r.randn(L, C, C, 2), "bu": r.randn(L, C), "Wl": r.randn(L, D, C),
        "bl": r.randn(L, D), "teacher": r.randn(L, B, T, D), "order": [int(i) for i in r.permutation(L - 1)],
    }  # fmt: skip


RELEASE = {
    "0": {
        "total": 10.699689860676978,
        "per": [0.6020435615552201, 0.8416069798081173, 0.9997918786926143, 8.256247440621026],
    },
    "1": {
        "total": 12.37420522513517,
        "per": [1.268492958083434, 1.1148498622040834, 1.004105307744848, 8.986757097102805],
    },
    "2": {
        "total": 15.084186586477795,
        "per": [0.7493768054324911, 1.4193739428186805, 0.6681938548556681, 12.247241983370955],
    },
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
