"""The people of one picture: what is known of each, and what they add to the image tokens together.

Several photos of one person become one identity (`fuse`). Each identity has a place on the canvas and
a run of steps (`PlacedIdentity`); where several are seen, or one in a region only, the block loop gets
their sum (`GroupIdentity`). Outside a region the sum is exactly zero.

Does not know: photos and files (`reader`), how one residual is computed (`attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pulid.engine import FaceEmbedding, Fusion, Person
from pulid.identity.attention import PreparedIdentity
from pulid.identity.likeness import mean_face
from pulid.identity.region import token_weights


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """What is known of one person."""

    tokens: Tensor  # (1, n, 2048); n is 32, or 32 for each photo where they stand side by side
    face_embedding: FaceEmbedding | None  # of length 1; None where an identity file did not carry it


def fuse(identities: Sequence[Identity], fusion: Fusion) -> Identity:
    """One person out of several photos of them. One photo stays what it is.

    The mean is taken in float64, so that copies of one photo have that photo's tokens, bit for bit.
    """
    if len(identities) == 1:
        return identities[0]
    tokens = torch.cat([identity.tokens for identity in identities])  # (photos, n, 2048)
    if fusion == "concat":
        fused = tokens.flatten(0, 1)[None]
    else:
        fused = tokens.double().mean(dim=0, keepdim=True).to(tokens.dtype)
    faces = [identity.face_embedding for identity in identities if identity.face_embedding is not None]
    return Identity(fused, mean_face(faces))


def like_nobody(unconditional: Tensor, tokens: Tensor) -> Tensor:
    """The tokens of nobody, as many as a person has. Attention to copies is attention to one of them."""
    return unconditional.repeat(1, tokens.shape[1] // unconditional.shape[1], 1)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedIdentity:
    """One person of a picture, ready for the block loop."""

    prepared: PreparedIdentity
    region: Tensor | None  # (1, tokens, 1) from 0 to 1; None: everywhere
    steps: range  # that see them

    def residual(self, index: int, image: Tensor) -> Tensor:
        residual = self.prepared.residual(index, image)
        return residual if self.region is None else self.region * residual


def place(
    people: Sequence[tuple[Person, Tensor]],
    fold: Callable[[Tensor, float], PreparedIdentity],
    *,
    grid: tuple[int, int],
    num_steps: int,
) -> tuple[PlacedIdentity, ...]:
    """Those of the people (with their tokens) who add something to a picture of `grid` tokens."""
    return tuple(
        PlacedIdentity(fold(tokens, person.weight), _region(person, grid, tokens), steps)
        for person, tokens in people
        if (steps := steps_of(person, num_steps))
    )


def steps_of(person: Person, num_steps: int) -> range:
    """The steps (0-based) that see a person; empty for one of weight 0."""
    end = num_steps if person.end_step is None else min(person.end_step, num_steps)
    return range(person.start_step, end) if person.weight else range(0)


def _region(person: Person, grid: tuple[int, int], like: Tensor) -> Tensor | None:
    if person.region is None:
        return None
    return torch.from_numpy(token_weights(person.region, *grid))[None, :, None].to(like)


@dataclass(frozen=True, slots=True, eq=False)
class GroupIdentity:
    """People who are seen in one step, each in their region, as one identity for the block loop."""

    members: tuple[PlacedIdentity, ...]

    def residual(self, index: int, image: Tensor) -> Tensor:
        first, *others = (member.residual(index, image) for member in self.members)
        return sum(others, start=first)

    def silent(self) -> GroupIdentity:
        return GroupIdentity(tuple(replace(m, prepared=m.prepared.silent()) for m in self.members))

    def beside(self, others: Sequence[GroupIdentity]) -> GroupIdentity:
        """Side by side: groups of the same places, such as a group and its negative twin."""
        same_places = zip(self.members, *(other.members for other in others), strict=True)
        return GroupIdentity(
            tuple(
                replace(member, prepared=member.prepared.beside([twin.prepared for twin in twins]))
                for member, *twins in same_places
            )
        )


def acting(people: Sequence[PlacedIdentity], step: int) -> tuple[PlacedIdentity, ...]:
    """Who adds something to the picture in a step."""
    return tuple(person for person in people if step in person.steps)


def seen_together(people: Sequence[PlacedIdentity], step: int) -> PreparedIdentity | None:
    """What the block loop gets in a step: nothing, one person as they are, or a sum."""
    seen = acting(people, step)
    if not seen:
        return None
    if len(seen) == 1 and seen[0].region is None:
        return seen[0].prepared
    return GroupIdentity(seen)
