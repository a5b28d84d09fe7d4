"""The methods as ns-train lists them."""

import subprocess
import sys

from helpers.commands import command


def test_help_stays_light() -> None:
    """The plugin adds no heavy import to a `ns-*` command (nerfstudio itself may)."""
    script = (
        "import sys\n"
        "import nerfstudio.configs.method_configs\n"
        "names = nerfstudio.configs.method_configs.all_methods\n"
        "assert {'qnerf-edit', 'qnerf-edit-small', 'qnerf-edit-xl', 'qnerf-edit-tiny'} <= set(names)\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_lists_the_settings() -> None:
    text = command("ns-train", "qnerf-edit-tiny", "--help")
    for option in ("--pipeline.tau", "--pipeline.editor.num-steps", "--pipeline.consolidation", "--pipeline.edit"):
        assert option in text
