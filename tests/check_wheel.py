"""Says whether a wheel holds the package, all of it, and nothing else.

    python tests/check_wheel.py dist/*.whl

Run by `make release-check` in a clone.
"""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

NEEDED = (
    "qnerf_nerfstudio/py.typed",
    "qnerf_nerfstudio/methods.py",
    "qnerf_nerfstudio/pages/templates/report.html",
    "qnerf_nerfstudio/toy/weights/unet/diffusion_pytorch_model.safetensors",
    "qnerf_nerfstudio/toy/weights/controlnet/diffusion_pytorch_model.safetensors",
)
"""A few of the files that a run needs, whatever the repository tracks."""


def main(wheel: Path) -> None:
    """Compare a wheel's files with those of the package that git tracks."""
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    root = Path(__file__).parents[1]
    listing = subprocess.run(
        ["git", "ls-files", "qnerf_nerfstudio"], cwd=root, check=True, capture_output=True, text=True
    )
    wanted = {*listing.stdout.splitlines(), *NEEDED}
    for what, names in (("lacks", wanted - held), ("should not hold", held - wanted)):
        if names:
            sys.exit(f"{wheel} {what} {', '.join(sorted(names))}")
    print(f"{wheel}: {len(held)} files, all of the package")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
