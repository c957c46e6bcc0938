"""Slow float64 oracle of SSKD, by somebody who had read the release (xuguodong03/SSKD) and not the code."""

import numpy as np

from .peers_by_another import _f, cross_entropy, kl_batchmean, log_softmax


def softmax(z, T=1.0, axis=-1):
    return np.exp(log_softmax(z, T, axis))


def sskd_similarity(h):
    """h (4B, D): rows 4b = normal image b, 4b+1..4b+3 its three transformations (rotations 90, 180, 270).
    -> (3B, B) cosine similarity of every transformed row with every normal row, rows in the order (b, r).
    Cosine with eps 1e-8 on the norms (torch)."""
    h = _f(h)
    nor = h[0::4]
    aug = np.array([h[i] for i in range(len(h)) if i % 4 != 0])
    out = np.zeros((len(aug), len(nor)))
    for i in range(len(aug)):
        for j in range(len(nor)):
            out[i, j] = (aug[i] * nor[j]).sum() / (
                max(np.linalg.norm(aug[i]), 1e-8) * max(np.linalg.norm(nor[j]), 1e-8)
            )
    return out


def sskd_teacher_head(h):
    """Stage 1: cross-entropy of the similarities with target b, NO temperature (raw cosines), only the head trains.
    The paper writes it with a temperature (?)."""
    S = sskd_similarity(h)
    return cross_entropy(S, np.repeat(np.arange(S.shape[1]), 3))


def sskd_select(scores, target, ratio):
    """Selective transfer: rank_i = number of entries of teacher row i strictly before the target in descending order.
    Keep ALL rows with rank 0 and, of the W rows with rank > 0, the int(W * ratio) with the SMALLEST rank.
    -> sorted indexes.
    Ties of rank at the cut: lowest index first here; the release's argsort is not stable: avoid ties in comparisons.
    Ties of scores: earlier column counts as before."""
    s = _f(scores)
    rank = []
    for i in range(len(s)):
        order = sorted(range(s.shape[1]), key=lambda j: (-s[i, j], j))
        rank.append(order.index(int(target[i])))
    right = [i for i in range(len(s)) if rank[i] == 0]
    wrong = sorted((i for i in range(len(s)) if rank[i] > 0), key=lambda i: (rank[i], i))
    return sorted(right + wrong[: int(len(wrong) * ratio)])


def sskd(out_s, out_t, h_s, h_t, y, w=(0.1, 0.9, 2.7, 10.0), T_kd=4.0, T_tf=4.0, T_ss=0.5, ratio_tf=1.0, ratio_ss=0.75):
    """Parts and total of the student's loss. out (4B, K) logits, h (4B, D) projected features, y (B,).

      ce = CE(out_s normal, y);   kd = T_kd^2 KL(t||s) on normal rows (batchmean)
      tf = T_tf^2 KL(t||s) on TRANSFORMED rows selected by the teacher's rank of the true class (ratio_tf)
      ss = T_ss^2 KL( softmax(S_t/T_ss) || softmax(S_s/T_ss) ), rows selected by the teacher's ranks (ratio_ss)
      total = .1 ce + .9 kd + 2.7 tf + 10 ss.   Selected rows: mean over the SELECTED rows only.
    The student has its own projection head, trained jointly; the teacher's head is frozen after stage 1."""
    os_, ot, y = _f(out_s), _f(out_t), np.asarray(y)
    B = len(y)
    nor = [4 * b for b in range(B)]
    aug = [i for i in range(4 * B) if i % 4]
    p = {"ce": cross_entropy(os_[nor], y), "kd": T_kd**2 * kl_batchmean(os_[nor], ot[nor], T_kd)}
    ty = np.repeat(y, 3)
    i1 = sskd_select(softmax(ot[aug], T_tf), ty, ratio_tf)
    p["tf"] = T_tf**2 * kl_batchmean(os_[aug][i1], ot[aug][i1], T_tf)
    Ss, St = sskd_similarity(h_s), sskd_similarity(h_t)
    i2 = sskd_select(St, np.repeat(np.arange(B), 3), ratio_ss)
    p["ss"] = T_ss**2 * kl_batchmean(Ss[i2], St[i2], T_ss)
    p["total"] = float(sum(a * p[k] for a, k in zip(w, ("ce", "kd", "tf", "ss"), strict=True)))
    return p
