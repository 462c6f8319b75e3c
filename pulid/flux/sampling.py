"""The mathematics of FLUX sampling with true CFG. Small functions; no loop, no state, no model.

Source: docs/spec/PULID_SPEC.md, section 7, which gives the reference's numbers.
"""

import math

import torch
from torch import Tensor

TRUE_CFG_OFF = 0.01  # a scale this close to 1 does not guide


def shift_strength(image_tokens: int) -> float:
    """How far the timesteps lean towards noise (mu): 0.5 at 256 tokens, 1.15 at 4096, a line beyond both."""
    return 0.5 + (1.15 - 0.5) / (4096 - 256) * (image_tokens - 256)


def timesteps(num_steps: int, image_tokens: int) -> list[float]:
    """num_steps + 1 times from 1 (noise) to 0 (picture), in float32 as in the reference."""
    strength = math.exp(shift_strength(image_tokens))
    even = torch.linspace(1, 0, num_steps + 1)
    shifted = strength / (strength + (1 / even - 1))  # 1/0 = inf is meant: the last time is 0
    return shifted.tolist()


def true_cfg_is_on(true_cfg: float) -> bool:
    """Whether a second forward pass with the negative prompt is made. 1.009 is off, 0.5 is on."""
    return abs(true_cfg - 1.0) > TRUE_CFG_OFF


def guide(velocity: Tensor, negative: Tensor, true_cfg: Tensor | float) -> Tensor:
    """Classifier-free guidance of a velocity by that of the negative prompt."""
    return negative + true_cfg * (velocity - negative)


def euler_step(latents: Tensor, velocity: Tensor, t_now: float, t_next: float) -> Tensor:
    return latents + (t_next - t_now) * velocity
