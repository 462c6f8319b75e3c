"""The rows of the bench compute the same function, and none of them touches another's modules."""

import dataclasses
import sys

import pytest
import torch

from bench import random_model, reference
from bench.measure import ratios, relative
from bench.rows import PEER_FP8, Peer, graphs_counted, rows_of, turns
from bench.variants import VARIANTS, variants_of
from pulid.flux.quantised import block_linears
from pulid.profiles import PROFILES

WITH_IDENTITY = ("reference", "peer", "ours-tiny")


def latents_of(row, request):
    return row.loop(request)(lambda: None)


@pytest.mark.parametrize(
    "changes", [{}, {"true_cfg": 2.0}, {"num_outputs": 2}, {"id_weight": 2.0, "guidance": 7.0}], ids=str
)
def test_all_rows_with_an_identity_compute_the_same_function(tiny_bench, changes):
    request = tiny_bench.request(**changes)
    base, *others = (latents_of(tiny_bench.rows[name], request) for name in WITH_IDENTITY)
    assert all(relative(other, base) < 1e-5 for other in others)


def test_plain_is_flux_without_an_identity(tiny_bench):
    request = tiny_bench.request()
    row = tiny_bench.rows["reference"]
    given = dataclasses.replace(random_model.given_to(row.donor, request), identity=None)
    with torch.inference_mode():
        without = reference.denoise(row.flux, given)
    plain = latents_of(tiny_bench.rows["plain"], request)
    assert relative(plain, without) < 1e-5
    assert relative(plain, latents_of(row, request)) > 0.05


def test_another_seed_gives_other_latents(tiny_bench):
    row = tiny_bench.rows["reference"]
    one, other = (latents_of(row, tiny_bench.request(seed=seed)) for seed in (1, 2))
    assert relative(one, other) > 0.1


def test_the_end_of_the_loop_is_told_once_and_before_decoding(tiny_bench):
    request = tiny_bench.request()
    for row in tiny_bench.rows.values():
        told = []
        row.loop(request)(lambda told=told: told.append(1))
        assert told == [1]
    (image,) = tiny_bench.rows["ours-tiny"].pictures(torch.empty(0), request)
    assert image.shape == (request.height, request.width, 3)


