"""One self-contained HTML page about a run, which opens without network."""

import base64
import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.common.images import load_images, to_bytes
from qnerf_nerfstudio.common.spread import evenly_spread
from qnerf_nerfstudio.common.wording import format_duration
from qnerf_nerfstudio.run.artifacts import EditArtifacts, read_json
from qnerf_nerfstudio.run.explained import explained_by_fit, mean_row, shares
from qnerf_nerfstudio.run.manifest import read_manifest
from qnerf_nerfstudio.run.tensor_file import TensorFile

SHOWN_VIEWS = 24
"""At most so many views are shown, evenly spread."""
QUERY_VIEWS = 6
"""Views whose query maps are shown."""
SIDE = 256
"""Longer side of the embedded pictures in pixels; the ones of the slider are twice as large."""
MAX_VIDEO = 32 * 2**20
"""Longer videos than this number of bytes are named, not embedded."""


@dataclass(frozen=True)
class ViewRow:
    """The pictures of a view, as data URIs."""

    name: str
    source: str
    control: str
    edited: str
    before: str
    """The photo, large."""
    after: str
    """The edited view, large."""


@dataclass(frozen=True)
class QueryRow:
    """Query maps of an interval."""

    label: str
    images: list[str]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run: Folder of the run, the one with config.yml.
        out: The page; by default report.html in the run's folder.

    Raises:
        UserError: The folder holds no edit, or its manifest is damaged, or `out` is a folder.
    """
    artifacts = EditArtifacts(run / "edit")
    if not artifacts.manifest.exists():
        raise UserError(
            f"{run} holds no edit ({artifacts.manifest.relative_to(run)} is missing); name the folder with config.yml "
            f"in it"
        )
    if out is not None and out.is_dir():
        raise UserError(f"--out: {out} is a folder; name the page in it, such as {out / 'report.html'}")
    manifest = read_manifest(artifacts.manifest)
    config = (run / "config.yml").read_text(encoding="utf-8") if (run / "config.yml").exists() else ""
    seconds, losses = artifacts.load_progress()
    environment = Environment(loader=PackageLoader("qnerf_nerfstudio.pages", "templates"), autoescape=True)
    videos = [_video(path) for path in sorted([*run.glob("*.mp4"), *run.glob("renders/*.mp4")])]
    page = environment.get_template("report.html").render(
        manifest=manifest,
        views=_views(artifacts, [Path(photo) for photo in manifest.paths]),
        queries=_queries(artifacts),
        explained=_explained(artifacts, manifest.num_train),
        curves=_curves(artifacts, losses),
        videos=videos,
        score=read_json(run / "score.json"),
        seconds={name: format_duration(spent) for name, spent in seconds.items()},
        total=format_duration(sum(seconds.values())),
        config=config,
        command=f"ns-viewer --load-config {run / 'config.yml'}",
    )
    path = out or run / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _views(artifacts: EditArtifacts, photos: list[Path]) -> list[ViewRow]:
    """The pictures of evenly spread views; while a run goes on, its latest previews."""
    folder = artifacts.latest_views()
    rows = []
    for index in evenly_spread(SHOWN_VIEWS, len(photos)):
        photo = photos[index]
        edited = None if folder is None else artifacts.view(folder, photo)
        rows.append(
            ViewRow(
                name=photo.name,
                source=_picture(photo, SIDE),
                control=_picture(artifacts.view(artifacts.controls("target"), photo), SIDE),
                edited=_picture(edited, SIDE),
                before=_picture(photo, 2 * SIDE),
                after=_picture(edited, 2 * SIDE),
            )
        )
    return rows


def _queries(artifacts: EditArtifacts) -> list[QueryRow]:
    """PCA colours of the query codes that were extracted and rendered, by interval."""
    rows: list[QueryRow] = []
    for interval, extracted_files, rendered_files in artifacts.query_files():
        extracted, rendered = _joined(extracted_files), _joined(rendered_files)
        if extracted is None:
            continue
        flat = extracted.flatten(0, 2)
        mean = flat.mean(0)
        basis = torch.linalg.svd(flat[evenly_spread(20000, len(flat))] - mean, full_matrices=False)[2][:3]
        low, high = torch.quantile(((flat - mean) @ basis.T)[:100000], torch.tensor([0.02, 0.98]), dim=0)
        for label, maps in (("extracted", extracted), ("rendered", rendered)):
            if maps is None:
                continue
            colours = (((maps - mean) @ basis.T - low) / (high - low)).clamp(0, 1)
            chosen = evenly_spread(QUERY_VIEWS, len(maps))
            images = [_data_uri(_enlarge(colours[index])) for index in chosen]
            rows.append(QueryRow(f"interval {interval + 1}, {label}", images))
    return rows


def _explained(artifacts: EditArtifacts, num_train: int) -> list[tuple[str, str, str]]:
    """What the other views and the field explain of the queries, by interval and layer."""
    rows = []
    for interval, layers in explained_by_fit(artifacts, num_train):
        for row in (*layers, mean_row(layers)):
            others, field = shares(row.others, row.others_held_out), shares(row.field, row.field_held_out)
            rows.append((f"interval {interval + 1}, {row.layer}", others, field))
    return rows


def query_errors(artifacts: EditArtifacts) -> dict[int, list[float]]:
    """By how much the queries that the field renders miss a view's own, as a share of their norm, by interval."""
    errors: dict[int, list[float]] = {}
    for interval, _, rendered in artifacts.query_files():
        if rendered:
            errors[interval] = torch.cat([TensorFile(path).load()["errors"] for path in rendered]).tolist()
    return errors


