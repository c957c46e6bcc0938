"""BK-SDM, DMD2 and LCM as papers and releases have them, in float64 NumPy, by somebody who had not read this code.

All arrays are (B, ...) of any rank unless stated; abar is the table of alphas_cumprod (T,), t whole times (B,).
"""

# ruff: noqa: B905, E501, RUF005 - as it was written
from __future__ import annotations

import numpy as np


def _f(x):
    return np.asarray(x, dtype=np.float64)


def _bc(v, x):
    """(B,) values shaped to broadcast over x (B, ...)."""
    return _f(v).reshape((-1,) + (1,) * (_f(x).ndim - 1))


# ------------------------------------------------------------------ BK-SDM (Kim et al., 2023, arXiv 2305.15798)

BK_BASE_SMALL_PAIRS = [
    (n, n)
    for n in (
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.2",
        "up_blocks.3",
        "down_blocks.0",
        "down_blocks.1",
        "down_blocks.2",
        "down_blocks.3",
    )
]
# (teacher, student)
BK_TINY_PAIRS = [
    ("down_blocks.0", "down_blocks.0"),
    ("down_blocks.1", "down_blocks.1"),
    ("down_blocks.2.attentions.1.proj_out", "down_blocks.2.attentions.0.proj_out"),
    ("up_blocks.1", "up_blocks.0"),
    ("up_blocks.2", "up_blocks.1"),
    ("up_blocks.3", "up_blocks.2"),
]


def bk_task(out_s, noise=None, x0=None, abar=None, t=None, prediction="epsilon"):
    """L_task = mean_all (out_s - target)^2; target = noise (epsilon) or v = sqrt(abar) noise - sqrt(1-abar) x0."""
    tgt = _f(noise)
    if prediction == "v_prediction":
        a = _f(abar)[np.asarray(t)]
        tgt = _bc(np.sqrt(a), noise) * _f(noise) - _bc(np.sqrt(1 - a), noise) * _f(x0)
    return float(((_f(out_s) - tgt) ** 2).mean())


def bk_output(out_s, out_t):
    """L_OutKD = mean_all (out_s - sg out_t)^2: raw network outputs (eps or v), same noisy input, same t, same text."""
    return float(((_f(out_s) - _f(out_t)) ** 2).mean())


def bk_feature(fs, ft):
    """L_FeatKD = SUM over hooked blocks of mean_all (f_s - sg f_t)^2; lists in the pairs' order (constants above).

    base / small: outputs of the 4 up and 4 down blocks, same names; NO mid block (small has none; base's is not hooked).
    tiny: 3 down (the third = proj_out of an attention) and 3 up, shifted names (student lacks the innermost stage).
    Traps: sum, not mean over the 8 blocks; down blocks return (hidden, residuals): hidden, i.e. AFTER the downsampler, is
    used; no adapter, channel counts agree; the hook takes [0] of a tuple.
    """
    return float(sum(((_f(a) - _f(b)) ** 2).mean() for a, b in zip(fs, ft)))


def bk_sdm(
    out_s, out_t, noise, fs, ft, l_task=1.0, l_out=1.0, l_feat=1.0, x0=None, abar=None, t=None, prediction="epsilon"
):
    """L = l_task L_task + l_out L_OutKD + l_feat L_FeatKD; 1, 1, 1 (release and paper)."""
    return (
        l_task * bk_task(out_s, noise, x0, abar, t, prediction)
        + l_out * bk_output(out_s, out_t)
        + l_feat * bk_feature(fs, ft)
    )


# ------------------------------------------------------------------ shared conversions


def x0_from_eps(x_t, eps, abar, t):
    """(x_t - sqrt(1-abar_t) eps) / sqrt(abar_t)."""
    a = _f(abar)[np.asarray(t)]
    return (_f(x_t) - _bc(np.sqrt(1 - a), x_t) * _f(eps)) / _bc(np.sqrt(a), x_t)


def add_noise(x0, eps, abar, t):
    a = _f(abar)[np.asarray(t)]
    return _bc(np.sqrt(a), x0) * _f(x0) + _bc(np.sqrt(1 - a), x0) * _f(eps)


def cfg_imagen(out_c, out_u, g):
    """out_u + g (out_c - out_u): g = 1 is no guidance. (DMD2.)"""
    return _f(out_u) + g * (_f(out_c) - _f(out_u))


