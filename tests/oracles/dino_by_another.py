"""Slow float64 oracles for DINO (Caron et al. 2021, arXiv 2104.14294; section 3.1 eq. 1-4, algorithm 1).  NumPy
only."""

import numpy as np


def softmax(z):
    z = np.asarray(z, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def teacher_targets(teacher, center, teacher_temp):
    """softmax((g_t - c) / tau_t).  teacher (..., K), center (K,): centring first, then sharpening by the
    temperature."""
    return softmax((np.asarray(teacher, np.float64) - np.reshape(center, -1)) / teacher_temp)


def dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
    """Mean over the ordered pairs (teacher view q, student view v), v != q, of the batch mean of H(P_t^q, P_s^v).

    student (V, B, K) head outputs of all views, the Q global ones first and in the teacher's order; teacher (Q, B,
    K), Q = 2 in the
    paper; center (K,), the value before this step's update.  H(a, b) = -sum_k a_k log b_k: a cross-entropy, so the
    minimum is the
    teacher's entropy and not 0.  Number of pairs Q V - Q = Q (V - 1) (when V >= Q).
    Release (facebookresearch/dino, DINOLoss.forward): the same.  Paper: eq. 3 writes the sum over pairs without the
    division
    (constant factor); algorithm 1 halves the two-view sum, which is the mean used here.
    """
    student = np.asarray(student, np.float64)
    teacher = np.asarray(teacher, np.float64)
    V, B, _ = student.shape
    total, pairs = 0.0, 0
    for q in range(len(teacher)):
        for v in range(V):
            if v == q:
                continue
            for b in range(B):
                p = teacher_targets(teacher[q, b], center, teacher_temp)
                total += -(p * log_softmax(student[v, b] / student_temp)).sum() / B
            pairs += 1
    return total / pairs


def update_center(center, teacher, momentum=0.9):
    """c <- m c + (1 - m) mean over all teacher rows (all global views, whole batch, all processes).  Eq. 4.

    teacher (Q, B, K) raw head outputs: neither centred nor divided by the temperature.  Returns (K,).
    """
    t = np.asarray(teacher, np.float64)
    return momentum * np.reshape(center, -1).astype(np.float64) + (1 - momentum) * t.reshape(-1, t.shape[-1]).mean(0)


def dino_steps(students, teachers, center, student_temp=0.1, teacher_temps=None, momentum=0.9):
    """Losses of successive steps with the centre carried along: each loss uses the centre before its own update.

    students, teachers: lists of arrays as in dino_loss.  Returns (list of losses, final centre).
    """
    losses = []
    for i, (s, t) in enumerate(zip(students, teachers, strict=False)):
        losses.append(dino_loss(s, t, center, student_temp, 0.04 if teacher_temps is None else teacher_temps[i]))
        center = update_center(center, t, momentum)
    return losses, center


def teacher_temp_schedule(warmup_temp, temp, warmup_epochs, epochs):
    """Per epoch: `warmup_epochs` values evenly from warmup_temp to temp, both ends included, then temp.  Release
    defaults 0.04, 0.04, 0;
    the paper's longer recipes go 0.04 -> 0.07 in 30 epochs (appendix, implementation)."""
    out = []
    for e in range(epochs):
        if e >= warmup_epochs:
            out.append(temp)
        elif warmup_epochs == 1:
            out.append(warmup_temp)
        else:
            out.append(warmup_temp + (temp - warmup_temp) * e / (warmup_epochs - 1))
    return np.array(out)


def teacher_momentum(step, steps, base=0.996, final=1.0):
    """Cosine schedule of the teacher's EMA: final + (base - final) (1 + cos(pi step / steps)) / 2.  Section 3.1:
    0.996 -> 1."""
    return final + 0.5 * (base - final) * (1 + np.cos(np.pi * step / steps))


def ema(teacher_w, student_w, m):
    """theta_t <- m theta_t + (1 - m) theta_s (after the student's optimiser step)."""
    return m * np.asarray(teacher_w, np.float64) + (1 - m) * np.asarray(student_w, np.float64)


def weight_norm_last_layer(x, v, g=None):
    """The head's last layer: y = (x / max(||x||, 1e-12)) W^T, W_k = g_k v_k / ||v_k||, no bias.  x (B, D), v (K, D),
    g (K,), fixed to 1 by
    default in the release (norm_last_layer)."""
    x = np.asarray(x, np.float64)
    v = np.asarray(v, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    w = v / np.linalg.norm(v, axis=-1, keepdims=True)
    if g is not None:
        w = w * np.reshape(g, (-1, 1))
    return x @ w.T
