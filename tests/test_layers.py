"""The learning core serves in a notebook: it imports without Ray and without DeepSpeed."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
for name in ("tasks", "models", "meta", "evaluate", "tracking", "corpus"):
    package = importlib.import_module(f"distmeta.{name}")
    for module in pkgutil.iter_modules(package.__path__, f"distmeta.{name}."):
        importlib.import_module(module.name)
print(sorted({"ray", "deepspeed"} & set(sys.modules)))
"""


def test_the_core_knows_no_ray_and_no_deepspeed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
