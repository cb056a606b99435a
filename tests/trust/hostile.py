"""Changing files into hostile ones: by bytes, and within their structure, so that checksums and lengths still fit.

Every function takes a `random.Random` and the bytes of a file, and gives those of another; the same draws give the
same. What a structure cannot be found in is changed by its bytes.
"""

import gzip
import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from functools import lru_cache
from random import Random
from typing import Any

import safetensors.numpy
from hostile_bytes import LARGEST, Mutate, mutate_bytes
from hostile_json import mutate_json

from minifocal.training.checkpoint import CHECKSUM, METADATA, checksum

# Pickles

CODES = (
    *(
        b"N",
        b"(",
        b")",
        b"]",
        b"}",
        b"t",
        b"l",
        b"d",
        b"a",
        b"e",
        b"s",
        b"u",
        b"R",
        b"b",
        b"Q",
        b"0",
        b"2",
        b".",
        b"\x81",
    ),
    *(b"\x85", b"\x86", b"\x87", b"\x93", b"\x94", b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"K\x00", b"K\xff"),
    *(
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"\x8a\x10" + b"\xff" * 15 + b"\x7f",
    ),
    *(
        b"\x8b\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        b"X\x02\x00\x00\x00ab",
        b"U\x02ab",
        b"C\x02ab",
        b"G" + b"\x7f\xf0" * 4,
    ),
    *(
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"\x88",
        b"\x89",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"inumpy\ndtype\n",
        b"S'\\q'\n",
    ),
    *(
        b"I99\n",
        b"L99L\n",
        b"F1e999\n",
        b"Vab\n",
        b"p0\n",
        b"g0\n",
        b"r\xff\xff\xff\xff",
        b"\x82\x01",
        b"\x95" + b"\xff" * 8,
    ),
    *(b"(" + b"K\x05" * 9 + b"t", b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096, b"]h\x00a", b"cyacs.config\nCfgNode\n"),
)
"""Instructions, and a few of them together."""


@lru_cache(maxsize=256)
def _instructions(data: bytes) -> tuple[bytes, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in texts
        try:
            starts = [place for _, _, place in pickletools.genops(data) if place is not None]
        except Exception:  # it raises nearly anything
            return ()
    return tuple(data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True))


def mutate_pickle(rng: Random, data: bytes) -> bytes:
    """Take instructions out, double, exchange and put in others; change what they carry."""
    codes = list(_instructions(data))
    if len(codes) < 2 or rng.random() < 0.1:
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, kind = rng.randrange(len(codes)), rng.randrange(7)
        if kind == 0 and len(codes) > 1:
            del codes[at]
        elif kind == 1:
            codes[at] = rng.choice(CODES)
        elif kind == 2:
            codes.insert(at, rng.choice(CODES))
        elif kind == 3:
            codes.insert(at, rng.choice(codes))
        elif kind == 4:
            other = rng.randrange(len(codes))
            codes[at], codes[other] = codes[other], codes[at]
        elif kind == 5:
            codes[at:at] = codes[at : at + rng.randrange(12)]
        elif len(codes[at]) > 1:
            codes[at] = codes[at][:1] + mutate_bytes(rng, codes[at][1:])
    return b"".join(codes)[:LARGEST]


# Files within files


@lru_cache(maxsize=64)
def _members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            few = sum(info.file_size for info in infos) <= LARGEST
            return tuple((info.filename, archive.read(info)) for info in infos) if few else ()
    except Exception:  # zipfile raises nearly anything
        return ()


def zip_of(members: list[tuple[str, bytes]], compressed: bool = False) -> bytes:
    """Write an archive, whatever its members are called."""
    body, directory = bytearray(), bytearray()
    for name, content in members:
        packed = zlib.compress(content, 1)[2:-4] if compressed else content
        spelled = name.encode()
        common = struct.pack(
            "<HHHIIIIHH", 0, 8 * compressed, 0, 33, zlib.crc32(content), len(packed), len(content), len(spelled), 0
        )
        directory += (
            struct.pack("<IHH", 0x02014B50, 20, 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + spelled
        )
        body += struct.pack("<IH", 0x04034B50, 20) + common + spelled + packed
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(directory), len(body), 0)
    return bytes(body + directory + end)


