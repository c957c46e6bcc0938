"""MonoDistill (Chong et al., ICLR 2022), slow and in float64, from a release (monster-ghost/MonoDistill at 26ca8dae,
feature_distill_loss.py, head_distill_loss.py) by somebody who had not seen our code; the paper could not be read. The
release's affinity and feature are divided by the batch once more than a mean is. `RELEASED` is what its lines gave, of
`drawn`: three scales, of which the affinities are compared on the smallest map.
"""

import numpy as np


def resize_bilinear(x, H, W):
    """(C,h,w) -> (C,H,W), half-pixel centres, edge clamp (align_corners False, no antialias)."""
    C, h, w = x.shape
    out = np.zeros((C, H, W))
    for i in range(H):
        y = max((i + 0.5) * h / H - 0.5, 0.0)
        y0 = min(int(y), h - 1)
        y1 = min(y0 + 1, h - 1)
        fy = y - y0
        for j in range(W):
            z = max((j + 0.5) * w / W - 0.5, 0.0)
            x0 = min(int(z), w - 1)
            x1 = min(x0 + 1, w - 1)
            fx = z - x0
            out[:, i, j] = (1 - fy) * ((1 - fx) * x[:, y0, x0] + fx * x[:, y0, x1]) + fy * (
                (1 - fx) * x[:, y1, x0] + fx * x[:, y1, x1]
            )
    return out


def affinity_loss(preds, targets):
    """lists of (B,C,H,W), last = smallest."""
    h, w = preds[-1].shape[-2:]
    total = 0.0
    for s, t in zip(preds, targets, strict=True):
        B = len(s)
        acc = 0.0
        for b in range(B):
            S = resize_bilinear(np.asarray(s[b], np.float64), h, w).reshape(s.shape[1], -1)
            T = resize_bilinear(np.asarray(t[b], np.float64), h, w).reshape(t.shape[1], -1)
            for i in range(h * w):
                for j in range(h * w):
                    acc += abs(S[:, i] @ S[:, j] - T[:, i] @ T[:, j])
        total += acc / (B * (h * w) ** 2) / B
    return total


def box_mask(B, H, W, boxes, stride):
    """boxes: list of (n,4) x1 y1 x2 y2 in pixels -> (B,H,W) 0/1."""
    m = np.zeros((B, H, W))
    for b in range(B):
        for x1, y1, x2, y2 in boxes[b]:
            m[b][int(y1 / stride) : int(y2 / stride), int(x1 / stride) : int(x2 / stride)] = 1
    return m


def feature_loss(preds, targets, boxes):
    total = 0.0
    for i, (s, t) in enumerate(zip(preds, targets, strict=True)):
        B, _, H, W = s.shape
        m = box_mask(B, H, W, boxes, 2 ** (i + 3))
        acc, n = 0.0, 0
        for b in range(B):
            for y in range(H):
                for x in range(W):
                    if m[b, y, x] and np.any(t[b, :, y, x] != 0):
                        n += 1
                        acc += float((0.5 * (s[b, :, y, x] - t[b, :, y, x]) ** 2).mean())
        total += (acc / n if n else 0.0) / B
    return total


def head_l1(s, t, mask):
    tot, n = 0.0, 0
    for b, y, x in zip(*np.nonzero(mask), strict=True):
        tot += float(np.abs(s[b, :, y, x] - t[b, :, y, x]).sum())
        n += s.shape[1]
    return tot / n if n else float("nan")


def drawn(seed):
    """Student's and teacher's maps of pictures of 64 x 96 at strides 8, 16 and 32, and boxes in pixels."""
    r = np.random.RandomState(seed)
    height, width = 64, 96

    def maps():
        return [r.randn(2, 3, height // stride, width // stride) for stride in (8, 16, 32)]

    boxes = []
    for _ in range(2):
        xy = r.uniform(0, 40, (2, 2))
        wh = r.uniform(5, 50, (2, 2))
        boxes.append(np.concatenate([xy, np.minimum(xy + wh, [[width - 1, height - 1]])], 1))
    teacher = maps()
    teacher[0][:, :, 2, 3] = 0
    return maps(), teacher, boxes


#: Of seeds the affinity and the feature.
RELEASED = {
    0: (1.6135421039543476, 2.039431196231038),
    1: (1.8223754265062766, 1.4394973158869033),
    2: (1.5013942559911149, 2.256872468942822),
}