def test_eager_decoding_gives_the_engines_picture(tiny_bench):
    request = tiny_bench.request()
    pictures = []
    for name in ("reference", "ours-tiny"):
        row = tiny_bench.rows[name]
        pictures.append(row.pictures(latents_of(row, request), request)[0].astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_after_its_first_run_the_peer_compiles_nothing(tiny_bench):
    loop = tiny_bench.rows["peer"].loop(tiny_bench.request())
    loop(lambda: None)
    with graphs_counted() as graphs:
        loop(lambda: None)
        assert graphs() == 0


def test_a_graph_that_is_compiled_is_counted():
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with graphs_counted() as graphs:
        compiled(torch.ones(2))
        compiled(torch.ones(3))
        compiled(torch.ones(3))
        assert graphs() == 2


def test_a_shell_shares_numbers_and_nothing_else(tiny_bench):
    transformer = tiny_bench.parts.networks.transformer
    anew = random_model.shell(transformer)
    for ours, theirs in zip(transformer.parameters(), anew.parameters(), strict=True):
        assert ours is not theirs
        assert ours.data_ptr() == theirs.data_ptr()
    Peer(anew, random_model.shell(tiny_bench.parts.networks.identity_attentions), None, None, "eager")
    assert all(not block._forward_hooks for block in transformer.transformer_blocks)
    assert any(block._forward_hooks for block in anew.transformer_blocks)


def test_no_weight_is_zero_and_every_block_carries_a_signal(tiny_bench):
    networks = tiny_bench.parts.networks
    for name in random_model.NETWORKS:
        zeros = [float((p == 0).float().mean()) for p in getattr(networks, name).parameters()]
        assert max(zeros) < 0.01, name
    given = random_model.given_to(tiny_bench.rows["reference"].donor, tiny_bench.request())
    sizes = random_model.check_activations(networks.transformer, given)
    assert 0.1 < sizes["rms_min"] <= sizes["rms_max"] < 100


def test_weights_that_carry_no_number_are_refused(tiny_bench):
    networks = tiny_bench.parts.networks
    broken = random_model.shell(networks.transformer)
    broken.x_embedder.bias = torch.nn.Parameter(torch.full_like(broken.x_embedder.bias, torch.nan))
    given = random_model.given_to(tiny_bench.rows["reference"].donor, tiny_bench.request())
    with pytest.raises(ValueError, match="do not carry a signal"):
        random_model.check_activations(broken, given)


def test_rows_take_turns_forth_and_back():
    assert "".join(turns("ABCD", 3)) == "ABCDDCBAABCD"


def test_conditions_can_be_rounded_as_another_precision_does():
    t = 0.731
    rounded = reference.as_in(torch.bfloat16, t)
    wide, narrow = torch.tensor([rounded]), torch.tensor([t], dtype=torch.bfloat16)
    assert torch.allclose(reference.sinusoids(wide), reference.sinusoids(narrow).float(), atol=0.005)
    assert abs(rounded - t) > 1e-4


# ---- beside lossy profiles ----


def lossy_rows(tiny_bench, names):
    profiles = [PROFILES["tiny"], dataclasses.replace(PROFILES["fp8"], dtype="float32")]
    return rows_of(tiny_bench.parts, profiles, torch.device("cpu"), backend="eager", names=names)


def test_the_peer_in_fp8_is_the_peer_with_other_weights_in_the_blocks_linears(tiny_bench, torchao):
    rows = lossy_rows(tiny_bench, [PEER_FP8])
    assert list(rows) == [PEER_FP8]
    transformer, own = rows[PEER_FP8].transformer, tiny_bench.parts.networks.transformer
    changed = dict(block_linears(transformer))
    for name, linear in block_linears(own):
        assert type(changed[name].weight) is not type(linear.weight)
        assert changed[name].weight.data_ptr() != linear.weight.data_ptr()
    others = transformer.proj_out, transformer.single_transformer_blocks[0].norm.linear
    assert all(type(linear.weight) is torch.nn.Parameter for linear in others)
    request = tiny_bench.request()
    expected = latents_of(tiny_bench.rows["peer"], request)
    assert 1e-3 < relative(latents_of(rows[PEER_FP8], request), expected) < 0.2


def test_a_linear_that_torchao_leaves_as_it_was_is_told(tiny_bench, torchao, monkeypatch):
    monkeypatch.setattr(
        sys.modules["torchao.quantization"].Float8Tensor, "from_hp", lambda weight, **_: weight
    )
    with pytest.raises(ValueError, match=r"left 61 linears as they were, transformer_blocks\.0\.attn"):
        lossy_rows(tiny_bench, [PEER_FP8])


@pytest.mark.release
def test_torchao_itself_computes_what_the_profile_fp8_emulates(tiny_bench):
    pytest.importorskip("torchao", reason="the extra gpu is not installed")
    rows = lossy_rows(tiny_bench, [PEER_FP8, "ours-fp8"])
    peer, ours = (latents_of(row, tiny_bench.request()) for row in rows.values())
    exact = latents_of(tiny_bench.rows["peer"], tiny_bench.request())
    assert relative(peer, ours) < 0.7 * relative(ours, exact)


def test_rows_in_fp8_share_one_copy_of_the_weights(tiny_bench):
    profiles = [dataclasses.replace(PROFILES[name], dtype="float32") for name in ("fp8", "turbo")]
    rows = rows_of(
        tiny_bench.parts, profiles, torch.device("cpu"), backend="eager", names=["ours-fp8", "ours-turbo"]
    )
    one, other = (
        {name: linear.weight.data_ptr() for name, linear in block_linears(row.engine._flux.transformer)}
        for row in rows.values()
    )
    assert one == other


def test_without_torchao_the_row_is_not_made(tiny_bench, no_torchao):
    assert lossy_rows(tiny_bench, [PEER_FP8]) == {}


def test_lossy_profiles_are_compared_with_both_peers():
    told = ratios(
        {name: {"p50_s": time} for name, time in {"peer": 3.0, PEER_FP8: 2.5, "ours-fp8": 2.0}.items()}
    )
    assert told == {"peer/ours-fp8": 1.5, "peer-fp8/ours-fp8": 1.25}


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("exact", ["captured", "fused", "fused-captured", "compiled", "all"]),
        ("fp8", ["captured", "compiled", "all"]),
        ("turbo", ["compiled", "all"]),
    ],
)
def test_a_profile_has_each_form_once_and_only_those_that_it_may_take(name, forms):
    variants = variants_of(PROFILES[name], list(VARIANTS))
    assert [variant.name for variant in variants] == [f"{name}+{form}" for form in forms]
    assert all(variant.transformer_form == "fused" for variant in variants if variant.compiles)
    assert (variants[-1].compiles, variants[-1].decoder_form) == (True, "compiled")
