# SPDX-License-Identifier: GPL-2.0-or-later
"""Backup sets that are made by qemu-img and this file alone, as docs/formats/backup-set.md says, without a daemon."""
import hashlib
import json
import random
import struct
import subprocess
import uuid

MIB = 1 << 20
BLOCK = 4096
EXTENT_BLOCKS = MIB // BLOCK


def sealed(fields):
    """The text of a JSON file with the hash of its fields."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return json.dumps({**fields, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=2)


def hour(number):
    """The name of a point, so many hours after a Sunday's midnight."""
    return f"2026-11-{22 + number // 24:02}T{number % 24:02}:00:00Z"


def tables_of(content):
    """The clusters of a qcow2 image that are not data, in the order in which tables-sha256 takes them: {name: [offset...]},
    and how long a cluster is."""
    word, half = struct.Struct(">Q").unpack_from, struct.Struct(">I").unpack_from
    cluster = 1 << half(content, 20)[0]
    l1_at, l1_entries = word(content, 40)[0], half(content, 36)[0]
    table_at, table_clusters = word(content, 48)[0], half(content, 56)[0]
    content = content.ljust(max(table_at + table_clusters * cluster, l1_at + 8 * l1_entries), b"\0")
    l2 = [word(content, l1_at + 8 * i)[0] & 0x00fffffffffffe00 for i in range(l1_entries)]
    blocks = [word(content, at)[0] for at in range(table_at, table_at + table_clusters * cluster, 8)]
    return {"header": [0], "L1": list(range(l1_at, l1_at + 8 * l1_entries, cluster)), "L2": [at for at in l2 if at],
            "refcount table": list(range(table_at, table_at + table_clusters * cluster, cluster)),
            "refcounts": [at for at in blocks if at]}, cluster


def proof(image):
    """What a manifest says of the image as a file."""
    content = image.read_bytes()
    fields = {"image-length": len(content)}
    if image.suffix == ".qcow2":
        places, cluster = tables_of(content)
        tables = b"".join(content[at:at + cluster].ljust(cluster, b"\0") for part in places.values() for at in part)
        fields["tables-sha256"] = hashlib.sha256(tables).hexdigest()
    return fields


