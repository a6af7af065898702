"""What is submitted to a cluster: `ray job submit --working-dir . -- python jobs/sweep.py --config FILE`.

Takes the options of `distmeta sweep`, and needs as little as jobs/pretrain.py.
"""

import sys

from distmeta.cli import main

if __name__ == "__main__":
    # A job server submits a job again as it was: it goes on where it is, and begins where there is nothing.
    sys.argv[1:1] = ["sweep", "--resume"]
    main()
