/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every bound of Fleece, each with its reason. Nothing else in the tree invents a number of this kind. */
#ifndef FLEECE_BASE_LIMITS_H
#define FLEECE_BASE_LIMITS_H

#include <stdint.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

enum {
    /* Names of VMs, disks, snapshots: they become file names and NBD export names. */
    LIMIT_NAME_BYTES = 64,
    /* One sentence for the user. */
    /* A line of a file of options: a path of 4095 commas, each written twice, and words. */
    LIMIT_CONFIG_LINE_BYTES = 16384,
    LIMIT_ERROR_BYTES = 512,
    /* One before it is made to fit: two paths of 4095 bytes, and words. */
    LIMIT_ERROR_WHOLE_BYTES = 9 * 1024,

    /* Disks of one VM: what QEMU's virtio-blk machines use in practice, with room. */
    LIMIT_DISKS = 64,
    /* I/O threads of one daemon. */
    LIMIT_REACTORS = 32,
    /* ... and of one that was not told how many: more seldom help one VM. */
    LIMIT_REACTORS_DEFAULT = 4,
    /* Addresses to serve NBD on: one for each way in is what people use. */
    LIMIT_NBD_ADDRESSES = 8,
    /* Pieces of a READ that must be one run of bytes, read or waiting to be sent at once. */
    LIMIT_NBD_STREAM_PIECES = 2,
    /* The line that says that a daemon is ready: 64 disks, 8 addresses, its socket. What is longer is cut. */
    LIMIT_READY_BYTES = 8 * 1024,
    /* The record of a daemon's sockets, read back after a crash: a hundred bytes each. */
    LIMIT_RUNTIME_RECORD_BYTES = 64 * 1024,
    /* Snapshots of one VM that live at once: every point lengthens the list that a write looks at. */
    LIMIT_SNAPSHOTS = 64,

    /* Submission slots of a ring; a full ring is submitted and reused, so this bounds a batch, not the load. */
    LIMIT_RING_ENTRIES = 512,
    /* Slots for completions: beyond them the kernel keeps a list, which is slower. */
    LIMIT_RING_COMPLETIONS = 4096,
    /* Descriptors that come with one message of a unix socket: the regions of a vhost-user memory table. */
    LIMIT_PACKET_DESCRIPTORS = 8,
    /* Rounds of tasks in one tick; tasks that queue themselves for ever must not starve sockets and timers. */
    LIMIT_TICK_ROUNDS = 64,
    /* Helper threads of one reactor: for what can block (lseek, BLK ioctls, hashing). */
    LIMIT_HELPERS = 4,

    /* Fragments of one request: a 1 MiB copy of 4 KiB slots. Below the kernel's UIO_MAXIOV (1024). */
    LIMIT_REQUEST_FRAGMENTS = 256,
    /* Alignment that direct I/O may ask for; larger than a block would make read-modify-write touch neighbours. */
    LIMIT_ALIGNMENT_BYTES = 4096,
    /* Bounce buffers of one disk, for unaligned requests; the next one waits for a buffer. 32 x 72 KiB + 8 x 1 MiB are
     * at most 10.3 MiB of memory, touched only when used. */
    LIMIT_BOUNCE_SMALL = 32,
    LIMIT_BOUNCE_LARGE = 8,
    /* Folders of shared memory go with what is last in them; each time that one has gone before we had anything in it,
     * somebody else has ended. */
    LIMIT_SHM_FOLDER_TRIES = 100,
    /* Interrupted disk operations are started again this often: EINTR and EAGAIN are no errors of the disk. */
    LIMIT_DISK_RETRIES = 1000,
    /* Where the kernel can neither punch nor zero, a file gets zeroes from one buffer, so many times in one write: 1 MiB
     * with 64 KiB of memory for each disk. */
    FILE_ZERO_BYTES = 64 * 1024,
    FILE_ZERO_FRAGMENTS = 16,
    /* Zeroes sent in one write to an NBD server that has no WRITE_ZEROES: beside them the head of a request is nothing. */
    NBD_ZERO_BYTES = 64 * 1024,
    /* Extents answered to one block status request. */
    LIMIT_STATUS_EXTENTS = 1024,

