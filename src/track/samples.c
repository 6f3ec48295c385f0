/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Samples of the disk (C19): sums of the blocks that were written last, taken when the disk had been flushed at a
 * checkpoint or at the close, and kept in the superblock. When the sidecar is opened they are read again. After a close in
 * good order all of them must match; else those whose bit is clear in the span that is being recorded: they were clean when
 * they were summed, at the cut that began this span or later, and nobody has written them through us since.
 *
 * This notices a disk that was rolled back or restored below us, where neither times nor identity say so. What it cannot
 * notice: changes of other blocks, and a disk that was put back to a state in which these blocks are the same.
 *
 * A block that cannot be read is no proof of anything: it is kept no longer.
 */
#include <assert.h>
#include <string.h>

#include "base/crc32c.h"
#include "track/tracker_internal.h"

void sampler_note(struct tracker *tracker, uint64_t bit)
{
    struct sampler *sampler = &tracker->sampler;
    sampler->recent[sampler->recent_at] = bit << tracker->shift;
    sampler->recent_at = (sampler->recent_at + 1) % LIMIT_TRACK_SAMPLES;
    if (sampler->recent_count < LIMIT_TRACK_SAMPLES)
        sampler->recent_count++;
}

static bool is_clean(const struct tracker *tracker, uint64_t start)
{
    const struct span *last = tracker->span_count > 0 ? tracker->spans[tracker->span_count - 1] : NULL;
    uint64_t bit = start >> tracker->shift;
    return last && bit < tracker->memory.bit_count && !span_all_set(last, bit, 1);
}

static void list_add(struct tracker *tracker, struct disk_sample sample)
{
    struct sampler *sampler = &tracker->sampler;
    uint64_t size = tracker->disk->leaf->size_bytes;
    if (sampler->count == LIMIT_TRACK_SAMPLES || sample.start >= size)
        return;
    for (unsigned i = 0; i < sampler->count; i++)
        if (sampler->list[i].start == sample.start)
            return;
    if (sample.length == 0)
        sample.length = (uint32_t)(size - sample.start < BLOCK_BYTES_DEFAULT ? size - sample.start
                                                                             : BLOCK_BYTES_DEFAULT);
    if (sample.length <= size - sample.start)
        sampler->list[sampler->count++] = sample;
}

static void sample_read(struct request *req, int status);

/* The next one, or the end. */
static void sample_next(struct tracker *tracker)
{
    struct sampler *sampler = &tracker->sampler;
    if (sampler->at == sampler->count) {
        void (*done)(struct tracker *, bool) = sampler->done;
        sampler->done = NULL;
        done(tracker, sampler->differs);
        return;
    }
    struct disk_sample *sample = &sampler->list[sampler->at];
    sampler->iov = (struct iovec){sampler->buffer, sample->length};
    sampler->read = (struct request){
        .kind = REQUEST_READ,
        .range = {sample->start, sample->length},
        .iov = &sampler->iov,
        .iov_count = 1,
        .done = sample_read,
    };
    node_submit(tracker->disk->leaf, &sampler->read);
}

static void sample_read(struct request *req, int status)
{
    struct tracker *tracker = container_of(req, struct tracker, sampler.read);
    struct sampler *sampler = &tracker->sampler;
    struct disk_sample sample = sampler->list[sampler->at++];
    uint32_t crc = crc32c(0, sampler->buffer, sample.length);
    if (status == 0 && sampler->checking && crc != sample.crc) {
        sampler->differs = true;
        sampler->at = sampler->count;
    } else if (status == 0) {
        sample.crc = crc;
        sampler->kept[sampler->kept_count++] = sample;
    }
    sample_next(tracker);
}

static void sampler_start(struct tracker *tracker, bool checking, void (*done)(struct tracker *tracker, bool differs))
{
    struct sampler *sampler = &tracker->sampler;
    assert(!sampler->done);
    sampler->checking = checking;
    sampler->differs = false;
    sampler->done = done;
    sampler->at = sampler->kept_count = 0;
    sample_next(tracker);
}

void sampler_take(struct tracker *tracker, void (*done)(struct tracker *tracker, bool differs))
{
    struct sampler *sampler = &tracker->sampler;
    sampler->count = 0;
    for (unsigned i = 1; i <= sampler->recent_count; i++) {
        unsigned at = (sampler->recent_at + LIMIT_TRACK_SAMPLES - i) % LIMIT_TRACK_SAMPLES;
        list_add(tracker, (struct disk_sample){.start = sampler->recent[at]});
    }
    for (unsigned i = 0; i < sampler->kept_count; i++)
        list_add(tracker, (struct disk_sample){.start = sampler->kept[i].start});
    sampler_start(tracker, false, done);
}

void sampler_check(struct tracker *tracker, bool all, void (*done)(struct tracker *tracker, bool differs))
{
    struct sampler *sampler = &tracker->sampler;
    sampler->count = 0;
    for (unsigned i = 0; i < sampler->kept_count; i++)
        if (all || is_clean(tracker, sampler->kept[i].start))
            list_add(tracker, sampler->kept[i]);
    sampler_start(tracker, true, done);
}
