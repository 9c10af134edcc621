"""Builds the shared library of the crate's C interface."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARIES = (".so", ".dylib", ".dll")


def cargo_build(*features):
    """Its path. With feature `cuda` it has kernels for GPUs, where nvcc is found."""
    command = [os.environ.get("CARGO", "cargo"), "build", "--release", "-p", "inducer-attention-c", "--features", ",".join(features),
               "--message-format=json-render-diagnostics"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for message in map(json.loads, output.splitlines()):
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "inducer_attention_c":
            return pathlib.Path(next(f for f in message["filenames"] if f.endswith(LIBRARIES)))
    raise RuntimeError("cargo built no library")
