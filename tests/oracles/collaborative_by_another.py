"""Slow float64 oracles for KDCL's ensembles (Guo et al. 2020, "Online Knowledge Distillation via Collaborative
Learning",
section 3.2).  NumPy only.  m peers, B rows, K classes."""

import numpy as np


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def cross_entropy_rows(z, labels):
    """(B, K), (B,) -> (B,): -log softmax(z)[label]."""
    lp = log_softmax(z)
    return np.array([-lp[b, y] for b, y in enumerate(labels)])


def naive(logits, labels, per="row"):
    """The logits of the peer with the smallest cross-entropy.  logits (m, B, K), labels (B,) -> (B, K).
    per="row": chosen for each row (the paper's wording: the loss of a sample); per="batch": one peer by the mean
    over the batch
    (a public re-implementation does this).  Ties go to the lower index."""
    z = np.asarray(logits, np.float64)
    ce = np.stack([cross_entropy_rows(zi, labels) for zi in z])  # (m, B)
    if per == "batch":
        return z[int(np.argmin(ce.mean(1)))].copy()
    return np.stack([z[int(np.argmin(ce[:, b])), b] for b in range(z.shape[1])])


def min_logit(logits, labels):
    """z_t[b, j] = min_i (z_i[b, j] - z_i[b, y_b]): zero at the label.  (m, B, K), (B,) -> (B, K)."""
    z = np.asarray(logits, np.float64)
    return np.stack([np.stack([zi[b] - zi[b, y] for zi in z]).min(0) for b, y in enumerate(labels)])


def _ce_and_grad(a, z, labels):
    """Mean CE over rows of the logits sum_i a_i z_i and its gradient in a.  z (m, B, K)."""
    mix = np.tensordot(a, z, 1)  # (B, K)
    loss = cross_entropy_rows(mix, labels).mean()
    r = softmax(mix)
    for b, y in enumerate(labels):
        r[b, y] -= 1
    return loss, np.array([(r * zi).sum(1).mean() for zi in z])


def simplex_ce_weights(z, labels, sweeps=2000, tol=1e-11):
    """argmin over {a >= 0, sum a = 1} of the mean CE of sum_i a_i z_i.  z (m, B, K), labels (B,) -> (m,).

    A convex problem.  Pairwise exact line searches: mass moves from peer j to peer i, the one-dimensional convex
    function is
    minimised by bisection of its derivative; sweeps until no pair improves.  Stop: the KKT gap max_{a_j > 0} g_j -
    min_i g_i.
    """
    z = np.asarray(z, np.float64)
    m = len(z)
    a = np.full(m, 1.0 / m)
    for _ in range(sweeps):
        g = _ce_and_grad(a, z, labels)[1]
        if max(g[j] for j in range(m) if a[j] > 0) - g.min() < tol:
            break
        for i in range(m):
            for j in range(i + 1, m):

                def slope(t, a=a, i=i, j=j):
                    b = a.copy()
                    b[i] += t
                    b[j] -= t
                    h = _ce_and_grad(b, z, labels)[1]
                    return h[i] - h[j]

                low, high = -a[i], a[j]
                if slope(low) >= 0:
                    t = low
                elif slope(high) <= 0:
                    t = high
                else:
                    for _ in range(200):
                        mid = 0.5 * (low + high)
                        if mid in (low, high):
                            break
                        if slope(mid) > 0:
                            high = mid
                        else:
                            low = mid
                    t = 0.5 * (low + high)
                a[i], a[j] = a[i] + t, a[j] - t
                a[a < 1e-300] = 0.0
    return a / a.sum()


def kkt_gap(a, z, labels):
    """0 at the minimiser: max over peers with weight of the gradient, minus the smallest gradient."""
    g = _ce_and_grad(np.asarray(a, np.float64), np.asarray(z, np.float64), labels)[1]
    return max(g[j] for j in range(len(a)) if a[j] > 1e-9) - g.min()


