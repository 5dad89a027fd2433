"""A script that calls AutoAttack, as it is and with its import changed: what is left robust, and CPU seconds.

    python benchmarks/drop_in.py standard-prn18-w16 at-linf-1-prn18-w16 --dataset FILE.npz --n 64 --json out.json
    python benchmarks/drop_in.py example --dataset FILE.npz --n 8

`example` is the network of the authors' own example, with its weights: a ResNet-18 of width 64 that comes
with their package `pyautoattack`. It expects the images of CIFAR-10. The script below is that example's `eval.py`
without the parts for a GPU. Each model gets two processes, one after the other, that differ in the import alone. Both
have one thread. Loading is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from torch import nn

import sam_bench
from sam_bench.data import load_dataset
from sam_bench.device import device_name
from sam_bench.records import Radius
from sam_bench.versions import package_versions

IMPORTS = {"upstream": "from pyautoattack import AutoAttack", "drop-in": "from sam_bench import AutoAttack"}
EXAMPLE = "example"
EXAMPLES = Path(pyautoattack.__file__).parent / "examples"

SCRIPT = """
import sys, time
import torch
{line}

folder, eps, examples = sys.argv[1], float(sys.argv[2]), sys.argv[3]
sys.path.append(examples)
model = torch.load(f"{{folder}}/model.pt", weights_only=False)
x_test, y_test = torch.load(f"{{folder}}/images.pt")
began = time.process_time()
adversary = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=0, device="cpu")
with torch.no_grad():
    adv_complete = adversary.run_standard_evaluation(x_test, y_test)
    taken = time.process_time() - began
    if isinstance(adv_complete, tuple):  # pyautoattack returns labels, too
        adv_complete = adv_complete[0]
    robust = model(adv_complete).argmax(1) == y_test
torch.save((taken, robust), f"{{folder}}/result.pt")
"""


def network(name: str, zoo: Path | None) -> nn.Module:
    """A model of the zoo, or that of the authors' example."""
    if name != EXAMPLE:
        return sam_bench.load_model(name, zoo=zoo).eval()
    sys.path.append(str(EXAMPLES))
    model: nn.Module = importlib.import_module("resnet").ResNet18()
    model.load_state_dict(torch.load(EXAMPLES / "model_test.pt", map_location="cpu", weights_only=True))
    return model.eval()


def run(folder: Path, kind: str, options: argparse.Namespace) -> tuple[float, torch.Tensor]:
    """CPU seconds of the attack, and which images are left robust."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(line=IMPORTS[kind]), encoding="utf-8")
    arguments = [folder, float(Radius(options.eps)), EXAMPLES]
    command = [sys.executable, str(script), *(str(each) for each in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    taken, robust = torch.load(folder / "result.pt")
    return taken, robust


def compared(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row: both imports on one model."""
    data = load_dataset(options.dataset, image_size=options.image_size)
    images = data.test.images[: options.n].float() / 255, data.test.labels[: options.n]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network(name, options.zoo), Path(folder) / "model.pt")
        torch.save(images, Path(folder) / "images.pt")
        slow, theirs = run(Path(folder), "upstream", options)
        quick, ours = run(Path(folder), "drop-in", options)
    return {
        "model": name,
        "eps": options.eps,
        "n": options.n,
        "robust": {"upstream": int(theirs.sum()), "drop-in": int(ours.sum())},
        "verdicts that differ": int((theirs != ours).sum()),
        "cpu seconds": {"upstream": slow, "drop-in": quick},
        "ratio": slow / quick,
    }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--eps", default="8/255", help="radius in Linf")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        rows.append(compared(name, options))
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        conditions = {"device": device_name(torch.device("cpu")), "threads": 1, "packages": package_versions()}
        options.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
