"""The GPU scripts run to their end on any machine, go on where they stopped, and tell what they did."""

import json
import sys
from dataclasses import replace

import pytest

from bench import accuracy, cases, denoise, lowvram, many_requests, profile_errors, record, text_errors
from bench.cases import Case
from bench.device import is_number, summary_of
from bench.record import PartFile
from bench.restart import first_runs, measure_restarts

TINY = ("--device=cpu", "--scale=tiny", "--budget=1e9")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`run(script, flags)` -> exit code, last line of the output, everything on standard error."""

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", ["bench", *flags, f"--results={tmp_path}"])
        code = script.main()
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return call


def test_parts_are_measured_and_a_second_call_goes_on_behind_them(run, tmp_path):
    flags = (*TINY, "--part=headline", "--part=cfg", "--part=whole", "--repeats=2")
    code, line, _ = run(denoise, *flags)
    assert code == 0
    assert line["complete"]
    assert list(line["parts"]) == ["headline", "cfg", "whole"]
    file = json.loads(next(tmp_path.glob("denoise-tiny-headline-cpu-*.json")).read_text())
    case = file["cases"]["896x1152"]
    names = ["reference", "peer", "plain", "ours-tiny"]
    assert case["order"] == names + names[::-1]
    assert list(case["rows"]) == names
    for told in case["rows"].values():
        assert len(told["times_s"]) == 2
        assert told["graphs_after_warm_up"] == 0
        assert told["share_of_matmul_peak_percent"] > 0
        assert told["kernels_of_2_steps"]["attention_backend"] == "flash"
    assert max(case["apart_from_reference"].values()) < 1e-5
    assert file["commit"] == record.git("rev-parse", "--short", "HEAD")

    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, again, err = run(denoise, *flags)
    assert (code, again) == (0, line)
    assert err.count("is there already") == 3
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_variants_of_a_profile_are_rows_of_their_own_parts(run, monkeypatch):
    for part in ("variants", "requests"):
        [case] = cases.PARTS[part]
        changed = replace(case, rows=("ours",), variants=("captured",))
        monkeypatch.setitem(cases.PARTS, part, (changed,))
    monkeypatch.setattr(many_requests, "REQUEST_SIZES", cases.REQUEST_SIZES[:3])
    code, line, _ = run(denoise, *TINY, "--part=variants", "--part=requests", "--repeats=6")
    assert code == 0
    told = line["parts"]["variants"]["896x1152"]["rows"]
    assert list(told) == ["ours-tiny", "ours-tiny+captured"]
    [(name, requests)] = line["parts"]["requests"]["896x1152"]["rows"].items()
    assert name == "ours-tiny+captured"
    assert (requests["graphs"], requests["memory_growth_mib"]) == (0, 0.0)
    assert requests["slowest_over_median"] >= 1


def test_the_errors_of_lossy_profiles_are_emulated_where_there_is_no_card(run, monkeypatch):
    monkeypatch.setattr(profile_errors, "CASES", (Case(width=512, height=512, repeats=1),))
    code, line, _ = run(profile_errors, *TINY[:2], "--t5-int8")
    assert (code, line["how"]) == (0, "emulated on a CPU")
    told = line["cases"]["512x512"]["fp8"]
    assert 1e-3 < told["relative_latent_error"] < 0.2
    assert 20 < told["psnr_db"] < 60
    assert told["skipped_percent"] == 0
    in_int8 = line["cases"]["512x512"]["fp8+t5-int8"]
    assert 0 < abs(in_int8["relative_latent_error"] - told["relative_latent_error"]) < 0.02
    assert line["text_errors"].keys() == line["cases"]["512x512"].keys()
    assert line["text_errors"]["fp8"] == 0
    assert 1e-3 < line["text_errors"]["fp8+t5-int8"] < 0.05


def test_the_error_of_t5_in_int8_is_told_apart_from_that_of_bfloat16(run):
    code, line, _ = run(text_errors, "--scale=tiny")
    assert code == 0
    errors = {name: told["relative_error"] for name, told in line["cases"].items()}
    assert list(errors) == ["bfloat16", "int8, float32", "int8, bfloat16"]
    assert 1e-3 < errors["bfloat16"] < errors["int8, bfloat16"] < 0.05
    assert 1e-3 < errors["int8, float32"] < errors["int8, bfloat16"]


def test_the_error_of_skipping_is_told_by_threshold_beside_the_share_of_what_was_skipped(run, monkeypatch):
    monkeypatch.setattr(profile_errors, "CASES", (Case(width=512, height=512, repeats=1),))
    flags = (*TINY[:2], "--steps=5", "--threshold=0", "--threshold=9")
    _, line, _ = run(profile_errors, *flags)
    told = line["cases"]["512x512"]
    assert list(told) == ["fp8", "turbo", "int8", "turbo-0", "turbo-9"]
    assert told["turbo-0"] == told["fp8"]
    assert told["turbo-9"]["skipped_percent"] == 60
    assert told["turbo-9"]["psnr_db"] < told["fp8"]["psnr_db"]


@pytest.mark.release
def test_turbo_is_a_row_beside_the_others_with_the_share_of_what_it_skips(run, tmp_path, torchao):
    profiles = [f"--profile={name}" for name in ("exact", "fp8", "turbo")]
    flags = (*TINY, "--part=headline", "--repeats=1", "--threshold=9")
    assert run(denoise, *flags, *profiles)[0] == 0
    file = json.loads(next(tmp_path.glob("denoise-tiny-headline-cpu-*.json")).read_text())
    assert file["left_out"] == {}
    assert list(file["cases"]) == ["896x1152", "512x512"]
    case = file["cases"]["512x512"]
    rows = case["rows"]
    assert list(rows) == ["reference", "peer", "peer-fp8", "ours-exact", "ours-fp8", "ours-turbo"]
    assert [rows[f"ours-{name}"].get("skipped_percent") for name in ("exact", "fp8", "turbo")] == [
        None,
        None,
        33.3,
    ]
    apart = case["apart_from_reference"]
    assert apart["ours-exact"] < apart["ours-fp8"] < apart["ours-turbo"]
    assert {"reference/ours-turbo", "peer/ours-turbo", "peer-fp8/ours-turbo"} < set(case["ratios"])


@pytest.mark.release
def test_what_small_cards_take_and_cost_is_told_for_each_of_them(run, monkeypatch):
    monkeypatch.setattr(lowvram, "LOW_MEMORY", lowvram.LOW_MEMORY[-1:])
    code, line, _ = run(lowvram, *TINY[:2])
    assert (code, list(line["cases"])) == (0, ["exact", "lowvram-12g"])
    told = line["cases"]["lowvram-12g"]
    assert told["streaming"]["blocks"] == 8
    assert told["streaming"]["copies_s"] > 0
    assert line["cases"]["exact"]["streaming"] == {}
    assert told["too_large"] == {"ended": "painted", "next_is_the_same": True}


def test_what_does_not_fit_into_the_budget_is_not_begun(run, tmp_path):
    code, line, err = run(denoise, *TINY[:2], "--budget=0", "--part=small")
    assert code == denoise.MORE_TO_DO
    assert not line["complete"]
    assert "not begun" in err
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_cannot_be_made_is_told_with_the_reason(run, no_torchao, capsys):
    code, line, _ = run(denoise, *TINY[:2], "--budget=0", "--part=headline", "--profile=fp8")
    assert code == denoise.MORE_TO_DO
    assert list(line["left_out"]) == ["peer-fp8"]
    assert "pip install -c configs/constraints.txt -e '.[gpu]'" in line["left_out"]["peer-fp8"]
    assert run(denoise, *TINY[:2], "--budget=0", "--part=headline")[1]["left_out"] == {}


def test_a_result_of_other_sources_or_settings_does_not_count(tmp_path, monkeypatch):
    file = PartFile.open(tmp_path, "denoise-small-x", {"repeats": 3})
    file.cases["512x512"] = {"rows": {}}
    file.write()
    assert PartFile.open(tmp_path, "denoise-small-x", {"repeats": 3}).cases
    assert not PartFile.open(tmp_path, "denoise-small-x", {"repeats": 4}).cases
    monkeypatch.setattr(record, "sources", lambda: "other")
    assert not PartFile.open(tmp_path, "denoise-small-x", {"repeats": 3}).cases


def test_accuracy_is_told_against_the_reference(run, monkeypatch):
    monkeypatch.setattr(accuracy, "CASES", (Case(width=512, height=512, repeats=1),))
    monkeypatch.setattr(accuracy, "ALL", "captured")
    code, line, _ = run(accuracy, "--device=cpu", "--scale=tiny")
    assert code == 0
    errors = line["cases"]["512x512"]["relative_errors"]
    assert list(errors) == ["reference", "peer", "ours-tiny", "ours-tiny+captured"]
    assert all(1e-4 < error < 0.05 for found in errors.values() for error in found)


def test_an_error_beyond_the_bound_ends_with_1(run, monkeypatch):
    monkeypatch.setattr(accuracy, "CASES", (Case(width=512, height=512, repeats=1),))
    monkeypatch.setattr(accuracy, "BOUND", 0.1)
    monkeypatch.setattr(accuracy, "ALL", "captured")
    assert run(accuracy, "--device=cpu", "--scale=tiny")[0] == 1


def test_a_restart_is_two_processes_with_one_compile_cache():
    child = """
