"""What is submitted to a cluster: `ray job submit --working-dir . -- python jobs/evaluate.py --run-dir DIR`.

Takes the options of `distmeta evaluate`, and needs as little as jobs/pretrain.py.
"""

import sys

from distmeta.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
