"""Slow float64 oracles for the transducer (RNN-T) loss and its collapsed distillation.  NumPy only."""

from itertools import combinations

import numpy as np


def log_softmax(z):
    """Over the last axis.  z: (..., V) -> (..., V)."""
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def alignments(T, U):
    """All paths of a T-frame, U-label lattice, each a list of ((t, u), is_label).

    A path starts at node (0, 0); a label moves (t, u) -> (t, u + 1), a blank moves (t, u) -> (t + 1, u); it ends with
    the blank emitted at (T - 1, U).  There are C(T - 1 + U, U) of them (Graves 2012, "Sequence transduction with
    recurrent neural networks", section 2.4, figure 1; indices here start at 0).
    """
    for label_steps in combinations(range(T - 1 + U), U):
        t, u, path = 0, 0, []
        for step in range(T - 1 + U):
            is_label = step in label_steps
            path.append(((t, u), is_label))
            if is_label:
                u += 1
            else:
                t += 1
        assert (t, u) == (T - 1, U)
        path.append(((t, u), False))
        yield path


def path_scores(logits, targets, blank):
    """(paths, log probability of each).  logits (T, U+1, V), unnormalised; targets (U,)."""
    lp = log_softmax(logits)
    T, U1, V = lp.shape
    U = len(targets)
    assert U1 == U + 1, "give the valid part of the lattice only"
    blank = blank % V
    paths, scores = [], []
    for path in alignments(T, U):
        total = 0.0
        for (t, u), is_label in path:
            total += lp[t, u, targets[u] if is_label else blank]
        paths.append(path)
        scores.append(total)
    return paths, np.array(scores)


def rnnt_loss(logits, targets, blank=0):
    """-log sum over alignments of prod P(k | t, u), one utterance, in nats.  Graves 2012 eq. 14-18 by enumeration.

    logits (T, U+1, V) unnormalised scores (log_softmax over V is taken here); targets (U,) ints; blank an index,
    may be -1.
    """
    _, s = path_scores(logits, targets, blank)
    m = s.max()
    return -(m + np.log(np.exp(s - m).sum()))


def rnnt_loss_batch(logits, targets, logit_lengths, target_lengths, blank=0, reduction="mean"):
    """logits (B, Tmax, Umax+1, V), targets (B, Umax), lengths (B,).  reduction none | mean (over utterances) | sum."""
    per = np.array(
        [
            rnnt_loss(logits[b, : logit_lengths[b], : target_lengths[b] + 1], targets[b, : target_lengths[b]], blank)
            for b in range(len(logit_lengths))
        ]
    )
    return {"none": per, "mean": per.mean(), "sum": per.sum()}[reduction]


def finite_difference(f, x, h=1e-5):
    """Central differences of the scalar f at x, shape of x."""
    x = np.array(x, dtype=np.float64)
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        keep = x[i]
        x[i] = keep + h
        up = f(x)
        x[i] = keep - h
        down = f(x)
        x[i] = keep
        g[i] = (up - down) / (2 * h)
    return g


def rnnt_grad_fd(logits, targets, blank=0, h=1e-5):
    """d rnnt_loss / d logits by central differences, (T, U+1, V)."""
    return finite_difference(lambda z: rnnt_loss(z, targets, blank), logits, h)


def rnnt_grad(logits, targets, blank=0):
    """The same gradient exactly: sum over paths of posterior * sum over the path's nodes of (softmax - onehot of the
    emitted)."""
    paths, s = path_scores(logits, targets, blank)
    post = np.exp(s - s.max())
    post /= post.sum()
    p = np.exp(log_softmax(logits))
    V = p.shape[-1]
    g = np.zeros_like(p)
    for w, path in zip(post, paths, strict=True):
        for (t, u), is_label in path:
            g[t, u] += w * p[t, u]
            g[t, u, targets[u] if is_label else blank % V] -= w
    return g


def collapse(logits, targets, blank=0):
    """Node posteriors in three classes, a (T, U+1, 3) array in the order (correct next label, blank, rest).

    At (t, u), u < U: P(y_{u+1} | t, u), P(blank | t, u), 1 - both, taken as a sum over the other V - 2 classes (never
    by subtraction, which cancels).  At u = U there is no next label: its entry is exactly 0 and `rest` holds all V - 1
    non-blank classes, so two classes remain.
    """
    lp = log_softmax(logits)
    T, U1, V = lp.shape
    U = len(targets)
    assert U1 == U + 1
    blank = blank % V
    out = np.zeros((T, U1, 3))
    for t in range(T):
        for u in range(U1):
            rest = 0.0
            for k in range(V):
                p = np.exp(lp[t, u, k])
                if k == blank:
                    out[t, u, 1] += p
                elif u < U and k == targets[u]:
                    out[t, u, 0] += p
                else:
                    rest += p
            out[t, u, 2] = rest
    return out


def collapsed_kd(student_logits, teacher_logits, targets, blank=0, normalise="sum", last_column="two", temperature=1.0):
    """KL(teacher || student) on collapsed node posteriors, one utterance, in nats.

    sum_{t < T, u <= U} sum_{l in {y, blank, rest}} P_T(l | t, u) * log(P_T(l | t, u) / P_S(l | t, u))
    Panchapagesan et al. 2021 (arXiv 2011.06110), the collapsed form of its lattice KL; only the valid lattice is to be
    given.  student_logits, teacher_logits (T, U+1, V), targets (U,).
      normalise    "sum": over the T (U+1) nodes, as the paper writes it; "mean": divided by the number of nodes
                   counted.
      last_column  "two": the column u = U counts with {blank, rest}; "skip": it does not count (the node count
                   shrinks too).
      temperature  both logits are divided by it before the collapse, nothing is multiplied back; the paper uses 1.
    A class whose teacher probability is 0 contributes 0.  If V == 2 there is no rest for u < U, which is fine (0
    contributes 0).
    """
    pt = collapse(np.asarray(teacher_logits, np.float64) / temperature, targets, blank)
    ps = collapse(np.asarray(student_logits, np.float64) / temperature, targets, blank)
    T, U1, _ = pt.shape
    total, nodes = 0.0, 0
    for t in range(T):
        for u in range(U1):
            if u == U1 - 1 and last_column == "skip":
                continue
            nodes += 1
            for c in range(3):
                if pt[t, u, c] > 0:
                    total += pt[t, u, c] * (np.log(pt[t, u, c]) - np.log(ps[t, u, c]))
    if normalise == "mean":
        return total / nodes if nodes else 0.0
    return total


def full_kd(student_logits, teacher_logits, normalise="sum", temperature=1.0):
    """The uncollapsed form: KL(teacher || student) over all V classes at each node (same paper, the equation before).

    An upper bound of collapsed_kd on the same rows (data processing): a useful property test.
    """
    lt = log_softmax(np.asarray(teacher_logits, np.float64) / temperature)
    ls = log_softmax(np.asarray(student_logits, np.float64) / temperature)
    node = (np.exp(lt) * (lt - ls)).sum(-1)
    return node.mean() if normalise == "mean" else node.sum()


def collapsed_kd_grad_fd(student_logits, teacher_logits, targets, blank=0, h=1e-5, **kw):
    """d collapsed_kd / d student_logits by central differences."""
    return finite_difference(lambda z: collapsed_kd(z, teacher_logits, targets, blank, **kw), student_logits, h)
