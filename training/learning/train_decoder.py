"""Teaches the autoencoder's decoder to turn patch codes back into drawings, better than the linear way.

Shown are crops of drawings of many sizes, since a decoder that has seen one size only is soft at others. The
codes get a little noise, as those that a painter makes are not quite right. The encoder half is not taught:
the server decodes only, and the patch code is the encoder.

Run: python -m training.learning.train_decoder     (draws its crops first; resumes)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor

from training.learning.checkpoints import Checkpoint
from training.learning.lessons import Tokenizers, draw_lessons
from training.learning.networks import new_student
from training.learning.patch_code import PatchCode, as_tensor
from training.learning.words import tokenizer
from training.runs import CROPS, DECODER, PATCH_CODE

SIDES = (128, 192, 256, 256, 384, 512, 512, 768, 1024)  # of the drawings that crops are taken from
CROP = 96
_DRAWINGS_IN_A_FILE = 100
_CROPS_OF_A_DRAWING = 8
_FIRST_LESSON = 800_000_000
_HELD_OUT = 890_000_000
_NOISE = 0.06
_PEAK_RATE = 2e-3


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=12_000)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument(
        "--minutes", type=float, default=600.0, help="stop after these; run again to go on"
    )
    arguments.add_argument(
        "--files", type=int, default=45, help=f"of crops, {_DRAWINGS_IN_A_FILE} drawings each"
    )
    arguments.add_argument("--judged-by", type=int, default=20, help="drawings held out, for the PSNR")
    arguments.add_argument("--processes", type=int, default=os.cpu_count())
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args(argv)
    draw_crops(given.files, given.processes)
    crops = torch.from_numpy(np.concatenate([np.load(file) for file in sorted(CROPS.glob("*.npy"))]))
    vae = new_student().networks.autoencoder
    train(vae, crops, given.steps, given.batch, given.minutes, torch.device(given.device))
    for side in (256, 512):
        print(f"{side} px: {peak_signal_to_noise(vae, side, given.judged_by):.1f} dB")


def draw_crops(files: int, processes: int) -> None:
    CROPS.mkdir(parents=True, exist_ok=True)
    wanted = [number for number in range(files) if not (CROPS / f"{number:04d}.npy").exists()]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as workers:
        for _ in track(workers.map(_draw_file, wanted), total=len(wanted), description="drawing crops"):
            pass


def _draw_file(number: int) -> None:
    side = SIDES[number % len(SIDES)]
    words = Tokenizers(tokenizer())
    random = np.random.default_rng(number)
    drawn = draw_lessons(
        _FIRST_LESSON + number * _DRAWINGS_IN_A_FILE, _DRAWINGS_IN_A_FILE, side, side, words
    ).pictures
    unfinished = CROPS / f"{number:04d}.part"
    with unfinished.open("wb") as file:
        np.save(
            file, np.stack([_crop(picture, random) for picture in drawn for _ in range(_CROPS_OF_A_DRAWING)])
        )
    unfinished.replace(CROPS / f"{number:04d}.npy")


def _crop(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Anywhere: the code's grid of patches is laid from the crop's own corner."""
    y, x = random.integers(0, picture.shape[0] - CROP + 1, 2)
    return picture[y : y + CROP, x : x + CROP]


def train(
    vae: AutoencoderKL, crops: Tensor, steps: int, batch: int, minutes: float, device: torch.device
) -> None:
    code = PatchCode.load(PATCH_CODE).to(device)
    decoder = vae.decoder.to(device).requires_grad_(True)
    optimiser = torch.optim.AdamW(decoder.parameters(), _PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=steps, pct_start=0.03)
    parts = {"model": decoder, "optimiser": optimiser, "schedule": schedule}
    checkpoint = Checkpoint(DECODER, parts, minutes)
    for _ in checkpoint.steps(steps, "decoder"):
        pictures = as_tensor(crops[torch.randint(len(crops), (batch,))].numpy()).to(device)
        codes = code.encode(pictures)
        codes = codes + _NOISE * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(codes)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = decoder(codes)
        loss = F.mse_loss(decoded.float(), pictures)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        checkpoint.note(loss=loss, decibel=10 * torch.log10(4 / loss.detach()))


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderKL, side: int, count: int = 20) -> float:
    """Mean over drawings that training has not seen, coded and decoded whole, in dB."""
    pictures = as_tensor(draw_lessons(_HELD_OUT + side, count, side, side, Tokenizers(tokenizer())).pictures)
    device = next(vae.decoder.parameters()).device
    codes = PatchCode.load(PATCH_CODE).encode(pictures).to(device)
    decoded = torch.cat([vae.decode(one[None]).sample.clamp(-1, 1).cpu() for one in codes])
    return float((10 * (4 / (decoded - pictures).square().mean((1, 2, 3))).log10()).mean())


if __name__ == "__main__":
    main()
