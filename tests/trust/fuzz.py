"""Read millions of hostile files, reader by reader, and write down what came of it.

    python tests/trust/fuzz.py --executions 1000000 --record
    python tests/trust/fuzz.py --reader idx --reader torch --executions 50000 --seed 2
    python tests/trust/fuzz.py --engine atheris --executions 100000 --record

Every reader of `readers.READERS` runs in a process of its own, with bounded memory. The engine "seeded" changes valid
files within their structure, and goes on from those that gave a message of a new kind; the same seed gives the same
files. The engine "atheris" also follows which lines of the package were reached (pip install atheris). What is found is
kept in the folder `--corpus`, and with the same options a run that was stopped goes on with the readers that are left.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent
RECORD = HERE / "fuzz.json"
ROOM = 2**30  # bytes of address space that reading may take
REPORT_EVERY = 250
MOST_KEPT = 300  # files from which the seeded engine goes on
MOST_TOO_LONG = 3
PEAK_STEP = 16  # MiB, to which the record rounds up
ENGINES = ("seeded", "atheris")


class Counter:
    """Counts what reading came to, and keeps what should not have happened."""

    def __init__(self, name: str, read: Any, out: Path, wanted: int) -> None:
        self.name, self.read, self.out, self.wanted = name, read, out, wanted
        self.executions = self.accepted = self.too_long = 0
        self.findings: dict[str, str] = {}
        self.base = _peak_mib()

    def __call__(self, data: bytes) -> str:
        """Read a file; give its outcome."""
        try:
            outcome: str = self.read(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # everything else is what is looked for
            outcome = self._keep(error, data)
        self.executions += 1
        self.accepted += outcome == "read"
        if self.executions % REPORT_EVERY == 0 or self.executions == self.wanted:
            print(self.executions, flush=True)
        return outcome

    def _keep(self, error: BaseException, data: bytes) -> str:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "minifocal" in Path(frame.filename).parts
        ]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
        key = f"{type(error).__name__} at {where}"
        if key not in self.findings:
            self.findings[key] = str(error)[:200]
            folder = self.out / "findings" / self.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        self.too_long += type(error).__name__ == "TooLong"
        return key

    @property
    def finished(self) -> bool:
        """Whether enough was read, or too much of it took too long."""
        return self.executions >= self.wanted or self.too_long >= MOST_TOO_LONG

    def result(self) -> dict[str, Any]:
        """Give what goes into the record, and what was found."""
        peak = -(-(_peak_mib() - self.base) // PEAK_STEP) * PEAK_STEP
        counts = {"executions": self.executions, "accepted": self.accepted, "exceptions": len(self.findings)}
        return {**counts, "peak_mib_at_most": max(peak, PEAK_STEP), "findings": self.findings}


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def fuzz_one(name: str, engine: str, executions: int, seed: int, out: Path) -> None:
    """Run one reader in this process, and write its result."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["minifocal"], enable_loader_override=False):
            import readers
    else:
        import readers

    reader = readers.READERS[name]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, readers.reading(name, Path(folder)) as read:
        seeds = reader.seeds()
        for data in seeds:
            assert read(data) == "read", f"a valid file of {name} is refused: {read(data)}"
        _bound_memory()
        count = Counter(name, read, out, executions)
        result = out / f"{engine}-{name}.json"

        def finish() -> None:
            result.write_text(json.dumps({**count.result(), "seed": seed, "wanted": executions}))
            shutil.rmtree(folder, ignore_errors=True)  # libFuzzer ends the process as it stands

        if engine == "seeded":
            _seeded(count, reader.mutate, seeds, Random(f"{seed} {name}"))
            finish()
        else:
            _atheris(count, reader.mutate, seeds, seed, out / "corpus" / name, finish)


def _seeded(count: Counter, mutate: Any, seeds: list[bytes], rng: Random) -> None:
    kept, kinds = list(seeds), set()
    while not count.finished:
        data = mutate(rng, rng.choice(seeds if rng.random() < 0.5 else kept))
        kind = re.sub(r"[0-9'\"({\[].*", "", count(data))[:60]
        if kind not in kinds and len(kept) < MOST_KEPT:
            kinds.add(kind)
            kept.append(data)


