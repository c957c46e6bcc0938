"""DPHuBERT: joint distillation and structured pruning, slow and in float64, by somebody who had not read the code.

Paper    Peng, Sudo, Muhammad, Watanabe, "DPHuBERT: Joint Distillation and Pruning of Self-Supervised Speech Models",
         Interspeech 2023, arXiv 2305.17651, section 2 (distillation loss; L0 with hard concrete; augmented Lagrangian).
Release  github pyf98/DPHuBERT @ c18093fe4b56a0027a80bf9b9b1a23f932cbf14c (read and RUN in float64 for cases()):
         lightning.py (DistillLoss, DistillModule._step, _get_target_sparsity, configure_optimizers), distill.py,
         run.sh, wav2vec2/hardconcrete.py, wav2vec2/components.py (get_num_params of every block, prune()).

Certain (release, run):
  * loss = l2*MSE + l1*mean|s-t| + cos*C over a stack (batch, layer, time, feature) of ALL chosen layers; one mean over
    everything (the L1 over B*L*T*D, the cosine over B*L*T).  C(raw) = -mean cos; C(log_sig) = -mean log sigmoid(cos).
    There is no "1 -" in front of the cosine: the raw loss can be negative.  No padding mask: the release crops every
    batch to its shortest item.  Cosine eps = 1e-8 (torch CosineSimilarity).
  * Defaults: l2 0, l1 1, cos 1, cos_type raw.  (log_sig is only an option, DistilHuBERT's form.)
  * Layers "0.4,8,12": hidden 0 is the INPUT of the transformer (projected conv features, before the positional conv),
    hidden i the output of block i.  '.' separates groups; a group shares ONE linear map student->teacher, initialised
    to identity with zero bias, so default = one map for layer 0, one shared for 4, 8, 12.  The map is on the STUDENT.
  * gates: log_alpha; u~U(eps,1-eps), eps 1e-6; s=sigmoid((log u-log(1-u)+log_alpha)/beta), beta=2/3;
    z = clip(1.2*s-0.1, 0, 1), interval (-0.1, 1.1).
  * P(z != 0) = sigmoid(log_alpha - beta*log(0.1/1.1)) ; the expected l0 of a gate vector is their sum.
  * Initialisation log_alpha ~ N(log((1-m)/m), 0.01): m=0.01 for conv channels, heads and whole layers; m=0.5 for the
    FFN inner units.
  * evaluation mask: soft = sigmoid(0.8*log_alpha/beta), then the round(n - l0) smallest set to 0 (Python's round, i.e.
    half to even); the others stay SOFT and are multiplied into the NEXT weights when pruning.
  * expected parameters: products of the expected counts (independent gates) - see the functions below.  A conv layer's
    input count is the previous layer's EXPECTED output count.
  * expected sparsity s = 1 - expected / (parameters of the unpruned TEACHER);  loss_reg = l1*(s-t)+l2*(s-t)^2.
    Two separate multipliers, both start 0, trained by gradient ASCENT (AdamW group with lr = -0.02), gates lr 0.02;
    weight decay 0 in both groups.  NOTHING clips lambda2 to be positive.
  * t(step) = 0.75*min(1, step/5000).  Step counts from 0, so t=0 at the first step.
  * default pruning_units of run.sh: conv,head,interm (layer gates off); distill.py's own default has all five.
  * Which units the mask multiplies: conv channels after GELU; heads' outputs before out_proj; FFN units after GELU (and
    dropout); whole layers after out_proj/output_dense incl. bias.
Not certain:
  * the paper (from memory of its section 2, not re-read here) SUMS the layer losses over S={0,4,8,12} and writes a
    cosine distance; release takes the MEAN over layers and -cos.  distill_loss_paper() gives the sum with 1-cos; check
    before quoting it.  The gradients differ by the factor |S| only.
  * log_sig as the paper's choice: NOT what run.sh uses (raw).
  * The paper calls beta a constant; 2/3 is the release's ("from CoFi").
"""

import math

import numpy as np

LIMIT_L, LIMIT_R, BETA = -0.1, 1.1, 2.0 / 3.0


# ------------------------------------------------------------------ distillation
def _sigmoid(x):
    x = np.asarray(x, dtype=np.float64)
    return np.where(x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1.0 + np.exp(-np.abs(x))))


