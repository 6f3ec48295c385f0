/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The snapshots of the many lives, their readers, and what lay on the disks at their cuts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/probe.h"
#include "lives.h"
#include "vm/bitmaps.h"
#include "vm/vm_private.h"

void __real_cut_start(struct cut *cut);
void __wrap_cut_start(struct cut *cut);
void __real_disk_release(struct disk *disk);
void __wrap_disk_release(struct disk *disk);

/* ---- the cut ---- */

static struct lives *lives_of(struct io *io)
{
    const struct stage *stage = world_context(world_of(io));
    return stage->owner;
}

void __wrap_cut_start(struct cut *cut)
{
    struct lives *lives = lives_of(cut->io);
    lives->cut = cut;
    lives->captured_disks = 0;
    __real_cut_start(cut);
}

/* The cut is done, nothing is in flight, and what was held starts only after this step: the disk is as it was at the cut. */
static void capture(struct lives *lives, unsigned disk)
{
    struct lives_image *image = &lives->captured;
    assert_false(lives->captured_disks >> disk & 1);
    lives->captured_disks |= 1u << disk;
    guest_look(lives, disk, image->sectors[disk]);
    for (uint64_t i = 0; i < lives->blocks; i++)
        image->recorded[disk][i] = lives->disks[disk].blocks[i].recorded;
    image->stamp[disk] = lives->stamps;
    image->size[disk] = lives->disks[disk].size;
    guest_cut(lives, disk);
}

void __wrap_disk_release(struct disk *disk)
{
    struct lives *lives = lives_of(disk->node.io);
    if (lives->cut && !lives->stage->vm->growing && atomic_load(&lives->cut->state) == CUT_DONE)
        capture(lives, (unsigned)(disk->name[2] - 'a'));
    __real_disk_release(disk);
}

void image_take(struct lives *lives, struct lives_image *image)
{
    if (lives->captured_disks != (1u << STAGE_DISKS) - 1)
        lives_fail(lives, "a snapshot is there, and not all disks were cut for it (C2)");
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        image->sectors[i] = malloc(lives->blocks * LIVES_SECTORS * sizeof(uint32_t));
        image->recorded[i] = malloc(lives->blocks * sizeof(bool));
        assert_true(image->sectors[i] && image->recorded[i]);
        memcpy(image->sectors[i], lives->captured.sectors[i], lives->blocks * LIVES_SECTORS * sizeof(uint32_t));
        memcpy(image->recorded[i], lives->captured.recorded[i], lives->blocks * sizeof(bool));
        image->stamp[i] = lives->captured.stamp[i];
        image->size[i] = lives->captured.size[i];
    }
    lives->captured_disks = 0;
    lives->cut = NULL;
}

void image_free(struct lives_image *image)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        free(image->sectors[i]);
        free(image->recorded[i]);
    }
    *image = (struct lives_image){0};
}

/* ---- life ---- */

static unsigned alive(const struct lives *lives)
{
    unsigned count = 0;
    for (unsigned i = 0; i < lives->taken_count; i++)
        count += !lives->taken[i]->ending;
    return count;
}

static void take(struct lives *lives)
{
    char name[16];
    struct snapshot_options options = {0};
    char bitmap[16];
    if (lives->creating || alive(lives) == LIVES_ALIVE || lives->stage->snapshot_count + 4 > STAGE_SNAPSHOTS)
        return;
    struct lives_taken *taken = calloc(1, sizeof *taken);
    assert_non_null(taken);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        taken->released[i] = calloc(lives->blocks, 1);
        assert_non_null(taken->released[i]);
    }
    snprintf(name, sizeof name, "s%u", lives->taken_count);
    snprintf(bitmap, sizeof bitmap, "m%u", lives->bitmap_names);
    taken->limited = lives->bitmap_there && lives_chance(lives, 512);
    if (taken->limited)
        options.bitmap = bitmap;
    lives->taken[lives->taken_count++] = taken;
    lives->creating = true;
    taken->snapshot = stage_create_with(lives->stage, name, &options);
    lives_trace(lives, "snapshot %s is asked for%s", name, taken->limited ? ", limited" : "");
}

void snapshots_settle(struct lives *lives)
{
    for (unsigned i = 0; i < lives->taken_count; i++) {
        struct lives_taken *taken = lives->taken[i];
        if (taken->there || taken->ending || !taken->snapshot->answered)
            continue;
        lives->creating = false;
        taken->there = taken->snapshot->created;
        taken->ending = !taken->there;
        if (taken->there)
            image_take(lives, &taken->image);
        else if (!lives->tight && !lives->faults)
            lives_fail(lives, "snapshot %s was refused: %s", taken->snapshot->name, taken->snapshot->text);
        lives_trace(lives, "snapshot %s: %s", taken->snapshot->name, taken->there ? "there" : taken->snapshot->text);
    }
}

