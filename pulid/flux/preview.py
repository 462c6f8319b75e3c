"""A small picture of latents without the decoder: each latent cell, projected linearly to a colour.

For FLUX's autoencoder the projection is the one that InvokeAI publishes (Apache-2.0,
invokeai/app/util/step_callback.py, FLUX_LATENT_RGB_FACTORS). For an autoencoder of another size, as
the tiny profile has, it is fitted once to that decoder, on seeded latents; there a cell's neighbours
count too, because random convolutions spread what trained ones keep in place.

Given the latents that a step predicts for the end, the picture sharpens from step to step. Does not
know: who watches, and when.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from functools import cached_property
from io import BytesIO

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from pulid.flux import latents
from pulid.flux.decoder import Decoder

MAX_EDGE = 256  # pixels
JPEG_QUALITY = 80

_FLUX_CHANNELS = (128, 256, 512, 512)  # `block_out_channels` of the autoencoder that the factors are for
FLUX_RGB_FACTORS = (  # latent channel -> red, green, blue around [-1, 1]
    (-0.0412, 0.0149, 0.0521),
    (0.0056, 0.0291, 0.0768),
    (0.0342, -0.0681, -0.0427),
    (-0.0258, 0.0092, 0.0463),
    (0.0863, 0.0784, 0.0547),
    (-0.0017, 0.0402, 0.0158),
    (0.0501, 0.1058, 0.1152),
    (-0.0209, -0.0218, -0.0329),
    (-0.0314, 0.0083, 0.0896),
    (0.0851, 0.0665, -0.0472),
    (-0.0534, 0.0238, -0.0024),
    (0.0452, -0.0026, 0.0048),
    (0.0892, 0.0831, 0.0881),
    (-0.1117, -0.0304, -0.0789),
    (0.0027, -0.0479, -0.0043),
    (-0.1146, -0.0827, -0.0598),
)

Projection = tuple[Tensor, Tensor]  # kernel (3, latent channels, k, k) and offset (3,)

_FIT_SEED = 1
_FIT_EDGE = 256  # pixels: 1024 latent cells for 145 unknowns a colour
_FIT_KERNEL = 3


class LatentPreview:
    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def jpeg(self, packed: Tensor, height: int, width: int) -> bytes:
        """Packed latents (1, tokens, 64) of a size in pixels -> a JPEG, its long edge at most MAX_EDGE."""
        kernel, offset = self._projection
        rgb = F.conv2d(latents.unpack(packed, height, width), kernel, offset, padding="same")
        picture = Image.fromarray(latents.to_uint8(rgb)[0])
        picture.thumbnail((MAX_EDGE, MAX_EDGE))
        file = BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")  # a pixel is a cell
        return file.getvalue()

    @cached_property
    def _projection(self) -> Projection:
        """On the autoencoder's device. Made at the first preview."""
        if tuple(self._vae.config.block_out_channels) == _FLUX_CHANNELS:
            kernel = torch.tensor(FLUX_RGB_FACTORS, device=self._vae.device).T[:, :, None, None]
            return kernel, kernel.new_zeros(3)
        return fitted_projection(self._vae)


@torch.inference_mode()
def fitted_projection(vae: AutoencoderKL) -> Projection:
    """The least-squares projection of latent cells to the mean colours that `vae` decodes them to."""
    channels = vae.config.latent_channels
    noise = latents.draw_noise(
        _FIT_SEED, _FIT_EDGE, _FIT_EDGE, channels=channels, dtype=torch.float32, device=torch.device("cpu")
    ).to(vae.device)
    decoded = Decoder(vae, torch.float32).decode(latents.pack(noise), _FIT_EDGE, _FIT_EDGE)
    colours = F.avg_pool2d(decoded.clamp(-1, 1), 8).flatten(2)[0].T  # (cells, 3)
    around = F.unfold(noise, _FIT_KERNEL, padding=_FIT_KERNEL // 2)[0].T  # (cells, channels * k * k)
    with_one = torch.cat((around, around.new_ones(len(around), 1)), dim=1)
    solution = torch.linalg.lstsq(with_one, colours).solution
    return solution[:-1].T.unflatten(1, (channels, _FIT_KERNEL, _FIT_KERNEL)), solution[-1]
