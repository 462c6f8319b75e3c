"""The rows of the bench compute the same function, and none of them touches another's modules."""

import dataclasses

import pytest
import torch

from bench import random_model, reference
from bench.measure import relative
from bench.rows import Peer, graphs_counted, turns

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
