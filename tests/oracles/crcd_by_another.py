"""CRCD's relations of gradients (Zhu et al., CVPR 2021), slow and in float64, from a release (Lechatelia/CRCD at
f9176f6e; its README calls itself incomplete), by somebody who had not seen our code, nor more than the
paper's abstract.

The gradient element is d(mean cross-entropy over the batch) / d(last feature), of student and teacher each through its
own classifier and the true labels; the student's loss is differentiated twice. `RELEASE` holds what the release's own
lines gave in float64: both gradients, one minus their mean cosine, and the contrast of relations with fresh Z. That
contrast has a batch's samples as anchors of themselves as well: of those rows `apart=True` has none.
"""

import math

import numpy as np

EPS = 1e-7


def class_grads(feat, W, b, y):
    """feat (B,D), W (C,D), b (C,), y (B,) -> (B,D): d mean CE / d feat."""
    feat, W, b = (np.asarray(v, np.float64) for v in (feat, W, b))
    out = np.zeros_like(feat)
    for i in range(len(feat)):
        z = W @ feat[i] + b
        p = np.exp(z - z.max())
        p /= p.sum()
        p[y[i]] -= 1.0
        out[i] = W.T @ p / len(feat)
    return out


def grad_cos_loss(gt, gs):
    """The release's 'mse': 1 - mean cos (it multiplies by 10)."""
    norms = [max(np.linalg.norm(a), 1e-8) * max(np.linalg.norm(b), 1e-8) for a, b in zip(gt, gs, strict=True)]
    return 1.0 - np.mean([gt[i] @ gs[i] / norms[i] for i in range(len(gt))])


def embed(x, W, b):
    z = np.asarray(x, np.float64) @ np.asarray(W, np.float64).T + b
    return z / np.sqrt((z**2).sum(1, keepdims=True))


def _rel(x, a):
    r = x - a + 1e-6
    return r / max(np.linalg.norm(r), 1e-12)


def relation_scores(v, memory, y, idx, T, apart=False):
    """v (B,D) embedded items of one network; memory (N,D) of the other; y (B,) own rows (the anchors); idx (B,1+K),
    column 0 = y. -> (B*B, 1+K) exp(cos(relation(v_b, a), relation(memory[idx_bk], a)) / T), row b*B+a."""
    rows = []
    for b in range(len(v)):
        for a in range(len(v)):
            if apart and a == b:
                continue
            anchor = memory[y[a]]
            r = _rel(v[b], anchor)
            rows.append([math.exp(float(_rel(memory[i], anchor) @ r) / T) for i in idx[b]])
    return np.array(rows)


def nce(x, n_data):
    c = (x.shape[1] - 1) / n_data
    t = 0.0
    for row in x:
        t += math.log(row[0] / (row[0] + c + EPS)) + sum(math.log(c / (q + c + EPS)) for q in row[1:])
    return -t / len(x)


def crcd_loss(vs, vt, mem_s, mem_t, y, idx, T=0.07, Zs=None, Zt=None, apart=False):
    """vs, vt: embedded, normalised (B,D). Returns (loss, Zs, Zt)."""
    n = len(mem_s)
    xs, xt = (relation_scores(v, m, y, idx, T, apart) for v, m in ((vs, mem_t), (vt, mem_s)))
    Zs = xs.mean() * n if Zs is None else Zs
    Zt = xt.mean() * n if Zt is None else Zt
    return nce(xs / Zs, n) + nce(xt / Zt, n), Zs, Zt


def inputs(seed):
    r = np.random.RandomState(seed)
    B, D, C, N, K, E = 3, 5, 4, 10, 4, 6
    y = r.choice(N, B, replace=False)
    idx = r.randint(0, N, (B, K + 1))
    idx[:, 0] = y
    out = {"fs": r.randn(B, D), "ft": r.randn(B, D), "Ws": r.randn(C, D), "bs": r.randn(C), "Wt": r.randn(C, D)}
    out |= {"bt": r.randn(C), "label": r.randint(0, C, B), "Es": r.randn(E, D), "es": r.randn(E) * 0.1}
    out |= {"Et": r.randn(E, D), "et": r.randn(E) * 0.1}
    for name in ("ms", "mt"):
        m = r.randn(N, E)
        out[name] = m / np.linalg.norm(m, axis=1, keepdims=True)
    return {**out, "y": y, "idx": idx, "T": [0.07, 0.5, 1.0][seed % 3]}


