"""Distillation of detectors on the ground, slowly, in float64: UniDistill (Zhou 2023), BEVDistill (Chen 2023),
DistillBEV (Wang 2023).

Written from the releases by somebody who had not seen what is tested by it.
"""

import numpy as np


def _f(x):
    return np.asarray(x, dtype=np.float64)


def bilinear(f, u, v):
    """f (C, H, W) at column u, row v counted from the centre of the first cell; 0 outside."""
    f = _f(f)
    C, H, W = f.shape
    u0, v0 = int(np.floor(u)), int(np.floor(v))
    out = np.zeros(C)
    for dv in (0, 1):
        for du in (0, 1):
            i, j = v0 + dv, u0 + du
            w = (1 - abs(v - i)) * (1 - abs(u - j))
            if 0 <= i < H and 0 <= j < W and w > 0:
                out += w * f[:, i, j]
    return out


def nine_points(x, y, sx, sy, yaw):
    """(9, 2) metres: corners (-,-), (-,+), (+,+), (+,-), the middle, middles of the edges between corners in turn."""
    c, s = np.cos(yaw), np.sin(yaw)
    corner = []
    for a, b in [(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)]:
        px, py = a * sx, b * sy
        corner.append([x + px * c - py * s, y + px * s + py * c])
    p = np.array(corner)
    return np.array(corner + [p.mean(0)] + [(p[i] + p[j]) / 2 for i, j in [(0, 1), (1, 2), (2, 3), (0, 3)]])


def unidistill_sample(f, box, pc_min, cell, swap=True):
    """(9, C) at the nine points of box (x, y, sx, sy, yaw). swap: x is the first axis of the map, as in the release,
    which is right for square maps alone; without it x is the column, y the row."""
    f = _f(f)
    _, H, W = f.shape
    out = []
    for X, Y in nine_points(*box):
        px, py = (X - pc_min[0]) / cell[0], (Y - pc_min[1]) / cell[1]
        if swap:
            u, v = py / H * W - 0.5, px / W * H - 0.5
        else:
            u, v = px - 0.5, py - 0.5
        out.append(bilinear(f, u, v))
    return np.array(out)


def unidistill_feature(f_s, f_t, boxes, pc_min, cell, swap=True, eps=1e-4):
    """Sum over boxes of the mean of |F_s - F_t|, over their number."""
    tot, n = 0.0, 0
    for b in range(len(boxes)):
        for box in boxes[b]:
            a, c = (
                unidistill_sample(f_s[b], box, pc_min, cell, swap),
                unidistill_sample(f_t[b], box, pc_min, cell, swap),
            )
            tot += np.abs(a - c).mean()
            n += 1
    return float(tot / (n + eps))


def unidistill_relation(f_s, f_t, boxes, pc_min, cell, swap=True, eps=1e-4):
    """Sum over boxes of the mean of |R_s - R_t| over 9 x 9, over their number; R = F F^T of rows over norm + 1e-4."""
    tot, n = 0.0, 0
    for b in range(len(boxes)):
        for box in boxes[b]:
            R = []
            for f in (f_s[b], f_t[b]):
                F = unidistill_sample(f, box, pc_min, cell, swap)
                F = F / (np.sqrt((F**2).sum(1, keepdims=True)) + 1e-4)
                R.append(F @ F.T)
            tot += np.abs(R[0] - R[1]).mean()
            n += 1
    return float(tot / (n + eps))


def unidistill_response(hm_s, hm_t, reg_s, reg_t, mask, clip=1e-4, eps=1e-4, student_is_prob=True):
    """Heat and regression under the mask G (B, H, W): the student's largest probability, or logits, against the
    teacher's largest of sigmoid(logits / 2)."""

    def sig(z):
        return 1 / (1 + np.exp(-_f(z)))

    ps = _f(hm_s) if student_is_prob else np.clip(sig(hm_s), 1e-4, 1 - 1e-4)
    pt = np.clip(sig(_f(hm_t) / 2), clip, 1 - clip)
    G = _f(mask)
    dc = np.abs(ps.max(1) - pt.max(1))
    dr = np.abs(_f(reg_s) - _f(reg_t)).mean(1)
    return float((dc * G).sum() / (G.sum() + eps)), float((dr * G).sum() / (G.sum() + eps))


