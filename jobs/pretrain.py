"""What is submitted to a cluster: `ray job submit --working-dir . -- python jobs/pretrain.py --config FILE`.

Takes the options of `distmeta pretrain`. The job server puts the uploaded folder on the path, so nothing of this
project needs to be installed on the cluster, only what it depends on.
"""

import sys

from distmeta.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "pretrain")
    main()
