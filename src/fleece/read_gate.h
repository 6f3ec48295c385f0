/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How much the readers of snapshots may have under way on one disk, all views of it together. Not waiting for locks is not
 * enough to leave the guest alone: a puller that keeps 64 MiB of reads in the disk's queue delays every guest request by
 * as much as the disk takes to read them (measured: 85 ms). So the queue is kept short while the guest is busy.
 * Owner: the disk's reactor.
 */
#ifndef FLEECE_FLEECE_READ_GATE_H
#define FLEECE_FLEECE_READ_GATE_H

#include "block/disk.h"

struct read_gate {
    const struct disk *disk;
    const uint32_t *copies_in_flight; /* that guest writes wait for */
    uint64_t bytes_in_flight;
    uint64_t busy_bytes, idle_bytes; /* a read may start while less than this is in flight */
    uint64_t least_bytes;            /* of busy_bytes, whatever the disk takes for them */
    uint64_t requests_seen;          /* of the guest, when the gate last looked */
    uint64_t busy_until_ns;
    uint64_t measured_since_ns; /* how long reads are under way; 0: nothing is measured */
    uint64_t done, done_bytes, in_flight_sum;
    struct list waiting; /* first come, first served */
    struct io_task wake;
};

struct read_gate_waiter {
    struct list_node link;
    /* There is room now: decide afresh, and enter with read_gate_enter_now() or not at all. */
    void (*go)(struct read_gate_waiter *waiter);
};

void read_gate_init(struct read_gate *gate, const struct disk *disk, const uint32_t *copies_in_flight,
                    uint64_t segment_bytes);
/* Nothing is in flight or waiting. */
void read_gate_fini(struct read_gate *gate);

/* true: the bytes are in flight until read_gate_leave(). false: `go` is called later, in a task. */
bool read_gate_enter(struct read_gate *gate, uint64_t bytes, struct read_gate_waiter *waiter);
void read_gate_enter_now(struct read_gate *gate, uint64_t bytes);
void read_gate_leave(struct read_gate *gate, uint64_t bytes);

#endif
