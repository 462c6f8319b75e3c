"""Pictures by the painter as it stands, many at a time, to be looked at or measured.

The sampler, the folding of branches and the times are the server's (`pulid.flux.sampling`). Embeddings come
in as they are: no photo is needed, and none is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pulid.flux import latents as flux_latents
from pulid.flux import sampling
from pulid.flux.transformer import IdentityFlux
from pulid.tiny_model import TOKENS_ACROSS
from training.learning.lessons import Tokenizers
from training.learning.networks import Student, new_student
from training.learning.train_painter import SERVED_TEXT_LENGTH, Identities, Painter, load_idformer
from training.learning.vision import VisionBank
from training.learning.words import tokenizer
from training.runs import DECODER, PAINTER

Pictures = npt.NDArray[np.uint8]  # (n, h, w, 3)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for; the same for every face of a batch but for the seed."""

    prompt: str = "portrait, flat"
    negative: str = "bad quality, worst quality, text, signature, watermark"
    width: int = 256
    height: int = 256
    steps: int = 20
    guidance: float = 4.0
    id_weight: float = 1.0
    start_step: int = 0
    true_cfg: float = 1.0
    seed: int = 0


@dataclass
class Studio:
    """The trained networks, ready to paint."""

    student: Student
    bank: VisionBank
    words: Tokenizers = field(default_factory=lambda: Tokenizers(tokenizer()))

    @classmethod
    def of_this_run(cls) -> Studio:
        """The moving average of the painter's weights, and the decoder. Raises FileNotFoundError."""
        student = new_student()
        load_idformer(student)
        average = torch.load(PAINTER, weights_only=True)["average"]
        state = {
            name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"
        }
        Painter(student).requires_grad_(False).load_state_dict(state)
        student.networks.autoencoder.decoder.load_state_dict(torch.load(DECODER, weights_only=True)["model"])
        return cls(student, VisionBank.of(student.networks.eva_clip))

    @torch.inference_mode()
    def paint(self, faces: npt.NDArray[np.float32], wish: Wish) -> Pictures:
        """A picture for each raw ArcFace vector (n, 512); seeds count up from the wish's."""
        return self.decode(self.latents(faces, wish), wish)

    @torch.inference_mode()
    def latents(self, faces: npt.NDArray[np.float32], wish: Wish) -> Tensor:
        count = len(faces)
        seeds = range(wish.seed, wish.seed + count)
        x = flux_latents.pack(torch.cat([_noise(seed, wish) for seed in seeds]))
        rows, columns = flux_latents.token_grid(wish.height, wish.width)
        times = sampling.timesteps(wish.steps, rows * columns)
        tokens = self._id_tokens(torch.from_numpy(faces))
        for step, (now, then) in enumerate(pairwise(times)):
            weight = wish.id_weight if step >= wish.start_step else 0.0
            velocity = self._velocity(x, now, wish.prompt, tokens, weight, wish)
            if sampling.true_cfg_is_on(wish.true_cfg) and step >= wish.start_step:
                nobody = self._nobody().expand_as(tokens)
                against = self._velocity(x, now, wish.negative, nobody, weight, wish)
                velocity = sampling.guide(velocity, against, wish.true_cfg)
            x = sampling.euler_step(x, velocity, now, then)
        return x

    @torch.inference_mode()
    def decode(self, packed: Tensor, wish: Wish) -> Pictures:
        vae = self.student.networks.autoencoder
        codes = flux_latents.unpack(packed, wish.height, wish.width)
        decoded = torch.cat([vae.decode(code[None]).sample for code in codes])
        return np.stack(flux_latents.to_uint8(decoded))[:, : wish.height, : wish.width]

    def _velocity(
        self, x: Tensor, time: float, prompt: str, tokens: Tensor, weight: float, wish: Wish
    ) -> Tensor:
        networks, count = self.student.networks, len(x)
        flux = IdentityFlux(networks.transformer)
        t5_ids = torch.tensor([self.words.t5(prompt, SERVED_TEXT_LENGTH)])
        clip_ids = torch.tensor([self.words.clip(prompt)])
        rotary = flux.rotary(
            flux_latents.text_ids(SERVED_TEXT_LENGTH, x.device),
            flux_latents.image_ids(wish.height, wish.width, x.device, tokens_across=TOKENS_ACROSS),
        )
        weights = torch.full((count, 1, 1), weight)
        attentions = list(networks.identity_attentions)
        return flux(
            x,
            text=self.student.t5(input_ids=t5_ids).last_hidden_state.expand(count, -1, -1),
            pooled=self.student.clip(input_ids=clip_ids).pooler_output.expand(count, -1),
            timestep=torch.full((count,), time),
            guidance=torch.full((count,), wish.guidance),
            rotary=rotary,
            identity=Identities(attentions, tokens, weights) if weight else None,  # type: ignore[arg-type]
        )

    def _id_tokens(self, faces: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.student.networks.idformer(*self.bank.beside(faces))

    def _nobody(self) -> Tensor:
        idformer = self.student.networks.idformer
        states = torch.zeros_like(self.bank.hidden_states[:, :1])
        return idformer(torch.zeros(1, idformer.id_dim), list(states))


def _noise(seed: int, wish: Wish) -> Tensor:
    return flux_latents.draw_noise(
        seed, wish.height, wish.width, channels=16, dtype=torch.float32, device=torch.device("cpu")
    )


def sheet(rows: Sequence[Pictures], gap: int = 4) -> Pictures:
    """Rows of pictures of one size on white."""
    tall, wide = rows[0].shape[1:3]
    columns = max(map(len, rows))
    found = np.full((len(rows) * (tall + gap) - gap, columns * (wide + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            found[r * (tall + gap) :, c * (wide + gap) :][:tall, :wide] = picture
    return found
