"""MiniLLM (Gu et al., ICLR 2024), slow and in float64, by somebody who had not seen our code.

Equations 2 to 6 from a text of section 2.2 that keeps its formulas; the release is microsoft/LMOps at 4f2a9deb, whose
`PPOSampler.run_sample` and `Loss.ppo_loss` gave the values of `RELEASE` in float64, of stub models with these logits.
`release` is what ran, `paper` the scalar whose gradient at student == old is equations 5 and 6 without clipping, its
mean over the number of terms (the printed divisor is one less, counted from 1). Scaling of rewards and their clip at
100 are the release's; positions are those of the response, whose end counts.
"""

import math

import numpy as np


def log_softmax(z):
    m = z.max()
    return z - m - math.log(np.exp(z - m).sum())


def inputs(seed):
    """Three texts of 5, 3 and 1 tokens, six words; scores now, when they were drawn, and of the teacher."""
    r = np.random.RandomState(seed)
    B, L, V = 3, 5, 6
    d = {"teacher": r.randn(B, L, V) * 1.5, "old": r.randn(B, L, V)}
    d["student"] = d["old"] + r.randn(B, L, V) * 0.4
    d["tokens"] = r.randint(1, V, (B, L))
    d["lens"] = np.array([5, 3, 1])
    d["mask"] = (np.arange(L)[None] < d["lens"][:, None]).astype(int)
    for b in range(B):
        if d["lens"][b] < L:
            d["tokens"][b, d["lens"][b] - 1 :] = 0
    return d


def rollout(d, alpha=0.2, scaling=0.5, clip_reward=100.0):
    """What is fixed when texts are drawn: log-probability, reward and weight of each token."""
    B, L = d["tokens"].shape
    old, rew, w = np.zeros((B, L)), np.zeros((B, L)), np.ones((B, L))
    for b in range(B):
        for t in range(L):
            if not d["mask"][b, t]:
                continue
            y = d["tokens"][b, t]
            lq, lp = log_softmax(d["old"][b, t])[y], log_softmax(d["teacher"][b, t])[y]
            r = (lp - lq) / (scaling or 1.0)
            old[b, t], rew[b, t] = lq, min(max(r, -clip_reward), clip_reward) if clip_reward else r
            w[b, t] = math.exp(lq) / ((1 - alpha) * math.exp(lq) + alpha * math.exp(lp))
    return old, rew, w


def advantages(rew, mask, gamma=0.95):
    """Discounted rewards from a token on over their number, whitened over all cells, padding included."""
    B, L = rew.shape
    a = np.zeros((B, L))
    for b in range(B):
        for t in range(L):
            left = sum(mask[b, k] for k in range(t, L)) if mask[b, t] else 1
            a[b, t] = sum(gamma ** (k - t) * rew[b, k] for k in range(t, L)) / left
    return (a - a.mean()) / math.sqrt(((a - a.mean()) ** 2).sum() / a.size + 1e-8)


def release(d, alpha=0.2, cliprange=0.2):
    """Both parts, means over tokens: of what follows, and the exact one of the step."""
    old, rew, w = rollout(d, alpha)
    adv, pg, reg = advantages(rew, d["mask"]), 0.0, 0.0
    for b in range(len(old)):
        for t in range(d["lens"][b]):
            lq, lp = log_softmax(d["student"][b, t]), log_softmax(d["teacher"][b, t])
            ratio = math.exp(lq[d["tokens"][b, t]] - old[b, t]) * w[b, t]
            pg += max(-adv[b, t] * ratio, -adv[b, t] * min(max(ratio, 1 - cliprange), 1 + cliprange))
            reg += sum(math.exp(q) * (q - p) for q, p in zip(lq, lp, strict=True))
    return pg / d["mask"].sum(), reg / d["mask"].sum()


def paper(d, alpha=0.2):
    """Sum over tokens of ``w KL(q || p) - w R log q``."""
    _, rew, w = rollout(d, alpha, None, None)
    s = 0.0
    for b in range(len(rew)):
        T = d["lens"][b]
        for t in range(T):
            after = sum(rew[b, k] for k in range(t + 1, T))
            if T - t - 1 > 0:
                after /= T - t - 1
            lq, lp = log_softmax(d["student"][b, t]), log_softmax(d["teacher"][b, t])
            s += w[b, t] * sum(math.exp(q) * (q - p) for q, p in zip(lq, lp, strict=True))
            s -= w[b, t] * after * lq[d["tokens"][b, t]]
    return s


#: By seed and clip: the release's two parts, and of the gradient of their sum the absolute values' sum.
RELEASE = {
    (0, 0.2): (0.542044570437116, 1.1650546167464166, 1.9724525540147972),
    (1, 0.2): (0.9205399367876661, 1.1434086927678566, 2.631930570714024),
    (2, 0.2): (0.5322944920527203, 1.1988923695476588, 2.4340248903293533),
    (2, 0.05): (0.5625984808945523, 1.1988923695476588, 2.4340248903293533),
}
