"""An unpickler that builds plain data and descriptions of tensors, and nothing else.

It never imports, calls or looks up anything that a file names. Opcodes are parsed by the standard library's
disassembler (pickletools, which runs nothing) and interpreted here; a name becomes an inert `Named`, and the few
names that checkpoints need called are keys of `BUILDERS`, a table of functions of ours.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from danqing.errors import DanqingError

MAX_OPCODES = 4_000_000
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**48


class Malformed(ValueError):
    """The opcodes make no sense."""


class Refused(Exception):
    """The pickle asks for something that a model file has no need of; the text names it."""


@dataclass(frozen=True)
class Named:
    """A class or function that the file names: a word, never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A block of numbers kept elsewhere in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class PickledTensor:
    """A tensor's place in a storage; offset and stride count elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class PickledArray:
    """A numpy array: made empty, filled by its BUILD."""

    dtype: torch.dtype = torch.uint8
    shape: tuple[int, ...] = ()
    data: bytes = b""


@dataclass
class _NumpyType:
    code: str
    big_endian: bool = False


class _Bag(dict[Any, Any]):
    """torch.nn.ParameterDict, as the plain dict that it stands for."""


DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "uint16",
        "uint32",
        "uint64",
    ]
} | {"double": torch.float64, "float": torch.float32, "half": torch.float16, "long": torch.int64, "int": torch.int32}

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_NUMPY: dict[str, torch.dtype] = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(what)


def _whole(value: Any, what: str) -> int:
    _expect(type(value) is int and 0 <= value <= MAX_ELEMENTS, f"{what} is {str(value)[:40]}")
    return int(value)


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    _expect(isinstance(value, (tuple, list)) and len(value) <= MAX_DIMENSIONS, f"{what} is no tuple of numbers")
    return tuple(_whole(item, what) for item in value)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> PickledTensor:
    _expect(isinstance(storage, Storage), "a tensor without a storage")
    dtype = dtype or storage.dtype
    sizes, steps, start = _sizes(shape, "a shape"), _sizes(stride, "a stride"), _whole(offset, "an offset")
    _expect(len(sizes) == len(steps), "shape and stride differ in length")
    room = storage.nbytes // dtype.itemsize
    count = math.prod(sizes)
    last = start + sum((n - 1) * s for n, s in zip(sizes, steps)) if count else start - 1
    _expect(count <= room and last < room, f"a tensor of shape {sizes} reaches beyond storage '{storage.key[:40]}'")
    return PickledTensor(storage, dtype, start, sizes, steps)


def _rebuild_tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    """rest: requires_grad, backward hooks, dtype."""
    name = rest[2] if len(rest) > 2 else None
    if not isinstance(name, Named) or name.module != "torch" or name.name not in DTYPES:
        raise Malformed("a tensor of unknown type")
    return _tensor(storage, offset, shape, stride, DTYPES[name.name])


def _rebuild_parameter(data: Any, *_: Any) -> PickledTensor:
    _expect(isinstance(data, PickledTensor), "a parameter without a tensor")
    return data  # type: ignore[no-any-return]


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if kind not in (Named("torch", "Tensor"), Named("torch.nn.parameter", "Parameter")):
        raise Refused(str(kind))
    return build(function, arguments)


def _key(value: Any) -> Any:
    """`value` as a dictionary key: plain, so that hashing it cannot recurse."""
    plain = (str, int, float, bool, bytes, type(None), Named)
    flat = isinstance(value, tuple) and len(value) <= 64 and all(isinstance(item, plain) for item in value)
    _expect(flat or isinstance(value, plain), "a dictionary key that is no plain value")
    return value


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    if isinstance(items, dict):
        return dict(items)
    _expect(isinstance(items, (list, tuple)), "a dictionary of no pairs")
    _expect(all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items), "a dictionary of no pairs")
    return {_key(key): value for key, value in items}


def _set(items: Any = ()) -> set[Any]:
    _expect(isinstance(items, (list, tuple, set, frozenset)), "a set of no items")
    return {_key(item) for item in items}


def _torch_size(items: Any = ()) -> tuple[int, ...]:
    return _sizes(items, "a size")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode: how Python 3 pickles bytes for protocol 2."""
    _expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes of another encoding than latin1")
    return text.encode("latin1")  # type: ignore[no-any-return]


def _numpy_type(code: Any, *_: Any) -> _NumpyType:
    _expect(isinstance(code, str), "a numpy type of no name")
    if code.lstrip("<>|=") not in _NUMPY:
        raise Refused(f"numpy type '{code[:20]}'")
    return _NumpyType(code.lstrip("<>|="), code.startswith(">"))


