"""What a run depends on."""

from pathlib import Path

from helpers.edits import short_edit

from qnerf_nerfstudio.run.fingerprint import differences, flatten, run_options


def test_what_a_run_depends_on(tmp_path: Path) -> None:
    one, other = short_edit(tmp_path, tmp_path, 4), short_edit(tmp_path / "elsewhere", tmp_path / "out", 4)
    other.pipeline.editor.device, other.steps_per_save = "cpu", 1
    assert differences(run_options(one, 1), run_options(other, 1)) == ""
    other.pipeline.editor.guidance_scale = 3.0
    assert (
        differences(run_options(one, 1), run_options(other, 1)) == "--pipeline.editor.guidance-scale (was 1.0, is 3.0)"
    )
    assert "--machine.num-devices (was 1, is 2)" in differences(run_options(one, 1), run_options(one, 2))
    before = dict(flatten("edit", {"prompt": "a", "control": {"target": {"neck": [0, 0, 1]}}}))
    now = dict(flatten("edit", {"prompt": "a", "control": {"target": {"neck": [0, 0, 2]}}}))
    assert differences(before, now) == "edit.control.target.neck (was [0, 0, 1], is [0, 0, 2])"
    assert differences({str(n): "a" for n in range(9)}, {}).endswith("and 5 more")


def test_types_count_and_the_order_of_keys_does_not() -> None:
    before = dict(flatten("a", {"type": int, "nets": [{"width": 16, "levels": 4}], "sizes": (1, 2)}))
    now = dict(flatten("a", {"sizes": (1, 2), "nets": [{"levels": 4, "width": 16}], "type": int}))
    assert before == now and before["a.nets.0.width"] == "16" and before["a.sizes"] == "(1, 2)"
    assert differences(before, dict(flatten("a", {**{"type": float}, "nets": [], "sizes": (1, 2)}))).startswith(
        "a.type (was builtins.int, is builtins.float)"
    )
