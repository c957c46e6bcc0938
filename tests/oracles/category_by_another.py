"""Slow float64 oracles for category-structure distillation (Chen et al. 2020, ECCV, "Improving Knowledge
Distillation via Category
Structure").  Release read: github xeanzheng/CSKD, train_cifar.py.  NumPy only.

Features f: (B, ...) of any trailing shape, labels (B,), pred (B,) the network's own argmax (teacher's for teacher
features, student's
for student features).
"""

import numpy as np


def class_centers(f, labels, keep=None):
    """{label: mean of its rows}, over rows with keep True (all by default); a label with no kept row is absent."""
    f = np.asarray(f, np.float64)
    out = {}
    for c in sorted({int(y) for y in labels}):
        rows = [f[b] for b, y in enumerate(labels) if y == c and (keep is None or keep[b])]
        if rows:
            out[c] = sum(rows) / len(rows)
    return out


def center_rows(f, labels, pred=None):
    """Each row's class centre, (B, ...).  With pred, centres average only rows the network classifies rightly (the
    release's
    cluster_filter), and a row whose class has no such row gets itself, so its residual is 0."""
    f = np.asarray(f, np.float64)
    keep = None if pred is None else [p == y for p, y in zip(pred, labels, strict=False)]
    centers = class_centers(f, labels, keep)
    return np.stack([centers.get(int(y), f[b]) for b, y in enumerate(labels)])


def intra(student, teacher, labels, student_pred=None, teacher_pred=None, divide=False, student_center_rows=None):
    """Intra-category: mean over all elements of ((s_b - c^s_b) - (t_b - c^t_b))^2.

    student and teacher must have the same shape (the release puts a 1x1 convolution on the student).
      *_pred    None: centres over all rows of the class; given: only rightly classified rows (see center_rows).
      divide    True: once more by the number of elements of a row (C*H*W for a map, K for logits), as the release
      does on top of
                its mean-reduced MSE.
      student_center_rows  the student's centres as constants: the release cuts the gradient through both networks'
      centres, so a
                finite difference must freeze them (pass center_rows(student0, ...)); a gradient through the centre
                is a
                different method (it would be multiplied by the centring projector).
    """
    s, t = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    cs = center_rows(s, labels, student_pred) if student_center_rows is None else student_center_rows
    d = (s - cs) - (t - center_rows(t, labels, teacher_pred))
    out = (d * d).mean()
    return out / d[0].size if divide else out


def compact(student_logits, labels, student_center_rows=None):
    """The release's extra term, teacher-free: mean over all elements of (s_b - centre of its class)^2 on the
    student's logits with all
    rows in the centre; centres constant for the gradient.  Not in the paper's formulas as far as known."""
    s = np.asarray(student_logits, np.float64)
    c = center_rows(s, labels) if student_center_rows is None else student_center_rows
    return ((s - c) ** 2).mean()


def center_cosines(f, labels):
    """(C, C) cosines between the (flattened) centres of the C classes present in the batch, in label order, all rows
    in the centres.
    No epsilon, as the release: a zero centre gives nan."""
    c = [x.reshape(-1) for x in class_centers(f, labels).values()]
    return np.array([[float(a @ b) / np.sqrt(a @ a) / np.sqrt(b @ b) for b in c] for a in c])


def inter(student, teacher, labels, divide=False):
    """Inter-category: mean over the C x C entries (diagonal, always 1 against 1, included) of the squared difference
    of the centres'
    cosines.  student and teacher may have different widths.  divide: once more by C (the release).  The gradient
    flows through the
    student's centres here."""
    a, b = center_cosines(student, labels), center_cosines(teacher, labels)
    out = ((a - b) ** 2).mean()
    return out / len(a) if divide else out


def release_category_loss(s_feat, t_feat, s_logits, t_logits, labels, s_pred=None, t_pred=None):
    """The release's category_loss with use_filter on and its constants: 0.002 (intra on maps, filtered centres +
    intra on logits,
    UNfiltered: a later line overwrites the filtered ones) + 0.1 compact + 0.04 (inter on maps + inter on logits),
    all `divide`."""
    if s_pred is None:
        s_pred = np.argmax(s_logits, 1)
    if t_pred is None:
        t_pred = np.argmax(t_logits, 1)
    return (
        0.002
        * (intra(s_feat, t_feat, labels, s_pred, t_pred, divide=True) + intra(s_logits, t_logits, labels, divide=True))
        + 0.1 * compact(s_logits, labels)
        + 0.04 * (inter(s_feat, t_feat, labels, divide=True) + inter(s_logits, t_logits, labels, divide=True))
    )
