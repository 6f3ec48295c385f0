/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Superblocks: which checkpoints there are, where their spans lie, and how the last open ended.
 *
 * There are two places. Superblock n goes to place n modulo 2, durably, one at a time, so that the newest whole one stays
 * while the next is written; every step of a checkpoint's life is one superblock. When the sidecar is read, one of them may
 * be torn: the one that would have been next, and whatever of it did not land is what was there before. Anything else than
 * that is damage, also in the older one: which of the two was the newer cannot be told any more, and an older list of
 * checkpoints must never be taken for the newest.
 *
 * A sidecar is made in this order: header, activity log, superblock 1, superblock 2. One without anything in the place of
 * superblock 2, and no whole superblock 1, was never finished; nothing has been tracked with it.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/name.h"
#include "base/probe.h"
#include "track/tracker_internal.h"

enum { SUPER_SECTORS = SIDECAR_SUPER_BLOCKS * SIDECAR_SECTORS };

static uint64_t super_block(uint32_t number)
{
    return SIDECAR_SUPER_AT + number % SIDECAR_SUPERS * SIDECAR_SUPER_BLOCKS;
}

static struct sidecar_identity identity_to_file(const struct disk_identity *identity)
{
    return (struct sidecar_identity){htole64(identity->size_bytes), htole64(identity->device), htole64(identity->inode),
                                     htole64(identity->mtime_ns), htole64(identity->ctime_ns)};
}

static struct disk_identity identity_from_file(const struct sidecar_identity *identity)
{
    return (struct disk_identity){le64toh(identity->size_bytes),
                                  le64toh(identity->device),
                                  le64toh(identity->inode),
                                  le64toh(identity->mtime_ns),
                                  le64toh(identity->ctime_ns),
                                  false,
                                  0};
}

static uint32_t state_to_file(const struct tracker *tracker, const struct tracker_checkpoint *checkpoint)
{
    if (checkpoint->state == CHECKPOINT_INVALID || tracker->voiding.phase != VOID_NONE)
        return 3;
    return checkpoint->state == CHECKPOINT_PENDING && !MUTANT(track_commits_by_itself) ? 1 : 2;
}

static void compose(struct tracker *tracker, struct sidecar_super *super)
{
    bool clean = tracker->closing || MUTANT(track_is_always_clean);
    uint32_t count = 0;
    *super = (struct sidecar_super){
        .disk_bytes = htole64(tracker->noted_bytes),
        .next_bytes = htole64(tracker->next_bytes),
        .clean = htole32(clean),
        .sample_count = htole32(tracker->sampler.kept_count),
        .identity = identity_to_file(&tracker->identity),
    };
    memcpy(super->nonce, tracker->nonce, sizeof super->nonce);
    memccpy(super->disk_name, tracker->disk->name, 0, sizeof super->disk_name);
    io_boot_id(tracker->disk->node.io, super->boot_id);
    memcpy(super->reason, tracker->voiding.phase == VOID_NONE ? tracker->reason : tracker->voiding.reason,
           sizeof super->reason);
    for (unsigned i = 0; i < tracker->count; i++) {
        const struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        if (!checkpoint->named)
            continue;
        struct sidecar_checkpoint *to = &super->checkpoints[count++];
        memccpy(to->name, checkpoint->id.name, 0, sizeof to->name);
        memccpy(to->uuid, checkpoint->id.uuid, 0, sizeof to->uuid);
        to->created_ns = htole64(checkpoint->id.created_wall_ns);
        to->state = htole32(state_to_file(tracker, checkpoint));
        if (to->state == htole32(3) || !checkpoint->span.memory)
            continue;
        to->area = htole32(checkpoint->span.area);
        to->first_sequence = htole64(checkpoint->span.first_sequence);
        to->bit_count = clean ? htole64(span_count(&checkpoint->span)) : 0;
    }
    super->checkpoint_count = htole32(count);
    for (unsigned i = 0; i < tracker->sampler.kept_count; i++) {
        const struct disk_sample *sample = &tracker->sampler.kept[i];
        super->samples[i] = (struct sidecar_sample){htole64(sample->start), htole32(sample->length),
                                                    htole32(sample->crc)};
    }
}

static void super_written(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, super.io);
    struct super_writer *super = &tracker->super;
    void (*done)(struct tracker *, int) = super->done;
    super->busy = false;
    super->done = NULL;
    if (status == 0)
        super->number = (super->number + 1) & SIDECAR_NUMBER_MASK;
    bool voiding = tracker->voiding.phase == VOID_NOTING;
    done(tracker, status); /* may be the end of the tracker, unless it is becoming void */
    if (voiding)
        tracker_void_continue(tracker);
}

