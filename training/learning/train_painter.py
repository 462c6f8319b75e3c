"""Teaches the painter by flow matching: from noise, a prompt and a face to the drawing's latents.

Learns the transformer, the identity attentions and both text models; the id encoder is as `train_identity`
left it. Times are logit-normal. Some lessons have no identity, some that of nobody (what the negative
branch of true CFG sees), so that a picture without a face is of anybody. The guidance number means contrast.
Texts are mostly short and sometimes padded to the length that the server uses. What is kept is a moving
average of the weights.

Of large pictures windows are shown, at their true places, besides whole ones: what belongs at a place follows
from the face and the prompt, so a part can be learned without the rest, and many faces fit into a batch. The
larger the picture, the later noise hides what it will be: times lean towards noise as the sampler's do. And
more of them are early ones than it takes: there the person is decided, which is what is learned last.

Run: python -m training.learning.train_painter --sizes 128x128 --steps 8000 --until 3000
     python -m training.learning.train_painter --sizes 256x256,256x320,512x640,896x1152 --steps 8000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pulid.flux import latents as flux_latents
from pulid.flux import sampling
from pulid.flux.transformer import IdentityFlux
from pulid.identity.attention import IdentityAttention
from pulid.tiny_model import TOKENS_ACROSS
from training.learning.checkpoints import Checkpoint, Stateful
from training.learning.lessons import TEXT_LENGTH
from training.learning.networks import Student, new_student
from training.learning.patch_code import PatchCode
from training.learning.plain_attention import PlainAttention
from training.learning.pool import Pool
from training.learning.vision import VisionBank
from training.runs import IDENTITY, PAINTER, PATCH_CODE, size_of

SERVED_TEXT_LENGTH = 128
_LONG_TEXTS = 0.15  # share of batches
_NO_IDENTITY = 0.10
_NOBODY = 0.06
_MIDDLE_GUIDANCE = 4.0
_CONTRAST = 0.08  # for each unit of guidance
_GUIDED_AS_USUAL = 0.5
_TIME_MEAN, _TIME_SPREAD = 0.1, 1.1  # the mean beside the sampler's lean for the size
_EARLY, _EARLY_FROM = 0.35, 0.8  # share of lessons that are nearly noise, where only the face tells who it is
_AVERAGE = 0.999
_SMALL = 400  # image tokens; smaller pictures are always shown whole
_WINDOWS = (12, 24, math.inf)  # tokens across, of larger pictures; one is as likely as another
_WARM_UP = 200


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (n, image tokens, 64)
    image_ids: Tensor  # (image tokens, 3)
    id_tokens: Tensor  # (n, id tokens, width)
    has_identity: Tensor  # (n, 1, 1), 0 or 1
    t5_ids: Tensor  # (n, text tokens)
    clip_ids: Tensor
    guidance: Tensor  # (n,)
    lean: float  # of the times towards noise


class Identities:
    """What the block loop adds to the image tokens, for rows with and without an identity."""

    def __init__(self, attentions: Sequence[IdentityAttention], tokens: Tensor, present: Tensor) -> None:
        self._attentions, self._tokens, self._present = attentions, tokens, present

    def residual(self, index: int, image: Tensor) -> Tensor:
        return self._present * self._attentions[index](self._tokens, image)


class Painter(nn.Module):
    """Everything that learns."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.transformer = student.networks.transformer
        self.identity_attentions = student.networks.identity_attentions
        self.t5, self.clip = student.t5, student.clip
        self.requires_grad_(True)

    def velocity(self, noisy: Tensor, times: Tensor, batch: Batch) -> Tensor:
        flux = IdentityFlux(self.transformer)
        return flux(
            noisy,
            text=self.t5(input_ids=batch.t5_ids).last_hidden_state,
            pooled=self.clip(input_ids=batch.clip_ids).pooler_output,
            timestep=times,
            guidance=batch.guidance,
            rotary=flux.rotary(flux_latents.text_ids(batch.t5_ids.shape[1], noisy.device), batch.image_ids),
            identity=Identities(list(self.identity_attentions), batch.id_tokens, batch.has_identity),  # type: ignore[arg-type]
        )


