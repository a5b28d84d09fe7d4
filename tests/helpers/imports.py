"""What `preloaded` imports once for all commands: of diffusers and transformers, what editors are loaded with."""

# ruff: noqa: F401
import matplotlib
import nerfstudio.scripts.eval
import nerfstudio.scripts.exporter
import nerfstudio.scripts.render
import nerfstudio.scripts.train
import scipy.ndimage
import scipy.spatial
import torch._dynamo
import torchmetrics.image.lpip
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

matplotlib.use("Agg")
import matplotlib.pyplot
