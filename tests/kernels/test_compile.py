"""Every kernel, compiled for real GPUs on a machine that need not have one.

What the compiler reports is checked: shared memory, registers, spills, vector loads. How fast or
how right the result is takes a GPU to say; `test_interpreter.py` checks the equations.
"""

import os
import re

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles: run without TRITON_INTERPRET", allow_module_level=True)

import triton

from fastrnn_kernels import aot, recurrence, table
from fastrnn_kernels.configs import TARGET_LIMITS

Spec = aot.Spec

# What sizes and dtypes can change: odd H (masks, narrow loads), tiles from the smallest to the
# largest (H = 4096, B = 1024 gives every multiprocessor plenty), ordinary cores (ieee) and tensor
# cores, with the point-wise part of each cell in each direction.
SPECS = [
    Spec(cell, direction, dtype, H, B, precision, from_table)
    for direction in ("forward", "backward")
    for cell, dtype, H, B, precision, from_table in (
        ("lstm", "bf16", 512, 16, "ieee", False),
        ("lstm", "bf16", 1024, 256, "ieee", True),
        ("lstm", "fp16", 70, 256, "ieee", False),
        ("lstm", "fp32", 1024, 256, "ieee", True),
        ("lstm", "fp32", 4096, 1024, "ieee", False),
        ("lstm", "bf16", 4096, 1024, "ieee", True),
        ("lstm", "fp32", 1024, 16, "tf32", False),
        ("lstm", "fp32", 70, 256, "tf32x3", False),
        ("rnn_tanh", "bf16", 4096, 1024, "ieee", False),
        ("rnn_relu", "bf16", 33, 16, "ieee", True),
        ("rnn_sigmoid", "fp32", 4096, 1024, "ieee", False),
    )
]


@pytest.fixture(scope="module", autouse=True)
def _fresh_cache(tmp_path_factory):
    """Compile indeed: a kernel from an old cache says nothing of this source."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@pytest.mark.parametrize("target", aot.GPU_TARGETS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_compiles_within_the_limits(spec, target):
    if spec.precision == "tf32x3" and target.startswith("gfx"):
        pytest.skip("tf32x3 exists on NVIDIA only, and launch.py refuses it elsewhere")
    report = aot.compile_spec(spec, target)
    bound = report.config.shared_memory(spec.problem)
    assert report.shared <= bound <= TARGET_LIMITS[target].shared_memory
    assert report.registers is not None
    assert report.registers <= (512 if target.startswith("gfx") else 255)
    assert report.spilled == 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_float64_compiles(direction):
    assert aot.compile_spec(Spec("lstm", direction, "fp64", 20), "sm_90").spilled == 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pointers_from_a_table_cost_no_vector_loads(direction):
    def accesses(from_table):
        spec = Spec("lstm", direction, "bf16", 512, from_table=from_table)
        text = aot.compile_spec(spec, "sm_90").asm
        access = r"(?:ld|st)\.global\S*|cp\.async\.c\w\S* \[[^]]*\], \[[^]]*\], \S+"
        found = re.findall(access, text)
        # The scalar 64-bit loads are the table's.
        return sorted(re.sub(r"\[[^]]*\]", "[]", a) for a in found if a != "ld.global.b64")

    direct = accesses(from_table=False)
    assert accesses(from_table=True) == direct
    assert any("0x10" in a for a in direct), "16-byte copies of weights into shared memory"


def test_tf32_is_used_where_asked_and_nowhere_else():
    for precision, expected in (("ieee", False), ("tf32", True), ("tf32x3", True)):
        spec = Spec("lstm", "forward", "fp32", 128, precision=precision)
        assert ("tf32" in aot.compile_spec(spec, "sm_90").asm) is expected


@pytest.mark.parametrize(
    "kernel",
    [
        recurrence.forward_kernel,
        recurrence.backward_kernel,
        table.forward_from_table,
        table.backward_from_table,
        table.fill_table,
        table.advance_table,
    ],
    ids=lambda kernel: kernel.fn.__name__,
)
def test_no_run_time_number_is_specialised_on(kernel):
    # Tensors come first; their alignment is all that Triton may look at.
    names = [parameter.name for parameter in kernel.params]
    tensors = names[: names.index("T")] if "t_begin" in names else ["table"]
    for parameter in kernel.params:
        if not parameter.is_constexpr and parameter.name not in tensors:
            assert parameter.do_not_specialize, parameter.name


def test_command_line_prints_a_row_per_kernel(capsys):
    assert aot.main(["--target", "sm_90", "--match", "rnn_relu-forward-bf16-H70-B16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sm_90, Triton ")
    assert [line.split()[0] for line in lines[2:]] == [
        "rnn_relu-forward-bf16-H70-B16",
        "rnn_relu-forward-bf16-H70-B16-table",
    ]


def test_command_line_counts_what_fails(capsys, monkeypatch):
    def fail(spec, target):
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(aot, "compile_spec", fail)
    assert aot.main(["--match", "rnn_relu-forward-bf16-H70-B16"]) == 2
    assert "RuntimeError: no compiler today" in capsys.readouterr().out
