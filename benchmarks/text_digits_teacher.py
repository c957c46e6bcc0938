"""A text-to-image model of handwritten digits, trained with diffusers and transformers alone: minutes of one core.

``text_digits.py`` calls it: scikit-learn's digits become PNG files in a folder for each class, with captions in
``metadata.jsonl``, and of the training split a StableDiffusionPipeline is made: an autoencoder of 4x4 latents, a CLIP
text encoder of two layers with words for tokens, and a UNet2DConditionModel. The last two learn together, and a tenth
of the captions is left empty, so that the pipeline can be guided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = ("the digit {}", "a handwritten {}", "the number {} written by hand", "{}")
WORDS = (*NAMES, "the", "digit", "a", "handwritten", "number", "written", "by", "hand")
LENGTH, BATCH = 8, 64
STEPS = {"autoencoder": 300, "network": 1200}
#: Of the network: two levels of one block; and three of two blocks, of which some can go (block_pruning.py).
PLAIN: dict[str, Any] = {
    "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
DEEP: dict[str, Any] = {
    "block_out_channels": (32, 64, 64), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    """Byte pairs of letters and of the words of `WORDS`, each of which is one token."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        head = word[0]
        for i, letter in enumerate(word[1:], 2):
            tail = f"{letter}</w>" if i == len(word) else letter
            merges.append((head, tail))
            head += tail
            tokens.append(head)
    distinct = list(dict.fromkeys(tokens))
    vocabulary = {token: i for i, token in enumerate(distinct)}
    return CLIPTokenizer(vocabulary, list(dict.fromkeys(merges)), model_max_length=LENGTH)


def write_images(folder: Path) -> None:
    """The digits in a subfolder for each class, captions turn by turn."""
    data, lines = load_digits(), []
    for i, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        name = f"{label}/{i:04d}.png"
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(folder / name)
        text = PHRASES[i % len(PHRASES)].format(NAMES[label])
        lines.append(json.dumps({"file_name": name, "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def train(
    images: Path, folder: Path, *, keep: Sequence[str], seed: int = 1, network: Mapping[str, Any] = PLAIN
) -> None:  # fmt: skip
    """Of the images named in `keep` alone."""
    torch.manual_seed(seed)
    captions = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    chosen = [one for one in captions if one["file_name"] in set(keep)]
    pixels = np.stack([np.asarray(Image.open(images / one["file_name"])) for one in chosen])
    x = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)[:, None]
    codec = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=8,
    )  # fmt: skip
    _train_autoencoder(codec, x)
    with torch.no_grad():
        latents = codec.encode(x).latent_dist.mode()
    codec.register_to_config(scaling_factor=float(1 / latents.std()))
    words = tokenizer()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    net = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, cross_attention_dim=32, norm_num_groups=8, attention_head_dim=8,
        **network,
    )  # fmt: skip
    _train_network(net, encoder, words, latents * codec.config.scaling_factor, [one["text"] for one in chosen])
    made = StableDiffusionPipeline(
        vae=codec, text_encoder=encoder, tokenizer=words, unet=net, scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder, safe_serialization=True)


SCHEDULE = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": False,
    "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip


def _train_autoencoder(codec: AutoencoderKL, x: torch.Tensor) -> None:
    steps = STEPS["autoencoder"]
    optimizer = torch.optim.Adam(codec.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        batch = x[torch.randint(len(x), (BATCH,))]
        found = codec.encode(batch).latent_dist
        loss = F.mse_loss(codec.decode(found.sample()).sample, batch) + 1e-4 * found.kl().mean() / batch[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"autoencoder {step + 1} {loss.item():.4f}", flush=True)
    codec.eval()


def _train_network(
    net: UNet2DConditionModel, encoder: CLIPTextModel, words: CLIPTokenizer, latents: torch.Tensor, texts: Sequence[str]
) -> None:
    """Both learn; an average of their weights is kept."""
    noises, steps = DDPMScheduler(**{k: v for k, v in SCHEDULE.items() if k != "steps_offset"}), STEPS["network"]
    tokens = words(
        [*texts, ""], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    both = torch.nn.ModuleList([net, encoder])
    average = torch.optim.swa_utils.AveragedModel(both, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.Adam(both.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    both.train()
    for step in range(steps):
        index = torch.randint(len(latents), (BATCH,))
        said = torch.where(torch.rand(BATCH) < 0.1, torch.tensor(len(texts)), index)
        noise, t = torch.randn(BATCH, *latents.shape[1:]), torch.randint(1000, (BATCH,))
        z = noises.add_noise(latents[index], noise, t)
        out = net(z, t, encoder_hidden_states=encoder(tokens[said])[0]).sample
        loss = F.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(both)
        if (step + 1) % 100 == 0:
            print(f"network {step + 1} {loss.item():.4f}", flush=True)
    both.load_state_dict(average.module.state_dict())
    both.eval()


__all__ = ["DEEP", "PLAIN", "STEPS", "train", "write_images"]
