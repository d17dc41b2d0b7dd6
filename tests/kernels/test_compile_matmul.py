"""The matrix product, compiled for real GPUs on a machine that need not have one.

Shared memory, registers, spills, vector copies and the kind of instruction are checked, of what the
heuristic chooses for the products of an LSTM layer; `test_interpreter_matmul.py` checks the sums.
"""

import math
import os
import re
from dataclasses import dataclass

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles: run without TRITON_INTERPRET", allow_module_level=True)

import triton
from triton.compiler import ASTSource

from fastrnn_kernels import aot, aot_specs
from fastrnn_kernels.configs import TARGET_LIMITS
from fastrnn_kernels.matmul import MAX_ALIGN, constants, matmul_kernel
from fastrnn_kernels.matmul_configs import LARGEST, PRECISIONS, MatmulProblem, heuristic

pytestmark = pytest.mark.usefixtures("fresh_cache")

POINTERS = ("a", "b", "bias", "out")


@dataclass(frozen=True)
class Product:
    """What a layer multiplies: sizes, and whether K is contiguous in each operand."""

    name: str
    G: int
    M: int
    N: int
    K: int
    along_k: tuple[bool, bool]
    has_bias: bool = False

    @property
    def align(self):
        sizes = self.K if self.along_k[0] else self.M, self.K if self.along_k[1] else self.N
        return tuple(math.gcd(MAX_ALIGN, size) for size in (*sizes, self.N))


# T = 512, B = 32, I = H = 512; the odd one has narrow loads and masks in every dimension.
PRODUCTS = [
    Product("projection", 1, 16384, 2048, 512, (True, True), has_bias=True),
    Product("dx", 1, 16384, 512, 2048, (True, False)),
    Product("dW", 1, 2048, 512, 16384, (False, False)),
    Product("d_h0", 2, 32, 512, 2048, (True, False)),
    Product("odd", 2, 51, 33, 3001, (False, True), has_bias=True),
]


def choose(product, precision, target):
    problem = MatmulProblem(product.G, product.M, product.N, product.K, precision)
    return heuristic(problem, TARGET_LIMITS[target])


def compile_product(product, config, precision, target):
    """(compiled kernel, registers, spilled bytes), as `matmul` would ask for it."""
    compile_time = constants(
        config,
        precision,
        has_bias=product.has_bias,
        along_k=product.along_k,
        align=product.align,
    )
    signature, aligned = {}, {}
    for position, name in enumerate(matmul_kernel.arg_names):
        if name in POINTERS:
            signature[name] = "*fp32"
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr" if name in compile_time else "i64"
    compiled = triton.compile(
        ASTSource(matmul_kernel, signature, constexprs=compile_time, attrs=aligned),
        target=aot_specs.GPU_TARGETS[target],
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    return compiled, *aot._resources(compiled.asm)


@pytest.mark.parametrize("target", aot_specs.GPU_TARGETS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_compiles_within_the_limits(product, precision, target):
    if precision == "tf32x3" and target.startswith("gfx"):
        pytest.skip("tf32x3 exists on NVIDIA only, and matmul refuses it elsewhere")
    config = choose(product, precision, target)
    compiled, registers, spilled = compile_product(product, config, precision, target)
    shared_memory = compiled.metadata.shared
    assert shared_memory <= config.shared_memory() <= TARGET_LIMITS[target].shared_memory
    assert registers <= (512 if target.startswith("gfx") else 255)
    # For Blackwell, ptxas keeps one 8-byte address of a small tile on the stack.
    assert spilled <= (8 if target == "sm_100" else 0)


@pytest.mark.parametrize("along_k", [(a, b) for a in (True, False) for b in (True, False)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_largest_tiles_of_every_layout_spill_nothing(precision, along_k):
    product = Product("any", 1, 4096, 4096, 4096, along_k, has_bias=True)
    for target in ("sm_80", "sm_90"):
        _, _, spilled = compile_product(product, LARGEST[precision], precision, target)
        assert spilled == 0, target


def copies(text):
    """The widths, in bytes, of asynchronous copies into shared memory."""
    found = re.findall(r"cp\.async\.c\w\.\S+ \[[^]]*\], \[[^]]*\], (0x\w+)", text)
    return {int(width, 16) for width in found}


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("product", PRODUCTS[:3], ids=lambda product: product.name)
def test_copies_are_as_wide_as_the_layout_allows(product, precision):
    config = choose(product, precision, "sm_90")
    compiled, _, _ = compile_product(product, config, precision, "sm_90")
    # Hopper's tensor cores take tf32 only with K contiguous in shared memory: an operand that is
    # contiguous along M or N is transposed by copies of one element.
    element = {4} if precision == "tf32" and not all(product.along_k) else set()
    vector = {16} if precision == "ieee" or any(product.along_k) else set()
    assert copies(compiled.asm["ptx"]) == element | vector


def test_sizes_that_are_no_multiple_of_four_are_copied_piecemeal():
    product = Product("odd", 1, 512, 512, 513, (True, True))
    compiled, _, _ = compile_product(product, LARGEST["ieee"], "ieee", "sm_90")
    assert copies(compiled.asm["ptx"]) == {4}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_tf32_is_used_where_asked_and_nowhere_else(target):
    for precision, expected in (("ieee", False), ("tf32", True), ("tf32x3", True)):
        config = choose(PRODUCTS[0], precision, target)
        compiled, _, _ = compile_product(PRODUCTS[0], config, precision, target)
        assert ("tf32" in compiled.asm["ptx"]) is expected


def test_no_run_time_number_is_specialised_on():
    for parameter in matmul_kernel.params:
        if not parameter.is_constexpr and parameter.name not in POINTERS:
            assert parameter.do_not_specialize, parameter.name
            assert parameter.annotation_type == "i64", parameter.name