def cfg_lcm(out_c, out_u, w):
    """out_c + w (out_c - out_u), w (B,) or float: w = 0 is no guidance, w = g - 1. (LCM.)"""
    w = w if np.ndim(w) == 0 else _bc(w, out_c)
    return _f(out_c) + w * (_f(out_c) - _f(out_u))


# ------------------------------------------------------------------ DMD2 (Yin et al., 2024, arXiv 2405.14867)


def dmd2_gradient(x, x_real, x_fake):
    """g = ((x - x_real) - (x - x_fake)) / mean_{all but B} |x - x_real| = (x_fake - x_real) / mean|x - x_real|, NaN -> 0.

    x = G(z) clean sample; x_real, x_fake = x0 predictions of the frozen / the trained score net at the SAME noisy x_t.
    Normaliser per sample, mean over all non-batch axes, NO eps (0/0 -> 0; a/0 -> +-max float by nan_to_num: use inputs that differ).
    Differs from DMD1 (eq. 8): no 1/alpha-type weighting, t-weight is this normaliser only.
    """
    x, r, k = _f(x), _f(x_real), _f(x_fake)
    out = np.zeros_like(x)
    for b in range(len(x)):
        n = np.abs(x[b] - r[b]).mean()
        with np.errstate(all="ignore"):
            out[b] = np.nan_to_num((k[b] - r[b]) / n)
    return out


def dmd2_loss(x, x_real, x_fake):
    """L_DM = 1/2 mean_all (x - sg(x - g))^2 = 1/2 mean g^2; its gradient w.r.t. x is g / numel (B included)."""
    return float(0.5 * (dmd2_gradient(x, x_real, x_fake) ** 2).mean())


def dmd2_dloss_dx(x, x_real, x_fake):
    g = dmd2_gradient(x, x_real, x_fake)
    return g / g.size


def dmd2_eps_loss(x, eps, t, abar, eps_real_c, eps_real_u, eps_fake_c, g_real=6.0):
    """SD / SDXL form with guided real score: eps_real = eps_u + g (eps_c - eps_u) IF g > 1 else eps_c; x_real from it.

    Fake: conditional only (fake_guidance_scale must be 1).  g_real: argparse 6.0; SD1.5 recipe 1.75; SDXL recipe 8.  Timestep t
    uniform in [int(.02*1000), min(int(.98*1000)+1, 1000)) = 20..980 per sample (SDXL: of the DM step, not the generator's).
    Guidance is applied to eps, which is the same affine combination on x0; x0 conversion in double.
    TRAP: g = 1 exactly (and g < 1) calls the plain conditional net.
    """
    x_t = add_noise(x, eps, abar, t)
    er = cfg_imagen(eps_real_c, eps_real_u, g_real) if g_real > 1 else _f(eps_real_c)
    return dmd2_loss(x, x0_from_eps(x_t, er, abar, t), x0_from_eps(x_t, eps_fake_c, abar, t))


def dmd2_fake_eps(eps_fake, eps):
    """SD: L_fake = mean_all (eps_fake(x_t) - eps)^2, x detached, t uniform over 0..999, no guidance."""
    return float(((_f(eps_fake) - _f(eps)) ** 2).mean())


def softplus(a):
    return np.logaddexp(0.0, _f(a))


def dmd2_gan_generator(d_fake):
    """mean softplus(-D(noised G(z)))  (non-saturating).  Weight: 3e-3 ImageNet, 1e-3 SD1.5, 5e-3 SDXL."""
    return float(softplus(-_f(d_fake)).mean())


def dmd2_gan_guidance(d_real, d_fake):
    """mean softplus(D(fake)) + mean softplus(-D(real)).  Weight 1e-2 in all recipes (argparse: EDM 1.0, SD 0).
    Logits from a head on the FAKE net's bottleneck; images noised at t uniform in 0..999 (diffusion_gan)."""
    return float(softplus(d_fake).mean() + softplus(-_f(d_real)).mean())


def dmd2_generator(x, x_real, x_fake, d_fake=None, w_dm=1.0, w_gan=5e-3):
    """L_G = w_dm L_DM + w_gan L_gan. Generator updated once in `dfake_gen_update_ratio` steps: 5 (ImageNet, SDXL), 10 (SD1.5)."""
    L = w_dm * dmd2_loss(x, x_real, x_fake)
    return L if d_fake is None else L + w_gan * dmd2_gan_generator(d_fake)


