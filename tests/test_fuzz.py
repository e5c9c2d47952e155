"""A fixed-seed share of the artifact fuzzer; ``fuzz/fuzz_artifact.py`` runs it for long."""

import importlib.util
from pathlib import Path


def test_a_damaged_artifact_is_refused_or_unchanged(tmp_path):
    path = Path(__file__).parent / "fuzz" / "fuzz_artifact.py"
    spec = importlib.util.spec_from_file_location("fuzz_artifact", path)
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)
    assert fuzzer.fuzz(tmp_path / "artifact", seed=0, cases=300) == 300
