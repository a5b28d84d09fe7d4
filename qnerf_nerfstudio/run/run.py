"""One run of an edit: walks its plan slice by slice, from files to files."""

from pathlib import Path

from qnerf_nerfstudio.capture.cameras import invert_affine, transform_points
from qnerf_nerfstudio.capture.edited_dataset import add_points
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.field.datamanager import Targets
from qnerf_nerfstudio.field.grids import surface_points
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.context import RunContext
from qnerf_nerfstudio.run.manifest import Attempt, Manifest
from qnerf_nerfstudio.run.plan import Plan, Revision, Slice, Stage
from qnerf_nerfstudio.run.prepare import PreparedRun
from qnerf_nerfstudio.run.stages import STAGES

POINT_ROWS = 32
"""Rows of rays per view whose ends become the sparse points of the edited dataset."""


class EditRun:
    """A run of an edit.

    Args:
        prepared: What the run is of.
        model: The field.
    """

    def __init__(self, prepared: PreparedRun, model: QNerfModel) -> None:
        self._context = RunContext(prepared, model)

    @property
    def plan(self) -> Plan:
        """The plan with all revisions."""
        return self._context.plan

    @property
    def artifacts(self) -> EditArtifacts:
        """The run's edit/ folder."""
        return self._context.artifacts

    def open(self) -> None:
        """Write what the run begins with, and see that all processes find it.

        Raises:
            UserError: The run's folder is not that of the main process.
        """
        artifacts, prepared = self.artifacts, self._context.prepared
        # Every process has looked at the folder as it was before.
        ranks.barrier()
        if ranks.is_main():
            photos = prepared.capture.filenames
            artifacts.write_controls("source", photos, prepared.projected.source)
            artifacts.write_controls("target", photos, prepared.projected.target)
            self._write_manifest()
        ranks.barrier()
        root = ranks.broadcast(artifacts.root.absolute(), self._context.model.device)
        if root != artifacts.root.absolute() or not artifacts.manifest.exists():
            raise UserError(
                f"--machine.num-machines: the run's folder {artifacts.root} is not that of the first machine, {root}; "
                f"all of them need the same --output-dir on a shared file system, and the same --timestamp"
            )

    def run_slice(self, item: Slice) -> Path | None:
        """Do the slice of a training step.

        Returns:
            The folder that got new images of the slice's views, None where none did.
        """
        if item.chunk >= self.plan.chunks:
            return None
        return STAGES[item.task].run_slice(self._context, item)

    def targets(self, stage: Stage) -> Targets:
        """What the field trains on during a stage."""
        return STAGES[stage.task].targets(self._context, stage)

    def end_stage(self, stage: Stage) -> None:
        """Do what is left when all chunks of a stage are done."""
        STAGES[stage.task].end(self._context, stage)

    def revise(self, revision: Revision, attempt: Attempt | None = None) -> None:
        """Change what is still to be done.

        Args:
            revision: What, and from which step on.
            attempt: What another attempt is sampled with.

        Raises:
            ValueError: It cannot be done at this step.
        """
        context = self._context
        context.plan = context.plan.revised(revision)
        if attempt is not None:
            context.attempts.append(attempt)
        if not ranks.is_main():
            return
        if attempt is not None:
            self.artifacts.set_aside_images(len(context.attempts) - 2)
        self._write_manifest()

    def unload(self) -> None:
        """Free the diffusion models; another attempt loads them again."""
        self._context.unload()

    def write_sparse_points(self) -> None:
        """Give the edited dataset sparse points from the final field, where the capture has none."""
        prepared = self._context.prepared
        capture, size = prepared.capture, prepared.views.size
        grid = (POINT_ROWS, max(1, round(POINT_ROWS * size[1] / size[0])))
        points, colours = surface_points(self._context.model, prepared.views[: capture.num_train], grid)
        stated = transform_points(points, invert_affine(capture.to_scene))
        add_points(self.artifacts.root, stated.numpy(), (colours * 255).round().byte().numpy())

    def _write_manifest(self) -> None:
        prepared, context = self._context.prepared, self._context
        Manifest(
            version=__version__,
            plan=context.plan.hash,
            settings=prepared.options,
            photos=prepared.photo_hashes,
            edit=prepared.edit,
            names=prepared.capture.names,
            paths=[str(path.absolute()) for path in prepared.capture.filenames],
            num_train=prepared.capture.num_train,
            image_size=context.edit_size,
            revisions=context.plan.revisions,
            attempts=tuple(context.attempts),
        ).write(self.artifacts.manifest)