void superblock_write(struct tracker *tracker, void (*done)(struct tracker *tracker, int status))
{
    struct super_writer *super = &tracker->super;
    uint32_t number = (super->number + 1) & SIDECAR_NUMBER_MASK;
    assert(!super->busy);
    compose(tracker, &super->payload);
    sidecar_put_payload(super->blocks, SIDECAR_SUPER_BLOCKS, &super->payload);
    sidecar_seal(&tracker->sidecar, super->blocks, SIDECAR_SUPER_BLOCKS, super_block(number), SIDECAR_SUPER, number,
                 sidecar_next_sequence(&tracker->sidecar));
    super->busy = true;
    super->done = done;
    super->io.done = super_written;
    tracker->counters.super_writes++;
    sidecar_write(&tracker->sidecar, &super->io, super_block(number), SIDECAR_SUPER_BLOCKS, super->blocks, true);
}

/* Reading. */

struct slot {
    struct sidecar_stamp stamps[SUPER_SECTORS];
    bool whole, never;
};

static int read_slot(struct tracker *tracker, const struct sidecar_block *blocks, unsigned place, struct slot *slot,
                     struct error *err)
{
    const uint64_t at = SIDECAR_SUPER_AT + place * SIDECAR_SUPER_BLOCKS;
    uint64_t bad;
    if (sidecar_check(&tracker->sidecar, blocks, SIDECAR_SUPER_BLOCKS, at, SIDECAR_SUPER, slot->stamps, &bad) < 0)
        return error_set(err, EBADMSG, "malformed: bytes %llu-%llu, of a superblock, are damaged",
                         (unsigned long long)bad * SIDECAR_SECTOR_BYTES,
                         (unsigned long long)(bad + 1) * SIDECAR_SECTOR_BYTES - 1);
    slot->whole = slot->never = true;
    for (unsigned i = 0; i < SUPER_SECTORS; i++) {
        slot->whole = slot->whole && slot->stamps[i].sequence == slot->stamps[0].sequence;
        slot->never = slot->never && slot->stamps[i].sequence == 0;
    }
    if (!slot->whole)
        PROBE(track_torn_superblock);
    slot->whole = slot->whole && !slot->never && slot->stamps[0].number % SIDECAR_SUPERS == place;
    return 0;
}

/* Whether all of the other place is what was there before the newest one was written, or a part of what was to be next. */
static bool fits(const struct slot *newest, const struct slot *other)
{
    const struct sidecar_stamp at = newest->stamps[0];
    for (unsigned i = 0; i < SUPER_SECTORS; i++) {
        struct sidecar_stamp stamp = other->stamps[i];
        bool before = stamp.number == ((at.number - 1) & SIDECAR_NUMBER_MASK) && stamp.sequence < at.sequence;
        bool next = stamp.number == ((at.number + 1) & SIDECAR_NUMBER_MASK) && stamp.sequence > at.sequence;
        if (!before && !next)
            return false;
    }
    return true;
}

static int decode_checkpoint(struct tracker *tracker, const struct sidecar_checkpoint *from)
{
    struct tracker_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    uint32_t state = le32toh(from->state), area = le32toh(from->area);
    if (!checkpoint)
        return -ENOMEM;
    tracker->checkpoints[tracker->count++] = checkpoint;
    memcpy(checkpoint->id.name, from->name, sizeof from->name);
    memcpy(checkpoint->id.uuid, from->uuid, sizeof checkpoint->id.uuid - 1);
    checkpoint->id.created_wall_ns = le64toh(from->created_ns);
    checkpoint->state = state == 1 ? CHECKPOINT_PENDING : state == 2 ? CHECKPOINT_COMMITTED : CHECKPOINT_INVALID;
    checkpoint->named = checkpoint->recorded = true;
    if (state < 1 || state > 3 || (state != 3 && (area >= SIDECAR_AREAS || from->first_sequence == 0)))
        return -EBADMSG;
    checkpoint->span.area = area;
    checkpoint->span.first_sequence = le64toh(from->first_sequence);
    tracker->super.past.bit_counts[tracker->count - 1] = le64toh(from->bit_count);
    return 0;
}

