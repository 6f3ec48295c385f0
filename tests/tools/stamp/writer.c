// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The load; see writer.h. One thread, one poll loop.
 *
 * A lane is one writer: on one disk, or (dependent) on all of them in turn. It has a connection to each of its disks and
 * up to `queue` records in flight. Record n of a slot is issued only when the one before it in the same slot has been
 * acknowledged, since two writes in flight to one place have no order. A lane with a queue of 1 waits for each record, and
 * for each flush that follows it.
 */
#include "writer.h"

#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "sector.h"

struct lane;

struct write_op {
    struct lane *lane;
    bool busy;
    uint32_t disk;
    uint64_t sequence, issued_ns;
    struct sector sectors[LOG_RECORD_BYTES_MAX / SECTOR_BYTES];
};

struct lane {
    struct load *load;
    uint32_t writer, disk_first, disk_count;
    struct nbd_handle **handles; /* disk_count */
    uint64_t next_sequence;      /* on disk `next_disk` */
    uint32_t next_disk;          /* from 0, among the disks of the lane */
    uint64_t next_issue_ns;      /* with a rate */
    bool flushing;
    uint32_t flush_due; /* 1 + the disk that it goes to; 0: none */
    unsigned in_flight;
    struct write_op *ops; /* plan.queue */
};

struct load {
    const struct writer_options *options;
    struct writer_result *result;
    struct lane *lanes;
    unsigned lane_count;
    struct pollfd *polls; /* one per handle, the signals last */
    unsigned handle_count;
    int signals;
    bool stopping;
    bool lost; /* a connection: nothing goes on */
};

static void load_fail(struct load *load, const char *what, const char *why)
{
    if (load->result->error[0] == '\0')
        snprintf(load->result->error, sizeof(load->result->error), "%s: %s", what, why);
    load->stopping = true;
}

static void load_lose(struct load *load, const char *uri)
{
    load->result->disconnected = true;
    load->lost = load->stopping = true;
    if (!load->options->until_disconnect)
        load_fail(load, uri, "the connection was lost");
}

/* libnbd would not take a command: it will never complete, so nothing waits for the rest either. */
static void load_refuse(struct load *load, const char *uri)
{
    load_fail(load, uri, nbd_get_error());
    load->lost = true;
}

static bool is_lost(struct nbd_handle *nbd)
{
    return nbd_aio_is_dead(nbd) != 0 || nbd_aio_is_closed(nbd) != 0;
}

/* Whether a command failed because the connection did: libnbd's own ENOTCONN, or the server's last word. */
static bool is_loss(int error, struct nbd_handle *nbd)
{
    return error == ENOTCONN || error == ESHUTDOWN || is_lost(nbd);
}

/* --- completions */

static int record_done(void *user_data, int *error)
{
    struct write_op *op = user_data;
    struct lane *lane = op->lane;
    struct load *load = lane->load;
    const struct writer_options *options = load->options;
    op->busy = false;
    lane->in_flight--;
    if (*error != 0) {
        if (is_loss(*error, lane->handles[op->disk - lane->disk_first])) {
            load_lose(load, options->uris[op->disk]);
            return 1; /* neither acknowledged nor failed */
        }
        log_append(options->log, LOG_FAILED, op->disk, lane->writer, op->sequence);
        load->result->failed++;
        char what[96];
        snprintf(what, sizeof(what), "record %llu of writer %u on disk %u", (unsigned long long)op->sequence,
                 lane->writer, op->disk);
        load_fail(load, what, strerror(*error));
        return 1;
    }
    log_append(options->log, LOG_ACKNOWLEDGED, op->disk, lane->writer, op->sequence);
    uint64_t took_ns = log_now_ns() - op->issued_ns;
    if (took_ns > load->result->slowest_ns)
        load->result->slowest_ns = took_ns;
    load->result->records++;
    load->result->bytes += options->plan.record_bytes;
    if (options->flush_every != 0 && op->sequence % options->flush_every == 0)
        lane->flush_due = op->disk - lane->disk_first + 1;
    return 1;
}

static int flush_done(void *user_data, int *error)
{
    struct lane *lane = user_data;
    lane->flushing = false;
    if (*error != 0 && is_loss(*error, lane->handles[0]))
        load_lose(lane->load, "flush");
    else if (*error != 0)
        load_fail(lane->load, "flush", strerror(*error));
    return 1;
}

/* --- issuing */

static void record_fill(const struct lane *lane, struct write_op *op, uint64_t offset)
{
    const struct log_plan *plan = &lane->load->options->plan;
    for (uint32_t i = 0; i < plan->record_bytes / SECTOR_BYTES; i++) {
        op->sectors[i] = (struct sector){.run = plan->run,
                                         .offset_bytes = offset + i * SECTOR_BYTES,
                                         .sequence = op->sequence,
                                         .disk = op->disk,
                                         .writer = lane->writer};
        sector_seal(&op->sectors[i]);
    }
}