def linear(logits, labels, per="row"):
    """KDCL-Linear: (target logits (B, K), weights (B, m) or (m,)).

    target = sum_i a_i z_i with a = argmin CE(a^T Z, y), sum a = 1, a >= 0.
    per="row": weights solved for each sample alone; the formula is written for one sample's Z (m x K), so this is
    its literal reading.
    per="batch": one weight vector for the batch's mean CE.  The paper's text does not settle which it ran.
    Not unique where peers agree up to a constant: compare losses and targets rather than weights.
    """
    z = np.asarray(logits, np.float64)
    if per == "batch":
        a = simplex_ce_weights(z, labels)
        return np.tensordot(a, z, 1), a
    rows, weights = [], []
    for b, y in enumerate(labels):
        a = simplex_ce_weights(z[:, b : b + 1], [y])
        rows.append(np.tensordot(a, z[:, b], 1))
        weights.append(a)
    return np.stack(rows), np.stack(weights)


def error_covariance(outputs, labels, of="probabilities", average_classes=False):
    """C[i, j] = 1/N sum_n <f_i(x_n) - t_n, f_j(x_n) - t_n>, t one-hot.  outputs: logits (m, N, K) on held-out rows;
    -> (m, m).

    of="probabilities": f = softmax(logits) (temperature 1), the paper's f; of="logits": f = the raw outputs.
    average_classes divides by K: the weights do not change.  The second moment of the error, no mean is subtracted.
    """
    z = np.asarray(outputs, np.float64)
    f = softmax(z) if of == "probabilities" else z
    m, N, K = f.shape
    t = np.zeros((N, K))
    for n, y in enumerate(labels):
        t[n, y] = 1.0
    C = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            for n in range(N):
                C[i, j] += float((f[i, n] - t[n]) @ (f[j, n] - t[n])) / N
    return C / K if average_classes else C


def general_weights(C, ridge=0.0):
    """argmin w^T C w with sum w = 1 (sign free): w_k = sum_j C^-1_kj / sum_ij C^-1_ij.  (m, m) -> (m,).

    ridge r adds r * mean(diag C) to the diagonal (not in the paper; a singular C, as with equal peers, needs
    something).
    """
    C = np.asarray(C, np.float64)
    C = C + ridge * np.trace(C) / len(C) * np.eye(len(C))
    inv = np.linalg.inv(C)
    return inv.sum(1) / inv.sum()


def general_weights_nonnegative(C):
    """The same with w >= 0 (not in the paper): best over all supports of the closed form that is feasible."""
    C = np.asarray(C, np.float64)
    m = len(C)
    best, where = np.inf, None
    for mask in range(1, 2**m):
        idx = [i for i in range(m) if mask >> i & 1]
        try:
            w = general_weights(C[np.ix_(idx, idx)])
        except np.linalg.LinAlgError:
            continue
        if (w < -1e-12).any():
            continue
        full = np.zeros(m)
        full[idx] = np.maximum(w, 0)
        full /= full.sum()
        if full @ C @ full < best - 1e-15:
            best, where = full @ C @ full, full
    return where


def general(logits, weights):
    """KDCL-General's target: sum_i w_i z_i over training logits (m, B, K) -> (B, K); w from a held-out set, once an
    epoch."""
    return np.tensordot(np.asarray(weights, np.float64), np.asarray(logits, np.float64), 1)


def kd_loss(student, target, T=1.0):
    """T^2 KL(softmax(target / T) || softmax(student / T)), mean over rows.  (B, K) each.  The target is a
    constant."""
    lt, ls = log_softmax(np.asarray(target, np.float64) / T), log_softmax(np.asarray(student, np.float64) / T)
    return T * T * (np.exp(lt) * (lt - ls)).sum(1).mean()


def total(logits, labels, target, lam=1.0, T=1.0):
    """sum_i CE_i + lam * sum_i KD_i, each a mean over rows.  Section 3.1."""
    z = np.asarray(logits, np.float64)
    return sum(cross_entropy_rows(zi, labels).mean() + lam * kd_loss(zi, target, T) for zi in z)
