"""A second device that every machine has: it runs the code paths of a GPU without one.

Tensors that are sent to "cuda" stay in main memory, but their storages know where they were sent. An operation that
mixes both devices fails as on a GPU, and so does `.numpy()` of a tensor there. A TorchFunctionMode answers questions
about devices and moves tensors; a TorchDispatchMode checks what operations get, and places what they give. Mixed
precision is the CPU's own, in float16.

It does not show streams, races, memory, or kernels that compute otherwise.

As a script it runs another one: `python second_device.py .venv/bin/ns-train qnerf-edit --data scene ...`
"""

import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # it refuses to be imported while torch.cuda is patched
from torch import Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE, TOTAL = 20 * 2**30, 24 * 2**30
"""Bytes that the second device says it has."""

aten = torch.ops.aten
ACROSS = {aten.copy_, aten._to_copy}
"""Operations that take tensors of both devices."""
JOINING = {aten.cat, aten.stack}
"""Operations that take no numbers of the CPU beside tensors of a GPU."""
INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operations whose indices may be on the CPU, whatever they index."""
GET_DEVICE, GET_IS_CUDA, GET_IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
TO_NUMPY = (Tensor.numpy, Tensor.__array__)
MOVES = (Tensor.to, Tensor.cuda, Tensor.cpu, Tensor.type_as)
LIKE_SELF = (Tensor.new_tensor, Tensor.__deepcopy__)
"""What makes a tensor where its first argument is, without an operation that says so."""


def on_cuda(tensor: Tensor) -> bool:
    """Whether a tensor is on the second device."""
    try:
        return getattr(tensor.untyped_storage(), "on_cuda", False)
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those inside of torch's transforms
        return False


def place(tensor: Tensor, cuda: bool) -> None:
    """Note where a tensor is."""
    tensor.untyped_storage().on_cuda = cuda  # pyright: ignore[reportAttributeAccessIssue]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)


class _Thread(threading.local):
    """What Python called last in this thread."""

    places: bool = False
    """Whether it got a tensor of the second device: what C++ makes inside of it lies there, too."""


_thread = _Thread()


@contextmanager
def _making(cuda: bool) -> Iterator[None]:
    before, _thread.places = _thread.places, cuda
    try:
        yield
    finally:
        _thread.places = before


class Operations(TorchDispatchMode):
    """Refuses operations that mix devices, and places their results."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation."""
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        there = [on_cuda(tensor) for tensor in given]
        if any(there) and not all(there) and func.overloadpacket not in ACROSS:
            _check(func, args, given, there)
        result = func(*args, **kwargs)
        if any(there) or (not given and _thread.places):
            known = {id(tensor.untyped_storage()) for tensor in given}
            for tensor in tensors_in(result):
                if id(tensor.untyped_storage()) not in known:
                    place(tensor, cuda=True)
        return result


def _check(func: Any, args: Any, given: list[Tensor], there: list[bool]) -> None:
    """Refuse what a GPU refuses: it mixes with numbers of the CPU alone, and looks up indices of the CPU."""
    if func.overloadpacket in INDEXING:
        if on_cuda(args[0]):
            given = list(tensors_in(args[2:3]))
            there = [on_cuda(each) for each in given]
        elif any(on_cuda(each) for each in tensors_in(args[1])):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    left = [each for each, cuda in zip(given, there, strict=True) if not cuda]
    mixed = [each for each in left if each.dim() > 0 or func.overloadpacket in JOINING]
    if mixed:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func}; "
            f"on the CPU: {[tuple(each.shape) for each in mixed]})"
        )


class Moves(TorchFunctionMode):
    """Answers where tensors are, and moves them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = dict(kwargs or {})
        if func == GET_DEVICE and not on_cuda(args[0]):
            return func(*args, **kwargs)
        if func in ANSWERS:
            return ANSWERS[func](args[0])
        if func in TO_NUMPY and on_cuda(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                "first."
            )
        if func in MOVES:
            return _moved(func, *args, **kwargs)
        if kwargs.get("generator") is not None:
            _check_generator(kwargs, args)
        if "device" in kwargs and getattr(func, "__name__", "") != "_parse_to":
            return _made(func, args, kwargs)
        with _making(any(map(on_cuda, tensors_in((args, kwargs))))):
            result = func(*args, **kwargs)
        if func in LIKE_SELF:
            place(result, on_cuda(args[0]))
        return result


def _is_cuda(device: Any) -> bool | None:
    """Whether a device is the second one; None where it is neither that nor the CPU."""
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    kind = torch.device(device).type
    return kind == "cuda" if kind in ("cuda", "cpu") else None


def _check_generator(kwargs: dict[str, Any], args: Any) -> None:
    """Refuse a generator of the other device."""
    device = kwargs.get("device")
    wanted = any(map(on_cuda, tensors_in(args))) if device is None else _is_cuda(device)
    found = kwargs["generator"].device.type
    if wanted != (found == "cuda"):
        raise RuntimeError(f"Expected a '{'cuda' if wanted else 'cpu'}' device type for generator but found '{found}'")


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of a function that is told the device."""
    device = kwargs.pop("device")
    cuda = any(map(on_cuda, tensors_in(args))) if device is None else _is_cuda(device)
    if cuda is None:
        return func(*args, device=device, **kwargs)
    if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor):
        return _moved(Tensor.to, *args, device=device, **kwargs)
    with _making(False):
        result = func(*args, device=CPU, **kwargs)
    for tensor in tensors_in(result):
        place(tensor, cuda)
    return result


