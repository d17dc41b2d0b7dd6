"""Triton's interpreter, without what it works out again at every operation.

Only in tests, and of use only in a process that interprets: it spends most of its time on types and
on its own language, little on numbers. Nothing here changes what is computed or checked, but for
the look at whether a sum of indices overflows, which those of tensors as small as tests' do not.
"""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import ismodule
from types import SimpleNamespace

import pytest
import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def spared() -> Iterator[None]:
    """Within it the interpreter does once what it does at every call."""
    with pytest.MonkeyPatch.context() as patch:
        language = found_once(patch)
        types_made_once(patch)
        builder = interpreter.interpreter_builder
        unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)
        patch.setattr(builder, "options", unchecked)
        yield
    language.restore()


def found_once(patch: pytest.MonkeyPatch) -> interpreter._LangPatchScope:
    """Look through the language once, not whenever one jitted function calls another."""
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    scope = interpreter._patch_lang(everything)

    def prepared(fn):
        # as the interpreter itself asks of every jitted function
        assert any(value in (tl, tl.core) for value in fn.__globals__.values() if ismodule(value))
        return interpreter._LangPatchScope()

    patch.setattr(interpreter, "_patch_lang", prepared)
    return scope


def types_made_once(patch: pytest.MonkeyPatch) -> None:
    """Make shapes and what follows of them once for each, and find NumPy's types once.

    Shapes are then the same object where they are equal.
    """
    core = tl.core
    original = interpreter._get_np_dtype
    of_number = functools.cache(original)

    def np_dtype(of):
        # a pointer's type has no hash
        return original(of) if of.scalar.is_ptr() else of_number(of.scalar)

    patch.setattr(interpreter, "_get_np_dtype", np_dtype)

    make_type = core.block_type.__init__
    shapes = {}

    def block_type(self, element_ty, shape):
        key = tuple([n.value if isinstance(n, core.constexpr) else n for n in shape])
        if key not in shapes:
            make_type(self, element_ty, shape)  # which checks it
            shapes[key] = self.shape, self.numel, str(self.shape)
        self.element_ty = element_ty
        self.shape, self.numel, written = shapes[key]
        self.name = f"<{written}, {element_ty}>"

    patch.setattr(core.block_type, "__init__", block_type)
    # The interpreter's own types are the language's, which it would make again.
    patch.setattr(core.block_type, "to_ir", lambda self, builder: self)

    make_tensor = core.tensor.__init__
    of_shapes = {}

    def tensor(self, handle, type):
        key = id(type.shape) if type.is_block() else None
        if key not in of_shapes:
            make_tensor(self, handle, type)
            # with the shape itself, so that no other one gets its id
            of_shapes[key] = self.shape, self.numel, getattr(type, "shape", None)
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel, _ = of_shapes[key]

    patch.setattr(core.tensor, "__init__", tensor)

    semantic = type(interpreter.interpreter_semantic)
    broadcast = semantic.broadcast_impl_value

    def alike(self, lhs, rhs):
        one, other = lhs.type, rhs.type
        blocks = one.is_block(), other.is_block()
        if blocks == (False, False) or (blocks == (True, True) and one.shape is other.shape):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    patch.setattr(semantic, "broadcast_impl_value", alike)
