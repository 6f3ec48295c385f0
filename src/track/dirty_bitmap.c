/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bitmap is a write observer of its disk: it is told of every write in the step that hands it to the leaf (C4), and sets
 * the bits then, whatever becomes of the write. So it is always a superset of what has changed (R5).
 *
 *     enabled <-> disabled        on request
 *     any -> inconsistent         no memory to note a write: what it holds is no superset any more
 *
 * An inconsistent bitmap says so wherever it is shown or asked for, gives its memory back, notes nothing, and can only be
 * removed: the next backup must be a full one. Merging sets bits only: when it runs out of memory half-way the target
 * still is a superset of what it was to note.
 *
 * A crash loses bitmaps: they are in memory alone.
 */
#include "track/dirty_bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"

static void bitmap_written(struct write_observer *observer, struct range range)
{
    struct dirty_bitmap *bitmap = container_of(observer, struct dirty_bitmap, observer);
    struct block_range granules = range_to_blocks(range, bitmap->granularity_shift);
    if (granules.count > 1 && MUTANT(bitmap_misses_the_last))
        granules.count--;
    if (bitmap->inconsistent || bitmap_assign(&bitmap->bits, granules.first, granules.count, true) == 0)
        return;
    bitmap->inconsistent = true;
    if (bitmap->copies == 0) /* else the last copy does it: it reads the bits */
        bitmap_fini(&bitmap->bits);
}

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps, struct disk *disk)
{
    *bitmaps = (struct dirty_bitmaps){.disk = disk};
    list_init(&bitmaps->all);
}

static void bitmap_free(struct dirty_bitmaps *bitmaps, struct dirty_bitmap *bitmap)
{
    assert(bitmap->copies == 0);
    if (bitmap->enabled)
        list_remove(&bitmap->observer.link);
    list_remove(&bitmap->link);
    bitmaps->count--;
    bitmap_fini(&bitmap->bits);
    free(bitmap);
}

void dirty_bitmaps_fini(struct dirty_bitmaps *bitmaps)
{
    list_each_safe (link, &bitmaps->all)
        bitmap_free(bitmaps, container_of(link, struct dirty_bitmap, link));
}

bool dirty_bitmaps_in_use(const struct dirty_bitmaps *bitmaps)
{
    list_each (link, &bitmaps->all)
        if (container_of(link, const struct dirty_bitmap, link)->copies > 0)
            return true;
    return false;
}

void dirty_bitmaps_grow(struct dirty_bitmaps *bitmaps)
{
    const uint64_t size_bytes = bitmaps->disk->node.size_bytes;
    assert(!dirty_bitmaps_in_use(bitmaps));
    list_each (link, &bitmaps->all) {
        struct dirty_bitmap *bitmap = container_of(link, struct dirty_bitmap, link);
        const uint64_t granules = round_up(size_bytes, UINT64_C(1) << bitmap->granularity_shift) >>
                                  bitmap->granularity_shift;
        const uint64_t last = bitmap->bits.bit_count - 1; /* it may have been a part of a granule */
        bitmap->size_bytes = size_bytes;
        if (bitmap->inconsistent)
            continue;
        if ((MUTANT(old_end_stays_clean) || bitmap_assign(&bitmap->bits, last, 1, true) == 0) &&
            bitmap_grow(&bitmap->bits, granules) == 0)
            continue;
        bitmap->inconsistent = true;
        bitmap_fini(&bitmap->bits);
    }
}

int dirty_bitmap_check_granularity(uint64_t granularity_bytes, struct error *err)
{
    if (granularity_bytes >= BITMAP_GRANULARITY_MIN && granularity_bytes <= BITMAP_GRANULARITY_MAX &&
        (granularity_bytes & (granularity_bytes - 1)) == 0)
        return 0;
    return error_set(err, EINVAL, "the granularity of a bitmap is a power of 2 from %llu to %llu bytes, not %llu",
                     (unsigned long long)BITMAP_GRANULARITY_MIN, (unsigned long long)BITMAP_GRANULARITY_MAX,
                     (unsigned long long)granularity_bytes);
}

