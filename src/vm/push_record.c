/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The record of a push is made before anything else of it, and goes after everything else, so whoever finds it can finish
 * the job or take it away (R7):
 *
 *     OPENING -> COPYING (the snapshot is there; stored in the step in which its maker is told) -> COPIED -> CONCLUDED
 *     OPENING, COPYING -> FAILED -> CONCLUDED
 *
 * How far the copy is, it does not say: what the target has for good was released at the snapshot, whose needed set
 * outlives the daemon as well, and there a block's release is stored before anything relies on it (C12). What is needed
 * still is copied again, at worst a second time: the content of a point never changes, so the same bytes are written.
 * `done_bytes` is for those who look.
 *
 * The file lies in a folder that is ours alone; it is parsed as if it did not.
 */
#include "vm/push_record.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/name.h"

#define RECORD_MAGIC "FLEECEPJ"

enum { RECORD_VERSION = 2 };

_Static_assert(offsetof(struct push_record_layout, sealed) + sizeof(struct push_record_sealed) <= MEMORY_HEAD_BYTES,
               "whose it is stands in its head");

static const struct range whole = {0, (sizeof(struct push_record_layout) + 4 * KIB - 1) / (4 * KIB) * (4 * KIB)};

static uint32_t sum_of(const struct push_record_layout *layout)
{
    return crc32c(crc32c(0, &layout->sealed, sizeof layout->sealed), layout->texts, layout->sealed.text_bytes);
}

/* ---- making ---- */

static int seal(struct push_record_layout *layout, struct io *io, const struct push_options *options, const char *job,
                const struct push_record_target *targets, unsigned target_count, struct error *err)
{
    struct push_record_sealed *sealed = &layout->sealed;
    assert(target_count <= LIMIT_DISKS);
    io_boot_id(io, sealed->boot);
    sealed->disk_count = target_count;
    sealed->mode = options->mode;
    sealed->flags = (options->no_advice ? PUSH_RECORD_NO_ADVICE : 0) |
                    (options->no_release ? PUSH_RECORD_NO_RELEASE : 0) |
                    (options->keep_concluded ? PUSH_RECORD_KEEP_CONCLUDED : 0) |
                    (options->wait_to_finalize ? PUSH_RECORD_WAIT_TO_FINALIZE : 0);
    memccpy(sealed->job, job, 0, LIMIT_NAME_BYTES);
    if (options->bitmap)
        memccpy(sealed->bitmap, options->bitmap, 0, LIMIT_NAME_BYTES);
    for (unsigned i = 0; i < target_count; i++) {
        struct push_record_disk *disk = &sealed->disks[i];
        const size_t bytes = strlen(targets[i].where) + 1;
        if (bytes > LIMIT_PUSH_TEXT_BYTES - sealed->text_bytes)
            return error_set(err, ENAMETOOLONG, "the names of the targets of job '%s' have more than %d bytes", job,
                             LIMIT_PUSH_TEXT_BYTES);
        memccpy(disk->name, targets[i].disk, 0, LIMIT_NAME_BYTES);
        disk->size_bytes = targets[i].size_bytes;
        disk->where_at = sealed->text_bytes;
        memcpy(layout->texts + sealed->text_bytes, targets[i].where, bytes);
        sealed->text_bytes += (uint32_t)bytes;
        sealed->devices[i] = targets[i].identity.device;
        sealed->inodes[i] = targets[i].identity.inode;
    }
    atomic_store(&layout->speed, options->speed);
    layout->version = RECORD_VERSION;
    layout->sum = sum_of(layout);
    return 0;
}

static struct io_shm_name name_it(struct push_record *record, struct io *io, const char *folder, unsigned number)
{
    *record = (struct push_record){.io = io, .folder = folder};
    snprintf(record->file, sizeof record->file, "push.%u", number);
    return (struct io_shm_name){folder, record->file};
}