/* The oldest record in flight; none: the next one. */
static uint64_t lane_oldest(const struct lane *lane)
{
    uint64_t oldest = lane->next_sequence;
    for (uint32_t i = 0; i < lane->load->options->plan.queue; i++)
        if (lane->ops[i].busy && lane->ops[i].sequence < oldest)
            oldest = lane->ops[i].sequence;
    return oldest;
}

static struct write_op *lane_idle_op(struct lane *lane)
{
    for (uint32_t i = 0; i < lane->load->options->plan.queue; i++)
        if (!lane->ops[i].busy)
            return &lane->ops[i];
    return NULL;
}

static bool lane_may_issue(const struct lane *lane, uint64_t now_ns)
{
    const struct log_plan *plan = &lane->load->options->plan;
    if (lane->load->stopping || lane->flushing || lane->flush_due != 0 || lane->in_flight == plan->queue)
        return false;
    return lane->next_issue_ns <= now_ns && lane->next_sequence < lane_oldest(lane) + plan->slots;
}

static void lane_issue(struct lane *lane)
{
    struct load *load = lane->load;
    const struct writer_options *options = load->options;
    struct write_op *op = lane_idle_op(lane);
    op->disk = lane->disk_first + lane->next_disk;
    op->sequence = lane->next_sequence;
    uint64_t offset = log_plan_offset(&options->plan, lane->writer, op->sequence);
    record_fill(lane, op, offset);
    bool fua = options->fua_every != 0 && op->sequence % options->fua_every == 0;
    struct nbd_handle *nbd = lane->handles[lane->next_disk];

    if (++lane->next_disk == lane->disk_count) {
        lane->next_disk = 0;
        lane->next_sequence++;
    }
    op->busy = true;
    lane->in_flight++;
    log_append(options->log, LOG_ISSUED, op->disk, lane->writer, op->sequence);
    op->issued_ns = log_now_ns();
    nbd_completion_callback callback = {.callback = record_done, .user_data = op};
    if (nbd_aio_pwrite(nbd, op->sectors, options->plan.record_bytes, offset, callback, fua ? LIBNBD_CMD_FLAG_FUA : 0) ==
        -1) {
        if (is_lost(nbd))
            load_lose(load, options->uris[op->disk]);
        else
            load_refuse(load, options->uris[op->disk]);
    }
}

static void lane_flush(struct lane *lane)
{
    uint32_t disk = lane->flush_due - 1;
    lane->flush_due = 0;
    lane->flushing = true;
    nbd_completion_callback callback = {.callback = flush_done, .user_data = lane};
    if (nbd_aio_flush(lane->handles[disk], callback, 0) == -1) {
        if (is_lost(lane->handles[disk]))
            load_lose(lane->load, lane->load->options->uris[lane->disk_first + disk]);
        else
            load_refuse(lane->load, lane->load->options->uris[lane->disk_first + disk]);
    }
}

/* Issues all that may be; returns when the next one is due at the latest. */
static uint64_t load_issue(struct load *load, uint64_t now_ns)
{
    uint64_t due_ns = UINT64_MAX;
    uint64_t pause_ns = load->options->rate == 0 ? 0 : 1000000000u * (uint64_t)load->lane_count / load->options->rate;
    for (unsigned i = 0; i < load->lane_count; i++) {
        struct lane *lane = &load->lanes[i];
        if (lane->flush_due != 0 && !lane->flushing && !load->lost)
            lane_flush(lane);
        while (lane_may_issue(lane, now_ns)) {
            lane_issue(lane);
            if (pause_ns != 0) /* at most one pause late: a stall is not made up for by a burst */
                lane->next_issue_ns = (lane->next_issue_ns + 2 * pause_ns > now_ns ? lane->next_issue_ns : now_ns) +
                                      pause_ns;
        }
        if (lane->next_issue_ns > now_ns && lane->next_issue_ns < due_ns)
            due_ns = lane->next_issue_ns;
    }
    return due_ns;
}

/* --- the loop */

static bool load_is_idle(const struct load *load)
{
    for (unsigned i = 0; i < load->lane_count; i++)
        if (load->lanes[i].in_flight != 0 || load->lanes[i].flushing)
            return false;
    return true;
}

