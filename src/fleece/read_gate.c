/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The gate in front of the disk for snapshot readers; see read_gate.h.
 *
 * The guest counts as busy for READ_GATE_BUSY_NS after a request of it was seen: under way, or by the disk's counters. They
 * are looked at when a reader asks, so the guest's own path pays nothing. With a busy guest a quarter of a segment may be in
 * flight, else a whole one. Both were measured with nbdcopy pulling 256 KiB pieces: 8 MiB in flight starve a guest at queue
 * depth 1 down to 72 writes a second, at times for half a second, for a disk need not be fair; 1 MiB gives it 185, 512 KiB
 * 612, 256 KiB 750, and the pull still 0.5 GiB/s of 0.7. More than 1 MiB makes the pull no faster.
 *
 * What hurts a guest is time, not bytes, and that disk takes 250 us for a quarter of a segment. A faster one may have more:
 * what is in flight divided by what gets done in a second is how long a read is under way (Little's law). Below
 * READ_GATE_DELAY_NS the limit grows by a quarter of a segment when readers wait for it, above it is halved. That
 * costs a look at the clock for every READ_GATE_ROUNDS times of what is in flight, and nothing on the guest's path.
 *
 * A reader goes on as soon as less than the limit is in flight, so a single one always does, whatever its length, and a
 * waiting one never waits for the guest, only for other readers.
 */
#include "fleece/read_gate.h"

#include "base/probe.h"

static uint64_t guest_requests(const struct disk *disk)
{
    const struct disk_counters *counters = &disk->counters;
    return counters->reads + counters->writes + counters->flushes + counters->discards + counters->zeroes;
}

static bool guest_is_busy(struct read_gate *gate)
{
    uint64_t now_ns = io_now_ns(gate->disk->node.io), requests = guest_requests(gate->disk);
    if (requests != gate->requests_seen || gate->disk->writes_in_flight > 0 || *gate->copies_in_flight > 0) {
        gate->requests_seen = requests;
        gate->busy_until_ns = now_ns + READ_GATE_BUSY_NS;
    }
    return now_ns < gate->busy_until_ns;
}

static bool gate_has_room(struct read_gate *gate)
{
    uint64_t limit = guest_is_busy(gate) ? gate->busy_bytes : gate->idle_bytes;
    return gate->bytes_in_flight < limit;
}

/* Some bytes are done: how long are reads under way, and what may a busy guest's disk have of them? */
static void gate_adapt(struct read_gate *gate, uint64_t bytes)
{
    gate->done_bytes += bytes;
    gate->in_flight_sum += gate->bytes_in_flight;
    gate->done++;
    if (gate->measured_since_ns && gate->done_bytes < READ_GATE_ROUNDS * gate->busy_bytes)
        return;
    uint64_t now_ns = io_now_ns(gate->disk->node.io), since_ns = gate->measured_since_ns;
    uint64_t delay_ns = (now_ns - since_ns) * (gate->in_flight_sum / gate->done) / gate->done_bytes;
    bool full = !list_empty(&gate->waiting);
    gate->measured_since_ns = gate->bytes_in_flight > bytes ? now_ns : 0; /* a pause would count as slowness */
    gate->done_bytes = gate->in_flight_sum = gate->done = 0;
    if (since_ns == 0 || now_ns >= gate->busy_until_ns) /* a beginning; or the other limit counted */
        return;
    uint64_t limit = gate->busy_bytes;
    if (delay_ns > READ_GATE_DELAY_NS)
        limit /= 2;
    else if (full)
        limit += gate->least_bytes;
    limit = limit > gate->least_bytes ? limit : gate->least_bytes;
    gate->busy_bytes = limit < gate->idle_bytes ? limit : gate->idle_bytes;
}

static void gate_wake(struct io_task *task)
{
    struct read_gate *gate = container_of(task, struct read_gate, wake);
    while (!list_empty(&gate->waiting) && gate_has_room(gate)) {
        struct read_gate_waiter *waiter = container_of(list_take_first(&gate->waiting), struct read_gate_waiter, link);
        waiter->go(waiter);
    }
}

void read_gate_init(struct read_gate *gate, const struct disk *disk, const uint32_t *copies_in_flight,
                    uint64_t segment_bytes)
{
    *gate = (struct read_gate){
        .disk = disk,
        .copies_in_flight = copies_in_flight,
        .busy_bytes = segment_bytes / 4,
        .least_bytes = segment_bytes / 4,
        .idle_bytes = segment_bytes,
        .requests_seen = guest_requests(disk),
        .wake.run = gate_wake,
    };
    list_init(&gate->waiting);
}

void read_gate_fini(struct read_gate *gate)
{
    assert(gate->bytes_in_flight == 0 && list_empty(&gate->waiting));
    if (list_linked(&gate->wake.link))
        list_remove(&gate->wake.link);
}

bool read_gate_enter(struct read_gate *gate, uint64_t bytes, struct read_gate_waiter *waiter)
{
    if (list_empty(&gate->waiting) && gate_has_room(gate)) {
        gate->bytes_in_flight += bytes;
        return true;
    }
    PROBE(park_read_gate);
    list_append(&gate->waiting, &waiter->link);
    /* Somebody is in flight and wakes the gate when it leaves, or the wake-up is queued already. */
    assert(gate->bytes_in_flight > 0 || list_linked(&gate->wake.link));
    return false;
}

void read_gate_enter_now(struct read_gate *gate, uint64_t bytes)
{
    gate->bytes_in_flight += bytes;
}

void read_gate_leave(struct read_gate *gate, uint64_t bytes)
{
    assert(gate->bytes_in_flight >= bytes);
    gate_adapt(gate, bytes);
    gate->bytes_in_flight -= bytes;
    if (!list_empty(&gate->waiting))
        io_task_queue(gate->disk->node.io, &gate->wake);
}
