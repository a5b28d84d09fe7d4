"""The `qnerf` command: its subcommands, and how little it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from qnerf_nerfstudio import cli
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.toy.config import CaptureConfig


def test_the_toy_has_three_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["qnerf", "toy", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "{capture,train,score}" in capsys.readouterr().out


def test_the_command_starts_without_heavy_imports() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'nerfstudio', 'viser'}"
    script = f"import sys, qnerf_nerfstudio.cli; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("demo /tmp/x --seed 3", {"out": Path("/tmp/x"), "seed": 3}),
        ("doctor --model a b", {"model": [Path("a"), Path("b")]}),
        (
            "pose --data d --edit e.json --control mesh --mesh m.ply --host 0.0.0.0 --port 8",
            {
                "data": Path("d"),
                "edit": Path("e.json"),
                "control": "mesh",
                "mesh": "m.ply",
                "host": "0.0.0.0",
                "port": 8,
            },
        ),
        ("report run --out page.html", {"run_folder": Path("run"), "out": Path("page.html")}),
        ("toy capture out --seed 1 --num-views 4 --num-novel-views 2 --size 64", {"out": Path("out")}),
        (
            "toy score run data --unedited u --sheet s.png",
            {"run_folder": Path("run"), "data": Path("data"), "unedited": Path("u"), "sheet": Path("s.png")},
        ),
    ],
)
def test_options_are_read(words: str, expected: dict[str, object]) -> None:
    command = tyro.cli(cli.Command, args=words.split())  # pyright: ignore[reportArgumentType, reportCallIssue]
    command = getattr(command, "command", command)
    assert {name: getattr(command, name) for name in expected} == expected
    if words.startswith("toy capture"):
        assert command.capture == CaptureConfig(seed=1, num_views=4, num_novel_views=2, size=64)


def test_a_report_is_written_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qnerf", "report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    manifest = {
        **{"version": __version__, "plan": "", "settings": {}, "photos": {}, "files": {}, "paths": [], "num_train": 1},
        "edit": {"prompt": "a", "source_prompt": "b", "control": {"type": "images", "source": "s", "target": "t"}},
        "attempts": [{"prompt": "a", "guidance_scale": 1}],
    }
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit/manifest.json").write_text(json.dumps(manifest))
    cli.main()
    assert "<html" in (tmp_path / "page.html").read_text()
    monkeypatch.setattr(sys, "argv", ["qnerf", "report", str(tmp_path), "--out", str(tmp_path / "edit")])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"--out: {tmp_path / 'edit'} is a folder" in capsys.readouterr().out.replace("\n", "")


def test_mistakes_are_sentences_and_bugs_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qnerf", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "holds no edit" in capsys.readouterr().out

    def broken(self: cli.Report, console: object) -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(cli.Report, "run", broken)
    with pytest.raises(ValueError, match="not enough values"):
        cli.main()
