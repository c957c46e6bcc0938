"""Pipelines of each class that is distilled with its other parts, tiny and with random weights, and images for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

#: Pixels of an image's side, and of a latent's.
SIDE, LATENT = 16, 8
WORDS = ("red", "green", "blue")


def tokenizer(length: int = 16) -> CLIPTokenizer:
    """Of single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer({word: i for i, word in enumerate(vocabulary)}, [], model_max_length=length)


def text_encoder(width: int = 16, length: int = 16, *, projected: bool = False) -> Any:
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=54, hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            projection_dim=width,
        )
    )  # fmt: skip


def _codec(kind: Any, channels: int, **more: Any) -> Any:
    return kind(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels, norm_num_groups=8, sample_size=SIDE, **more,
    )  # fmt: skip


def scheduler(**more: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 1} | more)


def stable(folder: Path, **more: Any) -> Path:
    """A StableDiffusionPipeline."""
    net = UNet2DConditionModel(
        **{
            "sample_size": LATENT, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
            "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "norm_num_groups": 8,
            "attention_head_dim": 2,
        }
        | more
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae=_codec(AutoencoderKL, 4), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=net,
        scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return _saved(made, folder)


def unconditional(folder: Path) -> Path:
    """An LDMPipeline."""
    net = UNet2DModel(
        sample_size=LATENT, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    codec = _codec(VQModel, 3, num_vq_embeddings=32)
    return _saved(LDMPipeline(vqvae=codec, unet=net, scheduler=scheduler()), folder)


def transformer(folder: Path, classes: int = 3) -> Path:
    """A DiTPipeline whose network says a variance beside its prediction."""
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=LATENT,
        num_embeds_ada_norm=classes,
    )  # fmt: skip
    return _saved(DiTPipeline(net, _codec(AutoencoderKL, 4), scheduler()), folder)


def flowing(folder: Path) -> Path:
    """A StableDiffusion3Pipeline without its largest text encoder."""
    net = SD3Transformer2DModel(
        sample_size=LATENT, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=16,
    )  # fmt: skip
    codec = _codec(AutoencoderKL, 4, shift_factor=0.1, scaling_factor=1.5)
    made = StableDiffusion3Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=codec,
        text_encoder=text_encoder(projected=True), tokenizer=tokenizer(), text_encoder_2=text_encoder(projected=True),
        tokenizer_2=tokenizer(), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    return _saved(made, folder)


def larger(folder: Path) -> Path:
    """A StableDiffusionXLPipeline."""
    net = UNet2DConditionModel(
        sample_size=LATENT, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=8, attention_head_dim=2, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16, use_linear_projection=True,
    )  # fmt: skip
    made = StableDiffusionXLPipeline(
        vae=_codec(AutoencoderKL, 4), unet=net, scheduler=scheduler(), text_encoder=text_encoder(),
        tokenizer=tokenizer(), text_encoder_2=text_encoder(projected=True), tokenizer_2=tokenizer(),
    )  # fmt: skip
    return _saved(made, folder)


def pixels(folder: Path) -> Path:
    """A PixArtAlphaPipeline whose network says a variance beside its prediction."""
    net = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=1, sample_size=LATENT,
        caption_channels=16, cross_attention_dim=24,
    )  # fmt: skip
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    made = PixArtAlphaPipeline(
        tokenizer=T5Tokenizer(vocab=vocabulary, extra_ids=0), text_encoder=encoder, vae=_codec(AutoencoderKL, 4),
        transformer=net, scheduler=scheduler(),
    )  # fmt: skip
    return _saved(made, folder)


def _saved(pipeline: Any, folder: Path) -> Path:
    for part in pipeline.components.values():  # weights at which every input tells
        if isinstance(part, torch.nn.Module):
            for value in part.parameters():
                torch.nn.init.normal_(value, std=0.3) if value.ndim > 1 else None
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "stable": stable, "unconditional": unconditional, "transformer": transformer, "flowing": flowing, "larger": larger,
    "pixels": pixels,
}  # fmt: skip


def images(folder: Path, count: int = 36) -> Path:
    """Colours in a subfolder for each of three classes, and a caption for each image."""
    rng, lines = np.random.default_rng(1), []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., i % len(WORDS)] += 120
        path = folder / word / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(json.dumps({"file_name": f"{word}/{i}.png", "text": f"a {word} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
