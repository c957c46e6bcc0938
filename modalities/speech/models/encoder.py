"""Students that are encoders of waves: what a folder of ``transformers`` holds, with a head for CTC, whole or narrower.

``transformers`` has no configuration for layers with different numbers of heads or inner units, so a pruned encoder is
saved as any recogniser here: its card says what the folder's configuration was and how many units of
each kind are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.compress.gates import Units, resize
from xmodal_kd.runtime.errors import UserError

from ..data.features import Features
from ..data.symbols import Vocabulary, match
from .frames import AcousticModel
from .pretrained import UNUSED, WaveFrontEnd, config_of, extractor_of, load_pretrained

#: What is known of how an encoder is made: those whose heads can be told apart by their weights alone, and WavLM, whose
#: heads share a table of positions and read the layer's input by slices.
HEADS_APART, HEADS_TIED = frozenset({"wav2vec2", "hubert"}), frozenset({"wavlm"})
#: Shares that a gate's first logits would drop (DPHuBERT's release): inner units may go at once, others learn to.
DROP_INNER, DROP = 0.5, 0.01


class Answer(NamedTuple):
    """``(b, t, classes)``, as a front end of waves asks for it."""

    logits: Tensor


class GainedNorm(nn.LayerNorm):
    """A norm whose input has a gain for each channel: what reads the channels of the last convolution."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps)
        self.load_state_dict(norm.state_dict())
        self.gain = nn.Parameter(torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.gain)


class EncoderConfig(Strict):
    """Of a student as a recipe has it: the folder. The rest is what a card says of a saved one."""

    folder: Path | None = None
    """A Wav2Vec2, HuBERT or WavLM as transformers saves it, with or without a head, whose weights it starts with; None:
    the teacher's folder."""
    fresh: bool = False
    """Whether it starts with random weights, of the sizes that the folder's config.json says."""
    encoder: dict[str, Any] | None = None
    """Its configuration, of a saved student."""
    extractor: dict[str, Any] = Field(default_factory=dict)
    """How its processor says that it hears, of a saved student."""
    left: dict[str, int] = Field(default_factory=dict)
    """Units of each name in a pruned one."""