def _atheris(count: Counter, mutate: Any, seeds: list[bytes], seed: int, corpus: Path, finish: Any) -> None:
    import atheris

    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(data)

    def test_one(data: bytes) -> None:
        count(data)
        if count.finished:
            finish()
            os._exit(0)  # libFuzzer has no way back

    def change(data: bytes, size: int, number: int) -> bytes:
        rng = Random(number)
        changed = atheris.Mutate(data, size) if rng.random() < 0.3 else mutate(rng, data)
        return changed[:size]

    options = ["-max_len=65536", f"-seed={seed + 1}", "-timeout=0", "-rss_limit_mb=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one, custom_mutator=change)
    atheris.Fuzz()


def _run(name: str, args: argparse.Namespace, executions: int, bar: Any) -> dict[str, Any]:
    """Run one reader in a process of its own, or take its result where it is there already."""
    path = args.corpus / f"{args.engine}-{name}.json"
    if path.exists():
        known = json.loads(path.read_text())
        if (known["seed"], known["wanted"]) == (args.seed, executions):
            bar.update(executions)
            return known
        path.unlink()
    command = [sys.executable, __file__, "--child", name, "--engine", args.engine, "--executions", str(executions)]
    command += ["--seed", str(args.seed), "--corpus", str(args.corpus)]
    paths = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths}
    log = args.corpus / f"{args.engine}-{name}.log"
    done = 0
    with log.open("wb") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip().isdigit():
                bar.update(int(line) - done)
                done = int(line)
        child.wait()
    if not path.exists():
        lines = log.read_text(errors="replace").splitlines()[-4:]
        findings = {f"the process ended with status {child.returncode}": " | ".join(lines)}
        return {"executions": done, "accepted": 0, "exceptions": 1, "peak_mib_at_most": 0, "findings": findings}
    return json.loads(path.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=100_000, help="over all readers together (default: 100000)")
    parser.add_argument("--reader", action="append", help="only this one (may be repeated)")
    parser.add_argument("--engine", choices=ENGINES, default="seeded")
    parser.add_argument("--seed", type=int, default=1)
    default = Path(tempfile.gettempdir()) / "minifocal-fuzz"
    parser.add_argument("--corpus", type=Path, default=default, help=f"what is kept between runs (default: {default})")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}, for all readers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.corpus = args.corpus.resolve()
    args.corpus.mkdir(parents=True, exist_ok=True)
    if args.child:
        fuzz_one(args.child, args.engine, args.executions, args.seed, args.corpus)
        return 0
    if args.engine == "atheris":
        try:
            import atheris  # noqa: F401
        except ImportError:
            print("fuzz.py: no atheris here: pip install atheris, or leave --engine out", file=sys.stderr)
            return 2
    sys.path.insert(0, str(PACKAGE))
    import readers
    from tqdm import tqdm

    names = args.reader or list(readers.READERS)
    if unknown := [name for name in names if name not in readers.READERS]:
        print(f"fuzz.py: no reader {', '.join(unknown)}; they are {', '.join(readers.READERS)}", file=sys.stderr)
        return 2
    shares = {name: readers.READERS[name].share for name in names}
    counts = {name: -(-args.executions * share // sum(shares.values())) for name, share in shares.items()}
    results = {}
    with tqdm(total=sum(counts.values()), unit=" files") as bar:
        for name, executions in counts.items():
            bar.set_description(name)
            results[name] = _run(name, args, executions, bar)
    for name, found in results.items():
        counts_of = f"{found['executions']:8,} read, {found['accepted']:8,} accepted"
        print(f"{name:16} {counts_of}, {found['exceptions']} exceptions")
        for key, text in found["findings"].items():
            print(f"  {key}: {text}")
    total = sum(found["executions"] for found in results.values())
    exceptions = sum(found["exceptions"] for found in results.values())
    print(f"{total:,} files, {exceptions} exceptions; findings are in {args.corpus / 'findings'}")
    if args.record and not args.reader:
        _write_record(args, results)
    return int(exceptions > 0)


def _write_record(args: argparse.Namespace, results: dict[str, Any]) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    kept = ("executions", "accepted", "exceptions", "peak_mib_at_most")
    readers = {name: {key: found[key] for key in kept} for name, found in sorted(results.items())}
    record[args.engine] = {
        "seed": args.seed,
        "executions": sum(found["executions"] for found in readers.values()),
        "exceptions": sum(found["exceptions"] for found in readers.values()),
        "readers": readers,
    }
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
