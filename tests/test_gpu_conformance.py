"""The conformance suite on a real GPU: Triton's kernels, and torch's own path.

Run by `make gpu-check`.
"""

from __future__ import annotations

import pytest

from fastrnn.testing import conformance

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", conformance.checks(), ids=lambda check: check.name)
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_backend(backend: str, check: conformance.Check) -> None:
    outcome = conformance.perform(check, conformance.subject(backend, "cuda"))
    if outcome.status == "not claimed":
        pytest.skip("; ".join(outcome.reasons))
    assert outcome.status == "passed", outcome.text