static struct dirty_bitmap *bitmap_named(const struct dirty_bitmaps *bitmaps, const char *name)
{
    list_each (link, &bitmaps->all) {
        struct dirty_bitmap *bitmap = container_of(link, struct dirty_bitmap, link);
        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

static int bitmap_missing(const struct dirty_bitmaps *bitmaps, const char *name, struct error *err)
{
    return error_set(err, ENOENT, "disk %s has no dirty bitmap '%.80s'", bitmaps->disk->name, name);
}

/* No copy of it is being made. */
static int bitmap_check_unused(const struct dirty_bitmaps *bitmaps, const struct dirty_bitmap *bitmap,
                               struct error *err)
{
    if (bitmap->copies == 0)
        return 0;
    return error_set(err, EBUSY, "dirty bitmap '%s' of disk %s is in use by another operation: try again later",
                     bitmap->name, bitmaps->disk->name);
}

int dirty_bitmap_find(const struct dirty_bitmaps *bitmaps, const char *name, struct dirty_bitmap **bitmap,
                      struct error *err)
{
    struct dirty_bitmap *found = bitmap_named(bitmaps, name);
    *bitmap = NULL;
    if (!found)
        return bitmap_missing(bitmaps, name, err);
    if (found->inconsistent)
        return error_set(err, ESTALE,
                         "dirty bitmap '%s' of disk %s is inconsistent, for there was no memory to note a write: it "
                         "can only be removed",
                         name, bitmaps->disk->name);
    *bitmap = found;
    return 0;
}

/* One that may be changed. */
static int bitmap_to_change(const struct dirty_bitmaps *bitmaps, const char *name, struct dirty_bitmap **bitmap,
                            struct error *err)
{
    assert(io_on_owner(bitmaps->disk->node.io));
    int status = dirty_bitmap_find(bitmaps, name, bitmap, err);
    return status < 0 ? status : bitmap_check_unused(bitmaps, *bitmap, err);
}

int dirty_bitmap_add(struct dirty_bitmaps *bitmaps, const char *name, uint64_t granularity_bytes, bool enabled,
                     struct error *err)
{
    const char *disk = bitmaps->disk->name;
    assert(io_on_owner(bitmaps->disk->node.io));
    assert(dirty_bitmap_check_granularity(granularity_bytes, NULL) == 0);
    if (bitmap_named(bitmaps, name))
        return error_set(err, EEXIST, "disk %s has a dirty bitmap '%s' already: choose another name, or remove it",
                         disk, name);
    if (bitmaps->count == LIMIT_BITMAPS)
        return error_set(err, ENOSPC, "dirty bitmap '%s' is one too many: a disk has at most %d, remove one", name,
                         LIMIT_BITMAPS);
    struct dirty_bitmap *bitmap = calloc(1, sizeof *bitmap);
    uint64_t granules = (bitmaps->disk->node.size_bytes + granularity_bytes - 1) / granularity_bytes;
    if (!bitmap || bitmap_init(&bitmap->bits, granules, false) < 0) {
        free(bitmap);
        return error_set(err, ENOMEM, "no memory for dirty bitmap '%s' of disk %s", name, disk);
    }
    memccpy(bitmap->name, name, 0, sizeof bitmap->name - 1);
    bitmap->size_bytes = bitmaps->disk->node.size_bytes;
    bitmap->granularity_shift = (unsigned)__builtin_ctzll(granularity_bytes);
    bitmap->observer.written = bitmap_written;
    bitmap->enabled = enabled;
    if (enabled)
        list_append(&bitmaps->disk->observers, &bitmap->observer.link);
    list_append(&bitmaps->all, &bitmap->link);
    bitmaps->count++;
    return 0;
}

int dirty_bitmap_remove(struct dirty_bitmaps *bitmaps, const char *name, struct error *err)
{
    assert(io_on_owner(bitmaps->disk->node.io));
    struct dirty_bitmap *bitmap = bitmap_named(bitmaps, name);
    if (!bitmap)
        return bitmap_missing(bitmaps, name, err);
    int status = bitmap_check_unused(bitmaps, bitmap, err);
    if (status == 0)
        bitmap_free(bitmaps, bitmap);
    return status;
}

int dirty_bitmap_clear(struct dirty_bitmaps *bitmaps, const char *name, struct error *err)
{
    struct dirty_bitmap *bitmap;
    int status = bitmap_to_change(bitmaps, name, &bitmap, err);
    if (status == 0 && !MUTANT(bitmap_not_cleared)) /* whole chunks: takes no memory */
        status = bitmap_assign(&bitmap->bits, 0, bitmap->bits.bit_count, false);
    return status;
}

int dirty_bitmap_enable(struct dirty_bitmaps *bitmaps, const char *name, bool enabled, struct error *err)
{
    struct dirty_bitmap *bitmap;
    int status = bitmap_to_change(bitmaps, name, &bitmap, err);
    if (status < 0 || bitmap->enabled == enabled)
        return status;
    bitmap->enabled = enabled;
    if (enabled)
        list_append(&bitmaps->disk->observers, &bitmap->observer.link);
    else
        list_remove(&bitmap->observer.link);
    return 0;
}

int dirty_bitmap_merge(struct dirty_bitmaps *bitmaps, const char *name, const struct bitmap *bits, uint64_t first,
                       uint64_t count, struct error *err)
{
    struct dirty_bitmap *bitmap;
    int status = bitmap_to_change(bitmaps, name, &bitmap, err);
    if (status == 0 && bitmap->bits.bit_count != bits->bit_count)
        status = error_set(err, EINVAL, "dirty bitmap '%s' of disk %s has grown or was made anew during the merge",
                           name, bitmaps->disk->name);
    if (status == 0 && bitmap_merge_range(&bitmap->bits, bits, first, count) < 0)
        status = error_set(err, ENOMEM,
                           "no memory to merge into dirty bitmap '%s' of disk %s: a part may have been added", name,
                           bitmaps->disk->name);
    return status;
}

unsigned dirty_bitmap_ranges(const struct dirty_bitmap *bitmap, uint64_t from, struct range *ranges, unsigned max,
                             uint64_t *next)
{
    const struct bitmap *bits = &bitmap->bits;
    uint64_t at = from >> bitmap->granularity_shift, end = at + LIMIT_BITMAP_STEP_CHUNKS * BITMAP_CHUNK_BITS;
    unsigned count = 0;
    if (end > bits->bit_count)
        end = bits->bit_count;
    while (count < max && at < end && (at = bitmap_next(bits, at, true)) < bits->bit_count) {
        struct block_range run = {at, bitmap_next(bits, at, false) - at};
        ranges[count++] = blocks_to_range(run, bitmap->granularity_shift, bitmap->size_bytes);
        at = block_range_end(run);
    }
    *next = at < bits->bit_count ? at << bitmap->granularity_shift : bitmap->size_bytes;
    return count;
}

void dirty_bitmap_copied(struct dirty_bitmap *bitmap)
{
    assert(bitmap->copies > 0);
    if (--bitmap->copies == 0 && bitmap->inconsistent)
        bitmap_fini(&bitmap->bits);
}

void dirty_bitmap_status(const struct dirty_bitmap *bitmap, struct dirty_bitmap_status *status)
{
    uint64_t last = bitmap->bits.bit_count, dirty = bitmap->bits.set_count << bitmap->granularity_shift;
    if (last > 0 && bitmap_get(&bitmap->bits, last - 1)) /* the last granule may reach beyond the disk */
        dirty -= (last << bitmap->granularity_shift) - bitmap->size_bytes;
    *status = (struct dirty_bitmap_status){
        .granularity_bytes = UINT64_C(1) << bitmap->granularity_shift,
        .dirty_bytes = bitmap->inconsistent ? 0 : dirty,
        .memory_bytes = bitmap->bits.chunks ? bitmap_bytes(&bitmap->bits) : 0,
        .recording = bitmap->enabled && !bitmap->inconsistent,
        .busy = bitmap->copies > 0,
        .inconsistent = bitmap->inconsistent,
    };
    memcpy(status->name, bitmap->name, sizeof status->name);
}
