"""What is submitted to a cluster: `ray job submit --working-dir . -- python jobs/prepare.py --config FILE`.

Takes the options of `distmeta prepare`, and needs as little as jobs/pretrain.py. Runs and sweeps prepare what is
missing themselves; alone it is for a large corpus, for which no GPU has to wait.
"""

import sys

from distmeta.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "prepare")
    main()
