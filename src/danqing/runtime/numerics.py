"""What becomes of values that are not finite: the part where they begin is found, named and run again in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.runtime.stream import whole

Output = TypeVar("Output")
Network = TypeVar("Network", bound=nn.Module)

SAFE = torch.float32


def guarded(network: nn.Module, run: Callable[[], Output], note: Callable[[str, str], None], name: str) -> Output:
    """`run()`, which calls `network` or parts of it; where its output is not finite, run again until it is.

    The first module whose output is not finite runs in float32; if that is not enough, the block around it; if that
    is not enough, all of the network that `run` calls. `note(module, part)` is told where it began and which part ran
    in float32. The network is left as it was. `name` ("U-Net", "autoencoder") says in messages whose module it is.
    Raises DanqingError naming the module when float32 does not help either, and when what goes in is not finite.
    """
    output = run()
    if all_finite(output):
        return output
    chain = first_not_finite(network, run)
    if chain is None:
        raise DanqingError(f"{name}: what goes in is not finite already, so what went before it is at fault")
    modules = dict(network.named_modules())
    culprit, outermost = chain[-1], chain[0]
    if any(p.dtype != SAFE for p in network.parameters()):
        for part in dict.fromkeys((culprit, chain[max(len(chain) - 2, 0)], outermost)):
            with in_float32(modules[part], back=part != outermost):
                output = run()
            if all_finite(output):
                note(culprit or name, part or name)
                return output
    raise DanqingError(f"{name}: {culprit or 'its output'} is not finite, {_why(modules[culprit])}")


def _why(module: nn.Module) -> str:
    bad = [key for key, value in module.named_parameters() if not all_finite(whole(value))]
    if bad:
        return f"because its weight {bad[0]} is not: the file is damaged; get it again"
    return "even in float32, though its weights are: the file may be damaged, or an adapter or the CFG scale too strong"


def all_finite(value: Any) -> bool:
    """Whether every floating tensor in `value` (tensors, tuples, lists, mappings, dataclasses) is finite."""
    return all(bool(t.isfinite().all()) for t in _tensors(value) if t.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])


class _Found(Exception):
    """Ends the run as soon as the module is known."""

    def __init__(self, chain: list[str]) -> None:
        self.chain = chain


def first_not_finite(network: nn.Module, run: Callable[[], Any]) -> list[str] | None:
    """Where `run()` first makes something that is not finite: the modules' paths, from the outermost that it calls
    to the innermost in which it happens.

    Where it happens between modules, the module around them is the innermost; the network itself is the empty path.
    None when what enters the outermost is not finite.
    """
    active: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not all_finite((args, kwargs)):
                raise _Found(active)
            active.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not all_finite(output):
                raise _Found(active)
            active.pop()

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.enter_context(_removed(module.register_forward_pre_hook(enter(name), with_kwargs=True)))
            stack.enter_context(_removed(module.register_forward_hook(leave(name))))
        try:
            run()
        except _Found as found:
            return found.chain or None
    return [""]


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def in_float32(module: nn.Module, back: bool = True) -> Iterator[None]:
    """Within, this module computes in float32 from a float32 copy of its weights; after, nothing has changed.

    With `back`, what it returns has its caller's precision again.
    """
    safe = converted(module, lambda tensor: whole(tensor).to(SAFE) if tensor.is_floating_point() else tensor)
    module.__dict__["forward"] = _through(safe, back)
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _through(safe: nn.Module, back: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        dtypes = {t.dtype for t in _tensors((args, kwargs)) if t.is_floating_point() and t.dtype != SAFE}
        output = safe(*_cast(args, SAFE), **_cast(kwargs, SAFE))
        return _cast(output, dtypes.pop()) if back and dtypes else output

    return forward


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


def converted(module: Network, change: Callable[[Tensor], Tensor]) -> Network:
    """A copy of the module tree whose parameters and buffers are `change(tensor)`; the original is left as it is.

    Where `change` returns its argument, the copy shares that tensor.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        tensor = change(parameter)
        memo[id(parameter)] = tensor if tensor is parameter else nn.Parameter(tensor.detach(), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = change(buffer)
    return copy.deepcopy(module, memo)
