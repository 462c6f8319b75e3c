"""The rows of the bench: ways to denoise the same request with the same weights.

    reference   the reference's arithmetic, eagerly (bench/reference.py)
    peer        diffusers' model, PuLID by forward hooks, blocks and cross-attentions under torch.compile
    peer-fp8    the same with the blocks' linears in fp8 by torchao; beside profiles that are quantised
    plain       this project's engine without an identity: what FLUX alone costs
    ours-NAME   this project's engine with the profile NAME, driven as the worker drives it

A row gets a request and gives a loop; whoever times it is told at the loop's end (`on_end`), before
anything is decoded. Afterwards it has the pictures. Knows no clock and no table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bench import torchao_peer
from bench.random_model import Given, engine_of, given_to, quantised, shell
from bench.reference import DOUBLE_INTERVAL, SINGLE_INTERVAL, ReferenceFlux
from bench.reference import denoise as reference_loop
from pulid.engine import DenoisedRequest, GenerationRequest, RgbImage
from pulid.flux import latents
from pulid.flux.compiled import graphs_made
from pulid.flux.decoder import Decoder
from pulid.parts import Parts
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import SpeedProfile

OnEnd = Callable[[], None]
Loop = Callable[[OnEnd], Tensor]  # one whole denoising; gives the packed latents

JOB = "bench"
PEER_FP8 = "peer-fp8"
GRAPHS = 256  # of one function that may be compiled: one for each size and place of a block


class Row(Protocol):
    name: str
    has_identity: bool

    def loop(self, request: GenerationRequest) -> Loop:
        """What is timed. Photo and prompt have been read; the identity is not folded yet."""
        ...

    def pictures(self, packed: Tensor, request: GenerationRequest) -> Sequence[RgbImage]:
        """Decoded from what the last loop gave."""
        ...


@dataclass
class Reference:
    flux: ReferenceFlux
    donor: PulidFluxEngine  # reads photo and prompt
    autoencoder: AutoencoderKL
    name: str = "reference"
    has_identity: bool = True

    def loop(self, request: GenerationRequest) -> Loop:
        given = given_to(self.donor, request)

        @torch.inference_mode()
        def run(on_end: OnEnd) -> Tensor:
            packed = reference_loop(self.flux, given)
            on_end()
            return packed

        return run

    def pictures(self, packed: Tensor, request: GenerationRequest) -> Sequence[RgbImage]:
        return decoded_eagerly(self.autoencoder, packed, request)


@dataclass
class Peer:
    """What a careful user of diffusers would build."""

    transformer: nn.Module
    attentions: nn.ModuleList
    donor: PulidFluxEngine
    autoencoder: AutoencoderKL
    backend: str  # of torch.compile
    name: str = "peer"
    has_identity: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)  # inductor's
    _seen: tuple[Tensor, float] | None = field(default=None, init=False)  # identity tokens and their weight

    def __post_init__(self) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        counter = 0
        for blocks, interval in (
            (self.transformer.transformer_blocks, DOUBLE_INTERVAL),
            (self.transformer.single_transformer_blocks, SINGLE_INTERVAL),
        ):
            for number, block in enumerate(blocks):
                self._compile(block)
                if number % interval == 0:
                    block.register_forward_hook(self._hook(self.attentions[counter]))
                    counter += 1
        for attention in self.attentions:
            self._compile(attention)

    def _compile(self, module: nn.Module) -> None:
        """Its `forward`, so that hooks stay outside; one graph for a size."""
        options = dict(self.options) if self.backend == "inductor" else None
        module.forward = torch.compile(
            module.forward, backend=self.backend, fullgraph=True, dynamic=False, options=options or None
        )

    def _hook(self, attention: nn.Module) -> Callable[..., Any]:
        def add_identity(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> Any:
            if self._seen is None:
                return None
            text, image = output
            identity, weight = self._seen
            return text, image + weight * attention(identity, image)

        return add_identity

    def loop(self, request: GenerationRequest) -> Loop:
        given = given_to(self.donor, request)

        @torch.inference_mode()
        def run(on_end: OnEnd) -> Tensor:
            packed = self._denoise(given)
            on_end()
            return packed

        return run

    def pictures(self, packed: Tensor, request: GenerationRequest) -> Sequence[RgbImage]:
        return decoded_eagerly(self.autoencoder, packed, request)

    def _denoise(self, given: Given) -> Tensor:
        x = given.noise
        for t_now, t_next in zip(given.times[:-1], given.times[1:], strict=True):
            predicted = self._velocity(x, t_now, given, given.text, given.pooled, given.identity)
            if given.negative is not None:
                negative = self._velocity(x, t_now, given, *given.negative)
                predicted = negative + given.true_cfg * (predicted - negative)
            x = x + (t_next - t_now) * predicted
        return x

    def _velocity(
        self, x: Tensor, t: float, given: Given, text: Tensor, pooled: Tensor, identity: Tensor | None
    ) -> Tensor:
        rows = x.shape[0]
        self._seen = None if identity is None else (identity.expand(rows, -1, -1), given.id_weight)
        return self.transformer(
            hidden_states=x,
            encoder_hidden_states=text.expand(rows, -1, -1),
            pooled_projections=pooled.expand(rows, -1),
            timestep=torch.full((rows,), t, dtype=x.dtype, device=x.device),
            guidance=torch.full((rows,), given.guidance, dtype=x.dtype, device=x.device),
            img_ids=given.image_ids,
            txt_ids=latents.text_ids(text.shape[1], x.device),
            return_dict=False,
        )[0]


@dataclass
class Ours:
    """The engine itself: admitted, stepped, and listened to at the end of the last step."""

    engine: PulidFluxEngine
    name: str
    has_identity: bool = True
    _denoised: list[DenoisedRequest] = field(default_factory=list, init=False)  # of the last loop

    def loop(self, request: GenerationRequest) -> Loop:
        if not self.has_identity:
            request = replace(request, id_images=())
        prepared = self.engine.prepare(request)
        done: list[Tensor] = []

        def run(on_end: OnEnd) -> Tensor:
            def at_step_end(flight: Any) -> None:
                if flight.is_done:
                    on_end()
                    done[:] = [flight.latents.clone()]  # the engine may use its memory again

            self.engine.admit(JOB, prepared)  # folds the identity and draws the noise: part of the loop
            self.engine.flight(JOB).on_step_end = at_step_end
            while events := self.engine.step():
                for event in events:
                    if event.error is not None:
                        raise event.error
                    if event.denoised is not None:
                        self._denoised = [event.denoised]
            return done[0]

        return run

    @property
    def skipped_steps(self) -> int:
        """Of the last loop, those of both branches of true CFG."""
        return sum(denoised.skipped_steps for denoised in self._denoised)

    def pictures(self, packed: Tensor, request: GenerationRequest) -> Sequence[RgbImage]:
        return [image for denoised in self._denoised for image in self.engine.decode(denoised).images]


@torch.inference_mode()
def decoded_eagerly(
    autoencoder: AutoencoderKL, packed: Tensor, request: GenerationRequest
) -> Sequence[RgbImage]:
    """As the reference does it: the autoencoder in float32, under autocast where the latents are bfloat16."""
    return Decoder(autoencoder, packed.dtype).pictures(packed, request.height, request.width)


def in_fp8(transformer: nn.Module) -> nn.Module:
    """By torchao."""
    torchao_peer.quantise(transformer)
    return transformer


def row_names(profiles: Sequence[SpeedProfile]) -> list[str]:
    """In the order of the table, whether or not each can be made here."""
    peers = ["peer", PEER_FP8] if any(map(is_lossy, profiles)) else ["peer"]
    return ["reference", *peers, "plain", *(f"ours-{profile.name}" for profile in profiles)]


def left_out(names: Sequence[str]) -> dict[str, str]:
    """Of these rows those that cannot be made here, with the reason."""
    reason = torchao_peer.why_not() if PEER_FP8 in names else ""
    return {PEER_FP8: reason} if reason else {}


def is_lossy(profile: SpeedProfile) -> bool:
    """Whether it is measured beside a peer that is quantised, too."""
    return profile.linears != "full"


def rows_of(
    parts: Parts,
    profiles: Sequence[SpeedProfile],
    device: torch.device,
    *,
    backend: str,
    names: Sequence[str] = (),
) -> dict[str, Row]:
    """All rows that can be made here, or those of these names, in the order of the table."""
    taken = [p for p in profiles if p is profiles[0] or not names or f"ours-{p.name}" in names]
    forms = {"full": parts}  # each once: profiles share their weights
    for form in {p.linears for p in taken if is_lossy(p)}:
        forms[form] = quantised(parts, form)
    engines = {p.name: engine_of(forms[p.linears], p, device) for p in taken}
    donor = next(iter(engines.values()))
    dtype = next(parts.networks.transformer.parameters()).dtype
    attentions, autoencoder = parts.networks.identity_attentions, parts.networks.autoencoder
    makers: dict[str, Callable[[], Row]] = {
        "reference": lambda: Reference(
            ReferenceFlux(parts.networks.transformer, shell(attentions), dtype), donor, autoencoder
        ),
        "peer": lambda: Peer(
            shell(parts.networks.transformer), shell(attentions), donor, autoencoder, backend
        ),
        PEER_FP8: lambda: Peer(
            in_fp8(shell(parts.networks.transformer)),
            shell(attentions),
            donor,
            autoencoder,
            backend,
            name=PEER_FP8,
            options=torchao_peer.OPTIONS,
        ),
        "plain": lambda: Ours(donor, "plain", has_identity=False),
    }
    for name, engine in engines.items():
        makers[f"ours-{name}"] = lambda name=name, engine=engine: Ours(engine, f"ours-{name}")
    possible = [name for name in row_names(profiles) if name in makers and name not in left_out(makers)]
    return {name: makers[name]() for name in possible if not names or name in names}


def turns(names: Sequence[str], repeats: int) -> Iterator[str]:
    """A B C D, D C B A, A B C D, ...: what drifts in the course of a run falls on all rows alike."""
    for number in range(repeats):
        yield from names if number % 2 == 0 else reversed(names)


@contextmanager
def graphs_counted() -> Iterator[Callable[[], int]]:
    """Gives a function that tells how many graphs torch has compiled since."""
    before = graphs_made()
    yield lambda: graphs_made() - before
