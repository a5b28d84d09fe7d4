"""Model sets as single files in Stable Diffusion's original layout: the inverse of what diffusers does when it reads
them, by the key maps of its script convert_diffusers_to_original_stable_diffusion.py."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def renamed(name: str, names: dict[str, str]) -> str:
    """A name with its first part that has another name replaced by that."""
    for old, new in names.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def unet_name(name: str, layers: int, levels: int) -> str:
    """The original name of a weight of a UNet or of a ControlNet's copy of its encoder."""
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        side, level, kind, layer, rest = match.groups()
        first = 1 if side == "down" else 0
        index = (layers + 1) * int(level) + int(layer) + first
        inner = renamed(rest, RESNET) if kind == "resnets" else rest
        return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{0 if kind == 'resnets' else 1}.{inner}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(layers + 1) * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        resnet = match[1] == "resnets"
        return f"middle_block.{2 * int(match[2]) if resnet else 1}.{renamed(match[3], RESNET) if resnet else match[3]}"
    return renamed(name, EMBEDDINGS)


def unet_weights(unet: Any) -> Weights:
    """A UNet's weights by their original names."""
    layers, kinds = unet.config.layers_per_block, unet.config.up_block_types
    weights = {}
    for name, tensor in unet.state_dict().items():
        if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name):
            level = int(match[1])
            place = 2 if "CrossAttn" in kinds[level] else 1
            weights[f"output_blocks.{(layers + 1) * level + layers}.{place}.{match[2]}"] = tensor
        else:
            weights[unet_name(name, layers, len(kinds))] = tensor
    return weights


def vae_weights(vae: Any) -> Weights:
    """A VAE's weights by their original names."""
    levels = len(vae.config.block_out_channels)
    weights = {}
    for name, tensor in vae.state_dict().items():
        new, value = name, tensor
        if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", name):
            new = f"encoder.down.{match[1]}.block.{match[2]}.{renamed(match[3], {'conv_shortcut': 'nin_shortcut'})}"
        elif match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.(.*)", name):
            new = f"encoder.down.{match[1]}.downsample.{match[2]}"
        elif match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", name):
            inner = renamed(match[3], {"conv_shortcut": "nin_shortcut"})
            new = f"decoder.up.{levels - 1 - int(match[1])}.block.{match[2]}.{inner}"
        elif match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name):
            new = f"decoder.up.{levels - 1 - int(match[1])}.upsample.{match[2]}"
        elif match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.*)", name):
            new = f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
        elif match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", name):
            new = f"{match[1]}.mid.attn_1.{renamed(match[2], VAE_ATTENTION)}"
            value = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        elif match := re.fullmatch(r"(encoder|decoder)\.conv_norm_out\.(.*)", name):
            new = f"{match[1]}.norm_out.{match[2]}"
        weights[new] = value
    return weights


def clip_weights(encoder: Any) -> Weights:
    """A CLIP text model's weights by their names in the original file."""
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}


def open_clip_weights(encoder: Any) -> Weights:
    """The weights of a text model with projection by OpenCLIP's names."""
    weights: Weights = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for full, value in encoder.state_dict().items():
        name = full.removeprefix("text_model.")
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            key = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            stacked.setdefault(key, {})[match[2]] = value
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name):
            weights[f"transformer.resblocks.{match[1]}.{renamed(match[2], OPEN_CLIP)}"] = value
        elif name == "text_projection.weight":
            weights["text_projection"] = value.T.contiguous()
        else:
            whole = {
                "embeddings.position_embedding.weight": "positional_embedding",
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "final_layer_norm.weight": "ln_final.weight",
                "final_layer_norm.bias": "ln_final.bias",
            }
            weights[whole[name]] = value
    return weights | {key: torch.cat([parts[name] for name in "qkv"]) for key, parts in stacked.items()}


def save_original(parts: dict[str, Any], path: Path) -> Path:
    """Write a model set as one file."""
    prefixed = {
        "model.diffusion_model.": unet_weights(parts["unet"]),
        "first_stage_model.": vae_weights(parts["vae"]),
    }
    if "text_encoder_2" in parts:
        prefixed["conditioner.embedders.0.transformer."] = clip_weights(parts["text_encoder"])
        prefixed["conditioner.embedders.1.model."] = open_clip_weights(parts["text_encoder_2"])
    else:
        prefixed["cond_stage_model.transformer."] = clip_weights(parts["text_encoder"])
    weights = {prefix + name: value for prefix, named in prefixed.items() for name, value in named.items()}
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)
    return path