def _joined(files: list[Path]) -> Float[Tensor, "V H W C"] | None:
    """Codes of all views at the finest layers' resolution, those layers side by side."""
    parts = []
    for path in files:
        maps = {
            name: value.float()
            for name, value in TensorFile(path).load().items()
            if value.ndim == 4 and name != "clean"
        }
        finest = max(value.shape[1] for value in maps.values())
        layers = [value for name, value in sorted(maps.items()) if value.shape[1] == finest]
        parts.append(torch.cat(layers, dim=-1))
    return torch.cat(parts) if parts else None


def _enlarge(image: Float[Tensor, "H W 3"]) -> Image.Image:
    small = Image.fromarray((image * 255).byte().numpy())
    scale = max(1, 128 // max(small.size))
    return small.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST)


def _curves(artifacts: EditArtifacts, losses: list[dict[str, float]]) -> str:
    """Losses by training step and errors of rendered queries by interval, as inline SVG; empty where there are none."""
    errors = query_errors(artifacts)
    if not losses:
        return ""
    import matplotlib  # noqa: PLC0415 - out of ns-* start-up

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - out of ns-* start-up

    figure, axes = plt.subplots(1, 2 if errors else 1, figsize=(11, 3.2), squeeze=False)
    names = sorted({name for each in losses for name in each if name.endswith("_loss")})
    for name in names:
        points = [(each["step"], each[name]) for each in losses if name in each]
        axes[0, 0].semilogy(*zip(*points, strict=True), label=name, linewidth=0.9)
    for before, after in pairwise(losses):
        if before["stage"] != after["stage"]:
            axes[0, 0].axvline(after["step"], color="0.85", linewidth=0.8, zorder=0)
    axes[0, 0].set(xlabel="training step", title="losses of the field")
    axes[0, 0].legend(fontsize=7)
    if errors:
        for index, values in enumerate(errors.values()):
            axes[0, 1].plot([index + 1] * len(values), values, ".", color="0.6", markersize=4)
        means = [sum(values) / len(values) for values in errors.values()]
        axes[0, 1].plot(range(1, len(means) + 1), means, "o-")
        axes[0, 1].set(
            xlabel="interval",
            xticks=range(1, len(means) + 1),
            ylim=(0, None),
            title="rendered queries miss a view's own by",
        )
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _video(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_VIDEO:
        return {"name": str(path), "source": ""}
    return {"name": path.name, "source": _encoded("video/mp4", path.read_bytes())}


def _picture(path: Path | None, side: int) -> str:
    """A picture as a data URI no larger than `side`; empty where there is none."""
    if path is None or not path.exists():
        return ""
    image = load_images([path])[0]
    picture = Image.fromarray(to_bytes(image.movedim(-1, 0)).numpy())
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _data_uri(picture)


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    if max(picture.size) <= SIDE // 2:
        picture.save(buffer, "PNG")
        return _encoded("image/png", buffer.getvalue())
    picture.save(buffer, "JPEG", quality=88)
    return _encoded("image/jpeg", buffer.getvalue())


def _encoded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
