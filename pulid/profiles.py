"""The named speed and precision settings. Each is a tested combination with a promise. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pulid.errors import DeviceUnavailable, UnknownProfile

AttentionForm = Literal["folded", "reference"]
TransformerForm = Literal["diffusers", "fused"]
LinearForm = Literal["full", "fp8", "int8"]
DecoderForm = Literal["plain", "channels_last", "compiled"]
AUTO = "auto"  # no profile: the one that fits the cards best
# Of the first cards that compute so. e4m3: Ada, then Hopper and Blackwell. int8: Ampere, the first with
# bfloat16 beside it.
CAPABILITIES: Mapping[LinearForm, tuple[int, int]] = {"full": (0, 0), "int8": (8, 0), "fp8": (8, 9)}


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
    # Of the transformer's blocks; fp8 and int8: weights and activations in eight bits, a scale for each row.
    linears: LinearForm = "full"
    before_fp8: Literal["refused", "int8"] = "refused"  # what a card without e4m3 does instead of fp8
    compiles: bool = False  # the fused form's blocks, by torch's compiler, while the engine warms up
    decoder_form: DecoderForm = "plain"  # see pulid/flux/decoder.py
    # Bytes of the card that an engine takes at most, enforced; 0: no limit. Weights for which it leaves no
    # room lie in the host's memory and come in turn; pulid/placement.py.
    memory_limit: int = 0
    working_memory: int = 0  # of the limit, free of weights: for what requests make
    host_memory: int = 0  # bytes of the host that such weights take
    decode_tile: int = 0  # pixels; larger pictures are decoded in tiles of this side. 0: all at once
    captures: bool = False  # the forward of a step is recorded for each shape; pulid/flux/step_graph.py
    # A step nearer to the last full one, relatively, runs the first block only; 0: none is skipped; None:
    # the profile has no such thing. See pulid/flux/step_cache.py.
    skip_threshold: float | None = None
    # May rows of different requests share a denoising step? Then a picture's last bits depend on
    # its neighbours, so `exact` and `tiny` never do it.
    shares_steps: bool = False
    notice: str = ""  # shown wherever a picture of this profile is handed out

    def __post_init__(self) -> None:
        if self.compiles and self.transformer_form != "fused":
            raise ValueError(f"The profile {self.name!r} compiles, so its transformer_form must be fused.")
        if self.linears != "full" and self.transformer_form != "fused":
            raise ValueError(
                f"The profile {self.name!r} is in {self.linears}, so its transformer_form must be fused."
            )
        if self.skip_threshold is not None and (
            self.transformer_form != "fused" or self.captures or self.shares_steps or self.skip_threshold < 0
        ):
            raise ValueError(
                f"The profile {self.name!r} skips steps, so its transformer_form must be fused, its steps"
                " neither captured nor shared, and its skip_threshold not negative."
            )
        if self.memory_limit and self.transformer_form != "fused":
            raise ValueError(f"The profile {self.name!r} has a limit, so its transformer_form must be fused.")


CONTEXT = 10**9  # bytes that the driver, CUDA's libraries and their kernels take of a card; not measured


def _low_memory(
    card: int, *, working_memory: int, host_memory: int, decode_tile: int, name: str
) -> SpeedProfile:
    """fp8 on a card of so many bytes, or int8 where that is not to be had."""
    limit = card - CONTEXT
    return SpeedProfile(
        name=name,
        device="cuda",
        dtype="bfloat16",
        promise=f"the arithmetic of fp8 on a card of {card // 10**9} GB; what has no room is streamed",
        device_memory=card,
        transformer_form="fused",
        linears="fp8",
        before_fp8="int8",
        memory_limit=limit,
        working_memory=working_memory,
        host_memory=host_memory,
        decode_tile=decode_tile,
    )


LOW_MEMORY = (
    _low_memory(
        23 * 10**9,  # as an L4 has it, whose error correction takes a part of 24 GiB
        name="lowvram-24g",
        working_memory=7 * 10**9,
        host_memory=14 * 10**9,
        decode_tile=1152,
    ),
    _low_memory(
        16 * 10**9,
        name="lowvram-16g",
        working_memory=4_500_000_000,
        host_memory=18 * 10**9,
        decode_tile=896,
    ),
    _low_memory(
        12 * 10**9,
        name="lowvram-12g",
        working_memory=2_850_000_000,
        host_memory=21 * 10**9,
        decode_tile=512,
    ),
)

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
            name="fp8",
            device="cuda",
            dtype="bfloat16",
            promise="half the memory for FLUX's blocks; pictures near those of exact, with a published error",
            # Computed: 27 GB of weights, the rest for one picture's activations and its decoding.
            device_memory=36 * 10**9,
            transformer_form="fused",
            linears="fp8",
        ),
        SpeedProfile(
            name="turbo",
            device="cuda",
            dtype="bfloat16",
            promise="fp8, and steps that would change little are skipped; an error larger than that of fp8",
            # As fp8, and two tensors for each row: at most 0.9 GB, for four of the largest pictures, guided.
            device_memory=37 * 10**9,
            transformer_form="fused",
            linears="fp8",
            skip_threshold=0.1,
        ),
        *LOW_MEMORY,
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


def on_card(profile: SpeedProfile, capability: tuple[int, int]) -> SpeedProfile:
    """The profile as it is computed on a card: in int8 where it may be, for want of e4m3."""
    if profile.before_fp8 == "refused" or capability >= CAPABILITIES[profile.linears]:
        return profile
    return replace(profile, linears=profile.before_fp8)


def why_not(profile: SpeedProfile, device: str, name: str, capability: tuple[int, int]) -> str:
    """What to tell of a card whose tensor cores lack the profile's precision; empty where they have it."""
    form = on_card(profile, capability).linears
    if capability >= CAPABILITIES[form]:
        return ""
    cards = {
        "fp8": "of the generations Ada (L4, L40S, RTX 40), Hopper (H100, H200) and later",
        "int8": "of the generation Ampere (A10, A100, RTX 30) and later",
    }
    return (
        f"{device} is {name} with compute capability {_version(capability)}, and the profile {profile.name}"
        f" needs {_version(CAPABILITIES[form])}: cards {cards[form]}. {_instead(profile)}"
    )


