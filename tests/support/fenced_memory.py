"""Launches in Triton's interpreter with nothing but their own tensors within reach.

A mask that is missing shows in no result: what lies beyond a tensor is memory that somebody has,
and what is read there is thrown away. Here a launch gets copies of its tensors that lie far apart,
and every access must hit an element of one of them. Imports the interpreter: for test modules that
have made sure of it before.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from triton.runtime import interpreter

GAP = 1 << 20
"""Bytes between two tensors: a wrong offset of a small problem leads there, not to the next one."""

ACCESSES = {
    "create_masked_load": ("load", 0, 1),
    "create_masked_store": ("store", 0, 2),
    "create_atomic_rmw": ("atomic operation", 1, 3),
    "create_atomic_cas": ("atomic operation", 0, None),
}
"""Methods of the interpreter that all accesses go through: which of their arguments are pointers
and mask."""


class Extent(NamedTuple):
    """From the first element of a tensor to the end of its last, in bytes from where memory starts.

    Not all of it need be elements.
    """

    name: str
    begin: int
    end: int


def element_starts(tensor):
    """The byte of its storage at which each element of a tensor starts."""
    places = np.full((), tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + np.arange(size) * stride
    return places.ravel() * tensor.element_size()


class Fence:
    """What the launches that it stands around may touch: elements, to the byte.

    Args:
        patch: pytest's; the fence stands until it is undone.

    Attributes:
        launched: names of the kernels that were launched.
    """

    def __init__(self, patch):
        self.launched = []
        self.extents = []
        self.memory = self.widths = np.zeros(0, dtype=np.uint8)
        fence = self

        def init_args_hst(executor, args, kwargs):
            return fence.move(executor, args, kwargs)

        patch.setattr(interpreter.GridExecutor, "_init_args_hst", init_args_hst)
        for name, which in ACCESSES.items():
            patch.setattr(interpreter.InterpreterBuilder, name, self.checked(name, *which))

    def move(self, executor, args, kwargs):
        """The arguments of a launch with copies in place of tensors, which Triton copies back.

        Tensors that share memory do so afterwards.
        """
        named = dict(zip(executor.arg_names, args, strict=False)) | kwargs
        tensors = {name: each for name, each in named.items() if torch.is_tensor(each)}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors.values()}
        assert all(storage.nbytes() < GAP for storage in storages.values()), (
            "the gaps are too small"
        )
        self.launched.append(executor.fn.__name__)
        self.memory = np.zeros((1 + 2 * len(storages)) * GAP, dtype=np.uint8)
        # at the first byte of an element: how many bytes it has
        self.widths = np.zeros(self.memory.size, dtype=np.uint8)
        begins, copies = {}, {}
        for number, (address, storage) in enumerate(storages.items()):
            begins[address] = begin = (1 + 2 * number) * GAP
            place = self.memory[begin : begin + storage.nbytes()]
            copies[address] = torch.from_numpy(place).untyped_storage().copy_(storage)
        self.extents = []
        for name, tensor in tensors.items():
            starts = begins[tensor.untyped_storage().data_ptr()] + element_starts(tensor)
            width = tensor.element_size()
            self.widths[starts] = width
            if len(starts):
                self.extents.append(Extent(name, int(starts.min()), int(starts.max()) + width))

        def copy_of(value):
            if not torch.is_tensor(value):
                return value
            copy = copies[value.untyped_storage().data_ptr()]
            shape = (value.storage_offset(), value.size(), value.stride())
            return value.new_empty(0).set_(copy, *shape)

        return [copy_of(each) for each in args], {n: copy_of(each) for n, each in kwargs.items()}

    def checked(self, name, what, of_pointers, of_mask):
        """A method of the interpreter that refuses an access before it is done."""
        access = getattr(interpreter.InterpreterBuilder, name)

        @functools.wraps(access)
        def check_first(builder, *operands):
            mask = True if of_mask is None else operands[of_mask].data
            self.check(what, operands[of_pointers], mask)
            return access(builder, *operands)

        return check_first

    def check(self, what, pointers, mask):
        """Refuse lanes that are not masked and are no element of a tensor of the launch.

        Raises:
            IndexError: there are any.
        """
        width = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        starts = np.atleast_1d(pointers.data).view(np.int64) - self.memory.ctypes.data
        inside = (starts >= 0) & (starts < self.memory.size)
        right = inside & (self.widths[np.where(inside, starts, 0)] == width)
        # not by &: the interpreter's masks are whole numbers now and then
        wrong = starts[np.logical_and(mask, ~right)]
        if len(wrong):
            place = self.where(int(wrong[0]), width)
            raise IndexError(
                f"{self.launched[-1]}: {what} of {width} bytes, {place}, "
                f"and {len(wrong) - 1} more of {starts.size} lanes"
            )

    def where(self, start, width):
        """The place of bytes that are no element, in words."""
        beyond = {each: max(each.begin - start, start + width - each.end) for each in self.extents}
        nearest = min(beyond.values())
        names = " or ".join(each.name for each, bytes in beyond.items() if bytes == nearest)
        if nearest <= 0:
            return f"between elements of {names}"
        before = any(start < each.begin for each, bytes in beyond.items() if bytes == nearest)
        return f"{nearest} bytes {'before the first' if before else 'past the last'} of {names}"