def _numpy_bytes(kind: Any, shape: tuple[int, ...], data: Any) -> PickledArray:
    data = data.encode("latin1") if isinstance(data, str) else data
    _expect(isinstance(kind, _NumpyType) and isinstance(data, bytes), "a numpy array without type or data")
    dtype = _NUMPY[kind.code]
    _expect(len(data) == math.prod(shape) * dtype.itemsize, f"numpy data of {len(data)} bytes for shape {shape}")
    if kind.big_endian:
        size = dtype.itemsize
        data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
    return PickledArray(dtype, shape, data)


def _numpy_scalar(kind: Any, data: Any) -> int | float | bool:
    array = _numpy_bytes(kind, (), data)
    return torch.frombuffer(bytearray(array.data), dtype=array.dtype).item()


def _numpy_reconstruct(kind: Any, *_: Any) -> PickledArray:
    if kind != Named("numpy", "ndarray"):
        raise Refused(str(kind))
    return PickledArray()


def _device(*_: Any) -> str:
    return "device"


BUILDERS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, stride, *_: _tensor(
        storage, offset, shape, stride
    ),
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _torch_size,
    ("torch", "device"): _device,
    ("torch.nn.modules.container", "ParameterDict"): lambda *_: _Bag(),
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "Counter"): _dictionary,
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_type,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("scalar", _numpy_scalar), ("_reconstruct", _numpy_reconstruct))
    },
    **{
        (module, name): function
        for module in ("builtins", "__builtin__")
        for name, function in (("set", _set), ("frozenset", _set), ("dict", _dictionary))
    },
}
"""What a pickle may have called: (module, name), matched exactly -> our own function."""


def build(function: Any, arguments: Any) -> Any:
    """What REDUCE and NEWOBJ make. Raises Refused, by name, for everything outside `BUILDERS`."""
    if not isinstance(function, Named):
        raise Refused(f"a call of a {type(function).__name__}")
    builder = BUILDERS.get((function.module, function.name))
    if builder is None:
        raise Refused(str(function)[:200])
    _expect(isinstance(arguments, tuple), f"{function} is called without a tuple of arguments")
    try:
        return builder(*arguments)
    except TypeError as error:
        raise Malformed(f"{function} is called with {len(arguments)} arguments") from error


def _set_state(target: Any, state: Any) -> Any:
    """What BUILD does: fills numpy types and arrays, and the plain stand-ins of torch's containers."""
    if isinstance(target, _NumpyType):
        _expect(isinstance(state, tuple) and len(state) >= 2, "a numpy type of unknown state")
        target.big_endian = state[1] == ">"
    elif isinstance(target, PickledArray):
        _expect(isinstance(state, tuple) and len(state) == 5, "a numpy array of unknown state")
        _, shape, kind, fortran, data = state
        _expect(fortran is False or fortran == 0, "a numpy array in Fortran order")
        filled = _numpy_bytes(kind, _sizes(shape, "a shape"), data)
        target.dtype, target.shape, target.data = filled.dtype, filled.shape, filled.data
    elif isinstance(target, _Bag):
        _expect(isinstance(state, dict), "a ParameterDict of unknown state")
        parameters = state.get("_parameters")
        kept = parameters if isinstance(parameters, dict) and parameters else state
        target.update({k: v for k, v in kept.items() if isinstance(v, (PickledTensor, PickledArray))})
    elif isinstance(target, dict):
        # a state_dict's OrderedDict carries `_metadata` (layer versions) as an attribute
        _expect(isinstance(state, dict), "a dictionary of unknown state")
    else:
        raise Refused(f"the state of {target if isinstance(target, Named) else type(target).__name__}")
    return target


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
    ]
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})


