"""The checkpoint and the VAE in the sidebar: lists of what lies in the folder of weights, or any other path."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from demo.app import options
from demo.app.app_dirs import AppDirs
from demo.app.server import weight_files
from gm.config import RunConfig, paths

_OF_CHECKPOINT = "Automatic"  # AUTOMATIC1111's name for the VAE of the checkpoint


def show(version: str, default: str, dirs: AppDirs) -> tuple[str, str]:
    """Show the widgets; return the checkpoint and the VAE, "" for that of the checkpoint, as they are typed.

    `default` is the checkpoint of the model `version`.
    """
    checkpoint_key, vae_key = f"weight of {version}", options.persistent_key("vae", "")
    st.session_state.setdefault(checkpoint_key, default)
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    with left:
        _choice("Checkpoint", checkpoint_key, default, weight_files.checkpoints(dirs.checkpoints), dirs)
    right.button(":material/refresh:", key="refresh weights", help="Look for new files")  # each rerun does
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    with left:
        _choice("VAE", vae_key, "", weight_files.vaes(dirs.checkpoints), dirs)
    with right.popover(":material/edit:", help="Files elsewhere"):
        checkpoint = st.text_input(
            "Checkpoint: file, folder or model of the Hub",
            key=checkpoint_key,
            help="a .ckpt or .safetensors file of the model, a diffusers folder, or user/name of the Hugging Face Hub",
        )
        vae = options.run_option(RunConfig(), "vae")
    return checkpoint.strip() or default, str(vae)


def _choice(label: str, key: str, default: str, files: list[Path], dirs: AppDirs) -> None:
    """Show a list of files that sets the text field `key`, and shows what is typed there."""
    listed = {str(path): str(path.relative_to(dirs.checkpoints)) for path in files}
    others: dict[str, str] = {}
    current = str(st.session_state.get(key) or "").strip() or default
    for path, name in ((default, Path(default).name or _OF_CHECKPOINT), (current, current)):
        if not any(_is_same(path, each) for each in (*listed, *others)):
            # Streamlit tells options apart by their labels.
            others[path] = f"{name} (elsewhere)" if name in (*listed.values(), *others.values()) else name
    labels = {**others, **listed}
    choice_key = f"choice of {key}"
    st.session_state[choice_key] = next((path for path in labels if _is_same(path, current)), current)
    st.selectbox(
        label,
        list(labels),
        key=choice_key,
        format_func=lambda path: labels.get(path, path),
        on_change=_choose,
        args=(key, choice_key),
    )


def _is_same(first: str, second: str) -> bool:
    """Return whether two paths are the same; a shipped one is relative."""
    if not first or not second:
        return first == second
    return os.path.abspath(paths.find_shipped(first)) == os.path.abspath(paths.find_shipped(second))


def _choose(key: str, choice_key: str) -> None:
    st.session_state[key] = st.session_state[choice_key]
