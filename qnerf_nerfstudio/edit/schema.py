"""edit.json: the statement of an edit, in the dataset's own coordinates."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from qnerf_nerfstudio.common.wording import did_you_mean, quoted
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_JOINTS, openpose_name

LARGEST = 1e6
"""Coordinates, angles and lengths go up to this: single precision has a resolution of 0.06 there."""
SMALLEST = 1e-6
"""Lengths begin here."""
MAX_JOINTS = 500
"""Joints of all skeletons of an edit."""
MAX_BONES = 500
"""Bones of all skeletons of an edit."""
LONGEST_NAME = 100
"""Characters of a joint's name."""
MAX_PARTS = 100
"""Parts of a control."""
MAX_PROMPT = 2000
"""Characters of a prompt; text encoders read far fewer."""


def _plain_path(path: str) -> str:
    if not path.isprintable():
        raise ValueError(f"{quoted(path)} has a character that cannot be printed; rename the file")
    return path


def _at_most(limit: int) -> BeforeValidator:
    """Refuse long lists and objects before every entry is checked."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple | dict) and len(value) > limit:
            raise ValueError(f"has {len(value)} entries, at most {limit} are read; leave some out")
        return value

    return BeforeValidator(check)


Coordinate = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate, Coordinate]
Length = Annotated[float, Field(ge=SMALLEST, le=LARGEST, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Joint = Annotated[str, Field(max_length=LONGEST_NAME)]
Joints = Annotated[dict[Joint, Point], Field(min_length=1), _at_most(MAX_JOINTS)]
RelativePath = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_plain_path)]
Kind = Literal["openpose", "depth", "normal"]
"""What a control image shows, and so which ControlNets can read it."""


def _as_tuple(stated: Any) -> Any:
    return (stated,) if isinstance(stated, str | float | int) else stated


def _each_once(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"names {' and '.join(kinds)}; name each kind once")
    return kinds


def _plainly(stated: tuple[Any, ...] | None) -> Any:
    return stated[0] if stated is not None and len(stated) == 1 else stated


_ONE_OR_SEVERAL = (
    BeforeValidator(_as_tuple),
    AfterValidator(_each_once),
    PlainSerializer(_plainly),
    Field(min_length=1, max_length=3),
)
SolidKinds = Annotated[tuple[Literal["depth", "normal"], ...], *_ONE_OR_SEVERAL]
"""What a solid is drawn as: a kind, or a list of several, each for a ControlNet of its own."""
RigKinds = Annotated[tuple[Kind, ...], *_ONE_OR_SEVERAL]
"""The same for a rig, whose skeleton can be drawn, too."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JointedControl(_Strict):
    """Joints and bones in their source and target pose."""

    source: Joints
    """Position of every joint in the captured scene."""
    target: Joints
    """Position of every joint in the edited scene."""
    bones: Annotated[tuple[tuple[Joint, Joint], ...] | None, _at_most(MAX_BONES)] = None
    """Pairs of joints; by default OpenPose's limbs between the joints that there are."""

    @model_validator(mode="before")
    @classmethod
    def _openpose_names(cls, document: Any) -> Any:
        """Joints of other conventions by OpenPose's names; a skeleton with bones of its own keeps its names."""
        if not isinstance(document, dict) or document.get("bones") is not None:
            return document
        poses = {key: document.get(key) for key in ("source", "target")}
        named = {
            key: _renamed(key, joints)
            for key, joints in poses.items()
            if isinstance(joints, dict) and len(joints) <= MAX_JOINTS
        }
        return {**document, **named}

    @model_validator(mode="after")
    def _joints_known(self) -> "JointedControl":
        for name in sorted(set(self.source) ^ set(self.target)):
            missing, present = ("target", self.target) if name in self.source else ("source", self.source)
            raise ValueError(f"joint {name!r} is missing in {missing}{did_you_mean(name, present)}")
        for first, second in self.bones or ():
            for name in (first, second):
                if name not in self.source:
                    raise ValueError(f"bones name an unknown joint {name!r}{did_you_mean(name, self.source)}")
            if self.source[first] == self.source[second] or self.target[first] == self.target[second]:
                raise ValueError(f"the bone {first!r} to {second!r} has no length")
        if not self.all_bones:
            raise ValueError('no two joints form a limb of OpenPose; list "bones" as pairs of joint names')
        return self

    @property
    def all_bones(self) -> tuple[tuple[str, str], ...]:
        """The bones, OpenPose's by default."""
        if self.bones is not None:
            return self.bones
        return tuple(bone for bone in OPENPOSE_BONES if bone[0] in self.source and bone[1] in self.source)

    @property
    def is_openpose(self) -> bool:
        """Whether it can be drawn as OpenPose's figure, in the colours that ControlNets read."""
        return set(self.source) <= set(OPENPOSE_JOINTS) and set(self.all_bones) <= set(OPENPOSE_BONES)


