"""Slow float64 oracles for data-free distillation: DeepInversion / Adaptive DeepInversion, DAFL, ZSKT, DFAD.

Sources read: NVlabs/DeepInversion (deepinversion.py, cifar10/deepinversion_cifar10.py, imagenet_inversion.py),
huawei-noah/Data-Efficient-Model-Compression DAFL/DAFL-train.py, polo5/ZeroShotKnowledgeTransfer solver.py + main.py,
VainF/Data-Free-Adversarial-Distillation DFAD_cifar.py, DFAD_camvid_deeplab.py.
x images (B, C, H, W); z logits (B, K); y integer labels (B,).  All functions return floats.
"""

import numpy as np


def _f(x):
    return np.asarray(x, dtype=np.float64)


def softmax(z, T=1.0):
    z = _f(z) / T
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(z, T=1.0):
    z = _f(z) / T
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def cross_entropy(z, y):
    """mean_b - log softmax(z_b)[y_b]."""
    ls = log_softmax(z)
    return float(np.mean([-ls[b, int(y[b])] for b in range(len(ls))]))


# ---------------------------------------------------------------- DeepInversion (Yin et al., CVPR 2020)


def tv_l2(x):
    """R_TV (l2): sum over the 4 directions (right, down, down-left diagonal, down-right diagonal) of the FROBENIUS NORM
    of the difference tensor over the WHOLE batch: ||d1|| + ||d2|| + ||d3|| + ||d4||.

    Source: get_image_prior_losses (the loss_var_l2).  Traps: norm (with square root), not squared, not divided
    by B or pixels -> grows as sqrt(B); four norms added, not the norm of the sum.
    d3[i,j] = x[i+1,j] - x[i,j+1], d4[i,j] = x[i,j] - x[i+1,j+1].
    """
    x = _f(x)
    B, C, H, W = x.shape
    s = [0.0, 0.0, 0.0, 0.0]
    for b, c, i, j in np.ndindex(B, C, H, W):
        if j + 1 < W:
            s[0] += (x[b, c, i, j] - x[b, c, i, j + 1]) ** 2
        if i + 1 < H:
            s[1] += (x[b, c, i, j] - x[b, c, i + 1, j]) ** 2
        if i + 1 < H and j + 1 < W:
            s[2] += (x[b, c, i + 1, j] - x[b, c, i, j + 1]) ** 2
            s[3] += (x[b, c, i, j] - x[b, c, i + 1, j + 1]) ** 2
    return float(sum(np.sqrt(v) for v in s))


def tv_l1(x):
    """R_TV (l1) of the release: sum over the same 4 directions of the MEAN absolute difference."""
    x = _f(x)
    B, C, H, W = x.shape
    s, n = [0.0] * 4, [0] * 4
    for b, c, i, j in np.ndindex(B, C, H, W):
        d = {}
        if j + 1 < W:
            d[0] = x[b, c, i, j] - x[b, c, i, j + 1]
        if i + 1 < H:
            d[1] = x[b, c, i, j] - x[b, c, i + 1, j]
        if i + 1 < H and j + 1 < W:
            d[2] = x[b, c, i + 1, j] - x[b, c, i, j + 1]
            d[3] = x[b, c, i, j] - x[b, c, i + 1, j + 1]
        for k, v in d.items():
            s[k] += abs(v)
            n[k] += 1
    return float(sum(s[k] / n[k] for k in range(4)))


def l2_image(x, form="imagenet"):
    """R_l2. 'imagenet' (deepinversion.py, default): mean_b ||x_b||_2.  'cifar': ||x||_2 of the whole batch tensor.
    Norm, not squared, in both (the paper writes ||x||_2)."""
    x = _f(x)
    if form == "imagenet":
        return float(np.mean([np.sqrt((x[b] ** 2).sum()) for b in range(x.shape[0])]))
    if form == "cifar":
        return float(np.sqrt((x**2).sum()))
    raise ValueError(form)


def bn_layer(f, running_mean, running_var):
    """One layer's R_feature: ||running_var - var(f)||_2 + ||running_mean - mean(f)||_2, f (B, C, H, W) INPUT of the BN.

    mean, var per channel over B, H, W; var BIASED although running_var is the unbiased average of torch.
    Norms over channels, not squared.  Source: DeepInversionFeatureHook.
    """
    f = _f(f)
    C = f.shape[1]
    dm = dv = 0.0
    for c in range(C):
        v = f[:, c].ravel()
        m = v.sum() / v.size
        var = ((v - m) ** 2).sum() / v.size
        dm += (_f(running_mean)[c] - m) ** 2
        dv += (_f(running_var)[c] - var) ** 2
    return float(np.sqrt(dv) + np.sqrt(dm))


