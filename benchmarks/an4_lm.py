"""AN4 with a language model: what an n-gram of the training texts is worth to a recogniser that is trained already.

    python benchmarks/an4_lm.py --data FOLDER --student runs/an4/student --out runs/an4_lm

The model is a bigram of the texts of ``train.jsonl`` alone, with Witten-Bell's back-off. Its weight and the score of a
word are chosen on dev, then test is read once: greedily and with the model by ``xmodal-kd transcribe``, and with the
bare list of words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch

#: What dev chooses among: weights of the language model, and what a word adds.
WEIGHTS, BONUSES = (0.3, 0.6, 1.0), (0.0, 1.0)
#: Prefixes that are kept.
SIZE = 16


def lines(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def arpa(texts: Sequence[str]) -> str:
    """A bigram model of `texts` with Witten-Bell's back-off (Witten and Bell, 1991), as ``lmplz`` would write one.

    ``P(w | v) = (c(v w) + t(v) P(w)) / (c(v) + t(v))``, with t(v) the number of different words seen behind v, and P(w)
    in the same way over a uniform one.
    """
    sentences = [["<s>", *text.split(), "</s>"] for text in texts]
    pairs = Counter((a, b) for words in sentences for a, b in pairwise(words))
    single = Counter(b for words in sentences for b in words[1:])
    after = Counter(a for a, _ in pairs)
    spoken = Counter(a for words in sentences for a in words[:-1])
    uniform = len(single) / (sum(single.values()) + len(single)) / (len(single) + 1)
    p = {w: c / (sum(single.values()) + len(single)) + uniform for w, c in single.items()} | {"<unk>": uniform}
    back = {v: after[v] / (spoken[v] + after[v]) for v in spoken}
    rows = [f"{log10(p[w]):.5f}\t{w}\t{log10(back[w]) if w in back else 0:.5f}" for w in p]
    rows.append(f"-99\t<s>\t{log10(back['<s>']):.5f}")
    seconds = [f"{log10(c / (spoken[v] + after[v]) + back[v] * p[w]):.5f}\t{v} {w}" for (v, w), c in pairs.items()]
    head = f"\\data\\\nngram 1={len(rows)}\nngram 2={len(seconds)}\n"
    return f"{head}\n\\1-grams:\n" + "\n".join(rows) + "\n\n\\2-grams:\n" + "\n".join(seconds) + "\n\n\\end\\\n"


def transcribed(student: Path, data: Path, split: str, *more: str) -> list[str]:
    """What ``xmodal-kd transcribe`` writes, in the order of the manifest."""
    files = [str(data / line["audio_filepath"]) for line in lines(data, split)]
    command = [sys.executable, "-m", "xmodal_kd", "transcribe", str(student), *files, *more]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line.partition("\t")[2] for line in out.splitlines()]


def with_lm(student: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Word errors without and with a model of the training texts, whose weight and word score dev chooses."""
    from xmodal_kd.modalities.speech.use.transcribe import Recogniser

    recogniser = Recogniser(student)
    files = {split: [data / line["audio_filepath"] for line in lines(data, split)] for split in ("dev", "test")}
    heard = {split: [torch.cat(list(recogniser.logits(path))) for path in paths] for split, paths in files.items()}
    texts = {split: [line["text"] for line in lines(data, split)] for split in ("train", "dev", "test")}
    model, words = folder / "train.arpa", folder / "words.txt"
    model.write_text(arpa(texts["train"]))
    words.write_text("\n".join(sorted({word for text in texts["train"] for word in text.split()})))

    def wer(split: str, lm: Path | None, lexicon: Path | None, weight: float, bonus: float) -> float:
        beam = recogniser.words_of(lm, lexicon, size=SIZE, lm_weight=weight, word_score=bonus)
        said = [beam(logits[None], torch.tensor([len(logits)]))[0][0].text for logits in heard[split]]
        return jiwer.wer(texts[split], said)

    options = [(weight, bonus) for weight in WEIGHTS for bonus in BONUSES]
    rates = [wer("dev", model, None, *one) for one in options]
    chosen = options[int(np.argmin(rates))]
    free = [wer("dev", None, words, 0.0, bonus) for bonus in BONUSES]
    bonus = BONUSES[int(np.argmin(free))]
    given = "--beam", str(SIZE), "--lm", str(model), "--lm-weight", str(chosen[0]), "--word-score", str(chosen[1])
    return {
        "lm_weight": chosen[0], "word_score": chosen[1], "dev_lm": min(rates), "dev_lexicon": min(free),
        "lexicon_word_score": bonus, "lexicon": wer("test", None, words, 0.0, bonus),
        "greedy": jiwer.wer(texts["test"], transcribed(student, data, "test")),
        "lm": jiwer.wer(texts["test"], transcribed(student, data, "test", *given)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl, dev.jsonl and test.jsonl")
    parser.add_argument("--student", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for student in args.student:
        found[str(student)] = with_lm(student, args.data, args.out)
        print(student, found[str(student)], flush=True)
    (args.out / "an4_lm.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
