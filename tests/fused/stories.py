"""Requests that come, stay and go beside each other, and what their latents are after every step.

Real networks, on any device; no photos, no prompts.
"""

import torch
from diffusers import FluxTransformer2DModel

from pulid.batch import Batch, Branch, Flight
from pulid.engine import GenerationRequest
from pulid.flux import latents, sampling
from pulid.flux.fused import FusedFlux
from pulid.flux.text import TextFeatures
from pulid.flux.transformer import IdentityFlux
from pulid.identity.attention import FoldedIdentity, IdentityAttention
from pulid.identity.people import PlacedIdentity
from pulid.pipeline import denoise_step

ID_TOKENS = 4
SMALLEST = {
    "num_layers": 2,
    "num_single_layers": 5,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "axes_dims_rope": (2, 2, 4),
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "guidance_embeds": True,
}


def smallest_model():
    """A transformer that walks hundreds of steps a second, and its identity attentions."""
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(7)
        flux = IdentityFlux(FluxTransformer2DModel(**SMALLEST).requires_grad_(False).eval())
        attentions = [
            IdentityAttention(dim=16, dim_head=8, heads=2, kv_dim=16).requires_grad_(False)
            for _ in range(flux.attention_count)
        ]
    return flux, attentions


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def folded(modules, person, form=FoldedIdentity):
    weight = modules[0].to_kv.weight
    tokens = drawn(1000 + person, 1, ID_TOKENS, weight.shape[1]).to(weight)
    return form.of(modules, tokens, 1.0, weight.dtype)


class Studio:
    """Makes flights, and remembers what an engine would: prompts, and rotary tables by shape."""

    def __init__(self, flux, modules):
        self.flux, self.modules = flux, modules
        self.like = flux.transformer.x_embedder.weight  # device and dtype of everything
        self._texts, self._rotary = {}, {}

    def flight(self, job, *, person=None, prompt=1, seed=0, outputs=1, end_step=None, **changes):
        request = GenerationRequest(
            **{
                "prompt": "",
                "seed": seed,
                "width": 64,
                "height": 64,
                "num_steps": 4,
                "max_sequence_length": 8,
                **changes,
            }
        )
        tokens = request.width * request.height // 256
        end = request.num_steps if end_step is None else end_step
        steps = range(request.start_step, end)
        guided = sampling.true_cfg_is_on(request.true_cfg)
        row = Flight(
            job_id=job,
            request=request,
            seeds=tuple(range(outputs)),
            latents=drawn(seed, outputs, 64, tokens).transpose(1, 2).to(self.like),
            times=sampling.timesteps(request.num_steps, tokens),
            positive=self._branch(prompt, person, steps, request.max_sequence_length),
            negative=self._branch(-1, None if person is None else -1, steps, request.max_sequence_length)
            if guided
            else None,
        )
        if isinstance(self.flux, FusedFlux):
            for branch in filter(None, (row.positive, row.negative)):
                branch.modulation = self.flux.modulation_table(
                    row.times[:-1], request.guidance, branch.text.pooled
                )
        return row

    def _branch(self, prompt, person, steps, length):
        people = ()
        if person is not None:
            people = (PlacedIdentity(folded(self.modules, person + 2), None, steps),)
        return Branch(text=self._text(prompt, length), people=people)

    def _text(self, prompt, length):
        if (prompt, length) not in self._texts:
            config = self.flux.transformer.config
            self._texts[prompt, length] = TextFeatures(
                tokens=drawn(2000 + prompt, 1, length, config.joint_attention_dim).to(self.like),
                pooled=drawn(3000 + prompt, 1, config.pooled_projection_dim).to(self.like),
            )
        return self._texts[prompt, length]

    def rotary(self, flight):
        if flight.shape not in self._rotary:
            self._rotary[flight.shape] = self.flux.rotary(
                latents.text_ids(flight.request.max_sequence_length, self.like.device),
                latents.image_ids(flight.request.height, flight.request.width, self.like.device),
            )
        return self._rotary[flight.shape]


def trace(forward, studio, story, *, shares_steps=False, cancels=()):
    """The latents of every flight after each of its steps.

    `story` is (turn, job, changes) of each flight, `cancels` (turn, job).
    """
    batch, seen, turn = Batch(shares_steps=shares_steps), [], 0
    story = list(story)
    while True:
        for _, job in [c for c in cancels if c[0] == turn]:
            batch.leave(job)
        for _, job, changes in [s for s in story if s[0] == turn]:
            batch.join(studio.flight(job, **changes))
        group = batch.next_group()
        if not group and turn > max(when for when, *_ in story):
            return seen
        if group:
            denoise_step(forward, group, studio.rotary(group[0]))
        for flight in group:
            seen.append((flight.job_id, flight.step, flight.latents.clone()))
            if flight.is_done:
                batch.leave(flight.job_id)
        turn += 1


WIDE, HIGH = {"width": 128, "height": 32}, {"width": 32, "height": 128}  # as many tokens

STORIES = {
    "one person after the other": [(0, "a", {"person": 0}), (4, "b", {"person": 1}), (8, "a", {"person": 0})],
    "a person who comes and goes": [(0, "a", {"person": 0, "num_steps": 6, "start_step": 2, "end_step": 4})],
    "true CFG, from the middle on too": [
        (0, "off", {"person": 0}),
        (4, "on", {"person": 0, "true_cfg": 2.0, "timestep_to_start_cfg": 0}),
        (8, "middle", {"person": 1, "true_cfg": 3.0, "timestep_to_start_cfg": 2, "start_step": 1}),
        (12, "nobody", {"true_cfg": 2.0}),
    ],
    "another guidance": [
        (0, "a", {"guidance": 4.0}),
        (1, "b", {"guidance": 1.5}),
        (8, "c", {"guidance": 4.0, "num_steps": 5}),
    ],
    "several outputs": [
        (0, "two", {"outputs": 2, "person": 0}),
        (4, "one", {"person": 0}),
        (5, "more", {"outputs": 3, "person": 1, "true_cfg": 2.0}),
    ],
    "sizes in turn": [
        (0, "wide", {**WIDE, "person": 0}),
        (0, "high", {**HIGH, "person": 0}),
        (1, "square", {"person": 1}),
        (2, "large", {"width": 96, "person": 0}),
        (3, "long", {"person": 1, "max_sequence_length": 16, "prompt": 5}),
    ],
    "two requests in turn": [
        (0, "a", {"person": 0, "prompt": 1, "num_steps": 5}),
        (1, "b", {"person": 1, "prompt": 2, "seed": 3}),
    ],
    "the same words, another person": [
        (0, "a", {"person": 0, "prompt": 4, "seed": 7}),
        (0, "b", {"person": 1, "prompt": 4, "seed": 7}),
        (0, "nobody", {"prompt": 4, "seed": 7}),
    ],
}


def assert_same(got, expected):
    assert [entry[:2] for entry in got] == [entry[:2] for entry in expected]
    for (job, step, one), (_, _, other) in zip(got, expected, strict=True):
        assert torch.equal(one, other), f"{job} after step {step}"