import json, os, pathlib
mark = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "mark")
first = 1.0 if mark.exists() else 9.0
mark.touch()
print(json.dumps({"loaded_s": 2.0, "rows": {"peer": {"first_s": first, "then_s": 0.5}}}))
"""
    told = measure_restarts(["-c", child], lambda text: None)
    assert told["rows"] == {"peer": {"cold_first_s": 9.0, "warm_first_s": 1.0, "then_s": 0.5}}


def test_a_child_tells_its_first_runs(tiny_bench):
    bench = denoise.Bench(denoise.arguments().parse_args(TINY[:2]), ["headline"])
    told = first_runs(Case(num_steps=2, rows=("ours",)), bench.setup(["ours-tiny"]), denoise.STARTED)
    assert list(told["rows"]) == ["ours-tiny"]
    assert told["rows"]["ours-tiny"]["first_s"] > 0


@pytest.mark.parametrize(("script", "flags"), [(denoise, ()), (accuracy, ("--device=cpu",))])
def test_where_the_full_size_cannot_run_the_script_says_what_to_do(run, monkeypatch, script, flags):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="For a check of the script: --device cpu --scale tiny"):
        run(script, *flags)


def test_readings_of_nvidia_smi_are_summed_up():
    samples = [{"clocks.sm": "1980", "power.draw": "[N/A]"}, {"clocks.sm": "1785", "power.draw": "612.5"}, {}]
    assert summary_of(samples) == {
        "samples": 3,
        "clocks.sm": [1785.0, 1882.5, 1980.0],
        "power.draw": [612.5, 612.5, 612.5],
    }
    assert not is_number("[Not Supported]")
