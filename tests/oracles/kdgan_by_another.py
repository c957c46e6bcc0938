"""KDGAN (Wang et al., NeurIPS 2018), slow and in float64, from its release (xiaojiew94/KDGAN at 8f1367d2, mdlcompr), by
somebody who had not seen our code; the paper was not read again.

Discriminator: (1-a) BCE(h at the classifier's samples, labels) + a BCE(h at the teacher's samples, labels); labels are
1 for draws from the true labels, 0 for those from a network. Student: [(1-a) BCE(own logit at its samples, sigmoid(h))
+ distilled KD] train_size / batch_size; teacher: a BCE(own logit at its samples, sigmoid(h)) + intellstd KD of its
logits and the student's. KD 'mimic': student 0.7 CE + 0.3 sum (z_t - z_s)^2 / 2 / batch_size, teacher the second part
without its weight. BCE is a mean over samples. `RELEASE` holds what the release's own methods gave, run with the few
TensorFlow functions that they call replaced by NumPy ones, as TensorFlow is not there.
"""

import math

import numpy as np


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def bce(logit, label):
    """Mean over elements; label in [0, 1]."""
    z, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    return float(np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))))


def pick(z, samples):
    """z (B,C), samples (N,2) of (row, class)."""
    return np.array([z[i, j] for i, j in samples], np.float64)


def reward(h, samples):
    return 1.0 / (1.0 + np.exp(-pick(h, samples)))


def dis_loss(h, gen_samples, gen_labels, tch_samples, tch_labels, a=0.5):
    return (1 - a) * bce(pick(h, gen_samples), gen_labels) + a * bce(pick(h, tch_samples), tch_labels)


def ce(z, onehot):
    return float(-(np.asarray(onehot) * np.log(_softmax(z))).sum(-1).mean())


def mimic(z, z_other, onehot, p=0.3):
    """The student's; the teacher's is `squares` alone."""
    return (1 - p) * ce(z, onehot) + p * squares(z, z_other)


def squares(z, z_other):
    return float(((z_other - z) ** 2).sum() / 2 / len(z))


def student_loss(z, samples, rewards, z_tch, onehot, a, distilled, train_size):
    f = train_size / len(z)
    return f * ((1 - a) * bce(pick(z, samples), rewards) + distilled * mimic(z, z_tch, onehot))


def teacher_loss(z, samples, rewards, z_std, a, intellstd):
    return a * bce(pick(z, samples), rewards) + intellstd * squares(z, z_std)


def concrete(z, u, tau, eps=1e-20):
    """z (B,C) logits, u (B,C) uniform -> what labels are drawn from (B,C)."""
    return _softmax((np.asarray(z, np.float64) - np.log(-np.log(u + eps) + eps)) / tau)


def gumbel_tau(epochs_done, num_epoch=200, start=10.0, end=0.1, decay=0.88):
    n = math.log(end / start) / math.log(decay)
    every = max(int(num_epoch / n), 1)
    return start * decay ** (epochs_done // every)


def inputs(seed):
    r = np.random.RandomState(seed)
    B, C = 4, 5
    y = np.eye(C)[r.randint(0, C, B)]
    return {
        "h": r.randn(B, C), "zs": r.randn(B, C), "zt": r.randn(B, C), "y": y,
        "gs": np.stack([r.randint(0, B, 9), r.randint(0, C, 9)], 1), "gl": r.randint(0, 2, 9).astype(float),
        "ts": np.stack([r.randint(0, B, 7), r.randint(0, C, 7)], 1), "tl": r.randint(0, 2, 7).astype(float),
        "u": r.uniform(0.01, 0.99, (B, C)), "tau": [10.0, 1.0, 0.3][seed % 3], "a": [0.5, 0.8, 0.3][seed % 3],
        "w": [1.0, 2.0, 0.5][seed % 3], "v": [0.1, 1e-4, 1.0][seed % 3], "train_size": 1000,
    }  # fmt: skip


#: Seed 0 has the release's `mimic`; the others its `distn`, of which the parts that do not hang on it are kept.
RELEASE = {
    "0": {
        "dis": 0.8710876042114017,
        "reward": [
            0.7914264777769455,
            0.4074609469004506,
            0.5683686360512005,
            0.17314546719190974,
            0.5683686360512005,
            0.6638652887060054,
            0.17314546719190974,
            0.3619991803576648,
            0.8037982173292405,
        ],
        "concrete": [
            [0.18547916620473753, 0.26667111104135993, 0.15861066905194104, 0.1803907830356715, 0.20884827066628983],
            [0.20976642248347313, 0.17284007368404022, 0.22914933001611107, 0.15583587913693123, 0.23240829467944418],
            [0.24071591281751176, 0.1687586467280284, 0.2160239199198653, 0.17515567583230263, 0.19934584470229194],
            [0.20897468327675142, 0.21693384085419531, 0.18841587754113112, 0.2278785686539529, 0.15779702967396939],
        ],
        "student": 661.0603699270648,
        "teacher": 0.7953160704310686,
    },
    "1": {
        "dis": 0.931372383447329,
        "reward": [
            0.24862949248173363,
            0.8547816555829808,
            0.6747999173604651,
            0.24862949248173363,
            0.6541568518395097,
            0.30956091957836485,
            0.5451799969141372,
            0.47702287009524635,
            0.6541568518395097,
        ],
        "concrete": [
            [0.5906827966422272, 0.03228644543121362, 0.09112128695068387, 0.24503712722589854, 0.040872343749976704],
            [0.36767941029457546, 0.2867828081310849, 0.20034227422760104, 0.03377807685977179, 0.11141743048696673],
            [0.021297788998843287, 0.21257981346587068, 0.08838266537170546, 0.5589012333408351, 0.11883849882274544],
            [0.10610750240546968, 0.16163401614638345, 0.16835049919734957, 0.17694009045151926, 0.386967891799278],
        ],
    },
    "2": {
        "dis": 0.8017550545824332,
        "reward": [
            0.4139315431649192,
            0.5785053312359092,
            0.20689979356582677,
            0.881308594848006,
            0.30475058870249044,
            0.5785053312359092,
            0.34660578633064,
            0.34660578633064,
            0.45732340804680605,
        ],
        "concrete": [
            [
                2.9109812969039103e-08,
                0.00015936503824098662,
                5.1526097856490077e-05,
                0.9982769391828044,
                0.0015121405712852788,
            ],
            [7.44358849154611e-08, 0.6203238972363494, 0.00045297229651870054, 0.331939384335231, 0.04728367169601597],
            [
                1.1694925816072894e-05,
                0.9808893154978288,
                0.012176547324136314,
                0.006578105723338897,
                0.00034433652887999486,
            ],
            [
                0.0007971851621732354,
                1.1045168490058626e-07,
                5.692937903827304e-06,
                0.9988005786452713,
                0.00039643280296658504,
            ],
        ],
    },
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