    /* Pages of metadata of one qcow2 image, of 4 KiB: 16 MiB, twice that while a commit lasts. They map 128 GiB of 64 KiB
     * clusters. When three quarters have changed they are written. */
    QCOW2_PAGE_BYTES = 4096,
    LIMIT_QCOW2_PAGES = 4096,
    LIMIT_QCOW2_BUCKETS = 1024,
    /* ... of the counts of a new L1 table's clusters: a small part of all. Enough for any image that is not of 512-byte
     * clusters with counts of more than 16 bits. */
    LIMIT_QCOW2_L1_COUNT_PAGES = 256,
    /* ... written at once: enough to keep a disk busy. */
    LIMIT_QCOW2_PAGE_WRITES = 16,
    /* The part of a qcow2 image that its header, the extensions and the name of the backing file lie in. */
    LIMIT_QCOW2_HEADER_BYTES = 64 * 1024,
    /* Read at once by the check of an image's tables: 64 of the smallest clusters. */
    QCOW2_CHECK_WINDOW_BYTES = 256 * 1024,
    /* Runs of clusters that wait until nothing refers to them on the disk; then a commit is due. And clusters of a run: they
     * have 32 pages of counts. */
    LIMIT_QCOW2_FREED = 1024,
    LIMIT_QCOW2_FREED_RUN = 65536,
    /* Runs of free clusters that are remembered for new mappings; others stay unused as long as the image is open. Runs of
     * clusters that are counted ahead, and how many bytes: the first time, and at most. What was counted ahead is lost
     * address space after a kill -9, and each time costs a sync, which others need not wait for. */
    LIMIT_QCOW2_UNUSED = 1024,
    LIMIT_QCOW2_POOL_RUNS = 64,
    QCOW2_POOL_BYTES = 1 << 20,
    QCOW2_POOL_MAX_BYTES = 16 << 20,
    QCOW2_POOL_CLUSTERS = 8,
    LIMIT_QCOW2_POOL_CLUSTERS = 4096,
    /* Pages that stay, if they were used last: what a request needs besides the one that it waits for. */
    QCOW2_PAGES_KEPT = 4,
    /* Pages that a commit may have beyond the bound: one of the refcount table and one of counts at a time. */
    LIMIT_QCOW2_COMMIT_PAGES = 4,
    /* Clusters behind the end of a file that are counted though nobody wrote them: a crash leaves no more than that. */
    LIMIT_QCOW2_PASSED = 1024 * 1024,
    /* Parts of reads, and writes, under way on one image; further ones wait. */
    LIMIT_QCOW2_PIECES = 64,
    LIMIT_QCOW2_WRITES = 64,
    /* Fragments of one of them: buffers have few, and a part with more is cut. */
    LIMIT_QCOW2_FRAGMENTS = 16,
    /* Compressed clusters that are read at once (up to 4 MiB packed and 2 MiB unpacked each), and buffers of writes. */
    LIMIT_QCOW2_INFLATES = 8,
    LIMIT_QCOW2_BUFFERS = 8,
    /* Clusters compressed in one go: a request of 1 MiB. What they make is aligned for direct I/O. */
    LIMIT_QCOW2_PACK_CLUSTERS = 16,
    QCOW2_PACK_ALIGNMENT = 4096,
    /* The fastest of the levels that compress well. */
    QCOW2_ZSTD_LEVEL = 1,
    /* Runs of mappings that one block status request looks at: about a millisecond. */
    LIMIT_QCOW2_STATUS_STEPS = 4096,
    /* Steps of one write that did not wait, before others run. */
    LIMIT_QCOW2_STEPS = 32,
    /* Images of a chain: hourly backups of ten days, and well below the files that a process may have open. */
    LIMIT_BACKING_DEPTH = 256,

    /* Slots of one segment of the fleecing cache: 1 MiB of 4 KiB blocks. */
    LIMIT_SEGMENT_SLOTS = 256,
    /* Segments of one disk on their way from RAM to the cache file: enough to keep a disk busy, few enough to leave it to
     * the guest. */
    LIMIT_SPILLS = 2,
    /* Requests of one spill at once: a segment is two or five of them, gaps are many. */
    LIMIT_SPILL_WRITES = 4,
    /* Names tried for a cache file: the name itself, then with -1, -2, … when strangers' files have them. */
    LIMIT_CACHE_FILE_NAMES = 100,
    /* Discards of one disk that wait for the end of a snapshot; a further one is not done: discards are hints. */
    LIMIT_DEFERRED_DISCARDS = 1024,
    /* ... and those of them that run at once: the disk is the guest's. */
    LIMIT_DISCARDS_RUNNING = 4,
    /* Unchanged blocks of one disk kept in spare RAM: 64 MiB of 4 KiB blocks. */
    LIMIT_SPARE_BLOCKS = 16384,
    /* Reads of the guest whose data is kept, under way at once: further ones are not kept. */
    LIMIT_KEPT_READS = 64,
    /* Dirty bitmaps of one disk: every one is told of every write. */
    LIMIT_BITMAPS = 32,
    /* A dirty bitmap is copied in steps of at most so many chunks, or runs of bits: about 100 us. */
    LIMIT_BITMAP_STEP_CHUNKS = 64,
    LIMIT_BITMAP_STEP_RUNS = 2048,
    /* Dirty ranges in one answer: 64 KiB of JSON. The client asks on from there. */
    LIMIT_BITMAP_RANGES = 1024,
    /* Checkpoints of one VM: two a day for a month; each may cost 32 MiB for 1 TiB. */
    LIMIT_CHECKPOINTS = 64,
    /* Dirty maps that one snapshot shows: one for each backup tool of a VM. */
    LIMIT_SNAPSHOT_MAPS = 8,
    /* Dirty maps of one node: those, and that of the checkpoint that the snapshot is limited to. */
    LIMIT_DIRTY_MAPS = LIMIT_SNAPSHOT_MAPS + 1,
    /* Bitmaps merged by one command: all of one disk. */
    LIMIT_BITMAP_SOURCES = LIMIT_BITMAPS,
    /* Written blocks whose sums are kept, to see that nobody else has changed the disk: 64 reads at a checkpoint. */
    LIMIT_TRACK_SAMPLES = 64,
    /* Bitmap pages written to a sidecar at once: one of each of LIMIT_CHECKPOINTS spans must fit; 256 KiB of memory. */
    LIMIT_TRACK_PAGES = 64,
    /* Slots of an activity log: the longest request of the guest takes nine at once (LIMIT_NBD_RANGE_BYTES). */
    LIMIT_TRACK_SLOTS_MIN = 12,
    /* Extents retired at once, at least; of many slots a sixteenth. One sync serves them all, and each that goes may be
     * needed again. */
    TRACK_BATCH_MIN = 6,
    /* Jobs of one VM at once. */
    LIMIT_JOBS = 16,
    /* Names of the targets of a push, all together: what a command can say. */
    LIMIT_PUSH_TEXT_BYTES = 64 * 1024,

