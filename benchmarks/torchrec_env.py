"""Make TorchRec's environment: `python -m benchmarks.torchrec_env [--torch-index URL]`.

It has a virtual environment of its own, `.venv-torchrec`, because fbgemm works with one release
of torch only. On Linux, PyPI's torch brings CUDA with it (gigabytes, not used here): give
`--torch-index https://download.pytorch.org/whl/cpu` for the small one.
"""

from __future__ import annotations

import argparse
import subprocess
import venv

from benchmarks.peers import TORCHREC_PYTHON

TORCH = ("torch==2.13.0", "numpy")
# Their own requirements name a fbgemm with CUDA, so they come without; the rest is what they
# import.
PEERS = ("torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0")
IMPORTED = ("tensordict", "torchmetrics==1.0.3", "tqdm", "pyre-extensions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-index", help="the package index to take torch from")
    index = parser.parse_args().torch_index
    venv.create(TORCHREC_PYTHON.parents[1], with_pip=True)
    install(*TORCH, *(["--index-url", index] if index else []))
    install("--no-deps", *PEERS)
    install(TORCH[0], *IMPORTED)
    subprocess.run(
        [TORCHREC_PYTHON, "-W", "ignore", "-c", "import torchrec, fbgemm_gpu"], check=True
    )
    print(f"TorchRec's environment is ready: {TORCHREC_PYTHON.parents[1].name}")


def install(*arguments: str) -> None:
    """Run pip in TorchRec's environment."""
    subprocess.run([TORCHREC_PYTHON, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    main()
