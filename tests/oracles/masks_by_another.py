"""Slow float64 oracles for MasKD (Huang et al. 2023, arXiv 2205.14589, "Masked Distillation with Receptive Tokens").
 NumPy only.
Releases read: github hunto/MasKD, mmrazor/.../losses/maskd.py, mmdetection/maskd.py and segmentation/losses/maskd.py.

f: features (N, C, H, W); tokens (M, C).
"""

import numpy as np


def sigmoid(x):
    x = np.asarray(x, np.float64)
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def masks(f, tokens):
    """m[n, k, h, w] = sigmoid(sum_c tokens[k, c] f[n, c, h, w]), (N, M, H, W).  Masks always come from the teacher's
    f (eq. 4)."""
    f, tokens = np.asarray(f, np.float64), np.asarray(tokens, np.float64)
    N, _C, H, W = f.shape
    out = np.zeros((N, len(tokens), H, W))
    for n in range(N):
        for k in range(len(tokens)):
            for h in range(H):
                for w in range(W):
                    out[n, k, h, w] = sigmoid(tokens[k] @ f[n, :, h, w])
    return out


def dice_diversity(mask, eps=1e-12):
    """Mean over rows and ordered pairs i != j of 2 sum(m_i m_j) / (sum m_i^2 + eps + sum m_j^2 + eps), to be
    minimised.

    mask (N, M, H, W) or (N, M, L).  The Dice term of eq. 6-7; release: the mean over N M (M - 1) pairs.  M = 1: nan
    in the
    release (0 / 0); 0 here.
    """
    m = np.asarray(mask, np.float64).reshape(len(mask), mask.shape[1], -1)
    N, M, _ = m.shape
    total, pairs = 0.0, 0
    for n in range(N):
        for i in range(M):
            for j in range(M):
                if i != j:
                    a = 2 * (m[n, i] * m[n, j]).sum()
                    total += a / ((m[n, i] ** 2).sum() + eps + (m[n, j] ** 2).sum() + eps)
                    pairs += 1
    return total / pairs if pairs else 0.0


def masked_teacher(f, mask, weights=None):
    """Mask learning stage: the feature handed on to the teacher's head, sum_k w_k m_k * f, (N, C, H, W).  weights
    (N, M) or None (1).
    A sum over the masks, not their mean (release)."""
    f, mask = np.asarray(f, np.float64), np.asarray(mask, np.float64)
    out = np.zeros_like(f)
    for n in range(len(f)):
        for k in range(mask.shape[1]):
            out[n] += (1.0 if weights is None else weights[n, k]) * mask[n, k][None] * f[n]
    return out


def mask_stage_loss(task_loss, mask, mu=1.0):
    """Stage 1: task loss of the masked teacher + mu * dice_diversity; mu = 1 in both releases (mmdetection hook, one
    term a level, summed;
    segmentation/train_mask_module.py).  Only the tokens (and the weight module) learn; the teacher is frozen, its
    norms in eval mode."""
    return task_loss + mu * dice_diversity(mask)


def token_weights(f, conv_w, conv_b, proj_w, proj_b):
    """Release's per-image mask weights from the teacher's feature: 3x3 convolution (C -> C, zero padding 1), mean
    over positions,
    1x1 (C -> M), softmax over the M masks.  conv_w (C, C, 3, 3), conv_b (C,), proj_w (M, C), proj_b (M,) -> (N,
    M)."""
    f = np.asarray(f, np.float64)
    N, C, H, W = f.shape
    pad = np.zeros((N, C, H + 2, W + 2))
    pad[:, :, 1:-1, 1:-1] = f
    out = []
    for n in range(N):
        v = np.array(conv_b, np.float64).copy()
        for dy in range(3):
            for dx in range(3):
                v = v + conv_w[:, :, dy, dx] @ pad[n, :, dy : dy + H, dx : dx + W].mean(axis=(1, 2))
        z = proj_w @ v + proj_b
        e = np.exp(z - z.max())
        out.append(e / e.sum())
    return np.array(out)


def distill(student, teacher, tokens, weights=None, student_mask=False, variant="detection"):
    """The masked distillation loss.  student, teacher (N, C, H, W), same shape; tokens (M, C) learned on the
    teacher, then frozen.

    Each mask k: e[n, k, c] = sum_hw m_k^2 (s - t)^2 / sum_hw m_k: the mask multiplies the features, so it enters
    SQUARED above and once
    below (release).  The paper's eq. 5 reads, from memory, (1 / M) sum_k (1 / sum m_k) |m_k (t - s)|^2, the same up
    to the constants.
      variant="detection" (mmrazor): mean over n, k, c; with weights (N, M): mean over n of sum_k w_k mean_c e.
      variant="segmentation": denominator + 1e-5, mean over n, k, c, times 0.5; no weights.
      student_mask: masks m_k(teacher) * m_k(student), the latter without gradient (release's custom_mask: from step
      1000 by default, 5000 to
      7330 in the configurations).
    """
    s, t = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    m = masks(t, tokens)
    if student_mask:
        m = m * masks(s, tokens)
    N, C, _H, _W = s.shape
    M = m.shape[1]
    eps = 1e-5 if variant == "segmentation" else 0.0
    e = np.zeros((N, M, C))
    for n in range(N):
        for k in range(M):
            for c in range(C):
                e[n, k, c] = ((m[n, k] * s[n, c] - m[n, k] * t[n, c]) ** 2).sum() / (m[n, k].sum() + eps)
    if variant == "segmentation":
        return 0.5 * e.mean()
    if weights is None:
        return e.mean()
    return float(np.mean([(np.asarray(weights)[n] * e[n].mean(1)).sum() for n in range(N)]))
