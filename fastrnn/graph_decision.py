"""The dispatcher's word for torch.compile.

In a module of its own, imported by calls that are being traced: the decorator imports Dynamo, which
takes longer than all of fastrnn.
"""

from __future__ import annotations

import torch

from fastrnn.dispatch import decide_anew
from fastrnn.request import Request


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore] # torch leaves it unannotated
def decide_constant(backend: str, context: str | None, *request: object) -> tuple[str, int, bool]:
    """`dispatch.decide` for torch.compile: plugins' Python is run, not traced, once per graph.

    Returns the backend's name, `Decision.layers_at_once` and `Decision.whole`. Every argument is
    guarded where the caller got it, so another override compiles anew. The request comes as its
    fields, because Dynamo hands over plain constants and not named tuples.
    """
    decision = decide_anew(Request(*request), backend, context)  # type: ignore[arg-type] # the fields of a Request
    return decision.backend, decision.layers_at_once, decision.whole