    /* Copies of old data under way on one disk. A write that needs another one parks. */
    LIMIT_COPIES = 128,
    /* Pieces of a copy under way at once, each with a buffer of LIMIT_REQUEST_BYTES. */
    LIMIT_COPY_WORKERS = 64,
    /* Zero extents that a copy does in one go before the reactor gets a turn: about 100 us. */
    LIMIT_COPY_ZERO_BATCH = 4096,
    /* Parts of an extent with fewer cells of 4 KiB between them are read and written as one: a request costs more than these
     * zeroes. */
    COPY_GAP_CELLS = 4,
    /* Extents that a release may cover besides, since nobody needed them: a request costs more than to look at these. */
    COPY_RELEASE_GAP_EXTENTS = 8,
    /* Extents in one answer about the tables of an image that is verified: 4 KiB of memory. */
    LIMIT_VERIFY_EXTENTS = 256,
    /* Per cent of what is unchanged that an audit reads: quick enough to be done every night. */
    AUDIT_SAMPLE_PERCENT = 5,
    /* A line of the record of an interrupted backup: two numbers, a mask and a hash in hexadecimal, with room. */
    RESUME_LINE_BYTES = 192,
    /* ... and what of it is written at once: a hundred lines, on the stack of a helper thread. */
    RESUME_WRITE_BYTES = 16 * 1024,
    /* Damaged places that verify prints for one disk; the rest is counted. */
    LIMIT_VERIFY_RANGES = 16,
    /* Of a push whose target also takes old data straight from the guest's writes: those wait behind what they send. */
    PUSH_THROUGH_WORKERS = 2,
    /* Of a push to a file system that may hang: with a flush fewer than the 4 threads that the kernel has at least for the
     * disks of a reactor, so that the guest's own flushes always find one. */
    PUSH_APART_WORKERS = 2,
    COPY_WORKERS_DEFAULT = 8, /* reads, hashes and writes all overlap; more brought nothing on two cores */
    /* Of an incremental backup, whose pieces are mostly a single block: what keeps a connection busy. */
    COPY_WORKERS_INCREMENTAL = 32,
    /* A JSON file of a backup set: a manifest of 64 disks has less than 200 KiB, whatever the reasons in it. */
    LIMIT_SET_JSON_BYTES = 256 * 1024,
    /* File names in a manifest: the name of a disk and a suffix. */
    LIMIT_IMAGE_NAME_BYTES = LIMIT_NAME_BYTES + 16,
    /* Why a disk went full, in a manifest: 64 of them leave room in it. With its end. */
    LIMIT_REASON_BYTES = 256,
    /* Points of one set: one an hour for eleven years; their names are kept in memory and sorted. */
    LIMIT_POINTS = 100000,
    /* Points of one set within one second: their number has two digits. */
    LIMIT_POINTS_PER_SECOND = 99,
    /* Images of one chain, all of them open at once: half a year of hourly incrementals that nobody has merged. */
    LIMIT_CHAIN_LINKS = 4096,
    /* Extents of a chain of images in memory at once, 2 MiB each: one for each worker of a copy, and a few that just
     * were. */
    LIMIT_VIEW_EXTENTS = 12,
    /* Blocks of a line that are hashed at once rather than on a helper thread: less than the way there takes. */
    LIMIT_HASH_INLINE_BLOCKS = 8,
    /* Control connections at once: a handful of tools, with room; one more is told so and closed. */
    LIMIT_CONTROL_CLIENTS = 64,
    /* Connections beyond that which are told so at the same time; further ones wait in the kernel's queue. */
    LIMIT_CONTROL_REFUSALS = 8,
    /* Replies that a control client may leave untaken before its next command is looked at: a few of the longest. */
    LIMIT_CONTROL_PIPELINE_BYTES = 64 * 1024,
    /* One message to the daemon: commands are a few hundred bytes. */
    LIMIT_CONTROL_MESSAGE_BYTES = 64 * 1024,
    /* What is received from a control client at once, and the first size of the buffer for a message: several commands. */
    LIMIT_CONTROL_INPUT_BYTES = 4096,
    /* Nesting of a message: the deepest command has 3. */
    LIMIT_CONTROL_DEPTH = 16,
    /* Output that waits for one control client before it is dropped at the next event: thousands of events. A reply may
     * come on top; the next command is not looked at before it has been sent. */
    LIMIT_CONTROL_QUEUE_BYTES = 1024 * 1024,
    /* One reply of a guest agent: those that count have 30 bytes, errors a few hundred. And what is shown of its text. */
    LIMIT_AGENT_REPLY_BYTES = 4096,
    LIMIT_AGENT_TEXT_BYTES = 240,
    /* The address of its socket: a path of 107 bytes at most. */
    LIMIT_AGENT_ADDRESS_BYTES = 128,
    /* What is received from a guest agent at once; one question; and what waits to be sent, eight of them. */
    LIMIT_AGENT_INPUT_BYTES = 4096,
    LIMIT_AGENT_QUESTION_BYTES = 120,
    LIMIT_AGENT_OUTPUT_BYTES = 1024,
    /* What a guest agent may say before it answers: what it still had for others, a file of 48 MiB at the worst. */
    LIMIT_AGENT_PASSED_OVER_BYTES = 64 * 1024 * 1024,
    /* Hooks of a VM, which run one after the other; a line that is logged of their output; and all that is of one run. */
    LIMIT_HOOKS = 16,
    LIMIT_HOOK_LINE_BYTES = 512,
    LIMIT_HOOK_OUTPUT_BYTES = 16 * 1024,
    /* The record of a freeze: two paths and the names of hooks. */
    LIMIT_FREEZE_RECORD_BYTES = 8 * 1024,
    /* One message from the daemon, for libfleece: the status of 64 disks with 64 snapshots has less than 2 MiB. */
    LIMIT_CLIENT_MESSAGE_BYTES = 16 * 1024 * 1024,
    /* Events that libfleece keeps for a caller that does not ask for them. */
    LIMIT_CLIENT_EVENTS = 1024,
    /* Columns of a table that a command prints: what fits a screen. */
    LIMIT_TABLE_COLUMNS = 16,

