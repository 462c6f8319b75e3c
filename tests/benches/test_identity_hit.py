"""The bench of known photos runs to its end and tells a known photo from a new one."""

import json
import sys

from bench import identity_hit


def test_a_known_and_a_new_photo_are_told_apart(monkeypatch, capsys, tmp_path):
    flags = ["--megapixels=1", "--known-runs=3", "--new-runs=2", f"--results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    code = identity_hit.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    [file] = tmp_path.glob("identity-hit-cpu-*.json")
    assert json.loads(file.read_text())["cases"] == line["cases"]
    told = line["cases"]["1 megapixels"]
    known, new = told["ms"]["known"], told["ms"]["new"]
    assert known["p50"] < new["p50"]
    assert told["ms_of_new"]["decode_photo"] > 0
    assert code == (known["p50"] > identity_hit.TARGET_MS)
