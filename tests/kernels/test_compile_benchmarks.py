"""The kernels of benchmarks/exchange.py, compiled for a GPU: do they measure what they say?"""

import os
import re

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles: run without TRITON_INTERPRET", allow_module_level=True)

import triton
from triton.compiler import ASTSource

from benchmarks import exchange, exchange_kernels
from fastrnn_kernels import aot, aot_specs
from fastrnn_kernels.configs import TARGET_LIMITS

pytestmark = pytest.mark.usefixtures("fresh_cache")

TOGETHER = {"num_warps": 4, "num_stages": 1, "launch_cooperative_grid": True}
LIMITS = TARGET_LIMITS["sm_90"]


def compiled(kernel, element, constants, **options):
    """Pointers are to `element`, but for the counter; all else is int32."""
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("rounds", "stride"):
            signature[name] = "i32"
        else:
            kind = {"counter": "i32"}.get(name, element)
            if kernel is exchange_kernels.products and name == "out":
                kind = "fp32"
            signature[name] = f"*{kind}"
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    found = triton.compile(source, target=aot_specs.GPU_TARGETS["sm_90"], options=options)
    registers, spilled = aot._resources(found.asm)
    assert spilled == 0
    return found.asm["ptx"], found.metadata.shared, registers


def test_a_barrier_is_that_of_the_grid_regime():
    text, _, _ = compiled(exchange_kernels.barriers, "i32", {"INTERPRETED": False}, **TOGETHER)
    found = re.findall(r"bar\.sync|atom\S*release|ld\.acquire\.gpu", text)
    assert sorted(found) == ["atom.global.gpu.release", *["bar.sync"] * 2, *["ld.acquire.gpu"] * 2]


def test_h_is_loaded_after_the_wait():
    constants = {"SHARE": exchange.SHARE, "ALL": 8192, "INTERPRETED": False}
    text, _, _ = compiled(exchange_kernels.exchanges, "fp32", constants, **TOGETHER)
    assert "cp.async" not in text
    assert text.count("ld.acquire.gpu") == 2, "the first poll and the loop"
    blocks = re.split(r"^\$L__BB\d+_\d+:", text, flags=re.MULTILINE)
    (block,) = [block for block in blocks if "ld.global.cg" in block]
    found = re.findall(r"bar\.sync|ld\.global\.cg", block)
    assert found[0] == "bar.sync"
    assert found.count("ld.global.cg") == 8192 // 128 // 4, "16 bytes a thread and load"


def test_cycles_are_counted_around_the_loop():
    text, _, _ = compiled(exchange_kernels.chase, "i64", {"INTERPRETED": False}, num_warps=1)
    found = re.findall(r"%clock64|ld\.global\.cg|\sbra|st\.global", text)
    assert found[0] == "%clock64"
    assert found.index("ld.global.cg") < len(found) - 1 - found[::-1].index("%clock64")
    assert found.count("ld.global.cg") == 1, "one load a round, and no round unrolled"


def test_every_round_of_a_stream_loads():
    constants = {"CHUNKS": exchange.CHUNKS, "BLOCK": exchange.BLOCK}
    text, _, _ = compiled(exchange_kernels.stream, "fp32", constants, num_warps=8)
    _, loop = text.split("Loop Header: Depth=1", maxsplit=1)
    wanted = exchange.CHUNKS * exchange.BLOCK // (8 * 32) // 4
    assert len(re.findall(r"ld\.global\.cg\.v4", loop)) == wanted


@pytest.mark.parametrize("name", exchange.MMA_DEPTH)
@pytest.mark.parametrize("kind", ["chain", "rate"])
def test_products_are_tensor_core_instructions_of_a_warp(kind, name):
    warps = 1 if kind == "chain" else exchange.RATE_WARPS
    tile = exchange.CHAIN_TILE if kind == "chain" else exchange.RATE_TILE
    rows, columns, depth = tile
    precision = "tf32" if name == "tf32" else "ieee"
    constants = {"ROWS": rows, "COLS": columns, "DEPTH": depth, "PRECISION": precision}
    element = {"bfloat16": "bf16", "tf32": "fp32"}[name]
    text, shared, registers = compiled(
        exchange_kernels.products, element, constants, num_warps=warps, num_stages=1
    )
    assert "wgmma" not in text
    _, loop = text.split("Loop Header: Depth=1", maxsplit=1)
    step = exchange.MMA_DEPTH[name]
    wanted = rows * columns * depth // (16 * 8 * step) // warps
    assert len(re.findall(rf"mma\.sync\.aligned\.m16n8k{step}", loop)) == wanted
    if kind == "rate":
        threads = exchange.RATE_PROGRAMS * warps * 32
        assert threads * registers <= LIMITS.registers, "as many programs side by side"
        memory = exchange.RATE_PROGRAMS * (shared + 1024)
        assert memory <= LIMITS.multiprocessor_memory
