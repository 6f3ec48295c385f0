/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * HyperLogLog (Flajolet, Fusy, Gandouet, Meunier: "HyperLogLog: the analysis of a near-optimal cardinality estimation
 * algorithm", 2007), with linear counting for small numbers: a block's hash chooses a register and a rank, and a register
 * keeps the highest rank. Sketches of two periods are united by taking the higher rank of each register, so a ring of
 * windows of a minute forgets the past window by window.
 *
 * It costs a guest's write a multiplication or two for each block. The clock is looked at once in a while only, so that a
 * window may be longer than a minute by the time of a few MiB.
 */
#include "track/write_sketch.h"

#include <math.h>
#include <string.h>

/* Finaliser of SplitMix64: every bit of the result depends on every bit of the number. */
static uint64_t hash_block(uint64_t block)
{
    block += UINT64_C(0x9e3779b97f4a7c15);
    block = (block ^ block >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    block = (block ^ block >> 27) * UINT64_C(0x94d049bb133111eb);
    return block ^ block >> 31;
}

/* Begins a new window when the present one is full. */
static void sketch_look(struct write_sketch *sketch)
{
    const uint64_t now_ns = io_now_ns(sketch->disk->node.io);
    sketch->unlooked = 0;
    if (now_ns - sketch->windows[sketch->window].begun_ns < SKETCH_WINDOW_NS)
        return;
    sketch->window = (sketch->window + 1) % SKETCH_WINDOWS;
    memset(&sketch->windows[sketch->window], 0, sizeof sketch->windows[0]);
    sketch->windows[sketch->window].begun_ns = now_ns;
}

static void sketch_written(struct write_observer *observer, struct range range)
{
    struct write_sketch *sketch = container_of(observer, struct write_sketch, observer);
    const struct block_range blocks = range_to_blocks(range, sketch->block_shift);
    sketch->unlooked += range.length;
    if (sketch->unlooked >= SKETCH_LOOK_BYTES)
        sketch_look(sketch);
    uint8_t *registers = sketch->windows[sketch->window].registers;
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        uint64_t hash = hash_block(block);
        uint8_t rank = (uint8_t)(__builtin_clzll(hash / SKETCH_REGISTERS | 1) - 9); /* of 54 bits: 1 to 54 */
        uint8_t *best = &registers[hash % SKETCH_REGISTERS];
        if (rank > *best)
            *best = rank;
    }
}

void write_sketch_begin(struct write_sketch *sketch, struct disk *disk, unsigned block_shift)
{
    *sketch = (struct write_sketch){.observer.written = sketch_written, .disk = disk, .block_shift = block_shift};
    sketch->begun_ns = sketch->windows[0].begun_ns = io_now_ns(disk->node.io);
    list_append(&disk->observers, &sketch->observer.link);
}

void write_sketch_end(struct write_sketch *sketch)
{
    if (list_linked(&sketch->observer.link))
        list_remove(&sketch->observer.link);
}

static double count_distinct(const uint8_t registers[SKETCH_REGISTERS])
{
    const double m = SKETCH_REGISTERS, alpha = 0.7213 / (1 + 1.079 / m);
    double sum = 0;
    unsigned empty = 0;
    for (unsigned i = 0; i < SKETCH_REGISTERS; i++) {
        sum += ldexp(1, -registers[i]);
        empty += registers[i] == 0;
    }
    double estimate = alpha * m * m / sum;
    return estimate <= 2.5 * m && empty > 0 ? m * log(m / empty) : estimate;
}

struct write_sketch_answer write_sketch_ask(struct write_sketch *sketch)
{
    const uint64_t now_ns = io_now_ns(sketch->disk->node.io), size_bytes = sketch->disk->node.size_bytes;
    const uint64_t span_ns = SKETCH_WINDOWS * SKETCH_WINDOW_NS, age_ns = now_ns - sketch->begun_ns;
    uint8_t together[SKETCH_REGISTERS] = {0};
    uint64_t covered_ns = 0; /* by the windows that count */
    sketch_look(sketch);
    for (unsigned w = 0; w < SKETCH_WINDOWS; w++) {
        if (!sketch->windows[w].begun_ns || now_ns - sketch->windows[w].begun_ns > span_ns)
            continue; /* a disk that is nearly idle has windows of hours, with next to nothing in them */
        if (now_ns - sketch->windows[w].begun_ns > covered_ns)
            covered_ns = now_ns - sketch->windows[w].begun_ns;
        for (unsigned i = 0; i < SKETCH_REGISTERS; i++)
            if (sketch->windows[w].registers[i] > together[i])
                together[i] = sketch->windows[w].registers[i];
    }
    double bytes = count_distinct(together) * (double)(UINT64_C(1) << sketch->block_shift);
    return (struct write_sketch_answer){
        .distinct_bytes = bytes < (double)size_bytes ? (uint64_t)bytes : size_bytes,
        .duration_ns = covered_ns >= span_ns - SKETCH_WINDOW_NS ? covered_ns
                       : age_ns < span_ns                       ? age_ns
                                                                : span_ns,
    };
}
