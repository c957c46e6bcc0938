"""Slow float64 oracle of GLNN (Zhang et al., ICLR 2022, arXiv 2110.08727), in loops; equal to the release's
train_mini_batch, gradients too, to 1e-12 (github snap-research/graphless-neural-networks 80d0f8ea). NumPy only.

The release steps on all labelled batches of an epoch and then on all soft ones; what is here is one joint step.
"""

import math

import numpy as np


def log_softmax(z):
    m = z.max()
    return z - m - math.log(np.exp(z - m).sum())


def hard(z, y):
    return -sum(log_softmax(a)[k] for a, k in zip(z, y, strict=True)) / len(y)


def soft(z, lt):
    """lt: the teacher's log-probabilities; mean over nodes of KL(teacher || student), temperature 1."""
    return sum((np.exp(b) * (b - log_softmax(a))).sum() for a, b in zip(z, lt, strict=True)) / len(lt)


def total(z_l, y, z_t, lt, lam=0.0):
    """Labelled nodes, and all observed nodes."""
    return lam * hard(z_l, y) + (1 - lam) * soft(z_t, lt)


def inputs(seed=0, n=8, labelled=3, classes=5):
    r = np.random.RandomState(seed)
    z = r.randn(n, classes)
    return z[:labelled], r.randint(0, classes, labelled), z, np.stack([log_softmax(a) for a in r.randn(n, classes) * 2])


#: What the release says of `inputs`: by seed and lam the total, and the gradient of its first and last node's scores.
RELEASED = {
    (0, 0.0): (
        1.0536065568424,
        [-0.00299985222989, -0.00445985480549, -0.0186043727963, -0.00443986234369, 0.0305039421754],
        [0.010757947829, 0.045362227628, 0.0429603237566, -0.0980906420839, -0.00098985712963],
    ),
    (0, 0.3): (
        1.0680651212266,
        [0.0204649684988, 0.00264710256103, -0.0027340164272, -0.0667564240765, 0.0463783694439],
        [0.0075305634803, 0.0317535593396, 0.0300722266296, -0.0686634494587, -0.000692899990741],
    ),
    (0, 1.0): (
        1.1018017714565,
        [0.0752162168659, 0.0192300030829, 0.0342968151008, -0.212161734786, 0.0834186997369],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ),
    (1, 0.0): (
        1.0123881815562,
        [-0.0532406815615, 0.00751204340289, 0.00776984589253, 0.0046851489211, 0.0332736433449],
        [-0.085933689226, -0.0150694189198, 0.0144307459652, 0.0652078872534, 0.0213644749272],
    ),
    (1, 0.3): (
        1.2292647128005,
        [-0.0804055604079, 0.0113356155531, 0.0120458696071, 0.00711138412141, 0.0499126911263],
        [-0.0601535824582, -0.0105485932439, 0.0101015221757, 0.0456455210774, 0.014955132449],
    ),
    (2, 0.0): (
        1.0050418318492,
        [0.0103587255288, 0.014510918492, -0.00228496160732, -0.0251601517166, 0.00257546930316],
        [0.0493234125978, 0.0210489659563, -0.0517516152791, 0.0140912424626, -0.0327120057376],
    ),
    (2, 0.3): (
        1.1975175143981,
        [0.0166071263486, 0.0235744857561, 7.68144566179e-05, -0.044422861522, 0.00416443496067],
        [0.0345263888185, 0.0147342761694, -0.0362261306954, 0.00986386972383, -0.0228984040163],
    ),
}