def bn_loss(fs, means, variances, first_bn_multiplier=10.0):
    """R_feature = first_bn_multiplier * R_1 + sum_{l>1} R_l.  Default 10 = imagenet_inversion.py; CIFAR release and
    paper: 1 (no multiplier)."""
    return float(
        sum((first_bn_multiplier if i == 0 else 1.0) * bn_layer(fs[i], means[i], variances[i]) for i in range(len(fs)))
    )


def adi_compete(z_s, z_t, T=3.0, lo=0.01, hi=0.99):
    """R_compete = 1 - clip(JS', 0, 1),  JS' = 1/2 D(M || P) + 1/2 D(M || Q)   [RELEASE form, default].

    P = softmax(z_s/T), Q = softmax(z_t/T), M = (P+Q)/2 taken BEFORE clipping; then P, Q, M each clipped to [lo, hi]
    (rows no longer sum to 1); D(M||P) = sum_k M (log M - log P) / B (batchmean).
    TRAPS: the release calls KLDivLoss(log P, M), i.e. KL(M||P): not the textbook JS, which is KL(P||M) (`js_textbook`
    below = the paper's eq. 8); no T^2; without clipping JS' is unbounded, hence the clip; the 0.01 floor makes JS' of
    K > 100 classes meaningless.  The batch mean is clipped, not each sample.  Gradient also flows into the student
    unless detach_student.  T = 3 hard-coded.
    """
    P, Q = softmax(z_s, T), softmax(z_t, T)
    M = 0.5 * (P + Q)
    P, Q, M = (np.minimum(np.maximum(a, lo), hi) for a in (P, Q, M))
    B, K = P.shape
    js = 0.0
    for b in range(B):
        for k in range(K):
            js += 0.5 * M[b, k] * (np.log(M[b, k]) - np.log(P[b, k])) + 0.5 * M[b, k] * (
                np.log(M[b, k]) - np.log(Q[b, k])
            )
    js /= B
    return float(1.0 - min(max(js, 0.0), 1.0))


def js_textbook(z_s, z_t, T=1.0):
    """Paper's JS: mean_b 1/2 KL(P||M) + 1/2 KL(Q||M), natural log, in [0, ln 2].  R_compete(paper) = 1 - JS."""
    lp, lq = log_softmax(z_s, T), log_softmax(z_t, T)
    P, Q = np.exp(lp), np.exp(lq)
    M = 0.5 * (P + Q)
    tot = 0.0
    for b, k in np.ndindex(*P.shape):
        if P[b, k] > 0:
            tot += 0.5 * P[b, k] * (np.log(P[b, k]) - np.log(M[b, k]))
        if Q[b, k] > 0:
            tot += 0.5 * Q[b, k] * (np.log(Q[b, k]) - np.log(M[b, k]))
    return float(tot / P.shape[0])


def deepinversion(
    z_t,
    y,
    x,
    fs,
    means,
    variances,
    z_s=None,
    main=1.0,
    a_tv_l2=1e-4,
    a_tv_l1=0.0,
    a_l2=1e-5,
    a_f=0.05,
    first_bn_multiplier=10.0,
    a_c=0.0,
    T=3.0,
    l2_form="imagenet",
):
    """L = main*CE(z_t, y) + a_tv_l2*TV_l2 + a_tv_l1*TV_l1 + a_l2*R_l2 + a_f*R_feature + a_c*R_compete.

    Defaults: argparse of imagenet_inversion.py (r_feature 0.05; its README command 0.01; tv_l2 1e-4, l2 1e-5, adi 0,
    first BN x 10).  CIFAR release: a_tv_l2 2.5e-5, a_f 1e2 (its README has other values per network), a_l2 0 with
    l2_form='cifar', first_bn_multiplier 1, cig_scale 0.  a_c of the paper's ImageNet runs: not established here.
    CE is applied with the TEACHER's logits; R_compete only if z_s is given and a_c != 0.  x = the jittered image.
    """
    L = main * cross_entropy(z_t, y) + a_tv_l2 * tv_l2(x) + a_tv_l1 * tv_l1(x) + a_l2 * l2_image(x, l2_form)
    L += a_f * bn_loss(fs, means, variances, first_bn_multiplier)
    if z_s is not None and a_c != 0.0:
        L += a_c * adi_compete(z_s, z_t, T)
    return float(L)


# ---------------------------------------------------------------- DAFL (Chen et al., ICCV 2019)


def dafl_onehot(z_t):
    """L_oh = mean_b CE(z_t_b, argmax z_t_b) (eq. 4). The label has no gradient. First maximum on ties."""
    z = _f(z_t)
    return cross_entropy(z, [int(np.argmax(z[b])) for b in range(len(z))])


