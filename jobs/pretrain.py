"""What is submitted to a cluster: `ray job submit --working-dir . -- python jobs/pretrain.py --config FILE`.

Takes the options of `distmeta pretrain`. The job server puts the uploaded folder on the path, so nothing of this
project needs to be installed on the cluster, only what it depends on.
"""

import sys

from distmeta.cli import main

if __name__ == "__main__":
    # A job server submits a job again as it was: it goes on where it is, and begins where there is nothing.
    sys.argv[1:1] = ["pretrain", "--resume"]
    main()
