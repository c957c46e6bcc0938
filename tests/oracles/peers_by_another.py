"""Slow float64 oracle of PCL, by somebody who had read a third party's reproduction of it, and not the code.

z logits (B, K); y integer labels (B,). Read: shaoeric's reproduction (no authors' release was found); what is said of
the paper is from memory.
"""

import numpy as np


def _f(x):
    return np.asarray(x, dtype=np.float64)


def log_softmax(z, T=1.0, axis=-1):
    z = _f(z) / T
    m = z.max(axis=axis, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=axis, keepdims=True))


def cross_entropy(z, y):
    ls = log_softmax(z)
    return float(np.mean([-ls[b, int(y[b])] for b in range(len(ls))]))


def kl_batchmean(z_s, z_t, T=1.0):
    """sum_b sum_k p_t (log p_t - log p_s) / B at temperature T, NO T^2."""
    lt, ls = log_softmax(z_t, T), log_softmax(z_s, T)
    return float((np.exp(lt) * (lt - ls)).sum() / len(lt))


def pcl(z, z_ens, z_mean, y, omega=1.0, T=3.0):
    """L = sum_i CE(z_i, y) + CE(z_ens, y)
    + omega * sum_i [ T^2 KL(z_ens || z_i) + T^2/(m-1) sum_{j != i} KL(zbar_j || z_i) ].

    z (m, B, K) peers; z_ens (B, K) classifier on CONCATENATED peer features (peer ensemble teacher), detached as a
    target but trained by its own CE; z_mean (m, B, K) the EMA ("peer mean") networks' logits, one per peer, detached.
    KL teacher first, batchmean.  m = 3, T = 3, omega = rampup(epoch, 80); EMA decay min(1 - 1/(step+1), 0.999).  Every
    peer sees its own augmentation; the EMA peer j is run on peer j's augmentation, so targets differ in view.
    Checked against the REPRODUCTION's KDLoss / PMLoss (mean over the other peers), not an authors' release."""
    z, zm = _f(z), _f(z_mean)
    m = len(z)
    L = cross_entropy(z_ens, y)
    for i in range(m):
        L += cross_entropy(z[i], y)
        L += omega * T**2 * kl_batchmean(z[i], z_ens, T)
        L += omega * sum(T**2 * kl_batchmean(z[i], zm[j], T) for j in range(m) if j != i) / (m - 1)
    return float(L)