def bevdistill_dense(f_s, f_t, fg, weight=0.01):
    """weight sum G (t - s)^2 / sum G, a sum over channels too."""
    d = (_f(f_s) - _f(f_t)) ** 2
    G = _f(fg)
    return 0.0 if G.sum() == 0 else float(weight * (d * G[:, None]).sum() / G.sum())


def bevdistill_infonce(q_s, q_t, T=0.07, weight=0.2):
    """Mean of -log softmax of cosines of each teacher's row with all of the student's."""
    s, t = _f(q_s), _f(q_t)
    s = s / np.maximum(np.sqrt((s**2).sum(1, keepdims=True)), 1e-12)
    t = t / np.maximum(np.sqrt((t**2).sum(1, keepdims=True)), 1e-12)
    N = len(s)
    tot = 0.0
    for i in range(N):
        z = np.array([t[i] @ s[j] for j in range(N)]) / T
        tot += np.log(np.exp(z - z.max()).sum()) + z.max() - z[i]
    return float(weight * tot / N)


def bevdistill_box(box_s, box_t, score, code_weights=None, weight=0.25, power=2):
    """weight sum q^power sum_d c_d |b_s - b_t| / sum q over matched pairs; the release's power is 2, a factor taken
    twice."""
    q = _f(score)
    c = np.ones(_f(box_s).shape[1]) if code_weights is None else _f(code_weights)
    d = (np.abs(_f(box_s) - _f(box_t)) * c).sum(1)
    return float(weight * (q**power * d).sum() / q.sum()) if len(q) and q.sum() > 0 else 0.0


def dbev_inside(boxes, H, W, pc_min, cell, yaw_sign=1):
    """(N, H, W): is a cell's lower corner in a box; the release tests corners, not centres."""
    out = np.zeros((len(boxes), H, W), bool)
    for n, (x, y, sx, sy, a) in enumerate(boxes):
        a = a * yaw_sign
        for i in range(H):
            for j in range(W):
                dx, dy = pc_min[0] + j * cell[0] - x, pc_min[1] + i * cell[1] - y
                lx, ly = dx * np.cos(a) + dy * np.sin(a), -dx * np.sin(a) + dy * np.cos(a)
                out[n, i, j] = abs(lx) < sx / 2 and abs(ly) < sy / 2
    return out


def dbev_masks(inside, boxes, cell):
    """Foreground, 1 / sqrt(area in cells) of the first box that holds a cell, and 1 / N_bg everywhere."""
    ins = np.asarray(inside, bool)
    H, W = ins.shape[1:] if ins.ndim == 3 else (0, 0)
    fg, sc = np.zeros((H, W)), np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            for n in range(len(ins)):
                if ins[n, i, j]:
                    fg[i, j] = 1
                    sc[i, j] = np.sqrt(cell[0] * cell[1] / (boxes[n][2] * boxes[n][3]))
                    break
    nb = H * W - fg.sum()
    return fg, sc, np.full((H, W), 1.0 / nb)


def dbev_spatial_attention(f, tau=0.5):
    """H W softmax over cells of mean_c |f| / tau."""
    f = np.abs(_f(f)).mean(0) / tau
    e = np.exp(f - f.max())
    return e / e.sum() * e.size


def dbev_channel_attention(f, tau=0.5):
    """C softmax over channels of mean_hw |f| / tau."""
    m = np.abs(_f(f)).mean((1, 2)) / tau
    e = np.exp(m - m.max())
    return e / e.sum() * e.size


