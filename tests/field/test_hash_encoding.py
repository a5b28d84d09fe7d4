"""The gathered hash encoding against nerfstudio's own."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.fields.density_fields import HashMLPDensityField
from torch import nn

from qnerf_nerfstudio.field.hash_encoding import GatheredHashEncoding, gather_encodings


@settings(max_examples=25, deadline=None)
@given(
    levels=st.integers(1, 6),
    max_res=st.integers(16, 2048),
    size=st.integers(4, 16),
    features=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_nerfstudios(levels: int, max_res: int, size: int, features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stock = HashEncoding(
        num_levels=levels,
        max_res=max_res,
        log2_hashmap_size=size,
        features_per_level=features,
        hash_init_scale=1.0,
        implementation="torch",
    )
    ours = GatheredHashEncoding(stock)
    points = torch.rand(7, 5, 3, generator=generator)
    points[0, :4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.25, 0.0], [1, 0, 0.5]])
    weights = torch.rand(7, 5, levels * features, generator=generator)
    results = []
    for encoding in (stock, ours):
        features_ = encoding(points)
        (gradient,) = torch.autograd.grad((weights * features_.square()).sum(), stock.hash_table)
        results.append((features_, gradient))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-5, rtol=1e-5)


@pytest.mark.release  # compiling takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same() -> None:
    stock = HashEncoding(num_levels=4, log2_hashmap_size=10, hash_init_scale=1.0, implementation="torch")
    compiled = GatheredHashEncoding(stock, compiled=True)
    generator = torch.Generator().manual_seed(0)
    for count in (100, 257):
        points = torch.rand(count, 3, generator=generator)
        results = []
        for encoding in (stock, compiled):
            features = encoding(points)
            (gradient,) = torch.autograd.grad(features.square().sum(), stock.hash_table)
            results.append((features, gradient))
        torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_every_encoding_of_a_module_is_replaced_and_its_weights_stay() -> None:
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    module = nn.ModuleList([HashMLPDensityField(box, num_levels=3, log2_hashmap_size=6, implementation="torch")])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gather_encodings(module)
    encodings = [each for each in module.modules() if isinstance(each, HashEncoding)]
    assert encodings and all(isinstance(each, GatheredHashEncoding) for each in encodings)
    after = module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert len(list(module.parameters())) == 1 + 4
