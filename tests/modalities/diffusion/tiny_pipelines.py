"""Pipelines of each class that is distilled with its other parts, tiny and with random weights, and images for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
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
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

#: Pixels of an image's side, and of a latent's.
SIDE, LATENT = 16, 8
#: Of an image of Sana's pipeline, which makes none that is smaller.
LARGE = 32
WORDS = ("red", "green", "blue")
#: Kinds that are prompted by text.
PROMPTED = ("stable", "flowing", "larger", "pixels", "sigma", "tokens", "linear")
#: Of flow matching, whose students keep what they predict.
FLOWING = ("flowing", "tokens", "linear")


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


def t5() -> tuple[Any, Any]:
    """A tokenizer of single letters and its encoder."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return T5Tokenizer(vocab=vocabulary, extra_ids=0), encoder


def pixels(folder: Path, kind: Any = PixArtAlphaPipeline) -> Path:
    """A PixArtAlphaPipeline, or of Sigma, whose network says a variance beside its prediction."""
    net = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=1, sample_size=LATENT,
        caption_channels=16, cross_attention_dim=24,
    )  # fmt: skip
    words, encoder = t5()
    made = kind(
        tokenizer=words, text_encoder=encoder, vae=_codec(AutoencoderKL, 4), transformer=net, scheduler=scheduler()
    )  # fmt: skip
    return _saved(made, folder)


def sigma(folder: Path) -> Path:
    """A PixArtSigmaPipeline."""
    return pixels(folder, PixArtSigmaPipeline)


def tokens(folder: Path, **more: Any) -> Path:
    """A FluxPipeline that is told the scale of guidance, whose shift hangs on the size of the image."""
    net = FluxTransformer2DModel(
        **{
            "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 12,
            "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16, "guidance_embeds": True,
            "axes_dims_rope": (4, 4, 4),
        }
        | more
    )  # fmt: skip
    words, encoder = t5()
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_codec(AutoencoderKL, 4, shift_factor=0.1, scaling_factor=1.5), text_encoder=text_encoder(),
        tokenizer=tokenizer(), text_encoder_2=encoder, tokenizer_2=words, transformer=net,
    )  # fmt: skip
    return _saved(made, folder)


def linear(folder: Path, **more: Any) -> Path:
    """A SanaPipeline, as it is published: its scheduler is a solver for betas that runs on flow matching."""
    net = SanaTransformer2DModel(
        **{
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 16, "sample_size": LATENT,
        }
        | more
    )  # fmt: skip
    codec = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 8, 8), decoder_block_out_channels=(4, 8, 8), encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()), scaling_factor=0.7,
    )  # fmt: skip
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abdegnlqrsu"]
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(names), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
        )
    )  # fmt: skip
    made = SanaPipeline(
        tokenizer=GemmaTokenizer(vocab={name: i for i, name in enumerate(names)}), text_encoder=encoder, vae=codec,
        transformer=net,
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )  # fmt: skip
    return _saved(made, folder, std=0.2)  # at more it enlarges what float32 rounds


def _saved(pipeline: Any, folder: Path, std: float = 0.3) -> Path:
    for part in pipeline.components.values():  # weights at which every input tells
        if isinstance(part, torch.nn.Module):
            for value in part.parameters():
                torch.nn.init.normal_(value, std=std) if value.ndim > 1 else None
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "stable": stable, "unconditional": unconditional, "transformer": transformer, "flowing": flowing, "larger": larger,
    "pixels": pixels, "sigma": sigma, "tokens": tokens, "linear": linear,
}  # fmt: skip


def images(folder: Path, count: int = 36, side: int = SIDE) -> Path:
    """Colours in a subfolder for each of three classes, and a caption for each image."""
    rng, lines = np.random.default_rng(1), []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        pixels = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
        pixels[..., i % len(WORDS)] += 120
        path = folder / word / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(json.dumps({"file_name": f"{word}/{i}.png", "text": f"a {word} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def pictures(place: Path, kind: str) -> Path:
    """Those of the size that a pipeline makes."""
    return place / ("large" if kind == "linear" else "images")


def adapter(place: Path, kind: str, *, guidance: float = 1.0, **data: Any) -> DiffusionAdapter:
    """Of the images, its teacher loaded."""
    told = {"captions": kind in PROMPTED, "conditional": kind == "transformer"} | data
    section = {"sources": "folder", "path": pictures(place, kind), "dev": 8, "test": 8, "samples": 8, "draws": 1,
               "cache": place / "cache", "sampling": {"steps": 8, "guidance": guidance}, **told}  # fmt: skip
    made = DiffusionAdapter(DiffusionData.model_validate(section), Streams(1), 4)
    made.teachers = {"teacher": SimpleNamespace(path=place / kind)}
    made.load("teacher", place / kind)
    return made


def refusal(call: Callable[[], Any]) -> str:
    """What it is refused with, in one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
