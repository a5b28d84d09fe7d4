"""The second device: it refuses what a GPU refuses, and no more."""

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.second_device import CUDA, FREE, second_device


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with second_device():
        yield


def here(*shape: int) -> Tensor:
    return torch.ones(shape)


def there(*shape: int) -> Tensor:
    return torch.ones(shape, device="cuda")


MIXING: dict[str, Callable[[], Any]] = {
    "sum": lambda: there(3) + here(3),
    "matrix product": lambda: there(2, 3) @ here(3, 2),
    "a vector and a number of the GPU": lambda: here(3) * there(),
    "joined": lambda: torch.cat([there(2), here(2)]),
    "stacked numbers": lambda: torch.stack([there(), here()]),
    "chosen": lambda: torch.where(here(3) > 0, there(3), 0.0),
    "in place": lambda: here(3).add_(there(3)),
    "masked": lambda: there(3).masked_fill(here(3) > 0, 2.0),
    "gathered": lambda: there(3).gather(0, torch.zeros(1, dtype=torch.long)),
    "interpolated": lambda: torch.lerp(there(3), there(3), here(3)),
    "indices of the GPU": lambda: here(3)[torch.zeros(1, dtype=torch.long, device="cuda")],
    "a mask of the GPU": lambda: here(3)[there(3) > 0],
    "values of the CPU": lambda: there(3).index_put_((torch.tensor([0, 1]),), here(2)),
    "embedded": lambda: F.embedding(torch.tensor([0], device="cuda"), here(3, 2)),
    "a layer": lambda: nn.Linear(3, 2).cuda()(here(1, 3)),
    "compared": lambda: torch.equal(there(3), here(3)),
    "sampled by the other generator": lambda: torch.randn(2, generator=torch.Generator("cuda")),
    "sampled there by a generator of the CPU": lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_devices_fails(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"same device|indices should be|for generator"):
        MIXING[name]()


PASSING: dict[str, Callable[[], Tensor]] = {
    "a number of the CPU": lambda: there(3) * torch.tensor(2.0),
    "a number of the CPU, first": lambda: torch.tensor(2.0) / there(3),
    "two numbers": lambda: there() + here(),
    "indices of the CPU": lambda: there(3)[torch.tensor([0, 2])],
    "a mask of the CPU": lambda: there(3)[torch.tensor([True, False, True])],
    "set by indices of the CPU": lambda: there(3).index_put_((torch.tensor([0]),), torch.tensor(2.0)),
    "copied": lambda: there(3).copy_(here(3)),
    "assigned": lambda: assigned(there(3), here(2)),
    "resampled": lambda: F.interpolate(there(1, 1, 4, 4), size=(2, 2), mode="bilinear"),
    "new": lambda: there(3).new_tensor([1.0]),
    "like it": lambda: torch.zeros_like(there(3)),
    "cast": lambda: there(3).to(torch.float16),
    "beside another": lambda: here(3).to(there(1)),
    "typed as another": lambda: here(3).double().type_as(there(1)),
    "deeply copied": lambda: copy.deepcopy(there(3)),
    "a view": lambda: there(4, 3)[1:].T.reshape(-1),
    "told its device": lambda: torch.arange(4, device=CUDA),
    "one-hot, made in C++": lambda: F.one_hot(torch.tensor([1, 0], device="cuda")),
    "sampled": lambda: torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(0)),
}


def assigned(values: Tensor, part: Tensor) -> Tensor:
    values[:2] = part
    return values


@pytest.mark.parametrize("name", PASSING)
def test_what_a_gpu_allows_stays_on_it(name: str) -> None:
    result = PASSING[name]()
    assert result.device == CUDA and result.is_cuda and not result.is_cpu
    assert result.cpu().device.type == "cpu"


def test_copies_cross_and_do_not_share_memory() -> None:
    first = here(3)
    second = first.to("cuda")
    second += 1
    back = second.cpu()
    back += 1
    assert (first.tolist(), second.tolist(), back.tolist()) == ([1, 1, 1], [2, 2, 2], [3, 3, 3])
    assert first.to("cpu") is first and second.to("cuda") is second and second.to(torch.float32) is second


def test_numpy_reads_the_cpu_alone() -> None:
    for read in (lambda: there(2).numpy(), lambda: np.asarray(there(2))):
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            read()
    assert there(2).cpu().numpy().tolist() == there(2).tolist() == [1, 1]


def test_a_module_trains_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).to("cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda")
    inputs = torch.randn(64, 3, device="cuda")
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            outputs = model(inputs)
            assert outputs.dtype == torch.float16
        loss = (outputs.float() - inputs.sum(-1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.is_cuda for parameter in model.parameters())
    assert all(state["exp_avg"].is_cuda for state in optimizer.state.values())
    assert all(parameter.device.type == "cpu" for parameter in copy.deepcopy(model).cpu().parameters())


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return 2 * values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        assert gradients[0].is_cuda
        return 2 * gradients[0] * there(3)


def test_gradients_of_own_functions_are_there() -> None:
    values = there(3).requires_grad_(True)
    _Double.apply(values).sum().backward()
    assert values.grad is not None and values.grad.is_cuda and values.grad.tolist() == [2, 2, 2]


def test_files_remember_where_tensors_were(tmp_path: Path) -> None:
    torch.save({"there": there(2), "here": here(2)}, tmp_path / "x.pt")
    for place, expected in ((None, (True, False)), ("cpu", (False, False)), ("cuda:0", (True, True))):
        loaded = torch.load(tmp_path / "x.pt", map_location=place)
        assert (loaded["there"].is_cuda, loaded["here"].is_cuda) == expected


def test_memory_is_pinned_on_the_cpu_alone() -> None:
    assert here(2).pin_memory().is_pinned() and not here(2).is_pinned()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        there(2).pin_memory()


def test_threads_have_it_too() -> None:
    found: list[Any] = []

    def work() -> None:
        found.append(there(2).device)
        try:
            found.append(there(2) + here(2))
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == CUDA and "same device" in str(found[1])


def test_torch_speaks_of_it() -> None:
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert torch.cuda.mem_get_info()[0] == FREE and torch.cuda.get_device_name() == "second device"
    assert torch.device(torch.cuda.current_device()) == CUDA