def _cos(a, b, eps=1e-8):
    na, nb = math.sqrt(sum(v * v for v in a)), math.sqrt(sum(v * v for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (max(na, eps) * max(nb, eps))


def distill_loss(student, teacher, l2=0.0, l1=1.0, cos=1.0, cos_type="raw"):
    """student, teacher: (B, L, T, D), the student already mapped to D.  Returns (total, mse, l1, cos) as in the release
    (a part with weight 0 is reported as 0)."""
    s, t = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    B, L, T, D = s.shape
    sq = ab = cs = 0.0
    for b in range(B):
        for n in range(L):
            for i in range(T):
                for d in range(D):
                    e = s[b, n, i, d] - t[b, n, i, d]
                    sq += e * e
                    ab += abs(e)
                c = _cos(s[b, n, i], t[b, n, i])
                cs += -c if cos_type == "raw" else math.log1p(math.exp(-c))  # -log sigmoid(c)
    mse = sq / (B * L * T * D) if l2 else 0.0
    mae = ab / (B * L * T * D) if l1 else 0.0
    csm = cs / (B * L * T) if cos else 0.0
    return l2 * mse + l1 * mae + cos * csm, mse, mae, csm


def distill_loss_paper(student, teacher, l1=1.0, cos=1.0):
    """(?) The paper's sum over layers of [mean L1 + (1 - mean cos)]. From memory; see the docstring."""
    L = np.asarray(student).shape[1]
    total = 0.0
    for n in range(L):
        _, _, mae, c = distill_loss(np.asarray(student)[:, n : n + 1], np.asarray(teacher)[:, n : n + 1], 0.0, 1.0, 1.0)
        total += l1 * mae + cos * (1.0 + c)
    return total


# ------------------------------------------------------------------ gates
def gate_sample(log_alpha, u, beta=BETA, low=LIMIT_L, high=LIMIT_R):
    """log_alpha, u: (n,) -> z (n,), the training-time mask for the uniform draw u in (0,1)."""
    la, u = np.asarray(log_alpha, np.float64), np.asarray(u, np.float64)
    s = _sigmoid((np.log(u) - np.log1p(-u) + la) / beta)
    return np.minimum(1.0, np.maximum(0.0, low + (high - low) * s))


def gate_open_prob(log_alpha, beta=BETA, low=LIMIT_L, high=LIMIT_R):
    """P(z > 0), (n,)."""
    return _sigmoid(np.asarray(log_alpha, np.float64) - beta * math.log(-low / high))


def gate_l0(log_alpha, **kw):
    return float(gate_open_prob(log_alpha, **kw).sum())


def gate_eval(log_alpha, beta=BETA, magic=0.8, **kw):
    """(n,) deterministic mask of evaluation / pruning. Ties among equal log_alpha are not defined by the release."""
    la = np.asarray(log_alpha, np.float64)
    k = round(len(la) - gate_l0(la, beta=beta, **kw))
    z = _sigmoid(magic * la / beta)
    for i in np.argsort(z, kind="stable")[:k]:
        z[i] = 0.0
    return z


def gate_init_mean(drop):
    return math.log(1 - drop) - math.log(drop)


# ------------------------------------------------------------------ expected number of parameters
def params_conv(n_in, n_out, kernel, bias, norm):
    """n_in, n_out: (expected) channels; norm: this layer has a layer/group norm (weight+bias)."""
    return n_in * n_out * kernel + (n_out if bias else 0) + (2 * n_out if norm else 0)


def params_extractor(layers):
    """layers: list of (n_out expected, kernel, bias, norm). The first layer sees 1 channel.  Adds the release's own
    'dummy weight' (one per output channel of the last layer). Returns (params, n_out of the last)."""
    n_in, total = 1, 0.0
    for n_out, k, bias, norm in layers:
        total += params_conv(n_in, n_out, k, bias, norm)
        n_in = n_out
    return total + n_in, n_in


def params_projection(n_in, dim):
    return 2 * n_in + (n_in + 1) * dim


def params_attention(dim, heads, head_dim, layer=1.0):
    """heads: expected number of heads; layer: P(layer gate open). The out_proj bias is counted even with 0 heads."""
    return ((dim + 1) * heads * head_dim * 3 + (heads * head_dim + 1) * dim) * layer


def params_ffn(dim, inner, layer=1.0):
    return ((dim + 1) * inner + (inner + 1) * dim) * layer


def params_block(dim, heads, head_dim, inner, att_layer=1.0, ffn_layer=1.0):
    return 4 * dim + params_attention(dim, heads, head_dim, att_layer) + params_ffn(dim, inner, ffn_layer)


def params_pos_conv(dim, kernel, groups):
    """grouped conv with weight norm over dim 2: v (dim, dim/groups, kernel) + g (kernel) + bias (dim)."""
    return dim * (dim // groups) * kernel + kernel + dim


def params_model(conv_layers, dim, blocks, head_dim, pos_kernel, pos_groups):
    """blocks: list of (expected heads, expected inner, P att layer, P ffn layer)."""
    p, n = params_extractor(conv_layers)
    p += params_projection(n, dim) + params_pos_conv(dim, pos_kernel, pos_groups) + 2 * dim
    return p + sum(params_block(dim, h, head_dim, i, a, f) for h, i, a, f in blocks)


# ------------------------------------------------------------------ constraint
def target_sparsity(step, target=0.75, warmup=5000):
    return target if step >= warmup else target * step / warmup


def lagrangian(expected_params, original_params, lam1, lam2, step, target=0.75, warmup=5000):
    """Returns (loss_reg, s, t, dloss/dlam1, dloss/dlam2); the multipliers go UP their gradient."""
    s = 1.0 - expected_params / original_params
    t = target_sparsity(step, target, warmup)
    return lam1 * (s - t) + lam2 * (s - t) ** 2, s, t, s - t, (s - t) ** 2


# ------------------------------------------------------------------ cases
CONV = [(6, 4, 2), (5, 3, 2)]  # channels, kernel, stride
DIM, HEADS, HEAD_DIM, INNER, POSK, POSG = 8, 4, 2, 7, 4, 2


def inputs(seed):
    r = np.random.RandomState(seed)
    k = {
        "student": r.randn(2, 3, 4, 5),
        "teacher": r.randn(2, 3, 4, 5),
        "weights": [(0.0, 1.0, 1.0, "raw"), (0.0, 1.0, 0.5, "log_sig"), (2.0, 1.0, 1.0, "raw")][seed % 3],
        "la": {
            "conv0": r.randn(6) * 2,
            "conv1": r.randn(5) * 2,
            "head": [r.randn(HEADS) * 2 for _ in range(2)],
            "inner": [r.randn(INNER) * 2 for _ in range(2)],
            "att": [r.randn(1) for _ in range(2)],
            "ffn": [r.randn(1) for _ in range(2)],
        },
        "u": r.uniform(1e-6, 1 - 1e-6, 6),
        "lam": (float(r.randn()), float(r.randn())),
        "step": [0, 2500, 9000][seed % 3],
        "layer_gates": bool(seed % 2),
        "norm": ["group", "layer", "group"][seed % 3],
        "bias": bool(seed % 2),
    }
    return k


def oracle(k):
    la, lg = k["la"], k["layer_gates"]
    norms = [True, k["norm"] == "layer"]
    conv = [(gate_l0(la[f"conv{i}"]), CONV[i][1], k["bias"], norms[i]) for i in range(2)]
    blocks = [
        (
            gate_l0(la["head"][i]),
            gate_l0(la["inner"][i]),
            gate_l0(la["att"][i]) if lg else 1.0,
            gate_l0(la["ffn"][i]) if lg else 1.0,
        )
        for i in range(2)
    ]
    full = params_model(
        [(CONV[i][0], CONV[i][1], k["bias"], norms[i]) for i in range(2)],
        DIM,
        [(HEADS, INNER, 1, 1)] * 2,
        HEAD_DIM,
        POSK,
        POSG,
    )
    n = params_model(conv, DIM, blocks, HEAD_DIM, POSK, POSG)
    reg = lagrangian(n, full, k["lam"][0], k["lam"][1], k["step"])
    return {
        "distill": list(distill_loss(k["student"], k["teacher"], *k["weights"])),
        "sample": gate_sample(la["conv0"], k["u"]).tolist(),
        "l0": gate_l0(la["conv0"]),
        "eval": gate_eval(la["conv0"]).tolist(),
        "expected": n,
        "full": full,
        "reg": reg[0],
        "s": reg[1],
        "t": reg[2],
    }


# values printed by the release's own classes in float64 (log_alpha and u put in by hand)
RELEASE = {
    "0": {
        "distill": [0.9781000340994469, 0.0, 1.0547715627106482, -0.07667152861120131],
        "sample": [0.0, 0.9772056984203182, 0.4595222903866433, 0.18802912533669255, 0.9680078762481515, 0.0],
        "l0": 3.6688713663460693,
        "eval": [0.0, 0.2781910559090553, 0.4209405867606215, 0.32856156181224677, 0.32264756450239207, 0.0],
        "expected": 877.738106136725,
        "full": 1239,
        "reg": -0.09268849912977582,
        "s": 0.29157537842072234,
        "t": 0.0,
    },
    "1": {
        "distill": [1.3917565031246069, 0.0, 1.0492585938886416, 0.6849958184719305],
        "sample": [0.6618021306213651, 0.16571956380396533, 0.9461591684743688, 1.0, 0.0, 0.30843606000901724],
        "l0": 3.855513193293508,
        "eval": [0.23223880747940848, 0.3216140940021514, 0.4988651122461394, 0.0, 0.0, 0.8346996257567576],
        "expected": 810.4431595769978,
        "full": 1260,
        "reg": -0.022406280339626248,
        "s": 0.3567911431928589,
        "t": 0.375,
    },
    "2": {
        "distill": [5.682283373084913, 2.271680515149431, 1.179616928435128, -0.04069458564907729],
        "sample": [0.0, 0.0, 0.23693657169051988, 0.42947911396270044, 0.39895473350003297, 0.6612130222988832],
        "l0": 3.5966746976797115,
        "eval": [0.0, 0.0, 0.45081237693082565, 0.3249314940077524, 0.40532208613523074, 0.7887607629995055],
        "expected": 935.3627403120354,
        "full": 1239,
        "reg": -0.691824751405734,
        "s": 0.2450663919999715,
        "t": 0.75,
    },
}


def cases():
    """[(name, inputs, release values)] x 3."""
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
