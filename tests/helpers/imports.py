"""What `preloaded` imports once for all commands: of diffusers and transformers, what editors are loaded with."""

# ruff: noqa: F401
import nerfstudio.scripts.eval
import nerfstudio.scripts.exporter
import nerfstudio.scripts.render
import nerfstudio.scripts.train
import torch._dynamo
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