    /* Copies of one disk that go straight to a target instead of into the cache; a further one waits. Each has a buffer of
     * 256 KiB, or of one block when that is longer. */
    LIMIT_THROUGH_COPIES = 8,
    /* Blocks of one copy: longer runs are copied by several at once. */
    LIMIT_COPY_BLOCKS = 64,
    /* Reads and status queries under way on one view of a snapshot; further ones park. */
    LIMIT_SNAPSHOT_READS = 32,
    /* Of each read, reads of the cache file under way at once: its blocks may lie apart there, and a few keep a disk
     * busy. */
    LIMIT_SNAPSHOT_FILE_READS = 4,
    /* ... and fragments of one of these: buffers have few, and a run with more is cut. */
    LIMIT_SNAPSHOT_FILE_FRAGMENTS = 16,
    /* Extents that a status query asks the disk for: 1 KiB in each of those reads. The client asks on from there. */
    LIMIT_SNAPSHOT_EXTENTS = 64,
    /* Blocks of a snapshot that one status query looks at (64 MiB, about 200 us); the client asks on from there. */
    LIMIT_STATUS_BLOCKS = 16384,
    /* Such queries in one question of the control socket: a fifth of a second at most, in slices. */
    LIMIT_RESIDENCE_ROUNDS = 1024,
    /* Bytes of the cache's map for one slot: key 8, chain 4, bucket 4. */
    LIMIT_MAP_BYTES_PER_SLOT = 16,
    /* Buckets that the map begins with, 1 KiB; it grows with what is in it. A power of two, as its masks need it. */
    MAP_BUCKETS_MIN = 256,

    /* Sketch of the blocks that were written: registers, for an error of 3 % (1.04 / sqrt(registers)), in so many windows
     * round the ring: an estimate is of the last five minutes. */
    SKETCH_REGISTERS = 1024,
    SKETCH_WINDOWS = 5,

    /* NBD connections of one server, handshakes included; a further one is closed at once. */
    LIMIT_NBD_CONNECTIONS = 4096,
    /* Requests under way of one connection; beyond it nothing is read from the client until one is answered. */
    LIMIT_NBD_REQUESTS = 128,
    /* Data of one option that is looked at: a name of 4096 bytes and queries. Longer data is refused unread. */
    LIMIT_NBD_OPTION_BYTES = 16384,
    /* Description of an export: with its name it fits into one reply of the handshake. */
    NBD_DESCRIPTION_BYTES = 255,
    /* Receive buffer of an idle connection: 36 requests of 28 bytes. */
    LIMIT_NBD_INPUT_BYTES = 1024,
    /* Request objects kept for reuse on one reactor: two connections with all they may have under way. */
    LIMIT_NBD_SPARE_REQUESTS = 256,
    /* Payloads longer than this are received in place; shorter ones are copied out of a batch. */
    LIMIT_NBD_COPIED_BYTES = 16384,
    /* Parts of blocks that a connection remembers to have read, until their block is whole: a few readers side by side. */
    LIMIT_NBD_READ_PARTS = 64,
    /* Replies gathered into one send. */
    LIMIT_NBD_SEND_FRAGMENTS = 256,