def dafl_activation(f_t):
    """L_a = - mean |f_t| over ALL elements (B, D, ...) (release).  Paper eq. 5: -(1/n) sum_i ||f_i||_1, i.e. the sum
    over D: D times larger.  f_t = teacher's feature before the classifier (`out_feature=True`)."""
    return float(-np.abs(_f(f_t)).mean())


def dafl_entropy(z_t, base=10.0):
    """L_ie = sum_k pbar_k log_base pbar_k, pbar = mean_b softmax(z_t_b): NEGATIVE entropy, minimum -log_base K.
    TRAP: the release uses log10 (default here); paper eq. 6: -H with an unspecified log (natural is 2.3026 times
    larger).  The mean is over the batch BEFORE the log.  pbar_k = 0 gives nan in the release; 0 here."""
    p = softmax(z_t).mean(axis=0)
    return float(sum(v * np.log(v) / np.log(base) for v in p if v > 0))


def dafl_generator(z_t, f_t, oh=1.0, ie=5.0, a=0.1):
    """L_G = oh*L_oh + ie*L_ie + a*L_a (release defaults 1, 5, 0.1; MNIST and argparse).
    Release: the student's KD loss on detached images is ADDED to the same backward pass, no gradient to G."""
    return oh * dafl_onehot(z_t) + ie * dafl_entropy(z_t) + a * dafl_activation(f_t)


def dafl_kd(z_s, z_t):
    """Student: sum_b KL(softmax z_t || softmax z_s) / B, T = 1 (release kdloss).  Paper: cross-entropy (differs by the
    teacher's entropy, a constant)."""
    lt, ls = log_softmax(z_t), log_softmax(z_s)
    return float((np.exp(lt) * (lt - ls)).sum() / len(lt))


# ---------------------------------------------------------------- ZSKT (Micaelli & Storkey, NeurIPS 2019)


def zskt_divergence(z_s, z_t, T=1.0, reduction="mean"):
    """D = KL(softmax(z_t/T) || softmax(z_s/T)), no T^2.
    TRAP: the release calls F.kl_div with its default reduction 'mean' = sum / (B*K) (DEFAULT here).
    reduction='batchmean' = sum / B is the paper's eq. 1."""
    lt, ls = log_softmax(z_t, T), log_softmax(z_s, T)
    s = (np.exp(lt) * (lt - ls)).sum()
    return float(s / (lt.size if reduction == "mean" else lt.shape[0]))


def zskt_attention(a):
    """q = flat_hw(mean_c a^2) / max(||.||_2, 1e-12), a (B, C, H, W) -> (B, HW). (Paper: alike.)"""
    a = _f(a)
    out = []
    for b in range(a.shape[0]):
        v = (a[b] ** 2).mean(axis=0).ravel()
        out.append(v / max(np.sqrt((v**2).sum()), 1e-12))
    return np.array(out)


def zskt_at(as_, at_):
    """sum_layers mean_{b,hw} (q_s - q_t)^2. Release: mean over B and HW (paper's eq. 2: ||q_s - q_t||_2, a norm without
    square, summed over layers: beta then is not comparable)."""
    return float(sum(((zskt_attention(s) - zskt_attention(t)) ** 2).mean() for s, t in zip(as_, at_, strict=True)))


def zskt_generator(z_s, z_t, T=1.0, reduction="mean"):
    """L_G = - D (the generator maximises).  No attention term."""
    return -zskt_divergence(z_s, z_t, T, reduction)


def zskt_student(z_s, z_t, as_=(), at_=(), T=1.0, beta=250.0, reduction="mean"):
    """L_S = D + beta * sum_layers AT.  beta 250, T 1 (main.py); 1 generator : 7 student steps in argparse (paper
    1 : 10), same batch of pseudo images for all of them; gradient norm clipped to 5 for both nets."""
    return zskt_divergence(z_s, z_t, T, reduction) + beta * zskt_at(as_, at_)


# ---------------------------------------------------------------- DFAD (Fang et al., 2019, arXiv 1912.11006)


def dfad_discrepancy(z_s, z_t):
    """D = mean over ALL elements |z_s - z_t| (RAW logits, F.l1_loss): (1/n) sum_i ||.||_1 of the paper (eq. 4) / K."""
    return float(np.abs(_f(z_s) - _f(z_t)).mean())


def dfad_student(z_s, z_t):
    """L_S = D. 5 student steps (fresh noise each) per generator step."""
    return dfad_discrepancy(z_s, z_t)


def dfad_generator(z_s, z_t, form="neg"):
    """L_G = -D ('neg': CIFAR, MNIST, Caltech default) or -log(D + 1) ('log': release's CamVid, a bounded gradient)."""
    d = dfad_discrepancy(z_s, z_t)
    return -d if form == "neg" else float(-np.log(d + 1.0))