static void load_poll(struct load *load, int timeout_ms)
{
    unsigned at = 0;
    for (unsigned i = 0; i < load->lane_count; i++) {
        for (unsigned d = 0; d < load->lanes[i].disk_count; d++) {
            struct nbd_handle *nbd = load->lanes[i].handles[d];
            unsigned direction = nbd_aio_get_direction(nbd);
            load->polls[at++] = (struct pollfd){
                .fd = nbd_aio_get_fd(nbd),
                .events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                                  (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0))};
        }
    }
    load->polls[at] = (struct pollfd){.fd = load->signals, .events = POLLIN};
    if (poll(load->polls, at + 1, timeout_ms) <= 0)
        return;
    if (load->polls[at].revents != 0)
        load->stopping = true;
    at = 0;
    for (unsigned i = 0; i < load->lane_count; i++) {
        for (unsigned d = 0; d < load->lanes[i].disk_count; d++) {
            struct nbd_handle *nbd = load->lanes[i].handles[d];
            short seen = load->polls[at++].revents;
            if (seen & (POLLIN | POLLHUP | POLLERR))
                nbd_aio_notify_read(nbd);
            else if (seen & POLLOUT)
                nbd_aio_notify_write(nbd);
            if (is_lost(nbd) && !load->lost)
                load_lose(load, load->options->uris[load->lanes[i].disk_first + d]);
        }
    }
}

static void load_loop(struct load *load)
{
    uint64_t started_ns = log_now_ns();
    uint64_t end_ns = load->options->duration_ns == 0 ? UINT64_MAX : started_ns + load->options->duration_ns;
    for (;;) {
        uint64_t now_ns = log_now_ns();
        if (now_ns >= end_ns)
            load->stopping = true;
        uint64_t due_ns = load->lost ? UINT64_MAX : load_issue(load, now_ns);
        if (load->lost || (load->stopping && load_is_idle(load)))
            break;
        if (end_ns < due_ns)
            due_ns = end_ns;
        int timeout_ms = 1000;
        if (!load->stopping && due_ns < now_ns + 1000000000u)
            timeout_ms = due_ns <= now_ns ? 0 : (int)((due_ns - now_ns + 999999u) / 1000000u);
        load_poll(load, timeout_ms);
    }
    load->result->elapsed_ns = log_now_ns() - started_ns;
}

/* --- beginning and end */

static bool lane_connect(struct lane *lane)
{
    const struct writer_options *options = lane->load->options;
    for (unsigned d = 0; d < lane->disk_count; d++) {
        const char *uri = options->uris[lane->disk_first + d];
        struct nbd_handle *nbd = lane->handles[d] = nbd_create();
        lane->load->handle_count++;
        if (nbd == NULL || nbd_connect_uri(nbd, uri) == -1) {
            load_fail(lane->load, uri, nbd_get_error());
            return false;
        }
        int64_t size = nbd_get_size(nbd);
        if (size < 0 || (uint64_t)size < options->plan.region_start + options->plan.region_bytes) {
            load_fail(lane->load, uri, "the region does not fit into the disk");
            return false;
        }
        if (nbd_is_read_only(nbd) != 0) {
            load_fail(lane->load, uri, "the export is read-only");
            return false;
        }
    }
    return true;
}

static bool load_open(struct load *load)
{
    const struct log_plan *plan = &load->options->plan;
    uint32_t disks_per_lane = plan->dependent ? plan->disks : 1;
    unsigned lanes = plan->writers * (plan->disks / disks_per_lane);
    load->lanes = calloc(lanes, sizeof(*load->lanes));
    load->polls = calloc((size_t)lanes * disks_per_lane + 1, sizeof(*load->polls));
    if (load->lanes == NULL || load->polls == NULL)
        abort();
    while (load->lane_count < lanes) {
        struct lane *lane = &load->lanes[load->lane_count++];
        lane->load = load;
        lane->writer = (load->lane_count - 1) % plan->writers;
        lane->disk_first = (load->lane_count - 1) / plan->writers;
        lane->disk_count = disks_per_lane;
        lane->next_sequence = 1;
        lane->handles = calloc(disks_per_lane, sizeof(*lane->handles));
        lane->ops = calloc(plan->queue, sizeof(*lane->ops));
        if (lane->handles == NULL || lane->ops == NULL)
            abort();
        for (uint32_t i = 0; i < plan->queue; i++)
            lane->ops[i].lane = lane;
        if (!lane_connect(lane))
            return false;
    }
    return true;
}

static void load_close(struct load *load)
{
    for (unsigned i = 0; i < load->lane_count; i++) {
        struct lane *lane = &load->lanes[i];
        for (unsigned d = 0; d < lane->disk_count; d++) {
            if (lane->handles[d] != NULL && !load->lost && nbd_aio_is_ready(lane->handles[d]) == 1)
                nbd_shutdown(lane->handles[d], 0);
            nbd_close(lane->handles[d]);
        }
        free(lane->handles);
        free(lane->ops);
    }
    free(load->lanes);
    free(load->polls);
    close(load->signals);
}

int writer_run(const struct writer_options *options, struct writer_result *result)
{
    *result = (struct writer_result){0};
    struct load load = {.options = options, .result = result};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    load.signals = signalfd(-1, &signals, SFD_CLOEXEC);
    if (load.signals < 0)
        abort();
    if (load_open(&load))
        load_loop(&load);
    load_close(&load);
    return result->error[0] != '\0';
}