    /* Regions of a guest's memory: QEMU's bound for vhost-user on x86; without hotplug there are two or three. */
    LIMIT_GUEST_REGIONS = 512,
    /* Mappings of strangers' files that are guarded against truncation at once: those of all disks. 1.3 MiB of address
     * space, touched only as far as used. */
    LIMIT_SHARED_MAPS = LIMIT_DISKS * LIMIT_GUEST_REGIONS,
    /* Tables of guest memory that requests under way still hold, the present one among them: hotplug waits before there
     * are more, or a guest could take the mappings of all disks. */
    LIMIT_GUEST_TABLES = 8,
    /* Segments of one request that a virtio-blk device offers to take (seg_max): what its peers offer. */
    VIRTIO_BLK_SEGMENTS = 126,
    /* Descriptors of one chain, and fragments that they become: those, the header, the status byte, and a few for segments
     * that lie across two regions. Data alone stays below LIMIT_REQUEST_FRAGMENTS. */
    LIMIT_VIRTQUEUE_FRAGMENTS = VIRTIO_BLK_SEGMENTS + 2 + 8,
    /* Descriptors of a virtqueue: VIRTIO's bound, for its indexes have 16 bits. */
    LIMIT_VIRTQUEUE_SIZE = 32768,
    /* Queues of a vhost-user disk: one for each processor of a large guest. */
    LIMIT_VHOST_QUEUES = 64,
    /* Requests of one vhost-user front-end that are under way; further ones stay in the guest's rings. 3 KiB each. */
    LIMIT_VHOST_REQUESTS = 512,
    /* ... and that are there from the beginning, so that the last memory of the machine can't stop a disk. */
    VHOST_REQUESTS_MIN = 16,
    /* Pieces of reads and writes above LIMIT_REQUEST_BYTES that are under way at once, of one and of all of a session:
     * enough to keep a disk busy, not so many that short requests wait for long. 3 KiB each. */
    LIMIT_VHOST_TRANSFER_PIECES = 4,
    LIMIT_VHOST_PIECES = 16,
    /* ... and with so much data: more makes no disk faster (10 ms of 1.6 GB/s), but a backup's and a neighbour's requests
     * wait in the disk's queue for all that came before. One request counts as what it has under way at most. */
    LIMIT_VHOST_BYTES = 16 * (int)MIB,
    /* Requests taken from a ring before the first of them is submitted. */
    LIMIT_VHOST_BATCH = 32,
    /* ... when the disk is at rest; then as many as are under way. Each batch costs a system call, about what one request
     * does; but with all 32 of a full queue in one, a disk that has done the last 32 stands still for 0.1 ms. */
    VHOST_BATCH_MIN = 2,
    /* Kicks in a row that found nothing: then its ring is deaf until the slow clock has looked (VHOST_NO_KICK_NS). */
    VHOST_VAIN_KICKS = 8,
    /* Lines in the log about what one disk's front-ends and guests do wrong, within VHOST_COMPLAINTS_NS. */
    LIMIT_VHOST_COMPLAINTS = 10,
    /* The configuration space in one message: the protocol's bound. */
    LIMIT_VHOST_CONFIG_BYTES = 256,
    /* Ranges of one DISCARD or WRITE_ZEROES. Linux gathers what it can; a few of them fill a request's time. */
    VIRTIO_BLK_RANGES = 16,

    /* Entries looked at per tick while slots of a dead point are freed: about 100 us. And slots freed: giving back the
     * memory of a segment, 256 of them, was measured at up to 600 us. */
    LIMIT_SWEEP_STEP = 8192,
    LIMIT_SWEEP_FREES = 256,
    /* Pieces of a release in one tick, when little has to be freed. */
    LIMIT_RELEASE_PIECES = 8,
};

/* A piece of a release: 256 blocks, as many as are freed at once. (32 MiB held the guest up for 5 ms and more.) */
#define LIMIT_RELEASE_PIECE_BYTES (1 * MIB)
/* Longest single request the block layer takes; longer transfers are cut up by the exports (bounds buffers). */
#define LIMIT_REQUEST_BYTES (1 * MIB)
#define THROUGH_BUFFER_BYTES (256 * KIB)
/* What a small bounce buffer holds: most guest requests. */
#define BOUNCE_SMALL_BYTES (64 * KIB)
/* Largest disk: 36 bits of an entry of the cache's map name a 4 KiB block. */
#define LIMIT_DISK_BYTES (256 * TIB)
/* What a write of a part of a cluster reads and writes at once, to fill the rest from what is behind the image. */
#define QCOW2_FILL_BYTES (256 * KIB)
/* Tables of a qcow2 image: QEMU's bounds. */
#define LIMIT_QCOW2_L1_BYTES (32 * MIB)
#define LIMIT_QCOW2_REFTABLE_BYTES (8 * MIB)
/* A file that grows with what is written to it: the image of such a disk, with what a format adds. */
#define LIMIT_GROWABLE_BYTES (2 * LIMIT_DISK_BYTES)
/* Snapshots that one daemon can make in its life: 28 bits of such an entry. One a second for eight years. */
#define LIMIT_EPOCH ((UINT32_C(1) << 28) - 2)

/* NBD: longest READ and WRITE, as advertised; what other servers take, too. */
#define LIMIT_NBD_TRANSFER_BYTES (32 * MIB)
/* Discards and zeroes go to the disk in pieces of this: copy-before-write looks at each block (8192: about 100 us). */
#define LIMIT_NBD_RANGE_BYTES (32 * MIB)
/* Longer reads and writes are served in pieces of this size, so that a buffer is one piece of memory. */
#define LIMIT_NBD_PIECE_BYTES (256 * KIB)
/* A READ up to this length with the flag DF comes in one chunk: the protocol's minimum. */
#define LIMIT_NBD_UNFRAGMENTED_BYTES (64 * KIB)
/* Receive buffer of a busy connection: batches of small writes. */
#define LIMIT_NBD_INPUT_BUSY_BYTES (64 * KIB)
/* What the server spends on remembering blocks that are read once: 1 TiB of 4 KiB blocks, read at random, takes 32 MiB. */
#define LIMIT_NBD_READ_ONCE_BYTES (64 * MIB)
/* What each connection may always hold: 16 KiB of payload and the requests for it. 2,000 stalled ones: 36 MiB. */
#define LIMIT_NBD_WINDOW_BYTES (18 * KIB)
/* What all connections together may hold beyond that. */
#define LIMIT_NBD_SHARED_BYTES (16 * MIB)
/* Of its first half anybody may borrow this much; more is earned: a part of what has been moved beyond UNPROVEN, which
 * is more than socket buffers swallow for a client that never reads. */
