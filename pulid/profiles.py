"""The named speed and precision settings. Each is a tested combination with a promise. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pulid.errors import UnknownProfile

AttentionForm = Literal["folded", "reference"]
TransformerForm = Literal["diffusers", "fused"]
DecoderForm = Literal["plain", "channels_last", "compiled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedProfile:
    """How an engine computes. `promise` is what a user may rely on."""

    name: str
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float32"]  # of the transformer, the text encoders and the identity path
    promise: str
    device_memory: int = 0  # bytes that one card must have; 0: no card computes
    identity_attention: AttentionForm = "folded"
    transformer_form: TransformerForm = "diffusers"  # whose block code runs; the weights are the same
    compiles: bool = False  # the fused form's blocks, by torch's compiler, while the engine warms up
    decoder_form: DecoderForm = "plain"  # see pulid/flux/decoder.py
    captures: bool = False  # the forward of a step is recorded for each shape; pulid/flux/step_graph.py
    # May rows of different requests share a denoising step? Then a picture's last bits depend on
    # its neighbours, so `exact` and `tiny` never do it.
    shares_steps: bool = False
    notice: str = ""  # shown wherever a picture of this profile is handed out

    def __post_init__(self) -> None:
        if self.compiles and self.transformer_form != "fused":
            raise ValueError(f"The profile {self.name!r} compiles, so its transformer_form must be fused.")


PROFILES = {
    p.name: p
    for p in (
        SpeedProfile(
            name="exact",
            device="cuda",
            dtype="bfloat16",
            promise="the PuLID reference's arithmetic, proven against recorded numbers",
            device_memory=45 * 10**9,  # what the reference's authors state for bfloat16; not measured here
        ),
        SpeedProfile(
            name="tiny",
            device="cpu",
            dtype="float32",
            promise="the whole path on any machine: real face detection, a small model trained on drawings",
            notice=(
                "tiny profile: a small model trained on drawings; "
                "shows how the server behaves, not what FLUX paints"
            ),
        ),
    )
}


def profile_named(name: str) -> SpeedProfile:
    """The profile of that name. Raises UnknownProfile, naming the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise UnknownProfile(f"No profile is called {name!r}. Choose one of: {known}.") from None
