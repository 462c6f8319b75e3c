"""Packed latents -> pictures: FLUX's autoencoder in one of three forms.

    plain           as diffusers runs it
    channels_last   weights and activations with the channels innermost, as tensor cores want convolutions
    compiled        channels_last, and one graph by torch.compile for every size of picture

Large pictures can be decoded in tiles, in each form (`tiles`).

The weights stay float32 in each; a bfloat16 engine runs them under autocast, as the reference does. The
other forms differ from the plain one by rounding only. Does not know: streams, requests, who waits.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pulid.engine import RgbImage
from pulid.flux.latents import to_uint8, unpack
from pulid.flux.tiles import PIXELS, decoded_in_tiles
from pulid.profiles import DecoderForm

# Relative L2 of a picture, by whether the convolutions run in bfloat16: rounding, and not another function.
TOLERANCES = {False: 1e-4, True: 2e-2}


class Decoder:
    """Safe to share by threads. Forms other than plain lay out the weights of `vae` anew, in place."""

    def __init__(
        self,
        vae: AutoencoderKL,
        dtype: torch.dtype,
        form: DecoderForm = "plain",
        *,
        tile: int = 0,  # pixels of a side; 0: none
        backend: str = "inductor",  # of torch.compile
    ) -> None:
        self._config = vae.config
        self._tile = tile // PIXELS
        self._is_autocast = dtype == torch.bfloat16
        self._layout = torch.contiguous_format if form == "plain" else torch.channels_last
        self._network = self._uncompiled = vae.decode
        self.note: str = form  # what runs, for the engine's details
        self._is_compiled = form == "compiled"
        if form != "plain":
            vae.decoder.to(memory_format=torch.channels_last)
        if self._is_compiled:
            self._network = torch.compile(vae.decode, fullgraph=True, dynamic=True, backend=backend)

    def prove(self, packed: Tensor, height: int, width: int) -> None:
        """Decode once. Where a compiler fails or computes otherwise, go on without it.

        Raises torch.OutOfMemoryError.
        """
        if self._network is self._uncompiled:
            self.decode(packed, height, width)
            return
        compiled = self._network
        try:
            got = self.decode(packed, height, width)
            self._network = self._uncompiled
            expected = self.decode(packed, height, width)
            reason = "" if agrees(got, expected, TOLERANCES[self._is_autocast]) else "ComputesOtherwise"
        except torch.OutOfMemoryError:
            raise
        except Exception as exc:  # the compiler and what it calls raise what they like
            self._network, reason = self._uncompiled, type(exc).__name__
        if reason:
            self.note = f"channels_last: {reason}"
        else:
            self._network = compiled

    def pictures(self, packed: Tensor, height: int, width: int) -> tuple[RgbImage, ...]:
        """Packed latents (batch, tokens, 64) -> uint8 (h, w, 3) each.

        One after the other, so that four need the memory of one.
        """
        return tuple(image for row in packed.split(1) for image in to_uint8(self.decode(row, height, width)))

    def decode(self, packed: Tensor, height: int, width: int) -> Tensor:
        """Packed latents (batch, tokens, 64) of a size in pixels -> (batch, 3, h, w) around [-1, 1]."""
        latents = unpack(packed, height, width) / self._config.scaling_factor + self._config.shift_factor
        latents = latents.contiguous(memory_format=self._layout)
        if self._is_compiled:  # or the first square picture would make a graph for squares
            torch._dynamo.mark_dynamic(latents, (2, 3))
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self._is_autocast):
            if self._tile and max(latents.shape[-2:]) > self._tile:
                return decoded_in_tiles(self._decoded, latents, self._tile)
            return self._decoded(latents)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self._network(latents, return_dict=False)[0]


def agrees(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """NaN never agrees."""
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    return bool(error <= tolerance)
