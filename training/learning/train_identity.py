"""Teaches the id encoder to say who is drawn: an avatar's traits from the mean of its identity tokens.

A painter could teach it too, but slowly, through noise. Here the traits themselves are the target, read by
one linear layer that is thrown away afterwards; what a linear layer can read, an identity attention can.

Run: python -m training.learning.train_identity   (about 4 minutes on two CPU cores; resumes)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pulid.identity.attention import LAYER_NORM_EPS
from pulid.tiny_model import ID_TOKEN_WIDTH
from training.drawing.avatar import TRAITS
from training.learning.checkpoints import Checkpoint
from training.learning.networks import Student, new_student
from training.learning.vision import VisionBank
from training.people.identity_map import traits
from training.people.population import people, raw
from training.runs import IDENTITY

_BATCH = 128
_PEAK_RATE = 3e-3
_HELD_OUT_SEED = 0


class TraitReader(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(TRAITS))

    def forward(self, id_tokens: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, traits), squashed as the identity map squashes."""
        seen = F.layer_norm(id_tokens, id_tokens.shape[-1:], eps=LAYER_NORM_EPS).mean(1)
        return torch.erf(self.linear(seen))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=1000)
    arguments.add_argument("--minutes", type=float, default=60.0, help="stop after these; run again to go on")
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args(argv)
    train(new_student(), given.steps, given.minutes, torch.device(given.device))


def train(student: Student, steps: int, minutes: float, device: torch.device) -> float:
    """Returns the share of the traits' variance that is not read, on people held out."""
    idformer = student.networks.idformer.to(device).requires_grad_(True)
    bank = VisionBank.of(student.networks.eva_clip).to(device)
    reader = TraitReader(ID_TOKEN_WIDTH).to(device)
    parts = nn.ModuleDict({"idformer": idformer, "reader": reader})
    optimiser = torch.optim.AdamW(parts.parameters(), _PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=steps, pct_start=0.05)
    checkpoint = Checkpoint(IDENTITY, {"model": parts, "optimiser": optimiser, "schedule": schedule}, minutes)
    for step in checkpoint.steps(steps, "id encoder"):
        faces, wanted = _batch(step, device)
        loss = F.mse_loss(reader(idformer(*bank.beside(faces))), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        checkpoint.note(loss=loss)
    return _unread(idformer, reader, bank, device)


@torch.no_grad()
def _unread(idformer: nn.Module, reader: TraitReader, bank: VisionBank, device: torch.device) -> float:
    faces, wanted = _batch(_HELD_OUT_SEED - 1, device)
    error = F.mse_loss(reader(idformer(*bank.beside(faces))), wanted)
    share = float(error / wanted.var())
    print(f"of the traits' variance is not read: {share:.4f}")
    return share


def _batch(step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(1_000_000 + step)
    embeddings = people(_BATCH, random)
    faces = torch.from_numpy(raw(embeddings, random))
    return faces.to(device), torch.from_numpy(traits(embeddings)).float().to(device)


if __name__ == "__main__":
    main()
