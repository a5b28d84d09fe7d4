"""The PCA code of query maps."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.diffusion.queries import CodecFit, QueryCodec


def maps(views: int, channels: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator)
    return {
        "a": torch.randn(views, 4, 6, channels, generator=generator) @ mix + 3,
        "b": torch.randn(views, 2, 3, 2 * channels, generator=generator) * 5 - 1,
    }


def fit(data: dict[str, torch.Tensor], width: int, chunk: int = 2) -> QueryCodec:
    builder = CodecFit(width)
    for start in range(0, len(data["a"]), chunk):
        builder.add({name: value[start : start + chunk] for name, value in data.items()})
    return builder.codec()


@given(st.integers(1, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_basis_is_orthonormal_and_strongest_first(width: int, seed: int) -> None:
    data = maps(6, 8, seed)
    codec = fit(data, width)
    for name, layer in codec.layers.items():
        assert layer.width == min(width, data[name].shape[-1])
        torch.testing.assert_close(layer.basis.T @ layer.basis, torch.eye(layer.width), atol=1e-5, rtol=0)
        variance = layer.encode(data[name]).flatten(0, 2).var(0)
        assert (variance[:-1] >= variance[1:] - 1e-3).all()


def test_full_width_code_keeps_distances_and_inverts() -> None:
    data = maps(6, 8, 0)
    layer = fit(data, 8).layers["a"]
    torch.testing.assert_close(layer.decode(layer.encode(data["a"])), data["a"], atol=1e-3, rtol=1e-4)
    standard = (data["a"] - layer.mean) / layer.std
    first, second = standard[0].flatten(0, 1), standard[1].flatten(0, 1)
    codes = layer.encode(data["a"])
    torch.testing.assert_close(
        (first - second).norm(dim=-1), (codes[0] - codes[1]).flatten(0, 1).norm(dim=-1), atol=1e-3, rtol=1e-4
    )


def test_streaming_fit_equals_one_pass() -> None:
    data = maps(6, 8, 1)
    whole, streamed = fit(data, 5, chunk=6), fit(data, 5, chunk=1)
    for name in data:
        torch.testing.assert_close(whole.layers[name].encode(data[name]), streamed.layers[name].encode(data[name]))


def test_standardisation_gives_every_layer_the_same_say() -> None:
    data = maps(6, 8, 2)
    codec = fit(data, 100)
    energies = {name: codec.layers[name].encode(value).square().mean() for name, value in data.items()}
    torch.testing.assert_close(energies["a"], energies["b"], atol=1e-3, rtol=1e-3)


def test_replace_moves_the_code_and_keeps_the_rest() -> None:
    data = maps(6, 8, 3)
    layer = fit(data, 3).layers["a"]
    queries, target = data["a"][0], layer.encode(data["a"][1])
    replaced = layer.replace(queries, target, 1.0)
    torch.testing.assert_close(layer.encode(replaced), target, atol=1e-4, rtol=1e-4)
    outside = (replaced - queries) / layer.std
    torch.testing.assert_close(outside @ layer.basis @ layer.basis.T, outside, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.replace(queries, target, 0.0), queries)


def test_split_and_tensors_round_trip() -> None:
    data = maps(4, 8, 4)
    codec = fit(data, 4)
    codes = codec.encode(data)
    joined = torch.cat([codes["a"][:, :2, :3], codes["b"]], dim=-1)
    assert joined.shape[-1] == codec.width
    assert torch.equal(codec.split(joined)["b"], codes["b"])
    restored = QueryCodec.from_tensors(codec.tensors())
    for name, code in restored.encode(data).items():
        assert torch.equal(code, codes[name])


@given(st.integers(0, 5), st.floats(0.1, 10))
@settings(deadline=None, max_examples=10)
def test_the_screen_mean_is_taken_out_and_given_back(seed: int, size: float) -> None:
    data = maps(6, 8, seed)
    place = size * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(seed + 1))
    shifted = {**data, "a": data["a"] + place}
    plain, codec = fit(data, 8).layers["a"], fit(shifted, 8).layers["a"]
    torch.testing.assert_close(plain.encode(data["a"]), codec.encode(shifted["a"]), atol=2e-3, rtol=2e-3)
    assert codec.encode(shifted["a"]).mean(0).abs().max() < 1e-3
    # What it explains, of queries that are standardised by their deviations.
    standard = (shifted["a"] - shifted["a"].mean((0, 1, 2))) / codec.std
    left = codec.encode(shifted["a"]).square().sum() / standard.square().sum()
    assert abs(float(1 - left) - codec.screen) < 1e-3