static int decode(struct tracker *tracker, const struct sidecar_super *super)
{
    struct super_past *past = &tracker->super.past;
    uint32_t count = le32toh(super->checkpoint_count), samples = le32toh(super->sample_count);
    bool valid = false, used[SIDECAR_AREAS] = {false};
    uint64_t size = le64toh(super->disk_bytes), next = le64toh(super->next_bytes);
    struct error ignored;
    if (count > LIMIT_CHECKPOINTS || samples > LIMIT_TRACK_SAMPLES || super->reason[SIDECAR_REASON_BYTES - 1] ||
        size == 0 || size > LIMIT_DISK_BYTES || next > LIMIT_DISK_BYTES || (next && next <= size))
        return -EBADMSG;
    past->clean = super->clean != 0;
    memcpy(past->nonce, super->nonce, sizeof past->nonce);
    memcpy(past->boot_id, super->boot_id, sizeof past->boot_id);
    past->identity = identity_from_file(&super->identity);
    memcpy(past->disk_name, super->disk_name, sizeof super->disk_name);
    if (past->disk_name[0] && name_check("disk name", past->disk_name, &ignored) < 0)
        return -EBADMSG;
    tracker->disk_bytes = tracker->noted_bytes = size;
    tracker->next_bytes = next;
    memcpy(tracker->reason, super->reason, sizeof tracker->reason);
    for (uint32_t i = 0; i < count; i++) {
        int status = decode_checkpoint(tracker, &super->checkpoints[i]);
        if (status < 0)
            return status;
        const struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        if (checkpoint->state == CHECKPOINT_INVALID && valid)
            return -EBADMSG;
        if (checkpoint->state == CHECKPOINT_INVALID)
            continue;
        if (used[checkpoint->span.area])
            return -EBADMSG;
        valid = used[checkpoint->span.area] = true;
    }
    for (uint32_t i = 0; i < samples; i++) {
        struct disk_sample sample = {le64toh(super->samples[i].start), le32toh(super->samples[i].length),
                                     le32toh(super->samples[i].crc)};
        if (sample.length == 0 || sample.length > BLOCK_BYTES_DEFAULT)
            return -EBADMSG;
        tracker->sampler.kept[tracker->sampler.kept_count++] = sample;
    }
    return 0;
}

int superblock_read(struct tracker *tracker, const struct sidecar_block *slots, struct error *err)
{
    struct slot slot[SIDECAR_SUPERS];
    for (unsigned i = 0; i < SIDECAR_SUPERS; i++) {
        int status = read_slot(tracker, slots + i * SIDECAR_SUPER_BLOCKS, i, &slot[i], err);
        if (status < 0)
            return status;
    }
    if (slot[0].never && !slot[1].whole)
        return -ENOENT;
    unsigned newest = slot[0].whole && (!slot[1].whole || slot[0].stamps[0].sequence > slot[1].stamps[0].sequence) ? 0
                                                                                                                   : 1;
    if (!slot[newest].whole || !fits(&slot[newest], &slot[!newest]))
        return error_set(err, EBADMSG, "malformed: bytes %u-%u, the superblocks, do not belong together",
                         SIDECAR_SUPER_AT * SIDECAR_BLOCK_BYTES, SIDECAR_LOG_AT * SIDECAR_BLOCK_BYTES - 1);
    uint64_t opens = 0;
    for (unsigned i = 0; i < SIDECAR_SUPERS * SUPER_SECTORS; i++) {
        uint64_t sequence = slot[i / SUPER_SECTORS].stamps[i % SUPER_SECTORS].sequence;
        opens = sequence >> SIDECAR_OPEN_SHIFT > opens ? sequence >> SIDECAR_OPEN_SHIFT : opens;
    }
    tracker->sidecar.sequence = (opens + 1) << SIDECAR_OPEN_SHIFT;
    tracker->super.number = slot[newest].stamps[0].number;
    sidecar_get_payload(slots + newest * SIDECAR_SUPER_BLOCKS, SIDECAR_SUPER_BLOCKS, &tracker->super.payload);
    int status = decode(tracker, &tracker->super.payload);
    if (status == -EBADMSG)
        return error_set(
            err, EBADMSG, "malformed: bytes %llu-%llu, a superblock, hold impossible values",
            (unsigned long long)super_block(tracker->super.number) * SIDECAR_BLOCK_BYTES,
            (unsigned long long)(super_block(tracker->super.number) + SIDECAR_SUPER_BLOCKS) * SIDECAR_BLOCK_BYTES - 1);
    return status < 0 ? error_set(err, -status, "no memory for its checkpoints") : 0;
}