def distillbev(
    f_s,
    f_t,
    fg,
    fg_scale,
    bg_scale,
    w_fg=1.5e-3,
    w_bg=4e-2,
    w_ch=0.25,
    w_sp=2.5e-3,
    tau_s=0.5,
    tau_c=0.5,
    spatial="teacher",
    s_ratio=1.0,
    channel_mask=True,
    spatial_mask=True,
    pool_adapter=None,
    fp=None,
    fp_scale=None,
    w_fp=0.0,
):
    """Parts, of f (B, C, H, W) after the adapter, masks (B, H, W): sums over C, H and W, means over B. The pooled means
    are signed. Defaults are those of BEVDepth."""
    f_s, f_t, fg = _f(f_s), _f(f_t), _f(fg)
    fgs, bgs = _f(fg_scale).copy(), _f(bg_scale).copy()
    B, C, H, W = f_s.shape
    out = {"fg": 0.0, "bg": 0.0, "fp": 0.0}
    ch = sp = 0.0
    for b in range(B):
        bgm = 1.0 - (fg[b] != 0)
        if fp is not None:
            m = _f(fp[b])
            bgm = np.where(m != 0, 0.0, bgm)
            nbg, nfp = H * W - fg[b].sum(), m.sum()
            bgs[b] = 1.0 / (nbg - nfp) if nbg > nfp else 0.0
        S = np.maximum(fgs[b], bgs[b])
        A = dbev_spatial_attention(f_t[b], tau_s)
        if spatial == "teacher_student":
            A = (A + s_ratio * dbev_spatial_attention(f_s[b], tau_s)) / (1 + s_ratio)
        K = dbev_channel_attention(f_t[b], tau_c)
        d = (f_s[b] - f_t[b]) ** 2
        Aw = A if spatial_mask else np.ones((H, W))
        Kw = K if channel_mask else np.ones(C)
        for c in range(C):
            out["fg"] += (d[c] * fg[b] * S * Aw * Kw[c]).sum()
            out["bg"] += (d[c] * bgm * S * Aw * Kw[c]).sum()
            if fp is not None:
                out["fp"] += (d[c] * m * _f(fp_scale[b]) * A * K[c]).sum()
        ch += np.abs(f_t[b].mean((1, 2)) - f_s[b].mean((1, 2))).sum()
        ps = f_s[b].mean(0)
        ps = ps if pool_adapter is None else _f(pool_adapter(ps))
        sp += np.abs(f_t[b].mean(0) - ps).sum()
    out = {"fg": float(w_fg * out["fg"] / B), "bg": float(w_bg * out["bg"] / B), "fp": float(w_fp * out["fp"] / B)}
    if channel_mask:
        out["channel"] = float(w_ch * ch / B)
    if spatial_mask:
        out["spatial"] = float(w_sp * sp / B)
    out["total"] = float(sum(out.values()))
    return out


def distillbev_false_positives(gt_hm, t_prob, s_prob, fg, mode, thr=0.1, gt_thr=None):
    """Cells outside the foreground where the largest heat (B, classes, H, W) is confident and the right one is not."""
    g = thr if gt_thr is None else gt_thr
    gm, tm, sm = (_f(x).max(1) for x in (gt_hm, np.clip(t_prob, 1e-4, 1 - 1e-4), s_prob))
    t, s = (gm < g) & (tm > thr), (gm < g) & (sm > thr)
    m = {
        "teacher": t,
        "student": s,
        "teacher_selected_student": s & (tm < g),
        "teacher+teacher_selected_student": t | (s & (tm < g)),
    }[mode]
    return (m & (_f(fg) == 0)).astype(float)


def distillbev_fp_scale(fp, how):
    """average: 1 / number in the sample; component: 1 / size of the 4-connected component."""
    fp = _f(fp)
    out = np.zeros_like(fp)
    B, H, W = fp.shape
    for b in range(B):
        if how == "average":
            if fp[b].sum():
                out[b][fp[b] > 0] = 1 / fp[b].sum()
            continue
        seen = set()
        for i in range(H):
            for j in range(W):
                if fp[b, i, j] and (i, j) not in seen:
                    comp, stack = [], [(i, j)]
                    seen.add((i, j))
                    while stack:
                        a, c = stack.pop()
                        comp.append((a, c))
                        for p, q in ((a + 1, c), (a - 1, c), (a, c + 1), (a, c - 1)):
                            if 0 <= p < H and 0 <= q < W and fp[b, p, q] and (p, q) not in seen:
                                seen.add((p, q))
                                stack.append((p, q))
                    for a, c in comp:
                        out[b, a, c] = 1 / len(comp)
    return out
