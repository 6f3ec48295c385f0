// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest that keeps `depth` requests in flight in each of its queues. Header, data and status are a descriptor each, in an
 * indirect table if the device takes one, as Linux does it. It waits for an interrupt (the call eventfd, with EVENT_IDX
 * if it was negotiated) or, with `poll`, looks at the used ring until something is there.
 *
 * With `verify` each sector of a written block says which block it is of and which write wrote it; a block that was written
 * must be read back as its last write left it. A block has one request at a time, and a queue has blocks of its own.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "load.h"

enum { BUCKETS_PER_OCTAVE = 64, BUCKETS = 40 * BUCKETS_PER_OCTAVE, HANG_MS = 120000, SPINS = 1 << 20 };
static const uint32_t verify_magic = 0x5afe57a9;

struct stamp {
    uint32_t magic, sequence;
    uint64_t block;
};

struct slot {
    uint64_t header, status, table, data; /* guest addresses */
    uint64_t block, submitted_ns;
    bool write;
};

struct queue {
    const struct load_options *options;
    struct front_end *front;
    struct ring *ring;
    struct rng rng;
    struct slot *slots, **idle;
    unsigned idle_count;
    uint64_t *buffers; /* a ring of idle ones */
    unsigned buffer_first, buffer_count, buffer_total;
    uint64_t first_block, blocks, next_block; /* of this queue */
    uint32_t *sequences;                      /* verify: by block, of the last write; 0: none yet */
    bool *busy;
    uint64_t start_ns, measure_ns, end_ns;
    uint64_t done, interrupts;
    uint64_t histogram[BUCKETS];
    char error[320];
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Exact up to 64 ns, then 64 steps in every doubling. */
static unsigned bucket_of(uint64_t ns)
{
    if (ns < BUCKETS_PER_OCTAVE)
        return (unsigned)ns;
    unsigned octave = 63 - (unsigned)__builtin_clzll(ns);
    unsigned bucket = (octave - 5) * BUCKETS_PER_OCTAVE + (unsigned)(ns >> (octave - 6) & (BUCKETS_PER_OCTAVE - 1));
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_ns(unsigned bucket)
{
    if (bucket < BUCKETS_PER_OCTAVE)
        return bucket;
    unsigned octave = bucket / BUCKETS_PER_OCTAVE + 5, step = bucket % BUCKETS_PER_OCTAVE;
    return (double)((UINT64_C(1) << octave) + ((uint64_t)step << (octave - 6)));
}

static void stamp_block(struct queue *q, struct slot *slot, uint32_t sequence)
{
    struct stamp stamp = {verify_magic, sequence, slot->block};
    char *data = guest_at(q->ring->memory, slot->data);
    for (uint32_t at = 0; at < q->options->block_bytes; at += SECTOR)
        memcpy(data + at, &stamp, sizeof(stamp));
}

static bool stamp_right(struct queue *q, const struct slot *slot)
{
    uint32_t sequence = q->sequences[slot->block - q->first_block];
    const char *data = guest_at(q->ring->memory, slot->data);
    for (uint32_t at = 0; sequence && at < q->options->block_bytes; at += SECTOR) {
        struct stamp stamp;
        memcpy(&stamp, data + at, sizeof(stamp));
        if (stamp.magic != verify_magic || stamp.block != slot->block || stamp.sequence != sequence) {
            snprintf(q->error, sizeof(q->error), "block %llu, byte %u: write %u of block %llu was read, not write %u",
                     (unsigned long long)slot->block, at, stamp.sequence, (unsigned long long)stamp.block, sequence);
            return false;
        }
    }
    return true;
}

static uint64_t choose_block(struct queue *q)
{
    uint64_t i;
    do {
        i = strncmp(q->options->rw, "rand", 4) == 0 ? rng_below(&q->rng, q->blocks) : q->next_block++ % q->blocks;
    } while (q->busy && q->busy[i]);
    return q->first_block + i;
}

static bool choose_write(struct queue *q)
{
    const char *rw = q->options->rw;
    return strcmp(rw, "randrw") == 0 ? rng_below(&q->rng, 2) : strstr(rw, "write") != NULL;
}

static bool submit_one(struct queue *q)
{
    struct slot *slot = q->idle[q->idle_count - 1];
    uint32_t bytes = q->options->block_bytes;
    slot->block = choose_block(q);
    slot->write = choose_write(q);
    slot->data = q->buffers[q->buffer_first];
    if (q->options->verify) {
        q->busy[slot->block - q->first_block] = true;
        if (slot->write)
            stamp_block(q, slot, ++q->sequences[slot->block - q->first_block]);
    }
    struct blk_header header = {slot->write ? BLK_WRITE : BLK_READ, 0, slot->block * (bytes / SECTOR)};
    if (strcmp(q->options->rw, "id") == 0)
        header.type = BLK_GET_ID;
    memcpy(guest_at(q->ring->memory, slot->header), &header, sizeof(header));
    *(uint8_t *)guest_at(q->ring->memory, slot->status) = BLK_NO_STATUS;
    struct fragment fragments[] = {
        {slot->header, sizeof(header), false}, {slot->data, bytes, !slot->write}, {slot->status, 1, true}};
    slot->submitted_ns = now_ns();
    if (ring_add(q->ring, fragments, 3, q->options->direct ? 0 : slot->table, 0, slot) != 0) {
        snprintf(q->error, sizeof(q->error), "a ring of %u has no room for %u requests", q->ring->size,
                 q->options->depth);
        return false;
    }
    q->idle_count--;
    q->buffer_first = (q->buffer_first + 1) % q->buffer_total;
    q->buffer_count--;
    return true;
}

static bool finish_one(struct queue *q, struct slot *slot)
{
    uint64_t now = now_ns();
    uint8_t status = *(uint8_t *)guest_at(q->ring->memory, slot->status);
    if (status != BLK_OK) {
        snprintf(q->error, sizeof(q->error), "a %s of block %llu ended with status %u", slot->write ? "write" : "read",
                 (unsigned long long)slot->block, status);
        return false;
    }
    if (q->options->verify) {
        if (!slot->write && !stamp_right(q, slot))
            return false;
        q->busy[slot->block - q->first_block] = false;
    }
    if (slot->submitted_ns >= q->measure_ns) {
        q->histogram[bucket_of(now - slot->submitted_ns)]++;
        q->done++;
    }
    q->idle[q->idle_count++] = slot;
    q->buffers[(q->buffer_first + q->buffer_count++) % q->buffer_total] = slot->data;
    return true;
}

static bool sleep_for_used(struct queue *q)
{
    struct pollfd wait[2] = {{q->ring->call_fd, POLLIN, 0}, {q->front->socket, POLLIN, 0}};
    int ready = poll(wait, 2, HANG_MS);
    if (wait[0].revents) {
        ring_drain_call(q->ring);
        q->interrupts++;
        return true;
    }
    snprintf(q->error, sizeof(q->error), "%u requests in queue %u: %s", q->ring->pending, q->ring->index,
             ready == 0 ? "no answer" : "the back-end hung up");
    return ring_has_used(q->ring);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static bool wait_for_used(struct queue *q)
{
    if (!q->options->poll) {
        while (!ring_arm(q->ring))
            if (!sleep_for_used(q))
                return false;
        ring_disarm(q->ring);
        return true;
    }
    for (uint64_t end = 0;;) {
        for (unsigned i = 0; i < SPINS; i++) {
            if (ring_has_used(q->ring))
                return true;
            relax();
        }
        end = end ? end : now_ns() + HANG_MS * UINT64_C(1000000);
        if (now_ns() > end || channel_hung_up(q->front->socket, 0)) {
            snprintf(q->error, sizeof(q->error), "%u requests in queue %u were not answered", q->ring->pending,
                     q->ring->index);
            return false;
        }
    }
}

static void *queue_main(void *opaque)
{
    struct queue *q = opaque;
    if (q->options->poll)
        ring_disarm(q->ring);
    for (;;) {
        bool over = now_ns() >= q->end_ns;
        while (!over && q->idle_count > 0)
            if (!submit_one(q))
                return NULL;
        ring_kick(q->ring);
        if (q->ring->pending == 0)
            return NULL;
        if (!wait_for_used(q))
            return NULL;
        void *token;
        uint32_t written;
        int status;
        while ((status = ring_take(q->ring, &token, &written)) == 1)
            if (!finish_one(q, token))
                return NULL;
        if (status < 0) {
            snprintf(q->error, sizeof(q->error), "a buffer was used that was not given");
            return NULL;
        }
    }
}

static void queue_init(struct queue *q, unsigned index, struct front_end *front, const struct load_options *options,
                       uint64_t blocks)
{
    struct guest_memory *memory = &front->memory;
    *q = (struct queue){
        .options = options, .front = front, .ring = &front->rings[index], .rng = {options->seed + index * 7919}};
    q->blocks = blocks / options->front.queues;
    q->first_block = index * q->blocks;
    q->next_block = rng_below(&q->rng, q->blocks);
    q->slots = calloc(options->depth, sizeof(*q->slots));
    q->idle = calloc(options->depth, sizeof(struct slot *));
    for (unsigned i = 0; i < options->depth; i++) {
        struct slot *slot = &q->slots[i];
        slot->header = guest_take(memory, index, BLK_HEADER_BYTES, 16);
        slot->table = guest_take(memory, index, 3 * 16, 16);
        slot->status = guest_take(memory, index, 1, 1);
        q->idle[q->idle_count++] = slot;
    }
    q->buffer_total = options->buffers > options->depth ? options->buffers : options->depth;
    q->buffers = calloc(q->buffer_total, sizeof(*q->buffers));
    for (; q->buffer_count < q->buffer_total; q->buffer_count++) {
        q->buffers[q->buffer_count] = guest_take(memory, index, options->block_bytes, 4096);
        rng_fill(&q->rng, guest_at(memory, q->buffers[q->buffer_count]), options->block_bytes);
    }
    if (options->verify) {
        q->sequences = calloc(q->blocks, sizeof(*q->sequences));
        q->busy = calloc(q->blocks, sizeof(*q->busy));
    }
}

static void queue_fini(struct queue *q)
{
    free(q->slots);
    free(q->idle);
    free(q->buffers);
    free(q->sequences);
    free(q->busy);
}

static double percentile_us(const uint64_t *histogram, uint64_t total, double part)
{
    uint64_t wanted = (uint64_t)((double)total * part), seen = 0;
    if (wanted == total && total > 0)
        wanted--;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted)
            return bucket_ns(i) / 1000;
    }
    return 0;
}

static void report(const struct load_options *options, const struct queue *queues, double seconds)
{
    uint64_t histogram[BUCKETS] = {0}, done = 0, interrupts = 0, kicks = 0;
    for (unsigned i = 0; i < options->front.queues; i++) {
        for (unsigned b = 0; b < BUCKETS; b++)
            histogram[b] += queues[i].histogram[b];
        done += queues[i].done;
        interrupts += queues[i].interrupts;
        kicks += queues[i].ring->kicks;
    }
    double rate = (double)done / seconds;
    printf("{\"rw\": \"%s\", \"bs\": %u, \"depth\": %u, \"queues\": %u, \"ring\": \"%s\", \"wait\": \"%s\", "
           "\"seconds\": %.2f, \"requests\": %llu, \"iops\": %.0f, \"mb_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"p999_us\": %.1f, \"max_us\": %.1f, \"kicks\": %llu, \"interrupts\": %llu}\n",
           options->rw, options->block_bytes, options->depth, options->front.queues,
           options->front.packed ? "packed" : "split", options->poll ? "poll" : "interrupt", seconds,
           (unsigned long long)done, rate, rate * options->block_bytes / 1e6, percentile_us(histogram, done, 0.5),
           percentile_us(histogram, done, 0.99), percentile_us(histogram, done, 0.999),
           percentile_us(histogram, done, 1), (unsigned long long)kicks, (unsigned long long)interrupts);
}

static int run_queues(const struct load_options *options, struct queue *queues)
{
    pthread_t threads[FRONT_QUEUES];
    uint64_t start = now_ns();
    for (unsigned i = 0; i < options->front.queues; i++) {
        queues[i].measure_ns = start + (uint64_t)(options->ramp * 1e9);
        queues[i].end_ns = queues[i].measure_ns + (uint64_t)(options->seconds * 1e9);
        pthread_create(&threads[i], NULL, queue_main, &queues[i]);
    }
    int failed = 0;
    for (unsigned i = 0; i < options->front.queues; i++) {
        pthread_join(threads[i], NULL);
        if (queues[i].error[0] && !failed++)
            fprintf(stderr, "vhost_client: %s\n", queues[i].error);
    }
    double seconds = (double)(now_ns() - queues[0].measure_ns) / 1e9;
    if (!failed)
        report(options, queues, seconds);
    return failed ? 1 : 0;
}

int load_run(const char *path, const struct load_options *given)
{
    struct load_options options = *given;
    struct front_end *front = calloc(1, sizeof(*front));
    uint64_t buffers = options.buffers > options.depth ? options.buffers : options.depth;
    options.front.regions = options.front.queues > GUEST_REGIONS ? GUEST_REGIONS : options.front.queues;
    uint64_t share = (options.front.queues + options.front.regions - 1) / options.front.regions;
    options.front.region_bytes = ((uint64_t)options.block_bytes + 4096) * (buffers + 1) * share + (2 << 20);
    options.front.region_bytes &= ~(UINT64_C(4096) - 1);
    struct queue *queues = calloc(options.front.queues, sizeof(*queues));
    int status = front_open(front, path, &options.front);
    uint64_t bytes = front->config.capacity * SECTOR;
    bytes = options.size && options.size < bytes ? options.size : bytes;
    uint64_t blocks = bytes / options.block_bytes;
    if (status == 0 && blocks / options.front.queues < 2 * options.depth)
        status = front_fail(front, -EINVAL, "a disk of %llu bytes is too small for this load",
                            (unsigned long long)bytes);
    if (status != 0) {
        fprintf(stderr, "vhost_client: %s: %s\n", path, front->error);
    } else {
        options.direct = options.direct || !front_has(front, FEATURE_INDIRECT);
        for (unsigned i = 0; i < options.front.queues; i++)
            queue_init(&queues[i], i, front, &options, blocks);
        status = run_queues(&options, queues);
        for (unsigned i = 0; i < options.front.queues; i++)
            queue_fini(&queues[i]);
    }
    front_close(front);
    free(queues);
    free(front);
    return status == 0 ? 0 : 1;
}