class SkeletonControl(JointedControl):
    """A skeleton, drawn as one."""

    type: Literal["skeleton"]


class RigControl(JointedControl):
    """A mesh of what was captured that moves with a skeleton, drawn in both poses."""

    type: Literal["rig"]
    mesh: RelativePath
    """Mesh file in the source pose and in the coordinates of transforms.json, relative to edit.json."""
    draw: RigKinds = ("depth",)
    """What its control images show: one kind, or a list of several."""

    @model_validator(mode="after")
    def _drawn_by_names(self) -> "RigControl":
        if "openpose" in self.draw and not self.is_openpose:
            raise ValueError('"draw" names openpose, but joints or bones are none of OpenPose\'s; draw depth or normal')
        return self


def _renamed(key: str, joints: dict[Any, Any]) -> dict[Any, Any]:
    """Joints by OpenPose's names, without those that OpenPose does not have."""
    found: dict[Any, Any] = {}
    stated: dict[Any, Any] = {}
    for name, position in joints.items():
        try:
            # Names that are too long are refused as such.
            joint = openpose_name(name) if len(name) <= LONGEST_NAME else name
        except ValueError:
            raise ValueError(
                f"{key}: joint {quoted(name)} is none of OpenPose's{did_you_mean(name, OPENPOSE_JOINTS)}; list "
                f'"bones" as pairs of joint names to draw a skeleton of your own'
            ) from None
        if joint is None:
            continue
        if joint in found:
            raise ValueError(f"{key}: {quoted(stated[joint])} and {quoted(name)} are both {joint}; keep one of them")
        found[joint], stated[joint] = position, name
    shoulders = [found.get(joint) for joint in ("l_shoulder", "r_shoulder")]
    if "neck" not in found and all(isinstance(at, list) and len(at) == 3 for at in shoulders):
        try:
            found["neck"] = [(left + right) / 2 for left, right in zip(*shoulders, strict=True)]
        except TypeError:  # no numbers: what is wrong with them is said later
            return found
    return found


class ImagesControl(_Strict):
    """Ready-made control images, one per photo."""

    type: Literal["images"]
    source: RelativePath
    """Folder of the captured scene's control images, relative to edit.json, named as the photos are."""
    target: RelativePath
    """Folder of the edited scene's control images."""
    kind: Kind | None = None
    """What the images show, so that a ControlNet which cannot read it is refused; by default any ControlNet's."""


class Placement(_Strict):
    """A solid's place: scaled, then rotated, then moved."""

    position: Point = (0.0, 0.0, 0.0)
    """Where the solid's origin is; a box's origin is its centre."""
    rotation: Point = (0.0, 0.0, 0.0)
    """Degrees about the fixed x, y and z axes, in this order."""


class MeshPlacement(Placement):
    """A mesh and its place."""

    mesh: RelativePath
    """Mesh file, relative to edit.json: PLY, OBJ, STL, OFF, GLB, glTF, 3MF or DAE."""
    scale: Length | tuple[Length, Length, Length] = 1.0
    """Factor of the mesh's own size, or one for each of its axes."""

    @property
    def factors(self) -> tuple[float, float, float]:
        """Scale along x, y and z."""
        if isinstance(self.scale, tuple):
            return self.scale
        return self.scale, self.scale, self.scale


class BoxPlacement(Placement):
    """A box and its place."""

    size: tuple[Length, Length, Length]
    """Lengths of its sides along its own axes."""


class MeshControl(_Strict):
    """A proxy mesh where it is in the captured scene, and where (or what) it is to be in the edited one."""

    type: Literal["mesh"]
    source: MeshPlacement
    """The mesh in the captured scene."""
    target: MeshPlacement
    """The mesh in the edited scene; the same file elsewhere, or another one."""
    draw: SolidKinds = ("depth",)
    """What its control images show: one kind, or a list of several."""


class BoxControl(_Strict):
    """An oriented box that stands for what moves, drawn as depth: a coarse control."""

    type: Literal["box"]
    source: BoxPlacement
    """The box in the captured scene."""
    target: BoxPlacement
    """The box in the edited scene."""
    draw: SolidKinds = ("depth",)
    """What its control images show: one kind, or a list of several."""