def oracle(k, idx=None, apart=False, Zs=None, Zt=None):
    gs = class_grads(k["fs"], k["Ws"], k["bs"], k["label"])
    gt = class_grads(k["ft"], k["Wt"], k["bt"], k["label"])
    vs, vt = embed(gs, k["Es"], k["es"]), embed(gt, k["Et"], k["et"])
    idx = k["idx"] if idx is None else idx
    loss, Zs, Zt = crcd_loss(vs, vt, k["ms"], k["mt"], k["y"], idx, k["T"], Zs, Zt, apart)
    return {"gs": gs, "gt": gt, "cos": float(grad_cos_loss(gt, gs)), "crcd": loss, "Zs": Zs, "Zt": Zt}


RELEASE = {
    "0": {
        "gs": [
            [-0.39644434942971585, 0.4976053352696987, 0.5081388652358483, 0.2285435048318432, -0.20673280250253462],
            [-0.5936822510624572, 0.2851226682888826, 1.0253745165360377, 0.5990078119388752, -0.10153317133331217],
            [
                -0.021294141392044153,
                0.12855250125620002,
                -0.019812549266060152,
                -0.07143293765279782,
                0.04500560765665746,
            ],
        ],
        "gt": [
            [-0.04761908557660828, -0.3021569515238961, 0.15782187282608387, -0.08127009135467796, -0.1545130330168941],
            [
                -0.005078467656893702,
                0.19983190134858986,
                0.010415974288069261,
                -0.33255122428217715,
                0.7273293383241413,
            ],
            [
                0.0004406007010352708,
                -0.10187305994120456,
                0.08757997691401737,
                -0.060179940045832096,
                0.03525501436173656,
            ],
        ],
        "cos": 1.223687826347627,
        "crcd": 13.266509858374699,
    },
    "1": {
        "gs": [
            [
                0.06100812839783011,
                -0.04685880563369774,
                -0.04036689466438919,
                -0.07548483417237103,
                0.13132499162742084,
            ],
            [0.42117693223441044, 0.2948196684258473, 0.02861505756028547, -0.5536662046340299, -0.2962342940059397],
            [0.5384874201623204, 0.33289345491063926, -0.0001431984584848306, -0.7055643958183208, -0.3190362476522023],
        ],
        "gt": [
            [
                0.22968572501596587,
                -0.07155447254339024,
                -0.1311571852053777,
                -0.08630157797305062,
                -0.47573847833898764,
            ],
            [-0.21312812323873262, 0.142791293245783, -0.1058438236162877, -0.27213731888364406, 0.14103024914714188],
            [-0.11523109504594738, 0.02708446170332223, 0.07229428811337514, -0.31706477655474524, 0.21351110242199645],
        ],
        "cos": 0.9725661443920293,
        "crcd": 5.969657532254186,
    },
    "2": {
        "gs": [
            [
                0.23236719904357667,
                -0.3017665059996077,
                -0.15441889181611476,
                -0.03744480746436946,
                -0.031320199274569874,
            ],
            [0.0660664923106478, -0.6818569639913594, -0.3503682936646427, 0.007050329744457684, -0.558310044744419],
            [0.2961343287879729, -0.5424955751384629, -0.2473778979569662, -0.07200668259244913, -0.25939419775424183],
        ],
        "gt": [
            [0.1941302063984588, -0.05428501819231826, 0.16185549681943334, -0.16582151209867002, 0.41596098500368467],
            [-0.09490580345923204, -0.2070676839883264, 0.3081335807556406, 0.5834023356715016, -0.8487114346819549],
            [0.27949149458119593, 0.059307721949796256, 0.052733600620083664, -0.505703442140079, 0.9192368673452703],
        ],
        "cos": 0.862796948872047,
        "crcd": 5.2918242973891765,
    },
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