/* A live one, whose views are there. */
static struct lives_taken *any_taken(struct lives *lives)
{
    struct lives_taken *taken = lives->taken_count > 0 ? lives->taken[lives_below(lives, lives->taken_count)] : NULL;
    return taken && taken->there && !taken->ending && taken->snapshot->views[0] != NULL ? taken : NULL;
}

static void end_one(struct lives *lives)
{
    struct lives_taken *taken = any_taken(lives);
    if (!taken)
        return;
    lives_trace(lives, "snapshot %s is to end", taken->snapshot->name);
    taken->ending = true;
    stage_delete(lives->stage, taken->snapshot);
}

void snapshots_end_some(struct lives *lives)
{
    for (unsigned i = 0; i < LIVES_ALIVE && !lives->stage->dead; i++)
        end_one(lives);
}

/* ---- a dirty bitmap ---- */

static void bitmap_added(void *argument, const struct error *err)
{
    struct lives *lives = argument;
    assert_null(err);
    if (--lives->bitmaps_out == 0)
        lives->bitmap_there = true;
}

static void add_bitmap(struct lives *lives)
{
    char name[16];
    if (!lives->bitmaps || lives->bitmap_there || lives->bitmaps_out > 0)
        return;
    snprintf(name, sizeof name, "m%u", ++lives->bitmap_names);
    lives->bitmaps_out = STAGE_DISKS;
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        for (uint64_t i = 0; i < lives->blocks; i++)
            lives->disks[disk].blocks[i].recorded = false;
        world_act_as(lives->stage->world, lives->stage->control);
        vm_bitmap_add(lives->stage->vm, (struct vm_bitmap){disk == 0 ? "vda" : "vdb", name}, 0, true, bitmap_added,
                      lives);
        world_act_as(lives->stage->world, NULL);
    }
}

/* ---- readers ---- */

static void release(struct lives *lives)
{
    struct lives_taken *taken = any_taken(lives);
    if (!taken || taken->snapshot->broken)
        return;
    const unsigned disk = (unsigned)lives_below(lives, STAGE_DISKS);
    const bool all = lives_chance(lives, 20);
    const uint64_t count = all ? taken->image.size[disk] : lives_chance(lives, 100) ? 60 : 1 + lives_below(lives, 6);
    const uint64_t first = all ? 0 : guest_place(lives, count);
    struct stage_request request = {.node = taken->snapshot->views[disk]};
    for (uint64_t i = first; i < first + count; i++)
        taken->released[disk][i] = taken->released[disk][i] == RELEASED ? RELEASED : RELEASE_ASKED;
    stage_release_soon(lives->stage, &request, first, count);
    lives_wait(lives, &request.done);
    if (!request.done)
        return;
    if (request.status != 0 && request.status != -EIO)
        lives_fail(lives, "a release of snapshot %s fails: %d", taken->snapshot->name, request.status);
    memset(taken->released[disk] + first, request.status == 0 ? RELEASED : RELEASE_ASKED, count);
}

/* Whether a block may be said to be nobody's. */
static bool may_be_gone(const struct lives_taken *taken, unsigned disk, uint64_t block)
{
    return taken->released[disk][block] != NOT_RELEASED || (taken->limited && !taken->image.recorded[disk][block]);
}

static void check_data(struct lives *lives, const struct lives_taken *taken, unsigned disk, uint64_t first,
                       const struct stage_request *read)
{
    for (uint64_t i = 0; i < read->req.range.length / 512; i++) {
        const uint64_t sector = first * LIVES_SECTORS + i, block = sector / LIVES_SECTORS;
        const uint32_t number = guest_number(lives, disk, sector, read->buffer + i * 512);
        if (taken->released[disk][block] == RELEASED)
            lives_fail(lives, "%s: block %llu of disk %u was released, and is read (C12)", taken->snapshot->name,
                       (unsigned long long)block, disk);
        if (number != taken->image.sectors[disk][sector])
            lives_fail(lives, "%s: sector %llu of disk %u holds %u, not %u (R1)", taken->snapshot->name,
                       (unsigned long long)sector, disk, number, taken->image.sectors[disk][sector]);
    }
}

/* Whether this disk must know that the snapshot broke: the others are told by messages. */
static bool is_broken(const struct lives *lives, const struct lives_taken *taken, unsigned disk)
{
    const uint64_t known_ns = taken->snapshot->broken_ns + 10 * NS_PER_MS;
    return taken->broke[disk] || (taken->snapshot->broken && world_now(lives->stage->world) > known_ns);
}

