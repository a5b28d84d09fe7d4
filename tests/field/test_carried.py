"""A field seen through a deformation, against cameras that move instead."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from helpers.fields import rays
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components import renderers
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import invert_affine, transform_points
from qnerf_nerfstudio.deformation.deformation import Origins
from qnerf_nerfstudio.deformation.solids import BoxesDeformation
from qnerf_nerfstudio.edit.schema import BoxControl
from qnerf_nerfstudio.field.carried import brought_matter
from qnerf_nerfstudio.field.model import QNerfModel

TURN = torch.tensor([[0.8, -0.6, 0, 0.1], [0.6, 0.8, 0, -0.2], [0, 0, 1, 0.05]])


@dataclass
class Moved:
    """All of the scene moves by a rigid motion."""

    to_captured: Tensor
    emptied: bool = False
    shade: float | None = None

    def __call__(self, points: Tensor) -> Origins:
        kept, sure = torch.full(points.shape[:-1], not self.emptied), torch.ones(points.shape[:-1])
        shades = None if self.shade is None else self.shade * sure
        return Origins(transform_points(points, self.to_captured), kept, sure, shades)

    def to(self, device: str) -> "Moved":
        return self


def rendered(model: QNerfModel, bundle: RayBundle, deformation: Moved | None = None) -> dict[str, Tensor]:
    model.eval()
    with torch.no_grad(), nullcontext() if deformation is None else model.seen_through(deformation):
        return model.get_outputs(bundle)


def test_a_scene_that_moves_looks_as_from_a_camera_that_moves_back(model: QNerfModel) -> None:
    bundle = rays()
    back = invert_affine(TURN)
    origins, directions = transform_points(bundle.origins, back), bundle.directions @ back[:, :3].T
    seen_from = replace(bundle, origins=origins, directions=directions)
    expected = rendered(model, seen_from)
    carried = rendered(model, bundle, Moved(back))
    for name in ("rgb", "depth", "accumulation", "queries"):
        torch.testing.assert_close(carried[name], expected[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(carried["certainty"], carried["accumulation"])


def test_what_stays_is_rendered_as_it_is_to_the_bit(model: QNerfModel) -> None:
    expected = rendered(model, rays())
    carried = rendered(model, rays(), Moved(torch.eye(3, 4)))
    assert model.deformation is None
    assert all(torch.equal(carried[name], expected[name]) for name in ("rgb", "depth", "accumulation", "queries"))


def test_what_has_moved_away_leaves_nothing(model: QNerfModel) -> None:
    emptied = Moved(torch.eye(3, 4), emptied=True)
    assert float(rendered(model, rays(), emptied)["accumulation"].abs().max()) == 0


def test_matter_is_shaded_and_nothing_else_changes(model: QNerfModel) -> None:
    expected = rendered(model, rays())
    # Composited over black, so that all that is seen is matter.
    with renderers.background_color_override_context(torch.zeros(3)):
        plain, shaded = (rendered(model, rays(), Moved(torch.eye(3, 4), shade=shade)) for shade in (None, 0.5))
    torch.testing.assert_close(shaded["rgb"], plain["rgb"] / 2)
    assert all(torch.equal(shaded[name], expected[name]) for name in ("depth", "accumulation", "queries"))


@torch.no_grad()
def test_colours_at_points_are_those_of_renders(model: QNerfModel) -> None:
    bundle = rays()
    points = bundle.origins + 0.7 * bundle.directions
    model.train()
    found = model.colour(points, bundle.directions)
    assert model.field.training
    model.eval()
    samples = bundle.get_ray_samples(torch.full((len(points), 1, 1), 0.7), torch.full((len(points), 1, 1), 0.7))
    torch.testing.assert_close(found, model.field(samples)[FieldHeadNames.RGB][:, 0])


def test_matter_is_brought_where_a_ball_moves_to_and_nowhere_else() -> None:
    places = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ball, shift = torch.tensor([0.3, 0.0, 0.0]), torch.tensor([-0.6, 0.1, 0.0])
    back = torch.cat([torch.eye(3), -shift[:, None]], dim=1)

    def density(points: Tensor) -> Tensor:
        return torch.where((points - ball).norm(dim=-1) < 0.2, 60.0, 1.0)

    brought = brought_matter(density, Moved(back), places, least=50)
    inside = (places - ball - shift).norm(dim=-1) < 0.2
    assert torch.equal(brought, places[inside]) and len(brought) > 50
    for nothing in (Moved(torch.eye(3, 4)), Moved(back, emptied=True)):
        assert len(brought_matter(density, nothing, places, least=50)) == 0


def test_nothing_is_brought_by_what_none_of_the_places_lies_in(model: QNerfModel) -> None:
    """Something small that moves in a large region; the field refuses to be asked of no place."""
    there, here = ({"position": [x, 0.0, 0.0], "size": [1e-4] * 3} for x in (0.1, 0.2))
    box = BoxControl.model_validate({"type": "box", "source": there, "target": here})
    places = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    moved = BoxesDeformation.of([box], torch.eye(3, 4))
    assert brought_matter(model.density, moved, places, least=1.0).shape == (0, 3)
