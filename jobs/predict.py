"""Predictions for a large corpus, on a cluster:

    ray job submit --working-dir . -- python jobs/predict.py $PWD/mine $PWD/data/*.jsonl.gz --output $PWD/predicted

The classifier is one that `distmeta adapt` has written. Each file is read and predicted in parts, as a Ray Data
pipeline on the CPUs that are free, with the same result as `distmeta predict`; the parts of the output are files in one
folder, in the order of their names. The same command again makes the parts that are missing.
"""

import argparse
import sys
from pathlib import Path

from distmeta.adapt.command import Columns
from distmeta.adapt.parts import predict_parts
from distmeta.adapt.rows import WRITTEN, encoding_of
from distmeta.cluster.connect import ray_cluster
from distmeta.config import load_config
from distmeta.corpus.executor import RayExecutor
from distmeta.errors import UserError
from distmeta.paths import local_path


def absolute(text: str, key: str) -> Path:
    """The path that a text is, the same one for every worker; an address is refused."""
    return local_path(text, key).absolute()


def main() -> int:
    """Runs the job; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="what `distmeta adapt` has written")
    parser.add_argument("files", nargs="+", help="CSV, TSV, JSON lines, Parquet; on a disk that all nodes see")
    parser.add_argument("--output", required=True, help="folder of the parts, on such a disk too")
    parser.add_argument("--format", choices=WRITTEN, default="jsonl", help="of the parts")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--text-pair-column")
    parser.add_argument("--encoding", help="of the files, such as cp1252; without it UTF-8, or what a mark says")
    parser.add_argument("--abstain-below", type=float, default=0.0, help="no label where its probability is lower")
    # Not the faster one, which would be another one from node to node.
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network's passes")
    options = parser.parse_args()
    try:
        columns = Columns(options.text_column, options.text_pair_column, encoding_of(options.encoding))
        directory, output = absolute(options.directory, "directory"), absolute(options.output, "--output")
        files = [absolute(file, "files") for file in options.files]
        with ray_cluster(load_config()):
            predict_parts(
                RayExecutor(),
                directory,
                files,
                output,
                columns,
                format=options.format,
                abstain_below=options.abstain_below,
                precision=options.precision,
                say=lambda text: print(text, file=sys.stderr, flush=True),
            )
    except UserError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
