"""A whole real path: a small Whisper trained by ``transformers``' own Trainer is distilled into one with fewer layers.

    python benchmarks/whisper_an4.py --data FOLDER --out runs/whisper_an4

Trains a ``WhisperForConditionalGeneration`` from nothing on AN4's words, saves model and processor with
``save_pretrained``, and distils from that folder by ``xmodal-kd run speech/whisper`` (control and student of each
seed). The saved student is loaded by ``transformers`` alone, which writes the official test set again, scored anew.
What is finished is not repeated, a training that was stopped goes on. Writes one JSON and prints the table of
``recipes/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile as sf
import torch
from cells import run
from torch import Tensor

RATE, SECONDS, HOP, MELS = 16000, 7, 320, 40
SPEEDS = (0.9, 1.0, 1.1)
BATCH = 8
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
#: Until this share of the training the encoder is told the words spread evenly over the recording; from there by CTC,
#: alone from the second on. A decoder alone finds no alignment in 38 minutes of speech (Watanabe et al., 2017).
HOLD, UNTIL = 0.08, 0.14
#: Of what the encoder alone says of the words, beside the decoder's cross entropy.
CTC = 0.5


def lines(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def processor(data: Path) -> Any:
    """Every word of the training texts is one token: merges add a letter after another to the space before it."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    words = sorted({word for line in lines(data, "train") for word in line["text"].split()})
    pieces = dict.fromkeys(letter for word in words for letter in word)
    merges = dict.fromkeys(("Ġ" + word[:i], word[i]) for word in words for i in range(len(word)))
    names = dict.fromkeys(["Ġ", *sorted(pieces), *("".join(pair) for pair in merges), *SPECIAL])
    tokenizer = WhisperTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=list(merges),
        additional_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    extractor = WhisperFeatureExtractor(feature_size=MELS, hop_length=HOP, chunk_length=SECONDS, n_fft=512)
    return WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def configuration(tokenizer: Any) -> Any:
    from transformers import WhisperConfig

    end, start = (tokenizer.convert_tokens_to_ids(name) for name in SPECIAL[:2])
    return WhisperConfig(
        vocab_size=len(tokenizer), d_model=64, encoder_layers=3, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, max_target_positions=24, num_mel_bins=MELS,
        max_source_positions=SECONDS * RATE // HOP // 2, dropout=0.1, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


class Recordings(torch.utils.data.Dataset[dict[str, Any]]):
    """Features at three speeds in memory, with their words; one of the speeds is drawn at each turn."""

    def __init__(self, data: Path, split: str, made: Any) -> None:
        self.rng, self.items = np.random.default_rng(0), list[list[dict[str, Any]]]()
        for line in lines(data, split):
            wave, _ = sf.read(data / line["audio_filepath"], dtype="float32")
            labels = made.tokenizer(" " + line["text"]).input_ids[1:]  # the model puts the start before them
            self.items.append([self._heard(made, wave, speed) | {"labels": labels} for speed in SPEEDS])

    @staticmethod
    def _heard(made: Any, wave: np.ndarray[Any, Any], speed: float) -> dict[str, Any]:
        at = np.arange(0, len(wave) - 1, speed)
        played = np.interp(at, np.arange(len(wave)), wave).astype(np.float32)
        heard = made.feature_extractor(played, sampling_rate=RATE, return_tensors="pt").input_features[0]
        return {"input_features": heard, "frames": min(-(-len(played) // HOP // 2), SECONDS * RATE // HOP // 2)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index][self.rng.integers(len(SPEEDS))]


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(one["labels"]) for one in batch)
    return {
        "input_features": torch.stack([one["input_features"] for one in batch]),
        "labels": torch.tensor([one["labels"] + [-100] * (longest - len(one["labels"])) for one in batch]),
        "frames": torch.tensor([one["frames"] for one in batch]),
    }


def heard_words(labels: Tensor, special: int) -> Iterator[Tensor]:
    """Of each utterance its words; special tokens come last in the vocabulary."""
    yield from (one[(one >= 0) & (one < special)] for one in labels)


def by_frames(rows: Tensor, words: Sequence[Tensor], frames: Tensor, share: float, blank: int) -> Tensor:
    """What the encoder alone says of the words: spread evenly over the frames at first, then by CTC."""
    weight = min(max((share - HOLD) / (UNTIL - HOLD), 0.0), 1.0)
    even = torch.zeros(())
    if weight < 1:
        pairs = zip(words, frames.tolist(), strict=True)
        target = torch.cat([one[torch.arange(n) * len(one) // n] for one, n in pairs])
        said = torch.cat([row[:n] for row, n in zip(rows, frames.tolist(), strict=True)])
        even = torch.nn.functional.cross_entropy(said, target)
    if weight == 0:
        return even
    lengths = torch.tensor([len(one) for one in words])
    ctc = torch.nn.functional.ctc_loss(
        rows.log_softmax(dim=-1).transpose(0, 1), torch.cat(list(words)), frames, lengths, blank, zero_infinity=True
    )
    return weight * ctc + (1 - weight) * even


def train(data: Path, folder: Path, steps: int) -> None:
    """The teacher, as anybody would train it; its checkpoints are kept beside it."""
    from transformers import Trainer, TrainingArguments, WhisperForConditionalGeneration

    made = processor(data)
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(configuration(made.tokenizer))
    model.by_frames = torch.nn.Linear(model.config.d_model, len(made.tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    class Joint(Trainer):
        """The Trainer with what the encoder says beside what the decoder says."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            frames = inputs.pop("frames")
            out = model(**inputs)
            end = model.config.eos_token_id
            words = list(heard_words(inputs["labels"], end))
            rows, share = model.by_frames(out.encoder_last_hidden_state), self.state.global_step / steps
            loss = out.loss + CTC * by_frames(rows, words, frames, share, end)
            return (loss, out) if return_outputs else loss

    arguments = TrainingArguments(
        output_dir=str(folder.parent / "checkpoints"), max_steps=steps, per_device_train_batch_size=BATCH,
        learning_rate=2e-3, lr_scheduler_type="cosine", warmup_steps=steps // 12, weight_decay=0.01, adam_beta2=0.98,
        max_grad_norm=1.0, remove_unused_columns=False, report_to=[], use_cpu=True, logging_steps=50, save_steps=200,
        save_total_limit=1, seed=1, disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    trainer = Joint(model, arguments, collate, Recordings(data, "train", made))
    trainer.train(resume_from_checkpoint=any((folder.parent / "checkpoints").glob("checkpoint-*")))
    del model.by_frames
    model.generation_config.update(max_length=model.config.max_target_positions, is_multilingual=False)
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def said(folder: Path, data: Path, split: str) -> tuple[list[str], list[str]]:
    """References and what a folder writes by ``transformers`` alone, greedily: no code of this project takes part."""
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    model, made = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    references, hypotheses = [], []
    for line in lines(data, split):
        wave, _ = sf.read(data / line["audio_filepath"], dtype="float32")
        heard = made(wave, sampling_rate=RATE, return_tensors="pt").input_features
        found = model.generate(heard, num_beams=1, do_sample=False)
        references.append(line["text"])
        hypotheses.append(made.batch_decode(found, skip_special_tokens=True)[0].strip())
    return references, hypotheses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl, dev.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400, help="of the teacher")
    parser.add_argument("--student-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = args.out / "teacher"
    if not (teacher / "model.safetensors").is_file():
        train(args.data, teacher, args.steps)
    errors = {split: jiwer.wer(*said(teacher, args.data, split)) for split in ("dev", "test")}
    print(errors, flush=True)
    entries = []
    for seed in range(1, args.seeds + 1):
        folder = args.out / f"seed-{seed}"
        sets = [
            f"data.path={args.data}", f"teacher={{path: {teacher}}}", f"seed={seed}",
            f"train.steps={args.student_steps}",
        ]  # fmt: skip
        run("speech/whisper", sets, folder)
        report = json.loads((folder / "report.json").read_text())
        roles = {
            role: {"parameters": one["parameters"], "metrics": one["metrics"], "dev": one["dev_metrics"]["wer"]}
            for role, one in report["roles"].items()
        }
        entries.append({
            "seed": seed, "roles": roles, "gap_closed": report["gap_closed"], "reason": report["reason"],
            "gain": report["gain"], "student_by_transformers": jiwer.wer(*said(folder / "student", args.data, "test")),
        })  # fmt: skip
    found = {
        "teacher_steps": args.steps, "student_steps": args.student_steps, "teacher_by_transformers": errors,
        "entries": entries, "versions": report["versions"],
    }  # fmt: skip
    (args.out / "whisper_an4.json").write_text(json.dumps(found, indent=1))
    print("| what | " + " | ".join(f"seed {one['seed']}" for one in entries) + " |\n| --- |" + " --- |" * len(entries))
    for role in ("teacher", "control", "student"):
        print(
            f"| {role} | " + " | ".join(f"{100 * one['roles'][role]['metrics']['wer']:.1f}" for one in entries) + " |"
        )
    alone = " | ".join(f"{100 * one['student_by_transformers']:.1f}" for one in entries)
    print(f"| student, by transformers alone | {alone} |")


if __name__ == "__main__":
    main()