class Lessons:
    """Batches from the pools, each of one size, with everything that is drawn anew each time."""

    def __init__(
        self, sizes: Sequence[str], pools: Mapping[str, Pool], student: Student, device: torch.device
    ) -> None:
        self._sizes, self._pools = sizes, pools
        self._idformer = student.networks.idformer.to(device).requires_grad_(False)
        self._bank = VisionBank.of(student.networks.eva_clip).to(device)
        self._gray = PatchCode.load(PATCH_CODE).to(device).gray[:, None, None]
        self._device = device

    @torch.no_grad()
    def batch(self, tokens: int) -> Batch:
        """As many lessons as have so many image tokens together."""
        size = self._sizes[int(torch.randint(len(self._sizes), ()))]
        pool, device = self._pools[size], self._device
        window = Window.somewhere(*size_of(size))
        count = max(1, round(tokens / (window.rows * window.columns)))
        chosen = torch.randint(len(pool), (count,))
        guidance = self._guidance(count)
        contrast = (1 + _CONTRAST * (guidance - _MIDDLE_GUIDANCE))[:, None, None, None]
        latents = window.of(pool.latents[chosen]).to(device).float()
        latents = self._gray + contrast * (latents - self._gray)
        id_tokens = self._idformer(*self._bank.beside(pool.faces[chosen].to(device)))
        nobody = torch.rand(count, 1, 1, device=device) < _NOBODY
        id_tokens = torch.where(nobody, self._nobody_tokens(), id_tokens)
        length = SERVED_TEXT_LENGTH if torch.rand(()) < _LONG_TEXTS else TEXT_LENGTH
        t5_ids = torch.zeros(count, length, dtype=torch.long, device=device)  # 0 is padding
        t5_ids[:, :TEXT_LENGTH] = pool.t5_ids[chosen].to(device)
        return Batch(
            latents=flux_latents.pack(latents),
            image_ids=window.image_ids(device),
            id_tokens=id_tokens,
            has_identity=(torch.rand(count, 1, 1, device=device) >= _NO_IDENTITY).float(),
            t5_ids=t5_ids,
            clip_ids=pool.clip_ids[chosen].to(device).long(),
            guidance=guidance,
            lean=sampling.shift_strength(window.tokens_of_picture),
        )

    def _guidance(self, count: int) -> Tensor:
        usual = torch.rand(count, device=self._device) < _GUIDED_AS_USUAL
        return torch.where(usual, _MIDDLE_GUIDANCE, 1 + 9 * torch.rand(count, device=self._device))

    def _nobody_tokens(self) -> Tensor:
        """As `IdentityEncoder.unconditional` makes them: of zeros."""
        states = torch.zeros_like(self._bank.hidden_states[:, :1])
        return self._idformer(torch.zeros(1, self._idformer.id_dim, device=self._device), list(states))


@dataclass(frozen=True)
class Window:
    """A part of a picture, in image tokens; the whole picture where that is small."""

    width: int  # of the picture, in pixels
    height: int
    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def somewhere(cls, width: int, height: int) -> Window:
        rows, columns = flux_latents.token_grid(height, width)
        most = _WINDOWS[int(torch.randint(len(_WINDOWS), ()))] if rows * columns > _SMALL else math.inf
        tall, wide = int(min(rows, most)), int(min(columns, most))
        top, left = int(torch.randint(rows - tall + 1, ())), int(torch.randint(columns - wide + 1, ()))
        return cls(width, height, top, left, tall, wide)

    @property
    def tokens_of_picture(self) -> int:
        return math.prod(flux_latents.token_grid(self.height, self.width))

    def of(self, latents: Tensor) -> Tensor:
        """(n, c, 2 rows, 2 columns) of the whole picture -> of the window."""
        top, left = 2 * self.top, 2 * self.left
        return latents[:, :, top : top + 2 * self.rows, left : left + 2 * self.columns]

    def image_ids(self, device: torch.device) -> Tensor:
        """(tokens, 3), as they are in the whole picture."""
        whole = flux_latents.image_ids(self.height, self.width, device, tokens_across=TOKENS_ACROSS)
        grid = whole.unflatten(0, flux_latents.token_grid(self.height, self.width))
        return grid[self.top : self.top + self.rows, self.left : self.left + self.columns].flatten(0, 1)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--sizes", default="128x128", help="width x height; a batch is of one of them")
    arguments.add_argument("--tokens", type=int, default=6144, help="image tokens of a batch")
    arguments.add_argument("--steps", type=int, default=8000, help="in all, with those of earlier calls")
    arguments.add_argument("--until", type=int, help="stop at this step, before the rates have come down")
    arguments.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    arguments.add_argument(
        "--minutes", type=float, default=600.0, help="stop after these; run again to go on"
    )
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args(argv)
    student = new_student()
    load_idformer(student)
    sizes = given.sizes.split(",")
    pools = {size: Pool.load(size) for size in set(sizes)}
    lessons = Lessons(sizes, pools, student, torch.device(given.device))
    train(student, lessons, given)