def lcm_scalings(t, sigma_data=0.5, scale=10.0):
    """c_skip = sd^2 / ((s t)^2 + sd^2), c_out = s t / sqrt((s t)^2 + sd^2).  t = integer timestep; t = 0 -> (1, 0) = boundary.
    Trap: the exponents are on s*t, not on t - eps; sigma plays no part."""
    u = scale * _f(t)
    return sigma_data**2 / (u**2 + sigma_data**2), u / np.sqrt(u**2 + sigma_data**2)


def lcm_grid(T=1000, n=50):
    """DDIM grid: start timesteps t_i = (i+1) T//n - 1; targets s_i = max(t_i - T//n, 0);
    abar used for the step: abar[t_{i-1}] for i >= 1 and abar[0] for i = 0.
    TRAP: for i = 0 time is 0 and alpha is abar[0] = index 0 (consistent); for i >= 1 time s_i = t_{i-1} (consistent too)."""
    k = T // n
    t = np.array([(i + 1) * k - 1 for i in range(n)])
    return t, np.maximum(t - k, 0), np.array([0] + list(t[:-1]))


def to_x0_eps(out, x_t, abar, t, prediction="epsilon"):
    """(x0, eps) of a network output: epsilon, sample or v_prediction."""
    a = _f(abar)[np.asarray(t)]
    A, S = _bc(np.sqrt(a), x_t), _bc(np.sqrt(1 - a), x_t)
    o, x = _f(out), _f(x_t)
    if prediction == "epsilon":
        return (x - S * o) / A, o
    if prediction == "sample":
        return o, (x - A * o) / S
    if prediction == "v_prediction":
        return A * x - S * o, A * o + S * x
    raise ValueError(prediction)


def lcm_x_prev(out_c, out_u, x_t, index, abar, w, prediction="epsilon", T=1000, n=50):
    """Guided DDIM step of the teacher: x0^ = cfg_lcm(x0_c, x0_u), eps^ = cfg_lcm(eps_c, eps_u);
    x_prev = sqrt(abar_p) x0^ + sqrt(1 - abar_p) eps^."""
    t, _, p = lcm_grid(T, n)
    idx = np.asarray(index)
    xc, ec = to_x0_eps(out_c, x_t, abar, t[idx], prediction)
    xu, eu = to_x0_eps(out_u, x_t, abar, t[idx], prediction)
    ap = _f(abar)[p[idx]]
    return _bc(np.sqrt(ap), x_t) * cfg_lcm(xc, xu, w) + _bc(np.sqrt(1 - ap), x_t) * cfg_lcm(ec, eu, w)


def lcm_f(out, x, abar, t, prediction="epsilon", scale=10.0):
    """f(x, t) = c_skip x + c_out x0(out, x, t)."""
    cs, co = lcm_scalings(t, scale=scale)
    return _bc(cs, x) * _f(x) + _bc(co, x) * to_x0_eps(out, x, abar, t, prediction)[0]


def lcm_loss(
    out_s, out_target, x_t, x_prev, index, abar, loss="l2", c=0.001, prediction="epsilon", T=1000, n=50, scale=10.0
):
    """d( f(x_{t}, t; out_s), sg f(x_prev, s; out_target) ): mean over ALL elements.

    loss 'l2' = mean (a-b)^2: the SCRIPT'S argparse default;  'huber' = mean( sqrt((a-b)^2 + c^2) - c ), c = 0.001: what
    its README commands pass and the paper uses (?).  elementwise, no weight per t.
    out_target: LoRA script: the student itself (no EMA, no gradient) at (x_prev, s), conditional text, no w embedding;
    full LCM script: EMA copy (decay .95) plus a w embedding.  w ~ U[5, 15] per sample in cfg_lcm form although the
    help text says Imagen.  No CFG on student or target.
    """
    t, s, _ = lcm_grid(T, n)
    idx = np.asarray(index)
    d = lcm_f(out_s, x_t, abar, t[idx], prediction, scale) - lcm_f(out_target, x_prev, abar, s[idx], prediction, scale)
    if loss == "l2":
        return float((d**2).mean())
    return float((np.sqrt(d**2 + c * c) - c).mean())