class Set:
    """A backup set and the model of what its points hold: model[point][disk] are bytes."""

    def __init__(self, t, where, vm="web1"):
        self.t, self.path, self.vm, self.model, self.manifests = t, where, vm, {}, {}
        where.mkdir()
        (where / "fleece.json").write_text(sealed({"format": "fleece-backup-set", "version": 2,
                                                   "id": str(uuid.uuid4()), "vm": vm}))

    def run(self, *command):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def add(self, name, disks, parent=None, compress=False):
        """A point. disks: {disk: bytes} for full images ("vda.raw" makes a raw one), or {disk: ({block: bytes}, size)}
        for blocks that have changed since `parent`; None instead of bytes is a block of zeroes."""
        folder = self.path / name
        folder.mkdir()
        self.model[name] = {}
        entries = [self._full(folder, disk, what, compress) if isinstance(what, bytes)
                   else self._incremental(folder, disk, what[0], what[1], parent)
                   for disk, what in disks.items()]
        self.manifests[name] = {"format": "fleece-backup-point", "version": 2, "state": "complete", "vm": self.vm,
                                "tool": "kit", "created": name[:20], "snapshot": str(uuid.uuid4()), "disks": entries}
        self.write_manifest(name)
        return name

    def add_like(self, name, like, parent, seed):
        """A point with other data in the same blocks of vda as the point `like`, as an overlay of `parent`. Quick:
        qemu-img has made the image, and only the bytes of the blocks and the name of the backing file change."""
        entry, = json.loads(json.dumps(self.manifests[like]["disks"]))
        old = self.model[like]["vda"]
        content, image = bytearray(self.model[parent]["vda"]), self.image(like).read_bytes()
        lines, rng = [], random.Random(f"like {seed}")
        for line in (self.path / like / "vda.sha256").read_text().splitlines():
            extent, mask, _ = line.split()
            blocks = [int(extent) * EXTENT_BLOCKS + b for b in range(EXTENT_BLOCKS)
                      if bytes.fromhex(mask)[b // 8] >> b % 8 & 1]
            new = [rng.randbytes(BLOCK) for _ in blocks]
            for block, data in zip(blocks, new):
                assert image.count(old[block * BLOCK:(block + 1) * BLOCK]) == 1
                image = image.replace(old[block * BLOCK:(block + 1) * BLOCK], data)
                content[block * BLOCK:(block + 1) * BLOCK] = data
            lines.append(f"{extent} {mask} {hashlib.sha256(b''.join(new)).hexdigest()}")
        (self.path / name).mkdir()
        (self.path / name / "vda.qcow2").write_bytes(image.replace(entry["parent"]["point"].encode(), parent.encode()))
        entry["parent"] = {"point": parent, "snapshot": self.manifests[parent]["snapshot"]}
        fields = self._entry(self.path / name, "vda", lines)
        self.model[name] = {"vda": bytes(content)}
        self.manifests[name] = {**self.manifests[like], "created": name, "snapshot": str(uuid.uuid4()),
                                "disks": [{**entry, **fields}]}
        self.write_manifest(name)

    def write_manifest(self, name):
        (self.path / name / "manifest.json").write_text(sealed(self.manifests[name]))

    def image(self, point, disk="vda"):
        entry, = (d for d in self.manifests[point]["disks"] if d["name"] == disk)
        return self.path / point / entry["image"]

    def _entry(self, folder, disk, lines, **fields):
        text = "".join(line + "\n" for line in lines).encode()
        (folder / f"{disk}.sha256").write_bytes(text)
        fields.update(proof(self._image(folder, disk)))
        return {"name": disk, "extent": MIB, "hashes": f"{disk}.sha256", "hashes-sha256": hashlib.sha256(text).hexdigest(),
                **fields}

    @staticmethod
    def _image(folder, disk):
        return next(i for i in (folder / f"{disk}.qcow2", folder / f"{disk}.raw") if i.exists())

    def _full(self, folder, disk, content, compress):
        disk, _, raw = disk.partition(".")
        self.model[folder.name][disk] = content
        image = folder / f"{disk}.{'raw' if raw else 'qcow2'}"
        plain = image if raw else self.t.path("kit.raw")
        with open(plain, "wb") as f:
            for at in range(0, len(content), BLOCK):
                if any(content[at:at + BLOCK]):
                    f.seek(at)
                    f.write(content[at:at + BLOCK])
            f.truncate(len(content))
        if not raw:
            options = ["-c", "-o", "compression_type=zstd"] if compress else []
            self.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, plain, image)
        lines = [hashlib.sha256(content[at:at + MIB]).hexdigest() for at in range(0, len(content), MIB)]
        data = sum(len(content[at:at + BLOCK]) for at in range(0, len(content), BLOCK) if any(content[at:at + BLOCK]))
        return self._entry(folder, disk, lines, image=image.name, format="raw" if raw else "qcow2", kind="full",
                           size=len(content), captured=len(content), data=data)

    def _incremental(self, folder, disk, blocks, size, parent):
        below, = (d for d in self.manifests[parent]["disks"] if d["name"] == disk)
        image = folder / f"{disk}.qcow2"
        content = bytearray(self.model[parent][disk][:size].ljust(size, b"\0"))
        commands, captured, data, extents = [], 0, 0, {}
        for number in sorted(blocks):
            length = min(BLOCK, size - number * BLOCK)
            new = (blocks[number] or bytes(BLOCK))[:length]
            content[number * BLOCK:number * BLOCK + length] = new
            captured += length
            data += length if any(new) else 0
            extents.setdefault(number // EXTENT_BLOCKS, []).append((number % EXTENT_BLOCKS, new))
            if blocks[number] is None:
                commands.append(f"write -z {number * BLOCK} {BLOCK}")
            else:
                piece = self.t.path(f"kit.{len(commands)}")
                piece.write_bytes(new.ljust(BLOCK, b"\0"))
                commands.append(f"write -s {piece} {number * BLOCK} {BLOCK}")
        lines = []
        for extent, pieces in sorted(extents.items()):
            mask = bytearray(32)
            for block, _ in pieces:
                mask[block // 8] |= 1 << block % 8
            lines.append(f"{extent} {mask.hex()} {hashlib.sha256(b''.join(p for _, p in pieces)).hexdigest()}")
        # A whole number of blocks, so that the last one can be written; then as long as it has to be.
        whole, exact = -(-size // BLOCK) * BLOCK, -(-size // 512) * 512
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b",
                 f"../{parent}/{below['image']}", "-F", below["format"], image, whole)
        for at in range(0, len(commands), 64):
            batch = [word for command in commands[at:at + 64] for word in ("-c", command)]
            self.run("qemu-io", "-f", "qcow2", *batch, image)
        if exact != whole:
            self.run("qemu-img", "resize", "-q", "--shrink", image, exact)
        self.model[folder.name][disk] = bytes(content)
        return self._entry(folder, disk, lines, image=image.name, format="qcow2", kind="incremental", size=size,
                           captured=captured, data=data,
                           parent={"point": parent, "snapshot": self.manifests[parent]["snapshot"]})


def some_blocks(seed, size, count):
    """Changes: so many blocks of random data, some of zeroes, in runs here and there."""
    rng, found = random.Random(seed), {}
    last = -(-size // BLOCK)
    while len(found) < count:
        start = rng.randrange(last)
        for number in range(start, min(last, start + rng.choice((1, 1, 2, 7)))):
            found[number] = None if rng.random() < 0.2 else rng.randbytes(BLOCK)
    return found


def content_of(seed, size):
    """A full disk: random data, with holes in it."""
    rng = random.Random(seed)
    return b"".join(rng.randbytes(MIB) if rng.random() < 0.6 else bytes(MIB) for _ in range(size // MIB + 1))[:size]
