#!/usr/bin/env python3
"""Install a torch from PyPI that computes on the CPU, without the gigabytes of CUDA libraries.

PyPI's torch for Linux x86-64 is the CUDA build. Its wheel is about 0.5 GB, and what it depends on (cuBLAS, cuDNN,
NCCL, Triton, ...) about 2 GB more, none of which CPU tensors ever call. Importing torch only needs those libraries to
be *found* by the loader. So this installs the wheel without its CUDA dependencies, adds the two small real ones whose
code runs at import (the CUDA runtime and CUPTI), and writes a stub for each of the others: a library of the right
name whose functions all return an error. On other platforms PyPI's torch is the CPU build and is installed as it is.

    python3 benches/peers/install_torch.py VENV

makes the virtual environment VENV (if there is none) with torch and numpy in it. Needs `cc` and `nm`, which Rust's
linker needs as well.
"""

import argparse
import pathlib
import platform
import re
import subprocess
import sys

PURE = pathlib.Path(__file__).with_name("requirements.txt")
TORCH = "torch==2.15.0"
CUDA_NEEDED_AT_IMPORT = ["nvidia-cuda-runtime>=13,<14", "nvidia-cuda-cupti>=13,<14"]
LOADED_AT_IMPORT = ["libtorch_global_deps.so", "libtorch_nvshmem.so", "libtorch_cuda.so", "libtorch_python.so"]
STUBBED = re.compile(r"lib(cublas|cublasLt|cudnn|cufft|cufile|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host)\.so\.\d+$")


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def needed_libraries(path):
    """The sonames that a shared library asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", path))


def undefined_symbols(path):
    """(name, version or None) of each function a shared library expects from others."""
    for line in run("nm", "-D", "--undefined-only", path).splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version.lstrip("@") or None


def write_stub(soname, symbols, folder):
    """A library `soname` whose `symbols` all return 1, an error in every one of these APIs."""
    source = "".join(f"int {name}(void) {{ return 1; }}\n" for name, _ in sorted(symbols, key=str))
    versions = {}
    for name, version in symbols:
        if version:
            versions.setdefault(version, []).append(name)
    script = "".join(f"{v} {{ global: {' '.join(n + ';' for n in names)} }};\n" for v, names in versions.items())
    (folder / "stub.c").write_text(source or "int inducer_attention_stub;\n")
    (folder / "stub.map").write_text(script)
    flags = [f"-Wl,--version-script={folder / 'stub.map'}"] if script else []
    run("cc", "-shared", "-fPIC", "-w", "-fno-builtin", folder / "stub.c", f"-Wl,-soname,{soname}", *flags,
        "-o", folder / soname)
    (folder / "stub.c").unlink()
    (folder / "stub.map").unlink()


def prefix_of(soname):
    """What the functions of a stubbed library are called: cublasLt before cublas, cuFile with its capital."""
    name = re.match(r"lib([A-Za-z_]+)\.so", soname).group(1)
    return {"cufile": "cuFile", "nvshmem_host": "nvshmem"}.get(name, name)


def stub_cuda_libraries(torch_lib):
    files = [torch_lib / f for f in LOADED_AT_IMPORT if (torch_lib / f).exists()]
    sonames = {s for f in files for s in needed_libraries(f) if STUBBED.match(s)}
    symbols = {s for f in files for s in undefined_symbols(f)}
    # Longest prefix first, so that cublasLt… is not taken for cublas….
    for soname in sorted(sonames, key=lambda s: -len(prefix_of(s))):
        own = {s for s in symbols if s[0].startswith(prefix_of(soname))}
        symbols -= own
        if list(torch_lib.parent.parent.glob(f"nvidia/*/lib/{soname}")):
            continue  # the real one is installed
        write_stub(soname, own, torch_lib)
        print(f"  stub {soname}: {len(own)} functions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("venv", type=pathlib.Path)
    venv = parser.parse_args().venv.resolve()
    if not (venv / "pyvenv.cfg").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", PURE], check=True)
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        subprocess.run([*pip, "--no-deps", TORCH, *CUDA_NEEDED_AT_IMPORT], check=True)
        purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
        stub_cuda_libraries(pathlib.Path(purelib) / "torch" / "lib")
    else:
        subprocess.run([*pip, TORCH], check=True)
    print(run(python, "-c", "import torch; print('torch', torch.__version__, torch.ones(3).sum().item() == 3)").strip())


if __name__ == "__main__":
    main()