def mutate_zip(rng: Random, data: bytes) -> bytes:
    """Change the pickle, or another member, and pack all again with checksums that fit; or change the bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    members = list(_members(data))
    if not members:
        return mutate_bytes(rng, data)
    target = next((n for n, (name, _) in enumerate(members) if name.endswith(".pkl")), 0)
    if rng.random() < 0.15:
        target = rng.randrange(len(members))
    name, content = members[target]
    if rng.random() < 0.05:
        name = rng.choice(("../../etc/passwd", "/dev/zero", "", "a\0b", "x" * 2000, name + "/", members[0][0]))
    members[target] = (name, (mutate_pickle if name.endswith(".pkl") else mutate_bytes)(rng, content))
    if rng.random() < 0.05:
        members.append(rng.choice(members))
    return zip_of(members, compressed=rng.random() < 0.05)


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Change the header and set its length before it again."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if length > len(data) - 8 or rng.random() < 0.1:
        return mutate_bytes(rng, data)
    header, rest = mutate_json(rng, data[8 : 8 + length]), data[8 + length :]
    told = rng.choice((0, 1, 2**40, 2**63)) if rng.random() < 0.02 else len(header)
    return struct.pack("<Q", told) + header + (mutate_bytes(rng, rest) if rng.random() < 0.05 else rest)


def mutate_checkpoint(rng: Random, data: bytes) -> bytes:
    """Change what a checkpoint says of itself, or it as any such file; mostly with a checksum that fits."""
    try:
        header, rest = _parts(data)
        metadata = header["__metadata__"]
        if rng.random() < 0.5:
            metadata[METADATA] = mutate_json(rng, metadata[METADATA].encode()).decode("utf-8", "replace")
        else:
            header, rest = _parts(mutate_safetensors(rng, data))
            metadata = header["__metadata__"]
        if rng.random() < 0.9:
            arrays = safetensors.numpy.load(_whole({**header, "__metadata__": {}}, rest))
            metadata[CHECKSUM] = checksum(metadata[METADATA], arrays)
        return _whole(header, rest)
    except Exception:  # what is no checkpoint can fail in any way
        return mutate_safetensors(rng, data)


def _parts(data: bytes) -> tuple[Any, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _whole(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def within_gzip(mutate: Mutate) -> Mutate:
    """Change what a file was before it was compressed, where it is; sometimes the compressed bytes."""

    def mutated(rng: Random, data: bytes) -> bytes:
        if data[:2] != b"\x1f\x8b":
            return mutate(rng, data)
        try:
            content = zlib.decompressobj(31).decompress(data, LARGEST)
        except zlib.error:
            return mutate_bytes(rng, data)
        changed = mutate(rng, content)
        packed = gzip.compress(changed, 1, mtime=0)
        return mutate_bytes(rng, packed) if rng.random() < 0.1 else packed

    return mutated


def mutate_tar(rng: Random, data: bytes) -> bytes:
    """Change a header of an archive, and its checksum with it."""
    blocks = len(data) // 512
    if blocks == 0 or rng.random() < 0.1:
        return mutate_bytes(rng, data)
    changed = bytearray(data)
    headers = [512 * n for n in range(blocks) if data[512 * n + 257 : 512 * n + 262] == b"ustar"] or [0]
    at = rng.choice(headers)
    fields = ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (157, 100), (257, 8), (345, 155))
    start, size = rng.choice(fields)
    words = (
        b"../../etc/passwd",
        b"/dev/zero",
        b"77777777777",
        b"\x80" + b"\x7f" * 10,
        b"\xff" * 12,
        b"-1",
        b"",
        b"1234",
    )
    value = bytes([rng.choice(b"012345679xgLKSDV\0")]) if size == 1 else rng.choice(words)
    changed[at + start : at + start + size] = value[:size].ljust(size, b"\0")
    if rng.random() < 0.2:
        changed = bytearray(mutate_bytes(rng, bytes(changed)))
    if len(changed) >= at + 512:
        changed[at + 148 : at + 156] = b" " * 8
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    if rng.random() < 0.1:
        changed[at:at] = changed[at : at + 512]
    return bytes(changed)


def mutate_png(rng: Random, data: bytes) -> bytes:
    """Change a part of a PNG, and its checksum with it; other images by their bytes."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or rng.random() < 0.1:
        return mutate_bytes(rng, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(rng.choice((1, 1, 2))):
        if not chunks:
            break
        place = rng.randrange(len(chunks))
        kind, content = chunks[place]
        draw = rng.random()
        if draw < 0.5:
            chunks[place] = (kind, mutate_bytes(rng, content))
        elif draw < 0.7:
            names = (
                b"tRNS",
                b"PLTE",
                b"iCCP",
                b"zTXt",
                b"iTXt",
                b"tEXt",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"gAMA",
                b"cHRM",
                b"pHYs",
            )
            packed = zlib.compress(bytes(rng.choice((0, 10, 2**21))))
            chunks.insert(place, (rng.choice(names), rng.choice((b"", b"a\0\0" + packed, content, b"\xff" * 9))))
        elif draw < 0.85:
            chunks.insert(place, rng.choice(chunks))
        else:
            del chunks[place]
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return data[:8] + b"".join(parts)
