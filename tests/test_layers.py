"""The learning core serves in a notebook: it imports without Ray and without DeepSpeed."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
for name in ("tasks", "compute", "models", "meta", "evaluate", "tracking", "corpus", "adapt"):
    package = importlib.import_module(f"distmeta.{name}")
    for module in pkgutil.iter_modules(package.__path__, f"distmeta.{name}."):
        importlib.import_module(module.name)
print(sorted({"ray", "deepspeed"} & set(sys.modules)))
"""


def test_the_core_knows_no_ray_and_no_deepspeed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_how_passes_are_computed_knows_no_network():
    script = (
        "import importlib, pkgutil, sys\n"
        "import distmeta.compute as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'distmeta.compute.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('distmeta.models', 'distmeta.meta'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