class PartsControl(_Strict):
    """Several controls at once, drawn into one control image: what is nearer hides what is behind it."""

    type: Literal["parts"]
    parts: Annotated[
        tuple[Annotated[SkeletonControl | MeshControl | BoxControl, Field(discriminator="type")], ...],
        Field(min_length=1),
        _at_most(MAX_PARTS),
    ]
    """The parts; all of them skeletons, or all of them solids drawn in the same way."""

    @model_validator(mode="after")
    def _one_kind(self) -> "PartsControl":
        kinds = ["openpose" if isinstance(part, SkeletonControl) else " and ".join(part.draw) for part in self.parts]
        for index, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"part {index} is drawn as {kind}, part 0 as {kinds[0]}; one ControlNet reads all parts, so draw "
                    f"them alike"
                )
        return self

    @model_validator(mode="after")
    def _few_enough(self) -> "PartsControl":
        skeletons = [part for part in self.parts if isinstance(part, SkeletonControl)]
        joints, bones = sum(len(each.source) for each in skeletons), sum(len(each.all_bones) for each in skeletons)
        if joints > MAX_JOINTS or bones > MAX_BONES:
            raise ValueError(
                f"the parts have {joints} joints and {bones} bones; at most {MAX_JOINTS} and {MAX_BONES} are drawn, so "
                f"leave some out"
            )
        return self


class ControlRegion(_Strict):
    """The edit stays where the control changes: the visual hull of what its control images change."""

    type: Literal["control"]


class BoxRegion(BoxPlacement):
    """The edit stays in an oriented box."""

    type: Literal["box"]


class SphereRegion(_Strict):
    """The edit stays in a sphere."""

    type: Literal["sphere"]
    position: Point
    """Its centre."""
    radius: Length
    """Its radius."""


class Everywhere(_Strict):
    """The edit may change all of the scene."""

    type: Literal["everywhere"]


Control = SkeletonControl | RigControl | ImagesControl | MeshControl | BoxControl | PartsControl
StatedRegion = ControlRegion | BoxRegion | SphereRegion | Everywhere


class Settings(_Strict):
    """Settings that belong to an edit; each is read where the command line leaves its option at the default."""

    guidance_scale: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = None
    """Classifier-free guidance scale, --pipeline.editor.guidance-scale."""
    controlnet_scale: (
        Annotated[tuple[Weight, ...], BeforeValidator(_as_tuple), PlainSerializer(_plainly), Field(min_length=1)] | None
    ) = None
    """Weight of the ControlNet, or a list with one for each, --pipeline.editor.controlnet-scale."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Seed of what a run draws at random, --machine.seed."""


class Edit(_Strict):
    """The contents of edit.json."""

    prompt: Prompt
    """Describes the edited scene."""
    source_prompt: Prompt
    """Describes the captured scene."""
    negative_prompt: Prompt = ""
    """What classifier-free guidance steers away from."""
    control: Annotated[Control, Field(discriminator="type")]
    """The 3D statement of the edit."""
    region: Annotated[StatedRegion, Field(discriminator="type")] = ControlRegion(type="control")
    """Where the edit may change the scene; elsewhere edited views keep the photos' pixels."""
    masks: RelativePath | None = None
    """Folder of masks, relative to edit.json, one per photo and named as it: black pixels keep the photo, whatever the
    region says."""
    settings: Settings = Settings()
    """Settings that belong to this edit."""

    @field_validator("prompt")
    @classmethod
    def _prompt_stated(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty; describe the edited scene")
        return prompt


def skeleton_parts(control: Control) -> tuple[JointedControl, ...]:
    """The skeletons of a control, a rig's included."""
    return tuple(part for part in _parts(control) if isinstance(part, JointedControl))


def solid_parts(control: Control) -> tuple[MeshControl | BoxControl, ...]:
    """The meshes and boxes of a control."""
    return tuple(part for part in _parts(control) if isinstance(part, MeshControl | BoxControl))


def _parts(control: Control) -> tuple[JointedControl | MeshControl | BoxControl | ImagesControl, ...]:
    return control.parts if isinstance(control, PartsControl) else (control,)


def control_kinds(control: Control) -> tuple[Kind, ...] | None:
    """What the images of a control show; None where the user did not say, or a skeleton is not OpenPose's."""
    if isinstance(control, SkeletonControl):
        return ("openpose",) if control.is_openpose else None
    if isinstance(control, ImagesControl):
        return None if control.kind is None else (control.kind,)
    if isinstance(control, PartsControl):
        kinds = {control_kinds(part) for part in control.parts}
        return kinds.pop() if len(kinds) == 1 else None
    return control.draw
