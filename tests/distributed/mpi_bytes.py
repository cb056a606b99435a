"""Make training steps and print how many bytes the ranks sent: `python mpi_bytes.py`, with MPI over TCP.

The kernel counts what a socket has sent, so this is what goes over a network, whatever MPI makes of it.
"""

import json
import os
import socket
import struct
import sys

import numpy as np

from minifocal.cli.ranks import run_in_ranks
from minifocal.models.focalnet import FocalNet
from minifocal.training.distributed import GradientExchange, part_of_batch
from minifocal.training.optim import SGD
from minifocal.training.ranks import Ranks
from minifocal.training.step import train_step

STEPS = 12
TCP_INFO, BYTES_SENT = 11, 200  # Linux: the option of a socket, and where in its answer tcpi_bytes_sent is


def bytes_sent() -> int:
    """Add up what the sockets of this process have sent."""
    total = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(descriptor)))
        except OSError:  # no socket
            continue
        with copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                info = copy.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
                total += struct.unpack_from("=Q", info, BYTES_SENT)[0]
    return total


def main(ranks: Ranks) -> int:
    model = FocalNet.build(image_size=8, patch_size=2, hidden_size=96, num_layers=3, num_classes=10)
    optimizer, exchange = SGD(model, lr=0.01), GradientExchange(model, ranks, 2**18)
    rng = np.random.default_rng(ranks.rank)
    part = part_of_batch(ranks, 8)
    images = rng.standard_normal((part.images.stop - part.images.start, 3, 8, 8), dtype=np.float32)

    def step() -> None:
        labels = np.zeros(len(images), dtype=np.int64)
        train_step(model, optimizer, images, labels, None, weight=part.weight, exchange=exchange)

    step()  # which makes the connections
    before = bytes_sent()
    for _ in range(STEPS):
        step()
    sent = ranks.sum(np.array([bytes_sent() - before], dtype=np.float64))[0]
    parameters = model.count_parameters() * 4
    print(json.dumps({"sent": sent / (ranks.size * STEPS * parameters), "buckets": len(exchange.buckets)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_in_ranks("bytes", main))