#define LIMIT_NBD_OPEN_BYTES (512 * KIB)
#define LIMIT_NBD_UNPROVEN_BYTES (8 * MIB)
#define LIMIT_NBD_WINDOW_GROWTH 16
#define LIMIT_NBD_BORROW_BYTES (4 * MIB)
/* A client that has not chosen an export by then is dropped. */
#define NBD_HANDSHAKE_NS (10 * NS_PER_S)
/* A client that hung up or said goodbye has this long to take the replies that are left. */
#define NBD_LINGER_NS (10 * NS_PER_S)
/* Clients of an export that is removed: for requests under way to be answered. */
#define NBD_SHUTDOWN_NS (1 * NS_PER_S)
/* Pause of accept when the process has no descriptor left. */
#define ACCEPT_PAUSE_NS (100 * NS_PER_MS)
/* How often buffers of connections that became idle are looked for. */
#define NBD_SWEEP_NS (1 * NS_PER_S)

/* Memory of one guest. A process has 128 TiB of addresses for that of all disks. */
#define LIMIT_GUEST_MEMORY_BYTES (8 * TIB)
/* A mapping of a guest's memory is undone in steps of so much, beside the reactor: 80 ms a GiB that was touched. */
#define SHARED_MAP_STEP_BYTES (64 * MIB)
/* Data of one chain of descriptors: VIRTIO's bound; their lengths have 32 bits. */
#define LIMIT_VIRTQUEUE_BYTES (4 * GIB)
/* Log of written pages while a VM migrates: a bit for each 4 KiB of 48 bits of guest addresses. Mapped, not filled. */
#define LIMIT_DIRTY_LOG_BYTES (8 * GIB)
/* Longest range of a guest's DISCARD or WRITE_ZEROES, and the pieces in which it goes to the disk (as NBD's). */
#define VIRTIO_BLK_RANGE_BYTES (1 * GIB)
#define LIMIT_VHOST_RANGE_BYTES (32 * MIB)
/* How long a tick of the reactor takes from one guest's rings: a hundred requests that cost no disk anything, or fewer of
 * the longest chains that there may be. Others on the reactor wait for it, a few times in each of their requests. */
#define VHOST_TURN_NS (50 * NS_PER_US)
/* After work has come, a guest's rings are looked at without waiting for kicks for at most this long: what QEMU does. */
#define VHOST_POLL_MAX_NS (32 * NS_PER_US)
#define VHOST_POLL_MIN_NS (4 * NS_PER_US)
/* ... unless the processor is wanted by others: gone for so long, more than a worker of the kernel takes for a full queue,
 * it is not watched from for this many times as long. */
#define VHOST_CONTENDED_NS (100 * NS_PER_US)
#define VHOST_CONTENDED_TIMES 64
/* ... or if requests ended so soon after we slept, so often in a row, as they seldom do by chance: then not for so long. */
#define VHOST_SHORT_SLEEP_NS (10 * NS_PER_US)
#define VHOST_SHORT_SLEEPS 8
#define VHOST_REST_NS (20 * NS_PER_MS)
#define VHOST_COMPLAINTS_NS (10 * NS_PER_S)
/* A ring whose front-end has no eventfd to kick with is looked at this often. */
#define VHOST_NO_KICK_NS (1 * NS_PER_MS)

/* What qcow2 counts the size of a disk in. */
#define IMAGE_SECTOR_BYTES UINT64_C(512)
/* Unit of preservation and tracking: the least, for direct I/O; the most, for one read of old data before a write. */
#define BLOCK_BYTES_DEFAULT (4 * KIB)
#define BLOCK_BYTES_MIN (4 * KIB)
#define BLOCK_BYTES_MAX (4 * MIB)
/* Of a dirty bitmap: QEMU's bounds, for its clients; less than a sector makes no sense, and 32 bits hold it. */
#define BITMAP_GRANULARITY_MIN UINT64_C(512)
#define BITMAP_GRANULARITY_MAX (2 * GIB)
/* Shared memory is grown, given back and laid out in these. */
#define SHM_PAGE_BYTES (4 * KIB)
/* Unit of growth of the RAM tier. */
#define SEGMENT_BYTES_DEFAULT (1 * MIB)
#define FLEECE_RAM_DEFAULT (256 * MIB)
/* Unit of growth of the records of the cache's places, 8 bytes each: those of 32 MiB of blocks of 4 KiB. */
#define RECORDS_GROW_BYTES (64 * KIB)
/* Pieces of a needed set, of 128 MiB of disk each, that are stored in one tick: about 50 us. */
#define NEEDED_STORE_STEP 32
/* One segment per disk and reactor must fit, or nothing could ever be preserved. */
#define FLEECE_RAM_MIN (4 * MIB)
#define FLEECE_RAM_MAX (1 * TIB)
/* Most of a VM's cache files together; 32 bits number the blocks of one. */
#define FLEECE_DISK_CACHE_MAX (8 * TIB)
/* The header and one segment of the largest block must fit. */
#define FLEECE_DISK_CACHE_MIN (8 * MIB)
/* The least that a guest's write can be told to wait: below it, a busy disk would break a snapshot for nothing. */
#define CBW_TIMEOUT_MIN_NS (100 * NS_PER_MS)
/* A left-over cache file whose lock is held this long belongs to somebody who lives (a killed daemon: 3.9 s measured). */
#define CACHE_FILE_WAIT_NS (5 * NS_PER_S)
/* A piece of a cache file that is punched at once: the first, and the longest. */
#define PUNCH_FIRST_BYTES (4 * MIB)
#define LIMIT_PUNCH_BYTES (64 * MIB)
/* The kernel holds the file's lock while it punches, and reads and spills wait for that. So pieces get shorter when one
 * took this long (measured: 37 ms for 1 MiB of an ext4 mounted with "discard"), and longer when it took so little. */