class EncoderForCTC(AcousticModel):
    """An encoder of waves and a linear map of its last states to symbols.

    It is called as models of `transformers` are, with waves, and heard by its `front_end`. Modules have the names that
    they have there: ``hubert.encoder.layers.3``. What masks its input while it learns and what leaves layers out are
    off: both would draw from no stream of ours.
    """

    Config: ClassVar[type[Strict]] = EncoderConfig

    def __init__(self, config: EncoderConfig, *, mels: int, classes: int) -> None:
        super().__init__(config, mels=mels, classes=classes)
        #: Of the folder's own head: what it writes, its weights and its biases.
        self._theirs: tuple[Vocabulary, Tensor, Tensor] | None = None
        if config.encoder is not None:
            base, self.extractor = _fresh(config.encoder), dict(config.extractor)
        elif config.folder is not None:
            base = self._of_folder(config.folder.expanduser(), config.fresh)
        else:
            raise UserError("student.params.folder: no teacher.path says which encoder it starts as: name its folder")
        self.config: Any = base.config
        self.prefix = str(base.base_model_prefix)
        self.add_module(self.prefix, _ours(base))
        sizes: Any = base.config
        self.dropout = nn.Dropout(float(sizes.final_dropout))
        self.lm_head = nn.Linear(int(sizes.hidden_size), classes)
        resize(self, config.left)
        self.requires_grad_(True)

    def _of_folder(self, folder: Path, fresh: bool) -> nn.Module:
        config = config_of(folder)
        kind = config.get("model_type")
        if kind not in HEADS_APART | HEADS_TIED or config.get("add_adapter"):
            raise UserError(f"{folder}: a {kind} cannot be a student here: take a Wav2Vec2, a HuBERT or a WavLM")
        self.extractor = extractor_of(folder)
        if fresh:
            return _fresh(config)
        found = load_pretrained(folder)
        if found.vocabulary is not None:
            head: Any = found.model.lm_head
            self._theirs = found.vocabulary, head.weight.detach(), head.bias.detach()
        base: nn.Module = getattr(found.model, str(found.model.base_model_prefix), found.model)
        return base

    def start_head(self, symbols: Sequence[str]) -> None:
        """Give the head the rows of the folder's own, where that writes all of `symbols`; else it stays fresh."""
        if self._theirs is None:
            return
        vocabulary, weight, bias = self._theirs
        self._theirs = None
        try:
            columns = list(match(symbols, vocabulary, "").columns)
        except UserError:
            return
        with torch.no_grad():
            self.lm_head.weight.copy_(weight[columns])
            self.lm_head.bias.copy_(bias[columns])

    def described(self) -> dict[str, Any]:
        """Parameters for a card: without the folder, which lies elsewhere on another machine."""
        config = {k: v for k, v in self.config.to_diff_dict().items() if k not in ("transformers_version", "dtype")}
        return {"encoder": config, "extractor": self.extractor, "left": {}}

    def front_end(self, features: Features) -> WaveFrontEnd:
        """How it hears; from now on its `stride` is in frames of `features`.

        Raises `UserError` where a frame of its answer is no whole number of these.
        """
        made = WaveFrontEnd(self, self.extractor, Path(self.prefix))
        hop = Fraction(features.hop, features.sample_rate)
        if (made.frame / hop).denominator > 1:
            raise UserError(
                f"data.features.hop_ms: the student answers every {float(1000 * made.frame):g} ms, which is no whole "
                f"number of {float(1000 * hop):g}: take a hop that divides it"
            )
        self.stride = int(made.frame / hop)  # type: ignore[misc]
        return made

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Answer:  # type: ignore[override]
        """Waves ``(b, samples)`` to logits ``(b, t, classes)``."""
        states = self.base(input_values, attention_mask=attention_mask)[0]
        return Answer(self.lm_head(self.dropout(states)))

    @property
    def base(self) -> Any:
        """The encoder as `transformers` has it."""
        return self._modules[self.prefix]

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        found: Tensor = self.base._get_feat_extract_output_lengths(samples)
        return found

    # ---------------------------------------------------------------- what can be taken out of it

    def units(self) -> list[Units]:
        """Channels of each convolution, inner units of each layer, and its heads where these stand alone."""
        layers = range(len(self.base.encoder.layers))
        heads = [self._heads(i) for i in layers] if self.config.model_type in HEADS_APART else []
        return [*self._channels(), *heads, *(self._inner(i) for i in layers)]

    def _channels(self) -> list[Units]:
        convolutions, found = self.base.feature_extractor.conv_layers, []
        for i, layer in enumerate(convolutions):
            at = f"{self.prefix}.feature_extractor.conv_layers"
            parts = dict.fromkeys((f"{at}.{i}.{name}" for name, _ in layer.named_parameters()), 0)
            if i + 1 < len(convolutions):
                read = f"{at}.{i + 1}.conv.weight"
                parts |= {read: 1}
            else:
                read, parts = self._projection(parts)
            found.append(Units(f"channels.{i}", layer.conv.out_channels, parts, read, DROP))
        return found

    def _projection(self, parts: dict[str, int]) -> tuple[str, dict[str, int]]:
        """What reads the last convolution: a norm's gain, or the projection where there is no norm."""
        at = f"{self.prefix}.feature_projection"
        norm = getattr(self.base.feature_projection, "layer_norm", None)
        names = [] if norm is None else [f"{at}.layer_norm.{name}" for name, _ in norm.named_parameters()]
        read = f"{at}.layer_norm.gain" if names else f"{at}.projection.weight"
        return read, parts | dict.fromkeys(names, 0) | {f"{at}.projection.weight": 1}

    def _heads(self, i: int) -> Units:
        at, attention = f"{self.prefix}.encoder.layers.{i}.attention", self.base.encoder.layers[i].attention
        parts = {f"{at}.{kind}_proj.{name}": 0 for kind in "qkv" for name in ("weight", "bias")}
        read = f"{at}.out_proj.weight"
        return Units(f"heads.{i}", attention.q_proj.out_features // attention.head_dim, parts | {read: 1}, read, DROP)

    def _inner(self, i: int) -> Units:
        at, dense = f"{self.prefix}.encoder.layers.{i}.feed_forward", self.base.encoder.layers[i].feed_forward
        parts, read = {f"{at}.intermediate_dense.{name}": 0 for name in ("weight", "bias")}, f"{at}.output_dense.weight"
        return Units(f"inner.{i}", dense.intermediate_dense.out_features, parts | {read: 1}, read, DROP_INNER)

    def narrowed(self, counts: Mapping[str, int]) -> None:
        """Bring what modules say of their sizes to what their weights have, and note it in the card."""
        for module in self.base.modules():
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
            elif isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(module.weight.shape)
            elif isinstance(module, nn.GroupNorm):  # of one channel each
                module.num_groups = module.num_channels = len(module.weight)
        for layer in self.base.feature_extractor.conv_layers:
            layer.conv.out_channels, layer.conv.in_channels = layer.conv.weight.shape[:2]
        for layer in self.base.encoder.layers:
            if self.config.model_type in HEADS_APART:
                layer.attention.num_heads = layer.attention.q_proj.out_features // layer.attention.head_dim
        if hasattr(self, "card"):
            self.card["params"]["left"] = {**self.card["params"]["left"], **counts}


def _ours(base: nn.Module) -> nn.Module:
    """An encoder with what a student here needs, and without what it never uses."""
    config: Any = base.config
    config.apply_spec_augment, config.layerdrop = False, 0.0
    if hasattr(base, UNUSED):
        delattr(base, UNUSED)
    projection: Any = base.feature_projection
    if isinstance(getattr(projection, "layer_norm", None), nn.LayerNorm):
        projection.layer_norm = GainedNorm(projection.layer_norm)
    return base.train()


def _fresh(described: Mapping[str, Any]) -> nn.Module:
    """An encoder by its configuration alone, as a card has it."""
    from transformers import AutoConfig, AutoModel

    kind = described.get("model_type")
    if kind not in HEADS_APART | HEADS_TIED:
        raise ValueError(f"encoder.model_type {kind!r}")
    sizes = {key: value for key, value in described.items() if key not in ("model_type", "architectures")}
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    return model


__all__ = ["EncoderForCTC", "GainedNorm"]
