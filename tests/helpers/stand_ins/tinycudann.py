"""A stand-in for tiny-cuda-nn, which no package index has: its classes and types, computed by nerfstudio's torch parts.

As there, a module has one vector of float32 parameters on the GPU, takes inputs of the GPU alone, gives float16, and
has no second derivative.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call


class _Apply(torch.autograd.Function):
    """A module's outputs in float16, with first derivatives only."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, params: Tensor, module: "Module") -> Tensor:
        """Compute."""
        with torch.enable_grad():
            ctx.inputs, ctx.params = inputs.detach().requires_grad_(True), params.detach().requires_grad_(True)
            ctx.outputs = module.compute(ctx.inputs, ctx.params)
        return ctx.outputs.detach().half()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of inputs and parameters."""
        wanted = (ctx.inputs, ctx.params)
        inputs, params = torch.autograd.grad(ctx.outputs, wanted, gradients[0].float(), allow_unused=True)
        return inputs, params, None


class Module(nn.Module):
    """A part whose parameters lie side by side in one vector."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        named = dict(part.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        parts = [parameter.detach().flatten() for parameter in named.values()]
        self.params = nn.Parameter(torch.cat([*parts, torch.zeros(0)]).float().to("cuda"))
        self._part = [part.to("cuda")]  # in a list, so that its own parameters are none of this module's

    def compute(self, inputs: Tensor, params: Tensor) -> Tensor:
        """The part's outputs, float32."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        values = {
            name: values.view(shape)
            for (name, shape), values in zip(self._shapes.items(), params.split(sizes), strict=True)
        }
        return functional_call(self._part[0], values, inputs.float()).float()

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs in float16 of inputs [N, C] on the GPU."""
        assert inputs.is_cuda and inputs.dim() == 2, "tiny-cuda-nn takes batches of the GPU"
        with torch.autocast("cuda", enabled=False):
            return _Apply.apply(inputs, self.params, self)  # pyright: ignore[reportReturnType]


def _encoding(width: int, config: dict[str, Any]) -> nn.Module:
    """Nerfstudio's torch part for an encoding."""
    from nerfstudio.field_components import encodings  # noqa: PLC0415 - it imports this module

    if config["otype"] == "HashGrid":
        return encodings.HashEncoding(
            num_levels=config["n_levels"],
            min_res=config["base_resolution"],
            max_res=round(config["base_resolution"] * config["per_level_scale"] ** (config["n_levels"] - 1)),
            log2_hashmap_size=config["log2_hashmap_size"],
            features_per_level=config["n_features_per_level"],
            implementation="torch",
        )
    if config["otype"] == "Frequency":
        count = config["n_frequencies"]
        return encodings.NeRFEncoding(width, count, 0, count - 1, implementation="torch")
    assert config["otype"] == "SphericalHarmonics", config
    return encodings.SHEncoding(levels=config["degree"], implementation="torch")


def _network(width: int, outputs: int, config: dict[str, Any]) -> nn.Module:
    """A perceptron without biases."""
    kinds: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid, "None": nn.Identity}
    layers: list[nn.Module] = []
    for _ in range(config["n_hidden_layers"]):
        layers += [nn.Linear(width, config["n_neurons"], bias=False), kinds[config["activation"]]()]
        width = config["n_neurons"]
    return nn.Sequential(*layers, nn.Linear(width, outputs, bias=False), kinds[config["output_activation"]]())


class Encoding(Module):
    """An encoding."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], **settings: Any) -> None:
        part = _encoding(n_input_dims, encoding_config)
        super().__init__(part)
        self.n_input_dims, self.n_output_dims = n_input_dims, part.get_out_dim()  # pyright: ignore


class Network(Module):
    """A perceptron."""

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any], **settings: Any) -> None:
        super().__init__(_network(n_input_dims, n_output_dims, network_config))
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims


class NetworkWithInputEncoding(Module):
    """A perceptron on an encoding."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: dict[str, Any],
        network_config: dict[str, Any],
        **settings: Any,
    ) -> None:
        encoding = _encoding(n_input_dims, encoding_config)
        network = _network(encoding.get_out_dim(), n_output_dims, network_config)  # pyright: ignore
        super().__init__(nn.Sequential(encoding, network))
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
