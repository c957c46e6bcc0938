"""data2vec (Baevski et al., ICML 2022, sections 3.2 to 3.4), slow and in float64, from its release for speech (fairseq
at 3d262bb2, examples/data2vec/models/data2vec_audio.py), by somebody who had not seen our code.

decay(step) = end - (end - start) (1 - step / anneal) while step < anneal, then end; teacher <- decay teacher +
(1 - decay) student. Targets: of the last K blocks what the FFN says before dropout, residual and norm; instance norm
(over time, a channel and an item each, biased variance, eps 1e-5) or layer norm over channels; their mean, and a norm
of that. Loss: over masked positions the sum over channels of the squared error (beta 0, without 1/2) or smooth L1,
times 1/sqrt(D); divided by the number of positions later. `RELEASE` holds what its lines gave in float64.
"""

import math

import numpy as np


def ema_decay(step, start=0.999, end=0.9999, anneal=30000):
    return end if step >= anneal or start == end else end - (end - start) * (1 - step / anneal)


def ema_step(teacher, student, decay):
    return decay * np.asarray(teacher, np.float64) + (1 - decay) * np.asarray(student, np.float64)


def instance_norm(x, eps=1e-5):
    """(B,T,C): over T, per item and channel."""
    out = np.empty_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[2]):
            v = x[b, :, c]
            out[b, :, c] = (v - v.mean()) / math.sqrt(v.var() + eps)
    return out


def layer_norm(x, eps=1e-5):
    return (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + eps)


NORMS = {"instance": instance_norm, "layer": layer_norm, "none": lambda x: x}


def targets(layers, norm="instance", final="none"):
    """layers: of the top K blocks (B,T,C) -> (B,T,C)."""
    ys = [NORMS[norm](np.asarray(x, np.float64)) for x in layers]
    return NORMS[final](sum(ys) / len(ys))


def loss(pred, y, mask, beta=0.0):
    """pred, y (B,T,C), mask (B,T) bool -> (sum, number of positions)."""
    D = pred.shape[-1]
    tot, n = 0.0, 0
    for b, t in zip(*np.nonzero(mask), strict=True):
        n += 1
        for d in range(D):
            e = abs(float(pred[b, t, d]) - float(y[b, t, d]))
            tot += e * e if beta == 0 else 0.5 * e * e / beta if e < beta else e - beta / 2
    return tot / math.sqrt(D), n


#: The base setting for speech, and the norms of that for text.
OPTS = [("instance", "none", 0.0), ("layer", "layer", 4.0)]


def inputs(seed):
    r = np.random.RandomState(seed)
    return {
        "layers": [r.randn(2, 7, 5) * (i + 1) for i in range(3)], "pred": r.randn(2, 7, 5), "mask": r.rand(2, 7) < 0.6,
        "opt": OPTS[seed], "step": [0, 12345][seed], "t": r.randn(4, 3), "s": r.randn(4, 3),
    }  # fmt: skip


RELEASE = {
    "0": {
        "y": [
            [
                -0.12263836546589187,
                -0.6966395006099613,
                -0.058042866023751825,
                -0.47227888119598144,
                -0.35469570198628153,
            ],
            [0.36313634854418786, 1.0177313717036336, -0.678173145102208, -0.5651917224589966, -0.3108337549442853],
            [1.4075896927101494, 0.09928701509656175, -0.14229624785061548, 0.4658628590910825, -0.012631874837227016],
            [
                -0.6934306919647821,
                0.0004468206363232863,
                -0.03485237109927423,
                -0.23361858695556967,
                -0.1416946881660267,
            ],
            [0.4719606731099549, 0.4291085229035141, 1.265505494133621, 0.4596108001561057, 0.26636782637270423],
        ],
        "loss": 14.306470674489352,
        "n": 5,
        "decay": 0.999,
        "ema": [
            [2.3022791640682896, -1.059416526686214, -0.13714800944904526],
            [1.1344077537342951, 0.09832101589983087, 0.582211152635394],
            [-0.3991832817932808, 0.3707635757656475, -1.3063471506923379],
            [1.655741871185705, -0.11843076089262247, -0.6794036742035364],
        ],
    },
    "1": {
        "y": [
            [-0.13973743506518096, -1.8526546245323048, 0.3263897240003774, 0.9969419815140144, 0.6690603540830937],
            [-1.0736095804927288, -1.0149269443535482, -0.2551122168037627, 1.2235100689200813, 1.1201386727299583],
            [-0.8664457618571743, 0.17456422522511772, -1.1575789675197334, 0.16049997073122174, 1.6889605334205684],
            [-1.9725211287858944, 0.5621906349267898, 0.4531727557800639, 0.7330872309572699, 0.22407050712177085],
            [0.9742069039534736, -1.231976033238195, 0.4985037664970472, 0.941586424304722, -1.1823210615170479],
            [-0.8830784988140714, 0.9934947626163236, 0.43504218602910233, -1.4758510793073567, 0.930392629476002],
            [-1.2513920187215786, 0.9430918229467679, -1.0813517126672838, 1.1473280031513715, 0.24232390529072267],
            [-1.4784707065661693, 0.3431384493195383, -0.6659477009781096, 1.4620544133106101, 0.3392255449141305],
        ],
        "loss": 4.3922122835619195,
        "n": 8,
        "decay": 0.99937035,
        "ema": [
            [0.49185082234383354, -0.6792277250904286, -0.08444640941251247],
            [-0.2976120626862879, 0.4174307693439161, 0.7838988532521888],
            [-0.9541163223894183, 0.5857337239915615, 2.065357044698183],
            [-1.4706470272769756, -0.8277407984004236, -0.8795039444492767],
        ],
    },
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(2)]