/* Reads a few blocks of the snapshot, and compares. */
static void check(struct lives *lives, struct lives_taken *taken, unsigned disk, uint64_t first, uint64_t count)
{
    struct stage_request read = {.done = false};
    const bool broken = is_broken(lives, taken, disk);
    stage_read(lives->stage, &read, taken->snapshot->views[disk], first, count);
    lives_wait(lives, &read.done);
    if (!read.done)
        return;
    lives->result.checks++;
    if (broken && read.status != -EIO)
        lives_fail(lives, "%s is broken, and a read of it says %d (R4)", taken->snapshot->name, read.status);
    taken->broke[disk] = read.status == -EIO;
    if (taken->broke[disk] && !lives->tight && !lives->faults)
        lives_fail(lives, "%s broke though there is room, and no device fails", taken->snapshot->name);
    if (read.status == 0)
        check_data(lives, taken, disk, first, &read);
    bool gone = false;
    for (uint64_t i = first; i < first + count; i++)
        gone = gone || may_be_gone(taken, disk, i);
    if (read.status != 0 && !taken->broke[disk] && (read.status != -ENODATA || !gone))
        lives_fail(lives, "%s: a read of block %llu of disk %u says %d", taken->snapshot->name,
                   (unsigned long long)first, disk, read.status);
}

static void check_one(struct lives *lives)
{
    struct lives_taken *taken = any_taken(lives);
    const uint64_t count = 1 + lives_below(lives, 4);
    if (!taken)
        return;
    const unsigned disk = (unsigned)lives_below(lives, STAGE_DISKS);
    const uint64_t added = growth_place(lives, taken->image.size[disk], count);
    check(lives, taken, disk, added ? added : guest_place(lives, count), count);
}

void snapshots_act(struct lives *lives)
{
    const uint64_t what = lives_below(lives, 100);
    if (what < 16)
        take(lives);
    else if (what < 25)
        end_one(lives);
    else if (what < 28)
        add_bitmap(lives);
    else if (what < 50 && lives->releases)
        release(lives);
    else
        check_one(lives);
}

/* ---- deaths ---- */

static void look_after_death(struct lives *lives, struct lives_taken *taken, bool power_lost)
{
    const bool here = taken->snapshot->views[0] != NULL;
    if (!taken->there) {
        if (here)
            lives_fail(lives, "%s is there, and nobody was told of it (C2)", taken->snapshot->name);
        taken->ending = true;
        return;
    }
    if (power_lost && here)
        lives_fail(lives, "%s is there after a power loss", taken->snapshot->name);
    if (!power_lost && !taken->ending && !here)
        lives_fail(lives, "%s is not there any more", taken->snapshot->name);
    if (taken->ending && here)
        lives_fail(lives, "%s was to end, and is there again (C12)", taken->snapshot->name);
    taken->ending = !here;
    if (taken->broke[0] || taken->broke[1] || taken->snapshot->broken) { /* all know it now */
        PROBE(restart_broken_snapshot_survives);
        taken->broke[0] = taken->broke[1] = true;
    }
}

void snapshots_died(struct lives *lives, bool power_lost)
{
    for (unsigned i = 0; i < lives->taken_count; i++)
        look_after_death(lives, lives->taken[i], power_lost);
    lives->creating = false;
    lives->bitmap_there = false;
    lives->bitmaps_out = 0;
    lives->cut = NULL;
}

void snapshots_check_all(struct lives *lives)
{
    for (unsigned i = 0; i < lives->taken_count; i++) {
        struct lives_taken *taken = lives->taken[i];
        if (!taken->there || taken->ending)
            continue;
        if (taken->limited)
            PROBE(restart_limited_snapshot_survives);
        for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
            if (taken->snapshot->views[disk]->size_bytes != taken->image.size[disk] * STAGE_BLOCK)
                lives_fail(lives, "%s has another size than disk %u had at its cut", taken->snapshot->name, disk);
            for (uint64_t at = lives->stage->disk_bytes / STAGE_BLOCK; at < taken->image.size[disk]; at++)
                check(lives, taken, disk, at, 1);
            for (uint64_t region = 0; region < lives->regions * LIVES_REGION; region += LIVES_REGION)
                for (uint64_t at = lives_below(lives, 8); at < 256; at += 1 + lives_below(lives, 8))
                    check(lives, taken, disk, region + at, 1);
        }
    }
}

void snapshots_end(struct lives *lives)
{
    for (unsigned i = 0; i < lives->taken_count; i++) {
        struct lives_taken *taken = lives->taken[i];
        image_free(&taken->image);
        for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
            free(taken->released[disk]);
        free(taken);
    }
    image_free(&lives->captured);
}
