"""GKD's texts and DistiLLM-2, slow and in float64, by somebody who had not seen our code.

GKD (Agarwal et al., ICLR 2024, algorithm 1) from huggingface/trl at f2cd5771, `GKDTrainer`: one draw a step says whose
texts it is on; the first end of a text is judged, nothing behind it; the loss is a mean over the batch's tokens.
DistiLLM-2 (Ko et al., ICML 2025) from jongwooko/distillm-2 at fe4cf9bf, `DistiLLMTrainer`: on the teacher's text
KL(p || a p + (1-a) q), on the student's KL(q || (1-a) p + a q) with the q of the mixture held, each a mean over a
text's tokens, summed with weights 2 - beta and beta, a mean over pairs. Its curriculum, off in the release: of each
text a = clip(1 - (1 - alpha) m / (g + 1e-5), 0.01, alpha), g = P - Q (Q - P on the student's), geometric means of the
tokens' probabilities, m the mean g of what was logged first. Papers were not read again. `RELEASE_PAIRS` holds what the
release's own lines gave in float64: value, sum of the gradient's absolute values, and its first two entries of the last
text's first row; `RELEASE_PACED` its values of the teacher's texts and of the student's, with m given.
"""

import math

import numpy as np


def log_softmax(z):
    m = z.max()
    return z - m - math.log(np.exp(z - m).sum())


def source_of(u, lmbda, seq_kd):
    """Which texts a step is on, given its one uniform draw."""
    if u <= lmbda:
        return "student"
    return "teacher" if seq_kd else "data"


def sampled(tokens, prompt_len, eos):
    """tokens (B, P+C), prompts followed by what was drawn: labels, -100 for the prompt and behind the first end."""
    lab = np.full(tokens.shape, -100)
    for b in range(len(tokens)):
        for i in range(prompt_len, tokens.shape[1]):
            lab[b, i] = tokens[b, i]
            if tokens[b, i] == eos:
                break
    return lab


def gkd(s, t, labels, beta=0.5):
    """s, t (B,L,V) of the same texts; position i is judged where labels[i+1] != -100."""
    tot, n = 0.0, 0
    for b in range(len(labels)):
        for i in range(labels.shape[1] - 1):
            if labels[b, i + 1] == -100:
                continue
            lq, lp = log_softmax(s[b, i]), log_softmax(t[b, i])
            q, p = np.exp(lq), np.exp(lp)
            if beta == 0:
                d = (p * (lp - lq)).sum()
            elif beta == 1:
                d = (q * (lq - lp)).sum()
            else:
                m = np.log(beta * p + (1 - beta) * q)
                d = beta * (p * (lp - m)).sum() + (1 - beta) * (q * (lq - m)).sum()
            tot += d
            n += 1
    return tot / max(n, 1)


def skl(lp, lq, a):
    return float((np.exp(lp) * (lp - np.log(a * np.exp(lp) + (1 - a) * np.exp(lq)))).sum())


def srkl(lp, lq, a):
    return float((np.exp(lq) * (lq - np.log((1 - a) * np.exp(lp) + a * np.exp(lq)))).sum())


def of_text(s, t, y, fn, a):
    """Mean over a text's tokens; position i predicts label i+1."""
    out = [fn(log_softmax(t[i]), log_softmax(s[i]), a) for i in range(len(y) - 1) if y[i + 1] != -100]
    return sum(out) / len(out)


def pairs(s, t, y, beta=1.0, a=0.1):
    """Texts of the teacher first, then as many of the student."""
    n = len(y) // 2
    return (
        sum(
            (2 - beta) * of_text(s[b], t[b], y[b], skl, a) + beta * of_text(s[n + b], t[n + b], y[n + b], srkl, a)
            for b in range(n)
        )
        / n
    )


def alpha_of(gap, anchor_gap, base=0.1, low=1e-2):
    return min(max(1 - (1 - base) * anchor_gap / (gap + 1e-5), low), base)


def _paced(student, teacher, item, labels, state, base, low, fn, sign):
    """Mean over texts with rows; m is not there in the first batch, whose texts have `base`."""
    m = float(state["first"])
    means = []
    for text in sorted(set(np.asarray(item).tolist())):
        rows = [i for i in range(len(item)) if item[i] == text]
        lq, lp = ([log_softmax(np.asarray(z[i], np.float64)) for i in rows] for z in (student, teacher))
        q, p = (math.exp(sum(x[labels[i]] for x, i in zip(one, rows, strict=True)) / len(rows)) for one in (lq, lp))
        a = base if math.isnan(m) else alpha_of(sign * (p - q), m, base, low)
        means.append(sum(fn(one, other, a) for one, other in zip(lp, lq, strict=True)) / len(rows))
    return sum(means) / len(means)


def distillm2_skl(student, teacher, item, labels, *, state, alpha=0.1, least=0.01):
    return _paced(student, teacher, item, labels, state, alpha, least, skl, 1)


def distillm2_srkl(student, teacher, item, labels, *, state, alpha=0.1, least=0.01):
    return _paced(student, teacher, item, labels, state, alpha, least, srkl, -1)


def beta_at(step, max_steps):
    return 1.0 + 0.5 * min(1.0, 2 * step / max_steps)


def inputs(seed, B=2, L=5, V=7):
    """The teacher's texts in rows 0..B-1, the student's behind them; labels are not shifted, -100 is prompt or pad."""
    r = np.random.RandomState(seed)
    s, t = r.randn(2 * B, L, V) * 1.5, r.randn(2 * B, L, V) * 1.5
    y = r.randint(0, V, (2 * B, L))
    y[:, 0] = -100
    y[0, 1] = -100
    y[1, 4] = -100
    y[3, 3:] = -100
    return s, t, y


#: By seed and, where beta is gradual, the step of 100.
RELEASE_PAIRS = {
    (0, None): (1.8609043963056653, 1.3765416627359381, [0.050563659735814205, -0.010506683516029363]),
    (0, 30): (1.9156538090199537, 1.4069011372814728, [0.0657327576565585, -0.01365868857083817]),
    (1, None): (1.9302435514160168, 1.389605526639075, [-0.02206681088415434, 0.020012114020962497]),
    (1, 30): (2.0048233422077057, 1.4608925052259734, [-0.02868685414940065, 0.026015748227251223]),
    (2, None): (1.613686883893413, 1.0657683137997431, [0.013364774184371025, 0.028775104088302736]),
    (2, 30): (1.661135345181676, 1.0415204856087146, [0.01737420643968235, 0.03740763531479354]),
}
#: By seed and m.
RELEASE_PACED = {
    (0, 0.02): ([0.6571852897649801, 1.0661351719921075], [0.8454778249591544, 1.1979246137274724]),
    (0, 0.2): ([0.6571852897649801, 1.4247763371624063], [0.8454778249591544, 1.1979246137274724]),
    (1, 0.02): ([1.1222970018555791, 0.8678061764598475], [1.0949495188878815, 1.0838933351670983]),
    (1, 0.2): ([1.1222970018555791, 1.3656096074050807], [1.0949495188878815, 1.6835533144063988]),
    (2, 0.02): ([0.9212525875288297, 0.5342727587370403], [0.8100558335225753, 0.9617925879983809]),
    (2, 0.2): ([1.3710486299398192, 0.5342727587370403], [1.1949168102573946, 1.1862793670165013]),
}
