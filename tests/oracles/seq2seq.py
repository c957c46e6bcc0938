"""Slow float64 oracles: Distil-Whisper (Gandhi, von Platen, Rush, 2023, arXiv 2311.00430).

Source read: github huggingface/distil-whisper (state cc96130, 2025-01): training/run_distillation.py,
training/create_student_model.py, training/flax/run_distillation.py; transformers whisper CE (torch
CrossEntropyLoss, ignore_index -100, mean over valid tokens).

The paper was not re-read: what is said of it is from memory or from the project's speech.md (?).

Shapes: z_s, z_t (B, U, V) logits of the student / teacher decoder, both teacher-forced with the SAME pseudo
labels; labels (B, U) ints, any negative value (release: -100) = not scored.
"""

import unicodedata

import numpy as np

IGNORE = -100


def _f(x):
    return np.asarray(x, dtype=np.float64)


def log_softmax(z):
    """Row-wise log softmax over the last axis, float64."""
    z = _f(z)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def kl_rows(z_s, z_t, T=2.0):
    """Per token KL( softmax(z_t/T) || softmax(z_s/T) ), NOT times T^2. (B, U, V) -> (B, U).

    Forward KL, teacher first: sum_v p_t (log p_t - log p_s)  (release: nn.KLDivLoss(reduction='none')
    (log_softmax(z_s/T), softmax(z_t/T)) summed over v).  Same T on both sides.
    """
    lt, ls = log_softmax(_f(z_t) / T), log_softmax(_f(z_s) / T)
    out = np.zeros(lt.shape[:-1])
    for i in np.ndindex(*lt.shape[:-1]):
        acc = 0.0
        for v in range(lt.shape[-1]):
            p = np.exp(lt[i][v])
            if p > 0:
                acc += p * (lt[i][v] - ls[i][v])
        out[i] = acc
    return out


def kl_term(z_s, z_t, labels, T=2.0):
    """L_KL = T^2 * sum_{valid tokens} KL(p_t^T || p_s^T) / number of valid tokens.

    run_distillation.py:kl_divergence + train_step.  One mean over ALL valid tokens of the batch (long sequences
    weigh more), not a mean of sequence means, not divided by V.  Valid = labels >= 0.  No valid token: the release
    gives 0/0 = nan; here 0.0 is returned.
    Traps: (1) eval_step uses T = 1 and no T^2.  (2) the label's own value plays no part, only its sign.
    (3) paper eq. 5 writes a SUM over tokens of KL with no T; T=2 is the training argument `temperature`.
    (4) the flax trainer sums and divides by the global number of labels: the same on one device; with gradient
    accumulation or DDP the torch trainer averages per device batch.
    """
    labels = np.asarray(labels)
    rows = kl_rows(z_s, z_t, T)
    tot, n = 0.0, 0
    for i in np.ndindex(*labels.shape):
        if labels[i] >= 0:
            tot += rows[i]
            n += 1
    return 0.0 if n == 0 else T * T * tot / n


def pseudo_label_ce(z_s, labels, label_smoothing=0.0):
    """L_PL = - sum_{valid} log softmax(z_s)[label] / number of valid tokens. Temperature 1 always.

    Release: student_outputs.loss = torch CrossEntropyLoss(ignore_index=-100), no smoothing.  label_smoothing e
    (torch's definition (1-e)*nll + e * mean_v(-log p)) is offered, default 0 (release).
    """
    labels = np.asarray(labels)
    ls = log_softmax(z_s)
    tot, n = 0.0, 0
    for i in np.ndindex(*labels.shape):
        y = int(labels[i])
        if y >= 0:
            tot += -(1 - label_smoothing) * ls[i][y] - label_smoothing * ls[i].mean()
            n += 1
    return 0.0 if n == 0 else tot / n


def distil_whisper(z_s, z_t, labels, w_ce=0.8, w_kl=1.0, T=2.0):
    """L = w_ce * L_PL + w_kl * L_KL  (L_KL already holds T^2).

    DEFAULTS ARE THE RELEASE'S (run_distillation.py: 0.8 * ce + kl_weight * kl, kl_weight default 1.0, T=2).
    The paper's eq. 6 says alpha_KL = 0.8, alpha_PL = 1.0 (paper text not re-read here): call with w_ce=1.0, w_kl=0.8.
    The torch trainer keeps 0.8 on CE even for kl_weight = 0; the flax one uses 1.0 then. An additional MSE on hidden
    states exists only in the flax trainer and in the paper's ablation (weight 0 in the final recipe): not here.
    """
    return w_ce * pseudo_label_ce(z_s, labels) + w_kl * kl_term(z_s, z_t, labels, T)