#define PUNCH_LONG_NS (50 * NS_PER_MS)
#define PUNCH_SHORT_NS (10 * NS_PER_MS)
/* After a cache file has refused a segment, the next one is not tried for so long. */
#define SPILL_RETRY_NS (100 * NS_PER_MS)
/* A cache file may become so many times as large as its budget was when it was made: budgets grow while it lives. */
#define CACHE_FILE_HEADROOM 4
/* Addresses that a disk reserves for a RAM budget that grows while the daemon runs: so many times the budget
 * that it begins with, and no more than this unless the budget is. They cost nothing until they are used; 64 disks with the
 * most take 4 TiB of the 128 that a process has. */
#define CACHE_GROWTH 8
#define CACHE_GROWTH_BYTES_MAX (64 * GIB)
/* A disk may become so many times as large as it was when its sidecar was made: a sparse file's addresses cost nothing. */
#define TRACK_GROWTH 4

/* So many times as large as it is when its first snapshot is made a disk may get while there are snapshots. What is reserved
 * for it is addresses, and memory only when it is used. */
#define DISK_GROWTH 4
/* The guest's writes wait for a sidecar that does not answer, or for the proof that it is void, at most twice this. */
#define TRACK_STALL_NS (5 * NS_PER_S)
/* ... and the proof is looked for elsewhere when the sidecar itself has not taken it in this time. */
#define TRACK_CONDEMN_NS (2 * NS_PER_S)
/* How often it is noted that a disk is being written: an idle disk's times are noted one or two of these after its last
 * write, and one timer in it is nothing beside the writes. */
#define WATCH_PERIOD_NS (250 * NS_PER_MS)
/* Until when a killed daemon's last writes may have landed: 3.9 s were measured, and storage may stall for the 30 s that
 * the next daemon waits for their lock. */
#define WATCH_LANDING_NS (60 * NS_PER_S)
/* Clocks are read one after the other, and leap seconds are no reason to doubt a disk. */
#define WATCH_CLOCK_SLACK_NS (2 * NS_PER_S)
/* How long a guest's write may wait for room in the cache before the oldest snapshot pays, as in the peers' cbw-timeout. */
#define CBW_TIMEOUT_DEFAULT_NS (10 * NS_PER_S)
#define CBW_TIMEOUT_MAX_NS (3600 * NS_PER_S)
/* A consumer that has released nothing for so long makes no progress: nobody waits for it. */
#define RELEASE_PATIENCE_NS (1 * NS_PER_S)

/* Writes are remembered by windows of a minute: an estimate is of the last minutes. The clock is looked at so often. */
#define SKETCH_WINDOW_NS (60 * NS_PER_S)
#define SKETCH_LOOK_BYTES (4 * MIB)
/* The fill of the cache is looked at so often while snapshots live: a full second's warning at 1 GiB/s. */
#define FORECAST_SAMPLE_NS (500 * NS_PER_MS)
/* Percent of the cache in use that are told: half, for whoever plans; then what a tool has time to act on; then the last
 * call. */
#define FORECAST_THRESHOLDS 50, 75, 90
/* Growth so long ago counts 1/e in the fill rate: a burst of a second does not make a trend. */
#define FORECAST_DECAY_NS (5 * NS_PER_S)
/* Points below a threshold after which it is told again: more than a segment or a batch of releases. */
#define FORECAST_HYSTERESIS 10
/* What a backup is taken to copy, in bytes a second, when nobody says: a gigabit network, or a busy disk. */
#define BACKUP_SPEED_DEFAULT (100 * MIB)

/* The cut: one attempt holds the guest's writes at most this long, all attempts together at most CUT_TOTAL_MAX. */
#define CUT_ATTEMPT_NS (1 * NS_PER_S)
#define CUT_TOTAL_MAX_NS (30 * NS_PER_S)
/* Pause between two attempts, so that the guest gets its writes through. */
#define CUT_RETRY_PAUSE_NS (100 * NS_PER_MS)

/* The guest counts as busy this long after a request of it: longer than its pauses between two writes of one burst. */
#define READ_GATE_BUSY_NS (100 * NS_PER_MS)
/* What readers may keep in a busy guest's way: about one more request of its own. */
#define READ_GATE_DELAY_NS (150 * NS_PER_US)
/* How often what is in flight must have been read for a measurement of that: enough to even out single requests. */
#define READ_GATE_ROUNDS 8

/* How long a snapshot waits for its client after a restart of the daemon, and a pending checkpoint for the word that the
 * data is safe: longer than a client takes to come back, short enough for a cache that fills. */
#define LEASE_GRACE_DEFAULT_NS (60 * NS_PER_S)
#define LEASE_GRACE_MAX_NS (24 * 3600 * NS_PER_S)

