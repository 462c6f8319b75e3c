"""What an engine computes before its first request: a little of each kind, with random numbers.

So compilers have done their work and libraries have started before anybody waits for them. Random and
never zeros: on those a chip is faster than it is, and a wrong result looks right. The numbers come from
a generator of their own.

Knows which kinds of requests differ in the shapes of a step. Does not know how a step is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from pulid.engine import GenerationRequest, Person
from pulid.flux.kernels.samples import Draw
from pulid.flux.text import TextFeatures
from pulid.identity.people import Identity

Asked = Sequence[tuple[GenerationRequest, int]]  # by how many photos it sees somebody

# In tokens no two sizes, and no width of a network, are the same number: a compiler would take them for
# one and the same. So it is 160 tokens of text, for which no caller can ask.
SMALL = GenerationRequest(prompt="", seed=0, num_steps=1, width=272, height=304, max_sequence_length=160)
TYPICAL = replace(SMALL, width=896, height=1152)


def for_compilers(*, typical: bool) -> Asked:
    """All that differs to a compiler, which tunes for the sizes that it sees first: typical or small ones."""
    size = TYPICAL if typical else SMALL
    return tuple((request, photos) for photos in (0, 1) for request in _kinds(size))


def _kinds(request: GenerationRequest) -> Iterator[GenerationRequest]:
    """One row; several that see the same person; two, and more, that see two people in equal runs."""
    for num_outputs, true_cfg in ((1, 1.0), (2, 1.0), (1, 2.0), (2, 2.0)):
        yield replace(request, num_outputs=num_outputs, true_cfg=true_cfg)


FOR_LIBRARIES: Asked = tuple((request, photos) for photos in (0, 1) for request in _kinds(SMALL))


class RandomConditions:
    """In place of what prompts and photos become."""

    def __init__(
        self, *, text_width: int, pooled_width: int, identity_shape: tuple[int, int], draw: Draw
    ) -> None:
        """`identity_shape`: how many tokens a photo gives, and their width."""
        self._text_width = text_width
        self._pooled_width = pooled_width
        self._identity_tokens, self._identity_width = identity_shape
        self._draw = draw

    def text(self, request: GenerationRequest) -> TextFeatures:
        return TextFeatures(
            tokens=self._draw(1, request.max_sequence_length, self._text_width),
            pooled=self._draw(1, self._pooled_width),
        )

    def people(self, photos: int) -> tuple[tuple[Person, Identity], ...]:
        """Somebody, everywhere and from the first step; nobody where there are no photos."""
        return ((Person(), Identity(self._tokens(photos), None)),) if photos else ()

    def nobody(self) -> Tensor:
        """Identity tokens for the negative branch."""
        return self._tokens(1)

    def _tokens(self, photos: int) -> Tensor:
        return self._draw(1, photos * self._identity_tokens, self._identity_width)