def _instead(profile: SpeedProfile) -> str:
    if profile.before_fp8 == "int8":
        return "Choose other cards with devices; tiny runs anywhere."
    return "Use the profile exact here if the card has 45 GB, else one of lowvram-*; tiny runs anywhere."


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


class CardFacts(Protocol):
    """What a choice asks of a card; pulid/probe.py finds it out."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> int: ...  # bytes
    @property
    def capability(self) -> tuple[int, int]: ...
    @property
    def has_kernels(self) -> bool: ...  # in this build of torch


def fits(profile: SpeedProfile, card: CardFacts) -> bool:
    """Has a card the memory of a profile that computes on cards, its precisions, and torch code for it?"""
    can = card.has_kernels and card.capability >= least_capability(profile)
    return can and 0 < profile.device_memory <= card.memory


def least_capability(profile: SpeedProfile) -> tuple[int, int]:
    """Of a card that it computes on."""
    return CAPABILITIES[profile.linears if profile.before_fp8 == "refused" else profile.before_fp8]


def chosen_for(cards: Sequence[CardFacts]) -> tuple[SpeedProfile, str]:
    """What `auto` means for cards, at least one, that are to serve together; and a sentence that says why.

    It is the most exact profile that fits all of them. One that skips steps is never chosen: that is for
    those who ask for it. Raises DeviceUnavailable where none fits.
    """
    about = ", ".join(map(_described, cards))
    fitting, passed = _in_order(cards)
    not_taken = [f"{profile.name}, which needs {_needs(profile)}" for profile in passed]
    if fitting is None:
        raise DeviceUnavailable(
            f"The profile auto finds none that fits {about}. There is {'; '.join(not_taken)}. Choose other "
            "cards with devices; to try the server without one, choose --profile tiny."
        )
    in_int8 = [f"cuda:{card.number}" for card in cards if on_card(fitting, card.capability) != fitting]
    how = f", in int8 on {', '.join(in_int8)} for want of fp8" if in_int8 else ""
    why = f"; not {'; '.join(not_taken)}" if passed else ", the most exact one, fits"
    alike = all(_in_order([card])[0] == fitting for card in cards)
    weakest = "" if alike else " All cards of a server take one profile, that of the weakest."
    return fitting, f"Profile auto: {fitting.name} for {about}{how}{why}.{weakest}"


def _in_order(cards: Sequence[CardFacts]) -> tuple[SpeedProfile | None, list[SpeedProfile]]:
    """The first that fits all of them, the most exact one; and those before it."""
    passed: list[SpeedProfile] = []
    for profile in PROFILES.values():
        if profile.device != "cuda" or profile.skip_threshold is not None:
            continue
        if all(fits(profile, card) for card in cards):
            return profile, passed
        passed.append(profile)
    return None, passed


def _described(card: CardFacts) -> str:
    lacking = "" if card.has_kernels else ", for which this build of torch has no code"
    return (
        f"cuda:{card.number} ({card.name}, {card.memory / 1e9:.1f} GB, compute capability"
        f" {_version(card.capability)}{lacking})"
    )


def _needs(profile: SpeedProfile) -> str:
    least = least_capability(profile)
    of_card = f" and compute capability {_version(least)}" if least > CAPABILITIES["full"] else ""
    return f"{profile.device_memory / 1e9:.0f} GB{of_card}"


def profile_named(name: str) -> SpeedProfile:
    """The profile of that name. Raises UnknownProfile, naming the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise UnknownProfile(f"No profile is called {name!r}. Choose one of: {known}.") from None
