"""A short training by each table and number of threads, and a digest of every bit that it ends with.

    python tests/trust/trained_bits.py --tables reference,numpy --threads 1,2

A line for each: table, threads, digest, losses. With --folder the training is saved before its last step and goes on
from the file in a network of another seed.
"""

import argparse
import hashlib
import os
from pathlib import Path

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is loaded

from whole_networks import DROPPING, batch, build

from minifocal import threads
from minifocal.arrays import random_generator
from minifocal.training.checkpoint import load_checkpoint, save_checkpoint
from minifocal.training.optim import SGD
from minifocal.training.step import train_step

STEPS = 3


def begin(table, seed):
    model = build("focal, post-LN", ops=table, seed=seed, **DROPPING)
    return model, SGD(model, 0.05, momentum=0.9, weight_decay=1e-2), random_generator(seed, 1)


def go_on(path, table):
    """Give what was saved, in place of what another seed began."""
    model, optimizer, rng = begin(table, seed=9)
    checkpoint = load_checkpoint(path)
    checkpoint.restore(model, optimizer)
    rng.bit_generator.state = checkpoint.meta["rng"]
    return model, optimizer, rng


def train(table, path=None):
    """Give the digest and the losses; save and go on before the last step where there is a path."""
    model, optimizer, rng = begin(table, seed=4)
    losses = []
    for step in range(STEPS):
        if path is not None and step == STEPS - 1:
            save_checkpoint(path, model, optimizer, rng=rng.bit_generator.state)
            model, optimizer, rng = go_on(path, table)
        images, labels = batch(seed=step)
        losses.append(train_step(model, optimizer, images, labels, rng, label_smoothing=0.1, clip_norm=5.0).loss)
    digest = hashlib.sha256(repr(losses).encode())
    for arrays in (model.state_dict(), optimizer.state_dict()):
        for name, array in arrays.items():
            digest.update(name.encode() + array.tobytes())
    return digest.hexdigest(), losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", required=True)
    parser.add_argument("--threads", required=True)
    parser.add_argument("--folder")
    args = parser.parse_args()
    for name in threads.THREAD_VARIABLES:
        os.environ.pop(name, None)
    for table in args.tables.split(","):
        for count in map(int, args.threads.split(",")):
            threads.core_count = lambda count=count: count  # as if the machine had so many
            threads.thread_count.cache_clear()
            threads._pool.cache_clear()
            path = Path(args.folder) / f"{table}-{count}.safetensors" if args.folder else None
            digest, losses = train(table, path)
            print(table, count, digest, *losses)


if __name__ == "__main__":
    main()