@dataclass
class _Machine:
    """The pickle machine: a stack, the stacks below marks, and a memo."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        _expect(bool(self.stack), "it takes from an empty stack")
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        _expect(bool(self.below), "it goes back to a mark that is not there")
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        _expect(bool(self.stack) and isinstance(self.stack[-1], kind), f"it fills a {kind.__name__} that is not there")
        return self.stack[-1]

    def step(self, name: str, argument: Any) -> None:
        """One opcode. Raises Malformed or Refused."""
        stack = self.stack
        if name in _VALUES:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            _expect(bool(stack), "it remembers nothing")
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            _expect(bool(stack), "it remembers nothing")
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            _expect(int(argument) in self.memo, f"it recalls number {argument}, which was never kept")
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            _expect(len(stack) >= count, "it takes from an empty stack")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = self.to_mark()
            self.stack.append(tuple(items))
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self._named(name, argument)
        elif name not in _IGNORED:
            self._container(name, argument)

    def _named(self, name: str, argument: Any) -> None:
        """The opcodes that in Python's own unpickler import and call."""
        if name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            self.stack.append(Named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            _expect(isinstance(module, str) and isinstance(attribute, str), "a name that is no text")
            self.stack.append(Named(module, attribute))
        elif name == "BUILD":
            state = self.pop()
            self.stack.append(_set_state(self.pop(), state))
        elif name == "BINPERSID":
            self.stack.append(_storage(self.pop()))
        else:
            arguments = self.pop()
            self.stack.append(build(self.pop(), arguments))

    def _container(self, name: str, argument: Any) -> None:
        if name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.top(dict)[_key(key)] = value
        elif name == "SETITEMS":
            items = self.to_mark()
            _expect(len(items) % 2 == 0, "a dictionary with a key but no value")
            self.top(dict).update(zip(map(_key, items[::2]), items[1::2]))
        elif name == "APPEND":
            value = self.pop()
            self.top(list).append(value)
        elif name == "APPENDS":
            items = self.to_mark()
            self.top(list).extend(items)
        elif name == "ADDITEMS":
            items = self.to_mark()
            self.top(set).update(map(_key, items))
        elif name == "LIST":
            items = self.to_mark()
            self.stack.append(items)
        elif name == "DICT":
            items = self.to_mark()
            _expect(len(items) % 2 == 0, "a dictionary with a key but no value")
            self.stack.append(dict(zip(map(_key, items[::2]), items[1::2])))
        elif name == "FROZENSET":
            items = self.to_mark()
            self.stack.append(_set(items))
        elif name == "POP":
            _ = self.stack.pop() if self.stack else self.to_mark()
        elif name == "POP_MARK":
            self.to_mark()
        elif name == "DUP":
            _expect(bool(self.stack), "it takes from an empty stack")
            self.stack.append(self.stack[-1])
        else:
            self._refuse(name, argument)

    def _refuse(self, name: str, argument: Any) -> None:
        """INST, OBJ, NEWOBJ_EX, EXT1-4, PERSID, out-of-band buffers: no checkpoint has them."""
        what = f"opcode {name}"
        if name == "INST":
            what = str(argument).replace(" ", ".")
        elif name in ("OBJ", "NEWOBJ_EX"):
            candidates = self.stack[:1] if name == "OBJ" else self.stack[-3:-2]
            what = f"{candidates[0]}" if candidates and isinstance(candidates[0], Named) else what
        raise Refused(what[:200])


def _storage(pid: Any) -> Storage:
    """torch's persistent ids: ("storage", type, key, device, numel), and in old files a view's description."""
    _expect(isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage", "an unknown persistent id")
    _, kind, key, _, numel = pid[:5]
    _expect(len(pid) == 5 or pid[5] is None, "a storage that is a view of another")
    _expect(isinstance(key, str) and len(key) < 200, "a storage without a key")
    known = isinstance(kind, Named) and kind.module in ("torch", "torch.storage", "torch.cuda")
    if not (known and kind.name in _STORAGES):
        raise Refused(f"storage type {kind}"[:200])
    return Storage(key, _STORAGES[kind.name], _whole(numel, "a storage's size"))


def read(file: io.BytesIO, where: str) -> Any:
    """The next object of `file`, which is left just behind it.

    The result is made of dict, list, tuple, set, str, bytes, int, float, bool, None, `Named`, `Storage`,
    `PickledTensor` and `PickledArray`. Tensors lie within the sizes that the pickle claims for their storages;
    whether the storages do is the caller's to check. `where` names the file in errors.

    Raises DanqingError, with nothing run, when the pickle asks for anything else or is damaged.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return machine.pop()
            if count >= MAX_OPCODES:
                raise Malformed(f"it has more than {MAX_OPCODES} instructions")
            machine.step(opcode.name, argument)
        raise Malformed("it has no end")
    except Refused as refusal:
        raise DanqingError(
            f"{where}: asks for {refusal}, which a model file has no need of and may be harmful; "
            "refused, and nothing of it was run. Use a .safetensors version of the model"
        ) from refusal
    except (ValueError, TypeError, OverflowError, IndexError, KeyError, RecursionError, MemoryError) as error:
        # pickletools reports damage by ValueError and its kin
        raise DanqingError(f"{where}: damaged pickle: {str(error)[:200] or type(error).__name__}") from error
