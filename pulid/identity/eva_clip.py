"""The vision tower PuLID looks at faces with: EVA02-CLIP-L-14-336, as timm's `Eva`.

Knows: how timm's network is set up to be the same tower, which five layers PuLID taps, and how
the published EVA-CLIP checkpoint names its tensors. Does not know: how a face becomes pixels
(`encoder.py`), where the file is, text. The network itself is timm's; nothing of it is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pulid.torchvision_guard  # noqa: F401

# isort: split
import torch
from timm.layers import RotaryEmbeddingCat
from timm.models.eva import Eva
from torch import Tensor, nn

from pulid.identity.idformer import NUM_SCALES
from pulid.strict_load import load_strictly

_ROTARY_REFERENCE_GRID = (16, 16)  # the grid of 224 pixels; the positions of other sizes are scaled to it
_VISUAL = "visual."
_TEXT_TOWER = ("text.", "logit_scale")
_ROTARY_TABLES = ("rope.freqs_cos", "rope.freqs_sin")  # computed, so never loaded
_NAMES = (  # timm's, the checkpoint's
    (".attn.q_proj.bias", ".attn.q_bias"),
    (".attn.v_proj.bias", ".attn.v_bias"),
    (".attn.norm.", ".attn.inner_attn_ln."),
    (".mlp.fc1_g.", ".mlp.w1."),
    (".mlp.fc1_x.", ".mlp.w2."),
    (".mlp.norm.", ".mlp.ffn_ln."),
    (".mlp.fc2.", ".mlp.w3."),
)


class EvaClipVision(nn.Module):
    """The tower with PuLID's five taps. A forward leaves nothing behind, so threads may share one."""

    def __init__(
        self,
        *,
        image_size: int = 336,
        patch_size: int = 14,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        embed_dim: int = 768,
    ):
        super().__init__()
        self.image_size = image_size
        self.width = width
        self.embed_dim = embed_dim
        self.num_tokens = 1 + (image_size // patch_size) ** 2  # class token and patches
        self.taps = tap_indices(depth)
        self.tower = Eva(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=4 * 2 / 3,
            qkv_fused=False,
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            use_rot_pos_emb=True,
            ref_feat_shape=_ROTARY_REFERENCE_GRID,
            global_pool="token",
            num_classes=embed_dim,
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised pixels (batch, 3, image_size, image_size) to what PuLID reads of them.

        Returns the pooled vector (batch, embed_dim) and five hidden states (batch, num_tokens, width),
        class token first, not normalised.
        """
        last, taps = self.tower.forward_intermediates(
            pixels, indices=self.taps, norm=False, return_prefix_tokens=True, output_fmt="NLC"
        )
        hidden_states = [torch.cat((class_token, patches), dim=1) for patches, class_token in taps]
        return self.tower.forward_head(last), hidden_states

    def reset_computed_buffers(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        """Make the rotary table anew; no checkpoint has it, and on the meta device it has no values.

        It is computed in float32. The reference casts it to the precision of the weights, which
        `.to(dtype)` on this module does too.
        """
        with torch.device("cpu"):  # also inside somebody's `with torch.device("meta")`
            rope = RotaryEmbeddingCat(
                self.tower.embed_dim // self.tower.blocks[0].attn.num_heads,
                in_pixels=False,
                feat_shape=self.tower.patch_embed.grid_size,
                ref_feat_shape=_ROTARY_REFERENCE_GRID,
            )
        self.tower.rope = rope.to(device=device, dtype=dtype)


def tap_indices(depth: int) -> list[int]:
    """The blocks whose output PuLID reads: [3, 7, 11, 15, 19] of 24, likewise spread for other depths."""
    if depth <= NUM_SCALES:
        raise ValueError(f"a tower of {depth} blocks has no {NUM_SCALES} inner layers to tap")
    return [depth * scale // (NUM_SCALES + 1) - 1 for scale in range(1, NUM_SCALES + 1)]


def load_eva_state(
    model: EvaClipVision, checkpoint: Mapping[str, Tensor], *, file: Path | None = None
) -> None:
    """Load the published `.pt` file's tensors, the whole file or only its visual part.

    Text tower, logit scale and rotary tables are dropped; everything else must match by name and
    shape. The model takes over the tensors as they are, so it may have been built on the meta device;
    its rotary table is float32 until `.to(dtype)`.
    Raises WeightsMissing, naming keys and shapes; then nothing was loaded.
    """
    prefix = _VISUAL if any(name.startswith(_VISUAL) for name in checkpoint) else ""
    tensors = {
        name: tensor
        for name, tensor in checkpoint.items()
        if not name.startswith(_TEXT_TOWER) and not name.endswith(_ROTARY_TABLES)
    }
    load_strictly(_AsPublished(model.tower, prefix), tensors, "EVA02-CLIP-L-14-336 vision tower", file=file)
    model.reset_computed_buffers(model.tower.cls_token.device)


class _AsPublished(nn.Module):
    """timm's tower under the checkpoint's names, so that errors speak of what is in the file."""

    def __init__(self, tower: Eva, prefix: str):
        super().__init__()
        self.tower = tower
        self.names = {key: prefix + _published_name(key) for key in tower.state_dict()}

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {self.names[key]: value for key, value in self.tower.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], **how: bool) -> None:  # type: ignore[override]
        self.tower.load_state_dict({key: state[name] for key, name in self.names.items()}, **how)


def _published_name(timm_key: str) -> str:
    for timms, published in _NAMES:
        timm_key = timm_key.replace(timms, published)
    return timm_key