def _moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A tensor where `.to`, `.cuda`, `.cpu` or `.type_as` sends it; a copy where that is the other device."""
    here, rest = on_cuda(tensor), list(args)
    target: bool | None = here
    if func in (Tensor.cuda, Tensor.cpu):
        target, rest = func is Tensor.cuda, []
        kwargs.pop("device", None)
    elif rest and isinstance(rest[0], Tensor):
        target, rest[0] = on_cuda(rest[0]), rest[0].dtype
    elif isinstance(other := kwargs.pop("other", None), Tensor):
        target, rest = on_cuda(other), [other.dtype]
    else:
        named = rest and not isinstance(rest[0], (torch.dtype, bool))
        device = rest.pop(0) if named else kwargs.pop("device", None)
        if device is not None:
            target = _is_cuda(device)
        if target is None:
            return tensor.to(device, *rest, **kwargs)
    kwargs.pop("non_blocking", None)
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), kwargs.pop("dtype", tensor.dtype))
    # After the dtype come non_blocking and copy.
    copied = [each for each in rest if isinstance(each, bool)][1:] == [True]
    copy = kwargs.pop("copy", False) or copied or target != here
    with _making(False):
        result = Tensor.to(tensor, dtype, copy=copy, **kwargs)
    if result is not tensor:
        place(result, bool(target))
    return result


def _pinned(tensor: Tensor) -> Tensor:
    if on_cuda(tensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    result = tensor.clone()
    result.untyped_storage().pinned = True  # pyright: ignore[reportAttributeAccessIssue]
    return result


ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    GET_DEVICE: lambda tensor: CUDA,  # asked of tensors of the second device alone
    GET_IS_CUDA: on_cuda,
    GET_IS_CPU: lambda tensor: not on_cuda(tensor),
    Tensor.get_device: lambda tensor: 0 if on_cuda(tensor) else -1,
    Tensor.pin_memory: _pinned,
    Tensor.is_pinned: lambda tensor: getattr(tensor.untyped_storage(), "pinned", False),
}
"""What is said of a tensor."""


class Generator(torch.Generator):
    """A generator that knows which device it is for."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """One for a device."""
        generator = super().__new__(cls)
        generator.cuda = bool(_is_cuda(device))  # pyright: ignore[reportAttributeAccessIssue]
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        """The device."""
        return CUDA if self.cuda else CPU  # pyright: ignore[reportAttributeAccessIssue]


def _tagged(storage: UntypedStorage) -> str | None:
    """What torch.save notes of a storage."""
    return "cuda:0" if getattr(storage, "on_cuda", False) else None


def _restored(storage: UntypedStorage, location: str) -> UntypedStorage | None:
    """The storage where torch.load puts it, if that is the second device."""
    if not (_active.is_set() and location.startswith("cuda")):
        return None
    storage.on_cuda = True  # pyright: ignore[reportAttributeAccessIssue]
    return storage


_active = threading.Event()
torch.serialization.register_package(0, _tagged, _restored)


def _properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(total_memory=TOTAL, name="second device", major=9, minor=0, multi_processor_count=100)


def _autocast(begin: Callable[..., None]) -> Callable[..., None]:
    """Mixed precision of the second device: the CPU's own, in a GPU's type."""

    def init(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        begin(self, device_type, dtype, *args, **kwargs)

    return init


def _patches() -> Iterator[Any]:
    """What torch.cuda says while there is a second device."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    def zero(*args: Any, **kwargs: Any) -> int:
        return 0

    yield patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=zero,
        set_device=nothing,
        empty_cache=nothing,
        synchronize=nothing,
        mem_get_info=lambda *device: (FREE, TOTAL),
        memory_allocated=zero,
        memory_reserved=zero,
        max_memory_allocated=zero,
        max_memory_reserved=zero,
        reset_peak_memory_stats=nothing,
        get_device_name=lambda *device: "second device",
        get_device_capability=lambda *device: (9, 0),
        get_device_properties=_properties,
        is_bf16_supported=lambda *args, **kwargs: True,
        manual_seed=nothing,
        manual_seed_all=nothing,
    )
    yield patch.object(torch, "Generator", Generator)
    yield patch.object(torch.autocast, "__init__", _autocast(torch.autocast.__init__))
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):
            yield patch.object(torch.optim.Optimizer, name, nothing)

    # Checkpointed blocks are compared with their second pass, and the mode is suspended where the first one is noted.
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    yield patch.dict(checks, default=lambda tensor: {"shape": tensor.shape, "dtype": tensor.dtype})
    run, backward = threading.Thread.run, torch.autograd._engine_run_backward

    def run_there(self: threading.Thread) -> None:
        with Moves(), Operations():
            run(self)

    def backward_there(*args: Any, **kwargs: Any) -> Any:
        # Torch suspends the mode while it calls a function of its own, and this one calls ours.
        with Moves() if torch._C._len_torch_function_stack() == 0 else nullcontext():
            return backward(*args, **kwargs)

    yield patch.object(threading.Thread, "run", run_there)
    yield patch.object(torch.autograd, "_engine_run_backward", backward_there)


@contextmanager
def second_device() -> Iterator[None]:
    """Have a second device, "cuda", meanwhile; threads that start meanwhile have it, too."""
    with ExitStack() as stack:
        for each in _patches():
            stack.enter_context(each)
        stack.enter_context(Moves())
        stack.enter_context(Operations())
        _active.set()
        stack.callback(_active.clear)
        yield


def main() -> None:
    """Run a script, which is the first argument."""
    sys.argv = sys.argv[1:]
    with second_device():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
