"""Train one of nerfstudio's own methods on the edited views of a run, which are a dataset of their own.

Splatfacto needs a GPU with CUDA; nerfacto runs on a CPU, slowly. The same on the command line is
`ns-train splatfacto --data RUN/edit`.

    python examples/5_splatfacto.py --run RUN
    python examples/5_splatfacto.py --run RUN --method nerfacto --iterations 300
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.scripts.train import main as train


def main(
    run: Path,
    method: Literal["splatfacto", "nerfacto"] = "splatfacto",
    iterations: int = 30_000,
    out: Path = Path("outputs"),
) -> None:
    """Train on edited views.

    Args:
        run: Folder of a finished run of qnerf-edit, the one with config.yml.
        method: The method.
        iterations: Its training steps.
        out: Gets the run of the method.
    """
    # Methods of plugins that are not installed have no config of a trainer.
    config: Any = deepcopy(method_configs[method])
    config.data, config.output_dir = run / "edit", out
    config.max_num_iterations, config.vis = iterations, "tensorboard"
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    train(config)


if __name__ == "__main__":
    tyro.cli(main)