def mask_labels(ids, attention_mask, decoder_start_token_id):
    """Labels as the collator builds them: ids (B, L), attention_mask (B, L) ->
    (decoder_input_ids (B, L-1) = ids[:, :-1], labels (B, L-1) = ids[:, 1:] with padding and prompt = -100).

    Prompt: p = first position in the SHIFTED labels with the start token (0 if none or if at 0); when p > 0
    everything up to and including p (the start token itself) is ignored.
    Release: DataCollatorSpeechSeq2SeqWithPadding.  Traps: padding is found by the attention mask, not by the pad id
    (Whisper pads with the EOS id, whose first occurrence must stay a target); padding is masked BEFORE the search.
    """
    ids = np.asarray(ids)
    am = np.asarray(attention_mask)
    dec = ids[:, :-1].copy()
    lab = ids[:, 1:].copy()
    for b in range(lab.shape[0]):
        for u in range(lab.shape[1]):
            if am[b, u + 1] != 1:
                lab[b, u] = IGNORE
        p = 0
        for u in range(lab.shape[1]):
            if lab[b, u] == decoder_start_token_id:
                p = u
                break
        if p > 0:
            lab[b, : p + 1] = IGNORE
    return dec, lab


def word_edits(ref, hyp):
    """Levenshtein distance between two word lists, unit costs (sub, ins, del)."""
    n, m = len(ref), len(hyp)
    d = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        d[i][0] = i
    for j in range(m + 1):
        d[0][j] = j
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1]))
    return d[n][m]


def wer_percent(ref, hyp):
    """100 * (S + D + I) / number of reference words; whitespace split. May exceed 100. ref must not be empty."""
    r, h = ref.split(), hyp.split()
    if not r:
        raise ValueError("empty reference: the rule decides before computing a WER")
    return 100.0 * word_edits(r, h) / len(r)


def _drop_spans(s, openers, closers, min_inside):
    """Delete leftmost opener .. next closer (no closer inside), if at least min_inside characters lie between."""
    out, i = [], 0
    while i < len(s):
        if s[i] in openers:
            k = i + 1
            while k < len(s) and s[k] not in closers:
                k += 1
            if k < len(s) and k - i - 1 >= min_inside:
                i = k + 1
                continue
        out.append(s[i])
        i += 1
    return "".join(out)


def basic_normalise(s):
    """Whisper's BasicTextNormalizer (remove_diacritics=False, split_letters=False) from its definition:
    lower-case; delete spans < or [ ... > or ] (kinds may mix, may be empty); delete ( ... ) holding >= 1 character;
    NFKC, then every character of Unicode category M*, S* or P* becomes a blank (it is NOT deleted: "it's" -> "it s");
    runs of white space become one blank (not stripped at the ends; splitting into words is blind to that).
    The release uses it when a `language` argument is given, otherwise EnglishTextNormalizer (number words,
    contractions, British -> American spelling), which is NOT reimplemented: pass it as `normaliser`.
    """
    s = _drop_spans(s.lower(), "<[", ">]", 0)
    s = _drop_spans(s, "(", ")", 1)
    chars = []
    for c in unicodedata.normalize("NFKC", s):
        if unicodedata.category(c)[0] in ("M", "S", "P"):
            c = " "
        c = c.lower()
        if c.isspace():
            if chars and chars[-1] == " ":
                continue
            c = " "
        chars.append(c)
    return "".join(chars)


def keep_by_wer(reference, pseudo, threshold=10.0, normaliser=basic_normalise):
    """True if the training example is kept. Rule in the release's order (run_distillation.py:is_wer_in_range):
      1. pseudo is not None and equals its own upper case (also '' and caseless strings such as digits!) -> drop;
      2. normalised reference not empty (len of the STRING > 0) and pseudo is not None -> keep iff
         100 * WER(norm(reference), norm(pseudo)) <  threshold   (STRICT: equality drops);
      3. otherwise drop.
    The release's default threshold is None (no filter); paper and README use 10.
    Traps: the reference is the denominator; the upper-case test is on the raw pseudo label; a caseless script
    (Chinese, Hindi) is dropped entirely by rule 1.
    A reference that normalises to blanks only would make WER undefined: dropped here (release: depends on jiwer).
    """
    ref = normaliser(reference)
    if pseudo is not None and pseudo.upper() == pseudo:
        return False
    if len(ref) > 0 and pseudo is not None:
        if not ref.split():
            return False
        return bool(wer_percent(ref, normaliser(pseudo)) < threshold)
    return False


def layer_map(n_teacher, n_student):
    """Teacher layer indexes copied to student layers 0..n_student-1: maximally spaced.

    release (create_student_model.py): idx = int(linspace(0, n_teacher-1, n_student)) (truncation toward 0), then the
    LAST entry is set to n_teacher-1.  32 -> 2: [0, 31]; 32 -> 4: [0, 10, 20, 31]; 12 -> 6: [0,2,4,6,8,11].
    Trap: n_student = 1 gives the LAST layer ([n_teacher-1]), not the first, by that override.
    Encoder: n_student = n_teacher -> all layers copied in order (and frozen in training with --freeze_encoder).
    Embeddings, final norms, output projection: always copied.
    """
    idx = []
    for j in range(n_student):
        # in whole numbers: the release's float steps fall just short of one at depths 31 to 23 and 31 to 27
        idx.append(0 if n_student == 1 else j * (n_teacher - 1) // (n_student - 1))
    idx[-1] = n_teacher - 1
    return idx