/* A start waits this long for the locks of a killed daemon whose writes are still landing (measured: up to 3.9 s). */
#define LOCK_WAIT_DEFAULT_NS (30 * NS_PER_S)
#define LOCK_POLL_NS (20 * NS_PER_MS)

/* One block status request of a copy: a file with many extents keeps a helper busy for a bounded time. */
#define COPY_SCAN_BYTES (1 * GIB)
/* What a speed limit lets through at once after a pause: less than a target's own buffers. */
#define THROTTLE_BURST_NS (100 * NS_PER_MS)
/* Bytes a second; more is no limit on any machine, and an hour of it still fits into 64 bits. */
#define THROTTLE_RATE_MAX (1 * TIB)
/* Longest time that a speed limit reckons with at once: times the rate, it must not overflow; longer waits take two. */
#define THROTTLE_SPAN_NS (3600 * NS_PER_S)
/* A copy asks so long after the last answer again where the blocks of a snapshot are: the guest may move them. */
#define COPY_ADVICE_NS (200 * NS_PER_MS)
/* A copy that releases what the target has flushed: a flush after so many bytes, or when the oldest have waited so long. */
#define COPY_RELEASE_BYTES (64 * MIB)
#define COPY_RELEASE_NS (500 * NS_PER_MS)
/* Progress of a copy is reported this often: smooth for the eye, nothing for the processor. */
#define COPY_PROGRESS_NS (100 * NS_PER_MS)
/* ... and as JSON this often: often enough for any display. */
#define PROGRESS_JSON_NS (500 * NS_PER_MS)
/* The tool that waits for a push asks for its state this often: smooth for the eye. */
#define PUSH_POLL_MS 200
/* Somebody else deletes the snapshot of a push: whether it is gone is looked at this often. */
#define PUSH_RETRY_NS (20 * NS_PER_MS)
/* ... and when the daemon is gone, it waits so long for the next one: which may wait for locks of the last. */
#define PUSH_RETURN_NS (120 * NS_PER_S)
/* Until when a killed daemon's last writes may have reached a push's target: 3.9 s were measured. Less than for a disk: when
 * storage has stalled for longer a push fails, where a disk's snapshots would be lost. */
#define PUSH_LANDING_NS (10 * NS_PER_S)
/* A push that was taken over from a killed daemon stays for so long when it is over: who watched it must connect again. */
#define PUSH_LINGER_NS (60 * NS_PER_S)
/* A push whose target stalls hears of nothing: whether its snapshot still lives is looked at this often. */
#define PUSH_LOOK_NS (500 * NS_PER_MS)
/* A read of a snapshot failed: word that it broke is at most this long behind. */
#define PUSH_VERDICT_NS (100 * NS_PER_MS)
/* After an interruption, a server that does not answer is hung up on after this time. */
#define TRANSFER_PATIENCE_NS (2 * NS_PER_S)
/* An NBD server that has not finished its handshake by then is taken for dead. */
#define NBD_CONNECT_NS (10 * NS_PER_S)
/* ... and whether anybody still wants it is looked at this often. */
#define NBD_STOP_POLL_NS (100 * NS_PER_MS)

/* The lock of a VM's name is waited for as long as a killed daemon may take to exit, and looked at this often. */
#define CLAIM_WAIT_NS (1 * NS_PER_S)
#define CLAIM_POLL_NS (20 * NS_PER_MS)

/* How long a guest may be frozen, hooks and all: VSS of Windows thaws after 10 s by itself. */
#define FREEZE_TIMEOUT_DEFAULT_NS (10 * NS_PER_S)
#define FREEZE_TIMEOUT_MIN_NS (100 * NS_PER_MS)
#define FREEZE_TIMEOUT_MAX_NS (600 * NS_PER_S)
/* A thaw that was not answered by then is tried again on a new connection, after this pause. */
#define THAW_ANSWER_NS (5 * NS_PER_S)
#define THAW_PAUSE_NS (1 * NS_PER_S)
/* A daemon that has no agent any more tries the one that a killed daemon has frozen through for as long as a guest may take
 * to start its agent again. */
#define THAW_GIVE_UP_NS (300 * NS_PER_S)
/* A guest that has come from another host answers in a second, if its agent runs; else nobody can have frozen it. */
#define ARRIVAL_ASK_NS (60 * NS_PER_S)
/* A daemon that ends waits no longer than this for a thaw, whatever --freeze-timeout says: fleeced@.service has 60 s. */
#define THAW_STOP_MAX_NS (30 * NS_PER_S)
/* A hook whose thaw has failed is run again after a pause in which an administrator can read what it says. */
#define HOOK_PAUSE_NS (5 * NS_PER_S)
/* A process that was killed has ended by then, or it sleeps in the kernel, for who knows how long; looked at this often. */
#define HOOK_KILL_NS (2 * NS_PER_S)
#define HOOK_POLL_MS 20

/* A control client that has not negotiated by then is dropped: long enough for a person who types. */
#define CONTROL_NEGOTIATE_NS (60 * NS_PER_S)
/* At the end of the daemon, replies and events are sent for at most this long. */
#define CONTROL_FLUSH_NS (1 * NS_PER_S)
/* How long libfleece waits for the greeting of what listens at a control socket. */
#define CLIENT_GREETING_MS 10000
/* The beginning of memory that outlives a daemon, where it says whose it is: names and numbers of 64 disks are 5 KiB. */
#define MEMORY_HEAD_BYTES (16 * KIB)

#endif
