"""Options of every run: run section of `Config`."""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.schema import Section, option

POOLING_RULES = ("end_of_text", "argmax")


@dataclass(frozen=True)
class RunConfig(Section):
    """Weights, device and mode."""

    device_target: str = option("", "device; default: Ascend if there is one, else CPU", choices=("", "Ascend", "CPU"))
    ms_mode: int = option(0, "0: graph mode (compiled, fast steps), 1: PyNative mode (starts at once)", choices=(0, 1))
    precision: str = option(
        "auto",
        "dtype of the frozen weights; auto is float16 on Ascend and float32 on CPU; bfloat16 on CPU needs AVX512-BF16 "
        "or AMX, a C++ compiler and the extra onednn, and is float32 without them",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    low_memory: str = option(
        "auto",
        "keep weights in float16 and cast them to float32 at each use: same results, less memory, slower steps; auto "
        "is some in PyNative mode on CPU, else off",
        choices=("auto", "off", "some", "most"),
    )
    flash_attention: str = option(
        "auto",
        "attention by one kernel, which keeps no scores; auto: on Ascend in half precision, where card and model allow "
        "it, on the CPU with the extra onednn; on: or refuse to start; off: by products and softmax",
        choices=("auto", "on", "off"),
    )
    jit_level: str = option(
        "O0",
        "execution of graphs on Ascend: O0 kernel by kernel, O1 with fused operators, O2 whole by CANN's graph engine",
        choices=("O0", "O1", "O2"),
    )
    max_device_memory: str = option(
        "", "memory of the Ascend card that this process may use, such as 30GB; default: all that is free"
    )
    weight: str = option(
        "checkpoints/sd_xl_base_1.0_ms.ckpt",
        "weights of the model: .ckpt or .safetensors, a diffusers folder, or user/name of a model of the Hugging Face "
        "Hub",
        path="shipped",
    )
    revision: str | None = option(None, "branch, tag or commit of a model of the Hub; default: main")
    variant: str | None = option(None, "variant of the files of a model that is fetched from the Hub, such as fp16")
    cache_weights: bool = option(
        False, "convert a diffusers folder or a PyTorch file once, into the cache folder, and load the converted file"
    )
    vae: str = option(
        "",
        "VAE in place of that of the weights, such as sdxl_vae.safetensors or the fp16 fix: a file, or a diffusers "
        "folder",
        aliases=("pretrained_vae_model_name_or_path",),
        path="path",
    )
    unet: str = option(
        "", "UNet in place of that of the weights, such as a distilled one: a file, or a diffusers folder", path="path"
    )
    lora_weight: list[str] = option(
        [], "LoRA files to merge into the weights, any number, each FILE or FILE:strength", path="path"
    )
    pooling: str = option(
        "end_of_text",
        "token whose hidden state is SDXL's pooled text embedding; argmax is the rule of diffusers and mindone",
        choices=POOLING_RULES,
    )

    @property
    def networks(self) -> dict[str, str]:
        """The files of single networks, by the option that names them."""
        return {name: path for name, path in (("unet", self.unet), ("vae", self.vae)) if path}
