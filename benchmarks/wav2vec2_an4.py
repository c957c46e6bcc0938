"""A whole real path: a Wav2Vec2 trained by ``transformers``' own Trainer teaches a recogniser that then transcribes.

    python benchmarks/wav2vec2_an4.py --data FOLDER --out runs/wav2vec2_an4

Trains a small ``Wav2Vec2ForCTC`` from nothing on AN4's letters, saves model and processor with ``save_pretrained``,
distils from that folder by ``xmodal-kd run speech/wav2vec2`` (control and student of each seed) and transcribes the
official test set with the exported student, scored anew. What is finished is not repeated, a training that was stopped
goes on. Writes one JSON and prints the table of ``recipes/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile as sf
import torch
from an4_lm import with_lm
from cells import run

RATE = 16000
LETTERS = "'abcdefghijklmnopqrstuvwxyz"
SPEEDS = (0.9, 1.1)
BATCH = 8
#: Until this share of the training frames are taught the transcript spread evenly over them; from there CTC takes over,
#: alone from the second on. CTC alone says blank for hundreds of steps on so little data.
HOLD, UNTIL = 0.1, 0.16


def lines(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def processor(folder: Path) -> Any:
    """Upper-case letters as published models have them, the padding token as the blank."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS.upper()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def network(classes: int) -> Any:
    """40 ms a frame, layers normalised before they act: such a one trains from nothing, on one core.

    Its first convolution starts as 5 ms of sine and cosine at pitches spaced by mel, and learns on.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=classes, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        conv_dim=[64, 112, 128], conv_kernel=[80, 16, 8], conv_stride=[20, 8, 4], conv_bias=True,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=8, layerdrop=0.0, hidden_dropout=0.1, attention_dropout=0.1,
        activation_dropout=0.0, feat_proj_dropout=0.1, final_dropout=0.1, mask_time_prob=0.05, mask_time_length=3,
        mask_feature_prob=0.05, mask_feature_length=8, ctc_loss_reduction="mean", ctc_zero_infinity=True,
        pad_token_id=0,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    first = model.wav2vec2.feature_extractor.conv_layers[0].conv.weight  # 64 filters, 1 wave, 80 samples
    filters, _, samples = first.shape
    mels = torch.linspace(100, 2600, filters // 2)
    turns = (700 * (10 ** (mels / 2595) - 1))[:, None] * torch.arange(samples) / RATE
    waves = torch.cat([torch.sin(2 * torch.pi * turns), torch.cos(2 * torch.pi * turns)]) * torch.hann_window(samples)
    with torch.no_grad():
        first.copy_((waves / waves.norm(dim=1, keepdim=True))[:, None])
    return model


class Recordings(torch.utils.data.Dataset[dict[str, Any]]):
    """Waves in memory with their letters; `varied` plays each at a speed drawn anew."""

    def __init__(self, data: Path, split: str, made: Any, *, varied: bool) -> None:
        self.varied, self.rng = varied, np.random.default_rng(0)
        self.items = [
            (sf.read(data / line["audio_filepath"], dtype="float32")[0], made.tokenizer(line["text"].upper()).input_ids)
            for line in lines(data, split)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        wave, labels = self.items[index]
        if self.varied:
            speed = self.rng.uniform(*SPEEDS)
            at = np.arange(0, len(wave) - 1, speed)
            wave = np.interp(at, np.arange(len(wave)), wave).astype(np.float32)
        return {"input_values": wave, "labels": labels}


def evenly(model: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each frame with the letter whose turn it is."""
    frames = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(dim=1)).tolist()
    said = [labels[labels >= 0] for labels in inputs["labels"]]
    target = torch.cat([one[torch.arange(n) * len(one) // n] for one, n in zip(said, frames, strict=True)])
    rows = torch.cat([rows[:n] for rows, n in zip(logits, frames, strict=True)])
    return torch.nn.functional.cross_entropy(rows, target)


def train(data: Path, folder: Path, steps: int) -> None:
    """The teacher, as anybody would train it; its checkpoints are kept beside it."""
    from transformers import Trainer, TrainingArguments

    class FlatStart(Trainer):
        """The Trainer with a start on evenly spread letters."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            out = model(**inputs)
            share = self.state.global_step / steps
            weight = min(max((share - HOLD) / (UNTIL - HOLD), 0.0), 1.0)
            loss = out.loss if weight == 1 else weight * out.loss + (1 - weight) * evenly(model, inputs, out.logits)
            return (loss, out) if return_outputs else loss

    made = processor(folder)
    torch.manual_seed(1)

    def collate(batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = made.feature_extractor(
            [one["input_values"] for one in batch], sampling_rate=RATE, padding=True, return_tensors="pt"
        )
        longest = max(len(one["labels"]) for one in batch)
        labels = [one["labels"] + [-100] * (longest - len(one["labels"])) for one in batch]
        return {**inputs, "labels": torch.tensor(labels)}

    arguments = TrainingArguments(
        output_dir=str(folder.parent / "checkpoints"), max_steps=steps, per_device_train_batch_size=BATCH,
        learning_rate=1.5e-3, lr_scheduler_type="cosine", warmup_steps=steps // 12, weight_decay=0.01, adam_beta2=0.98,
        max_grad_norm=1.0, train_sampling_strategy="group_by_length", remove_unused_columns=False, report_to=[],
        use_cpu=True, logging_steps=50, save_steps=200, save_total_limit=1, seed=1, disable_tqdm=True,
    )  # fmt: skip
    model = network(len(made.tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    trainer = FlatStart(
        model, arguments, collate, Recordings(data, "train", made, varied=True), processing_class=made.feature_extractor
    )
    begun = any((folder.parent / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=begun)
    trainer.save_model(str(folder))
    made.save_pretrained(folder)


def said(teacher: Path, data: Path, split: str) -> tuple[list[str], list[str]]:
    """References and what the teacher writes by its own processor, greedily: no code of this project takes part."""
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    model, made = Wav2Vec2ForCTC.from_pretrained(teacher).eval(), Wav2Vec2Processor.from_pretrained(teacher)
    references, hypotheses = [], []
    for line in lines(data, split):
        wave, _ = sf.read(data / line["audio_filepath"], dtype="float32")
        with torch.no_grad():
            logits = model(**made(wave, sampling_rate=RATE, return_tensors="pt")).logits
        references.append(line["text"])
        hypotheses.append(made.batch_decode(logits.argmax(dim=-1))[0].lower())
    return references, hypotheses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl, dev.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200, help="of the teacher")
    parser.add_argument("--student-steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = args.out / "teacher"
    if not (teacher / "model.safetensors").is_file():
        train(args.data, teacher, args.steps)
    errors = {split: jiwer.wer(*said(teacher, args.data, split)) for split in ("dev", "test")}
    entries = []
    for seed in range(1, args.seeds + 1):
        folder = args.out / f"seed-{seed}"
        sets = [
            f"data.path={args.data}", f"teacher={{path: {teacher}}}", f"seed={seed}",
            f"train.steps={args.student_steps}",
        ]  # fmt: skip
        run("speech/wav2vec2", sets, folder)
        report = json.loads((folder / "report.json").read_text())
        roles = {
            role: {"parameters": one["parameters"], "metrics": one["metrics"], "dev": one["dev_metrics"]["wer"]}
            for role, one in report["roles"].items()
        }
        entries.append({
            "seed": seed, "roles": roles, "gap_closed": report["gap_closed"], "reason": report["reason"],
            "gain": report["gain"], "int8": report["export"]["model.int8.onnx"]["bytes"],
            "transcribed": with_lm(folder / "student", args.data, folder),
        })  # fmt: skip
    found = {
        "teacher_steps": args.steps, "student_steps": args.student_steps, "teacher_by_transformers": errors,
        "entries": entries, "versions": report["versions"],
    }  # fmt: skip
    (args.out / "wav2vec2_an4.json").write_text(json.dumps(found, indent=1))
    print("| what | " + " | ".join(f"seed {one['seed']}" for one in entries) + " |\n| --- |" + " --- |" * len(entries))
    for role in ("teacher", "control", "student"):
        print(
            f"| {role} | " + " | ".join(f"{100 * one['roles'][role]['metrics']['wer']:.1f}" for one in entries) + " |"
        )
    for how in ("greedy", "lexicon", "lm"):
        print(f"| transcribe, {how} | " + " | ".join(f"{100 * one['transcribed'][how]:.1f}" for one in entries) + " |")


if __name__ == "__main__":
    main()
