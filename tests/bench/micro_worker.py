"""One rank of a job that is timed, which knows the workload of a moment as well."""

import sys

from micro import MICRO

from minifocal.bench import rank_worker
from minifocal.bench.workloads import WORKLOADS

if __name__ == "__main__":
    WORKLOADS[MICRO.name] = MICRO
    rank_worker.main(sys.argv[1:])