def load_idformer(student: Student) -> None:
    stored = torch.load(IDENTITY, weights_only=True)["model"]
    idformer = {
        name.removeprefix("idformer."): value for name, value in stored.items() if "idformer." in name
    }
    student.networks.idformer.load_state_dict(idformer)


def train(student: Student, lessons: Lessons, given: argparse.Namespace) -> None:
    device = torch.device(given.device)
    painter = Painter(student).to(device)
    average = torch.optim.swa_utils.AveragedModel(painter, avg_fn=_averaged)
    optimisers = _optimisers(painter, given.rate)
    parts: dict[str, Stateful] = {
        "model": painter,
        "average": average,
        "muon": optimisers[0],
        "adam": optimisers[1],
    }
    checkpoint = Checkpoint(PAINTER, parts, given.minutes)
    rates = [
        [group["lr"] for group in optimiser.param_groups] for optimiser in _optimisers(painter, given.rate)
    ]
    for step in checkpoint.steps(given.until or given.steps, f"painter {given.sizes}"):
        factor = _rate_factor(step, given.steps)
        for optimiser, usual in zip(optimisers, rates, strict=True):
            for group, rate in zip(optimiser.param_groups, usual, strict=True):
                group["lr"] = rate * factor
        loss = _loss(painter, lessons.batch(given.tokens))
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        average.update_parameters(painter)
        checkpoint.note(loss=loss)


def _loss(painter: Painter, batch: Batch) -> Tensor:
    noise = torch.randn_like(batch.latents)
    times = _times(len(noise), batch.lean).to(noise.device)
    t = times[:, None, None]
    plain = PlainAttention() if noise.device.type == "cpu" else nullcontext()
    with plain, torch.autocast(noise.device.type, torch.bfloat16):
        velocity = painter.velocity((1 - t) * batch.latents + t * noise, times, batch)
    return (velocity.float() - (noise - batch.latents)).square().mean()


def _times(count: int, lean: float) -> Tensor:
    """(count,) in (0, 1): logit-normal, and some among the sampler's first."""
    usual = torch.sigmoid(lean + _TIME_MEAN + _TIME_SPREAD * torch.randn(count))
    early = 1 - (1 - _EARLY_FROM) * torch.rand(count)
    return torch.where(torch.rand(count) < _EARLY, early, usual)


def _averaged(average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
    """An exponential moving average that soon forgets how it began."""
    share = torch.as_tensor((1 + count) / (10 + count)).clamp(max=_AVERAGE)
    return torch.lerp(now, average, share.to(now))


def _rate_factor(step: int, steps: int) -> float:
    """Up over the first steps, level, and down to a twentieth over the last third."""
    down = max(0.0, (step / steps - 2 / 3) * 3)
    return min(1.0, (step + 1) / _WARM_UP) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * down)))


def _optimisers(painter: Painter, rate: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, Adam for all else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in painter.named_parameters():
        inside = "blocks." in name or name.startswith("identity_attentions.")
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=1e-3 * rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3 * rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


if __name__ == "__main__":
    main()
