"""20,000 damaged GGUF files: about half a minute of CPU time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import gguf_fuzz


@pytest.mark.parametrize("seed", [11, 12])
def test_twenty_thousand_damaged_files_end_in_a_model_or_one_line(tmp_path: Path, seed: int):
    ends = gguf_fuzz.run(tmp_path, 10_000, seed)
    print(f"\nseed {seed}:")
    for kind, count in ends.most_common():
        print(f"{count:6} {kind}")
    assert ends.total() == 10_000 and ends["read"] > 1_000
