"""The recorded small FLUX models, filled, and one forward pass or whole loop over them."""

from functools import cache

import torch
from diffusers import FluxTransformer2DModel

from golden import golden_fill, goldens
from pulid.batch import Branch, Flight
from pulid.engine import GenerationRequest
from pulid.flux import checkpoint, latents, sampling
from pulid.flux.text import TextFeatures
from pulid.flux.transformer import IdentityFlux
from pulid.identity.attention import IdentityAttention
from pulid.identity.people import PlacedIdentity
from pulid.pipeline import denoise_step
from pulid.strict_load import load_strictly, shapes_of


def transformer_kwargs(spec):
    return {
        "num_layers": spec["depth"],
        "num_single_layers": spec["depth_single_blocks"],
        "num_attention_heads": spec["num_heads"],
        "joint_attention_dim": spec["joint_attention_dim"],
        "pooled_projection_dim": spec["pooled_projection_dim"],
        "guidance_embeds": True,
    }


@cache
@torch.inference_mode(False)  # whoever asks first: a model made in inference mode is of no use elsewhere
def model(name):
    """The transformer and its identity attentions, filled as recorded."""
    spec = goldens.manifest("models")[name]
    fill = spec["fill"]
    transformer = FluxTransformer2DModel(**transformer_kwargs(spec)).requires_grad_(False)
    if fill["keys"] == "bfl":
        state = golden_fill.fill_dict(bfl_shapes(transformer), fill["seed"], fill["prefix_transformer"])
        assert golden_fill.fingerprint(state) == fill["crc32"]
        converted = checkpoint.diffusers_transformer(state, shapes_of(transformer.state_dict()))
        load_strictly(transformer, converted, "FLUX transformer")
    else:
        golden_fill.fill_(transformer, fill["seed"], fill["prefix_transformer"])
        assert golden_fill.fingerprint(transformer) == fill["crc32"]
    return IdentityFlux(transformer), attentions(spec)


def attentions(spec):
    ca = {key: spec["pulid_ca"][key] for key in ("dim", "dim_head", "heads", "kv_dim")}
    modules = torch.nn.ModuleList(IdentityAttention(**ca) for _ in range(spec["pulid_ca"]["count"]))
    golden_fill.fill_(modules, spec["fill"]["seed"], spec["fill"]["prefix_ca"])
    assert golden_fill.fingerprint(modules, spec["fill"]["prefix_ca"]) == spec["fill"]["crc32_ca"]
    return modules.requires_grad_(False)


def bfl_shapes(transformer):
    """BFL's keys and shapes for a diffusers transformer of any depth, by inverting the recorded map."""
    shapes = {key: list(value.shape) for key, value in transformer.state_dict().items()}
    result = {}
    for rule in goldens.shapes("flux_bfl_to_diffusers_map"):
        if all(target in shapes for target in rule["diffusers"]):
            parts = [shapes[target] for target in rule["diffusers"]]
            result[rule["bfl"]] = [sum(part[0] for part in parts), *parts[0][1:]]
    return result


CPU = torch.device("cpu")


def rotary(flux, case, device=CPU):
    return flux.rotary(
        latents.text_ids(case["txt_len"], device), latents.image_ids(case["height"], case["width"], device)
    )


def prepared(form, modules, id_tokens, id_weight, dtype=torch.float32):
    """One identity a row of `id_tokens`, side by side; None where there is none."""
    if id_tokens is None:
        return None
    first, *others = (form.of(list(modules), row[None], id_weight, dtype) for row in id_tokens)
    return first.beside(others)


def velocity(flux, packed, case, *, text, pooled, timestep, identity):
    batch = packed.shape[0]
    return flux(
        packed,
        text=text,
        pooled=pooled,
        timestep=torch.tensor(timestep, dtype=packed.dtype).expand(batch),
        guidance=torch.full((batch,), case["guidance"], dtype=packed.dtype),
        rotary=rotary(flux, case),
        identity=identity,
    )


def flight(modules, case, form, dtype=torch.float32, device=CPU):
    """The recorded loop as a request in flight, for the engine's own step."""
    x = {name: tensor.to(device, dtype) for name, tensor in goldens.inputs(case).items()}
    packed = latents.pack(x["noise"])
    id_tokens, uncond_tokens = (x[case["id_input"]], x["uncond_id"]) if case["id_input"] else (None, None)

    def branch(tokens, pooled, id_tokens):
        identity = prepared(form, modules, id_tokens, case["id_weight"], dtype)
        steps = range(case["start_step"], case["num_steps"])
        return Branch(
            text=TextFeatures(tokens=x[tokens], pooled=x[pooled]),
            people=() if identity is None else (PlacedIdentity(identity, None, steps),),
        )

    return Flight(
        job_id=case["id"],
        request=GenerationRequest(
            prompt="",
            seed=0,
            width=case["width"],
            height=case["height"],
            num_steps=case["num_steps"],
            start_step=case["start_step"],
            guidance=case["guidance"],
            true_cfg=case["true_cfg"],
            timestep_to_start_cfg=case["timestep_to_start_cfg"],
            max_sequence_length=case["txt_len"],
        ),
        seeds=(0,),
        latents=packed,
        times=sampling.timesteps(case["num_steps"], packed.shape[1]),
        positive=branch("txt", "vec", id_tokens),
        negative=branch("neg_txt", "neg_vec", uncond_tokens)
        if sampling.true_cfg_is_on(case["true_cfg"])
        else None,
    )


def denoise(flux, modules, case, form, dtype=torch.float32, device=CPU):
    """Packed latents after the last step, and how many rows went through the transformer."""
    row = flight(modules, case, form, dtype, device)
    tables = rotary(flux, case, device)
    forwards = 0
    while not row.is_done:
        forwards += len(row.branches())
        denoise_step(flux, [row], tables)
    return row.latents, forwards