int push_record_create(struct push_record *record, struct io *io, const char *folder, unsigned number,
                       const struct push_options *options, const char *job, const struct push_record_target *targets,
                       unsigned target_count, struct error *err)
{
    const struct io_shm_name name = name_it(record, io, folder, number);
    int status = io_shm_create(io, &record->shm, &name, whole.length, err);
    if (status < 0)
        return status;
    status = io_shm_grow(io, &record->shm, whole);
    if (status < 0)
        error_set(err, -status, "no shared memory for the record of job '%s': %s", job, error_name(status));
    if (status == 0) {
        record->layout = (struct push_record_layout *)(void *)record->shm.base;
        status = seal(record->layout, io, options, job, targets, target_count, err);
    }
    if (status < 0) {
        record->layout = NULL;
        io_shm_remove(io, &name);
        io_shm_destroy(io, &record->shm);
        return status;
    }
    atomic_thread_fence(memory_order_release);
    memcpy(record->layout->magic, RECORD_MAGIC, sizeof record->layout->magic);
    return 0;
}

/* ---- reading ---- */

static bool is_text(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

static bool is_uuid(const char *text)
{
    return strnlen(text, UUID_TEXT_BYTES) == UUID_TEXT_BYTES - 1 &&
           strspn(text, "0123456789abcdef-") == UUID_TEXT_BYTES - 1;
}

static const char *check_sealed(const struct push_record_layout *layout, const uint8_t boot[BOOT_ID_BYTES])
{
    const struct push_record_sealed *sealed = &layout->sealed;
    if (memcmp(layout->magic, RECORD_MAGIC, sizeof layout->magic) != 0)
        return "it was not finished";
    if (layout->version != RECORD_VERSION)
        return "another version of the daemon made it";
    if (sealed->text_bytes > LIMIT_PUSH_TEXT_BYTES || sum_of(layout) != layout->sum)
        return "it is damaged";
    if (memcmp(sealed->boot, boot, BOOT_ID_BYTES) != 0)
        return "it is of an earlier boot";
    if (sealed->disk_count == 0 || sealed->disk_count > LIMIT_DISKS || sealed->mode > PUSH_PLAIN ||
        sealed->flags > PUSH_RECORD_FLAGS || !is_text(sealed->job, sizeof sealed->job) ||
        !is_text(sealed->bitmap, sizeof sealed->bitmap) || name_check("job id", sealed->job, NULL) < 0 ||
        (sealed->bitmap[0] && name_check("bitmap", sealed->bitmap, NULL) < 0))
        return "it is wrong";
    return NULL;
}

static bool disk_is_right(const struct push_record_layout *layout, unsigned number)
{
    const struct push_record_sealed *sealed = &layout->sealed;
    const struct push_record_disk *disk = &sealed->disks[number];
    const struct target_note *note = &layout->progress[number].note;
    const unsigned stage = atomic_load(&note->stage);
    return is_text(disk->name, sizeof disk->name) && name_check("disk name", disk->name, NULL) == 0 &&
           disk->where_at < sealed->text_bytes &&
           is_text(layout->texts + disk->where_at, sealed->text_bytes - disk->where_at) &&
           target_check(layout->texts + disk->where_at, NULL) == 0 && disk->size_bytes <= LIMIT_DISK_BYTES &&
           stage <= TARGET_KNOWN && (stage == TARGET_UNTOUCHED || !note->created || is_uuid(note->nonce));
}

static const char *check(const struct push_record_layout *layout, const uint8_t boot[BOOT_ID_BYTES])
{
    const char *wrong = check_sealed(layout, boot);
    if (wrong)
        return wrong;
    const unsigned state = atomic_load(&layout->state);
    if (state > PUSH_RECORD_CONCLUDED || atomic_load(&layout->speed) > THROTTLE_RATE_MAX || layout->status > 0 ||
        layout->status < -4095 || layout->consistency > CONSISTENT_AGENT ||
        !is_text(layout->consistency_reason, sizeof layout->consistency_reason) ||
        !is_text(layout->snapshot, sizeof layout->snapshot) || !is_text(layout->reason, sizeof layout->reason))
        return "what it says of its state is wrong";
    for (unsigned i = 0; i < layout->sealed.disk_count; i++)
        if (!disk_is_right(layout, i))
            return "what it says of a disk is wrong";
    return NULL;
}

int push_record_check(const void *bytes, uint64_t length, const uint8_t boot[BOOT_ID_BYTES], struct error *err)
{
    const char *wrong = length == whole.length ? check(bytes, boot) : "it was not finished";
    return wrong ? error_set(err, EINVAL, "the record of a push can't be used: %s", wrong) : 0;
}

int push_record_adopt(struct push_record *record, struct io *io, const char *folder, unsigned number, struct error *err)
{
    uint8_t boot[BOOT_ID_BYTES];
    const struct io_shm_name name = name_it(record, io, folder, number);
    int status = io_shm_adopt(io, &record->shm, &name, err);
    if (status < 0)
        return status;
    io_boot_id(io, boot);
    const uint64_t length = record->shm.reserved_bytes;
    if (length != whole.length || io_shm_grow(io, &record->shm, whole) < 0) /* it may not be there */
        status = error_set(err, EINVAL, "the record of a push can't be used: it was not finished");
    else
        status = push_record_check(record->shm.base, length, boot, err);
    if (status == 0) {
        record->layout = (struct push_record_layout *)(void *)record->shm.base;
        return 0;
    }
    io_shm_remove(io, &name);
    io_shm_destroy(io, &record->shm);
    return status;
}

int push_record_owners(const void *bytes, uint64_t length, struct snapshot_table_disk *disks)
{
    const struct push_record_layout *layout = bytes;
    const struct push_record_sealed *sealed = &layout->sealed;
    if (length < offsetof(struct push_record_layout, sealed) + sizeof *sealed ||
        memcmp(layout->magic, RECORD_MAGIC, sizeof layout->magic) != 0 || layout->version != RECORD_VERSION ||
        sealed->disk_count > LIMIT_DISKS)
        return -EINVAL;
    for (unsigned i = 0; i < sealed->disk_count; i++)
        disks[i] = (struct snapshot_table_disk){
            .name = sealed->disks[i].name,
            .identity = {.device = sealed->devices[i], .inode = sealed->inodes[i]},
        };
    return (int)sealed->disk_count;
}

const char *push_record_where(const struct push_record *record, unsigned disk)
{
    assert(disk < record->layout->sealed.disk_count);
    return record->layout->texts + record->layout->sealed.disks[disk].where_at;
}

/* ---- its states ---- */

void push_record_begin(struct push_record *record, const char *snapshot_uuid, const struct push_cut *cut)
{
    struct push_record_layout *layout = record->layout;
    if (!layout)
        return;
    layout->consistency = cut->consistency;
    layout->hold_ns = cut->hold_ns;
    layout->frozen_ns = cut->frozen_ns;
    snprintf(layout->consistency_reason, sizeof layout->consistency_reason, "%s",
             cut->consistency_reason ? cut->consistency_reason : "");
    memcpy(layout->snapshot, snapshot_uuid, sizeof layout->snapshot);
    atomic_store(&layout->state, PUSH_RECORD_COPYING);
}

void push_record_copied(struct push_record *record)
{
    if (record->layout)
        atomic_store(&record->layout->state, PUSH_RECORD_COPIED);
}

static void store_end(struct push_record *record, enum push_record_state state, int status, const char *reason)
{
    if (!record->layout)
        return;
    record->layout->status = status;
    snprintf(record->layout->reason, sizeof record->layout->reason, "%s", reason);
    atomic_store(&record->layout->state, state);
}

void push_record_fail(struct push_record *record, int status, const char *reason)
{
    store_end(record, PUSH_RECORD_FAILED, status, reason);
}

void push_record_conclude(struct push_record *record, int status, const char *reason)
{
    store_end(record, PUSH_RECORD_CONCLUDED, status, reason);
}

void push_record_destroy(struct push_record *record)
{
    if (!record->layout)
        return;
    const struct io_shm_name name = {record->folder, record->file};
    io_shm_remove(record->io, &name);
    io_shm_destroy(record->io, &record->shm);
    record->layout = NULL;
}
