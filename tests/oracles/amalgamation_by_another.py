"""Slow float64 oracles for amalgamation by common feature learning (Luo et al. 2019, arXiv 1906.10546).  NumPy
only."""

import numpy as np

RELEASE_SIGMAS = (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def unit(x, eps=1e-12):
    """Rows of the flattened x over max(their L2 norm, eps).  (N, ...) -> (N, D)."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    return x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), eps)


def default_variances(x, y):
    """The release's choice where no sigmas are given: s2 = mean of (|x_i-x_j|^2 + |y_i-y_j|^2 + 2 |x_i-y_j|^2) / 4
    over all
    i, j (a constant, no gradient), and variances s2 * (1/4, 1/2, 1, 2, 4)."""
    tot = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            tot += ((x[i] - x[j]) ** 2).sum() + ((y[i] - y[j]) ** 2).sum() + 2 * ((x[i] - y[j]) ** 2).sum()
    s2 = tot / len(x) ** 2 / 4
    return [s2 / 4, s2 / 2, s2, 2 * s2, 4 * s2]


def mmd2(x, y, sigmas=RELEASE_SIGMAS, normalise=True, floor=1e-12, clamp=True, positions=False):
    """Squared MMD, biased (V-statistic), with k(a, b) = sum_s exp(-|a - b|^2 / (2 s^2)): a sum over the kernels, not
    their mean.

    1/N^2 sum_ij k(x_i, x_j) + 1/N^2 sum_ij k(y_i, y_j) - 2/N^2 sum_ij k(x_i, y_j); the i = j terms are in.  x, y (N,
    ...) with equal N
    and trailing sizes: the features in the common space.
      normalise  L2-normalise each flattened row first (release default, and the paper normalises the features).
      floor      squared distances are clamped below at it (release 1e-12); clamp: max(0, .) of the result, as the
      release.
      positions  False: a sample is the whole flattened map (KamalEngine); True: (N, C, H, W) -> N*H*W samples of C
      channels.
      sigmas     None: default_variances of the (normalised) rows.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if positions:
        x, y = (np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in (x, y))
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if normalise:
        x, y = unit(x), unit(y)
    variances = default_variances(x, y) if sigmas is None else [s * s for s in sigmas]
    N = len(x)

    def k(a, b):
        d = max(((a - b) ** 2).sum(), floor)
        return sum(np.exp(-d / (2 * v)) for v in variances)

    out = 0.0
    for i in range(N):
        for j in range(N):
            out += (k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j])) / N**2
    return max(out, 0.0) if clamp else out


def mmd_term(student_h, teacher_hs, **kw):
    """L_M = sum over teachers of mmd2(student common feature, teacher common feature).  Lists of (N, ...)."""
    return sum(mmd2(student_h, h, **kw) for h in teacher_hs)


def reconstruction_term(reconstructed, originals, reduction="mean"):
    """L_R: each teacher's feature rebuilt from its common feature against the feature itself.

    "mean": sum over teachers of the mean square over all elements (release); "sum": squared L2 norm over all
    elements (the paper
    writes squared norms)."""
    out = 0.0
    for r, f in zip(reconstructed, originals, strict=False):
        d = (np.asarray(r, np.float64) - np.asarray(f, np.float64)) ** 2
        out += d.mean() if reduction == "mean" else d.sum()
    return out


def soft_target_term(student_logits, teacher_logits, T=1.0, form="kl"):
    """L_C: the student's joint head against the teachers' logits side by side.  student (N, sum K_i), teachers list
    of (N, K_i).

    "kl": T^2 KL(softmax(concat / T) || softmax(student / T)), one softmax over the joined classes, mean over rows
    (release, T = 1).
    "mse_sum": mean over rows of the squared L2 distance of the logits; "mse_mean": mean over elements (a reading of
    the paper, which
    matches pre-softmax scores; from memory).
    """
    t = np.concatenate([np.asarray(x, np.float64) for x in teacher_logits], axis=1)
    s = np.asarray(student_logits, np.float64)
    if form == "mse_sum":
        return ((s - t) ** 2).sum(1).mean()
    if form == "mse_mean":
        return ((s - t) ** 2).mean()
    lt, ls = log_softmax(t / T), log_softmax(s / T)
    return T * T * (np.exp(lt) * (lt - ls)).sum(1).mean()


def fc_block(student_f, teacher_fs, p):
    """The release's block for vectors, forward only.  student_f (N, Ds); teacher_fs list of (N, Dt_i).  p: dict of
    (W, b) pairs with
    torch's layout (out, in): align_s, align_t[i]; extract1, extract2 (shared by student and teachers); dec1[i],
    dec2[i].

    align: ReLU(W f + b); common: extract2(ReLU(extract1(.))); rebuilt teacher: dec2(ReLU(dec1(common))).
    Returns (h_s, [h_t], [rebuilt]).  Only teachers are rebuilt; there is no decoder for the student.
    """

    def lin(x, wb):
        return np.asarray(x, np.float64) @ np.asarray(wb[0]).T + np.asarray(wb[1])

    def relu(x):
        return np.maximum(x, 0)

    def common(a):
        return lin(relu(lin(a, p["extract1"])), p["extract2"])

    hs = common(relu(lin(student_f, p["align_s"])))
    hts = [common(relu(lin(f, wb))) for f, wb in zip(teacher_fs, p["align_t"], strict=False)]
    return hs, hts, [lin(relu(lin(h, a)), b) for h, a, b in zip(hts, p["dec1"], p["dec2"], strict=False)]
