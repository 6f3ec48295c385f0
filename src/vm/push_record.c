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
 * The words that change are what the next daemon believes: which file is the target, whether something was released, how
 * the job ended. So each is sealed, with what it vouches for, and stored at once: `state` alone says which snapshot and
 * which of the two ends count, so a second end never damages the first. A word that nobody stored like that ends the job
 * with the reason (FAILED), and its files stay, for the copy may have been whole; a count for those who look is 0 then, and
 * a speed what it was at first.
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
#include "base/probe.h"

#define RECORD_MAGIC "FLEECEPJ"

enum { RECORD_VERSION = 3 };

enum { /* which word it is */
       STATE_SALT = 0x73746174,
       PAUSED_SALT = 0x70617573,
       CANCELLED_SALT = 0x63616e63,
       SPEED_SALT = 0x73706564,
       DONE_SALT = 0x646f6e65,
       DATA_SALT = 0x64617461,
       RELEASED_SALT = 0x72656c73,
};

enum { STATE_BITS = 8 };

_Static_assert(offsetof(struct push_record_layout, sealed) + sizeof(struct push_record_sealed) <= MEMORY_HEAD_BYTES,
               "whose it is stands in its head");

static const struct range whole = {0, (sizeof(struct push_record_layout) + 4 * KIB - 1) / (4 * KIB) * (4 * KIB)};

static uint32_t sum_of(const struct push_record_layout *layout)
{
    return crc32c(crc32c(0, &layout->sealed, sizeof layout->sealed), layout->texts, layout->sealed.text_bytes);
}

static enum push_record_state state_of(uint32_t value)
{
    return (enum push_record_state)(value & ((1U << STATE_BITS) - 1));
}

static unsigned end_of(uint32_t value)
{
    return value >> STATE_BITS & 1;
}

uint32_t push_record_state_salt(const struct push_record_layout *layout, uint32_t value)
{
    const enum push_record_state state = state_of(value);
    uint32_t salt = STATE_SALT;
    if (state >= PUSH_RECORD_COPYING)
        salt = crc32c(salt, &layout->cut, sizeof layout->cut);
    if (state >= PUSH_RECORD_FAILED)
        salt = crc32c(salt, &layout->ends[end_of(value)], sizeof layout->ends[0]);
    return salt;
}

static uint32_t state_value(const struct push_record_layout *layout)
{
    return (uint32_t)atomic_load(&layout->state.word);
}

static void store_state(struct push_record_layout *layout, enum push_record_state state, unsigned end)
{
    const uint32_t value = state | end << STATE_BITS;
    sealed_store(&layout->state, push_record_state_salt(layout, value), value);
}

/* ---- making ---- */

/* All words that change, but the state. */
static void begin_words(struct push_record_layout *layout)
{
    sealed_store(&layout->paused, PAUSED_SALT, 0);
    sealed_store(&layout->cancelled, CANCELLED_SALT, 0);
    sealed_count_store(&layout->speed, SPEED_SALT, layout->sealed.speed);
    for (unsigned i = 0; i < LIMIT_DISKS; i++) {
        struct push_record_progress *progress = &layout->progress[i];
        target_note_begin(&progress->note);
        target_written_begin(&progress->written);
        push_record_note_done(progress, 0, 0);
        sealed_store(&progress->released, RELEASED_SALT, 0);
    }
}

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
    sealed->speed = options->speed;
    begin_words(layout);
    store_state(layout, PUSH_RECORD_OPENING, 0);
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
        sealed->flags > PUSH_RECORD_FLAGS || sealed->speed > THROTTLE_RATE_MAX ||
        !is_text(sealed->job, sizeof sealed->job) || !is_text(sealed->bitmap, sizeof sealed->bitmap) ||
        name_check("job id", sealed->job, NULL) < 0 ||
        (sealed->bitmap[0] && name_check("bitmap", sealed->bitmap, NULL) < 0))
        return "it is wrong";
    return NULL;
}

static bool disk_is_right(const struct push_record_layout *layout, unsigned number)
{
    const struct push_record_sealed *sealed = &layout->sealed;
    const struct push_record_disk *disk = &sealed->disks[number];
    return is_text(disk->name, sizeof disk->name) && name_check("disk name", disk->name, NULL) == 0 &&
           disk->where_at < sealed->text_bytes &&
           is_text(layout->texts + disk->where_at, sealed->text_bytes - disk->where_at) &&
           target_check(layout->texts + disk->where_at, NULL) == 0 && disk->size_bytes <= LIMIT_DISK_BYTES;
}

static bool state_is_right(const struct push_record_layout *layout)
{
    const struct push_record_cut *cut = &layout->cut;
    uint32_t value = state_value(layout);
    const struct push_record_end *end = &layout->ends[end_of(value)];
    return sealed_load(&layout->state, push_record_state_salt(layout, value), &value) &&
           state_of(value) <= PUSH_RECORD_CONCLUDED && value >> STATE_BITS <= 1 && end->status <= 0 &&
           end->status >= -4095 && is_text(end->reason, sizeof end->reason) && cut->consistency <= CONSISTENT_AGENT &&
           is_text(cut->reason, sizeof cut->reason) && is_text(cut->snapshot, sizeof cut->snapshot);
}

static bool progress_is_right(const struct push_record_progress *progress)
{
    const int stage = target_note_stage(&progress->note);
    uint64_t clock_ns, wall_ns;
    uint32_t released;
    return stage >= 0 && (stage == TARGET_UNTOUCHED || !progress->note.created || is_uuid(progress->note.nonce)) &&
           sealed_load(&progress->released, RELEASED_SALT, &released) && released <= 1 &&
           target_written_when(&progress->written, &clock_ns, &wall_ns) == 0;
}

/* What of the words that change nobody has stored like that; NULL: all is right. */
static const char *find_damage(const struct push_record_layout *layout)
{
    uint32_t paused, cancelled;
    if (!state_is_right(layout))
        return "how far it is";
    if (!sealed_load(&layout->paused, PAUSED_SALT, &paused) ||
        !sealed_load(&layout->cancelled, CANCELLED_SALT, &cancelled) || paused > 1 || cancelled > 1)
        return "what its users wanted";
    for (unsigned i = 0; i < layout->sealed.disk_count; i++)
        if (!progress_is_right(&layout->progress[i]))
            return "what the targets are";
    return NULL;
}

static const char *check(const struct push_record_layout *layout, const uint8_t boot[BOOT_ID_BYTES])
{
    const char *wrong = check_sealed(layout, boot);
    for (unsigned i = 0; !wrong && i < layout->sealed.disk_count; i++)
        if (!disk_is_right(layout, i))
            wrong = "what it says of a disk is wrong";
    return wrong;
}

int push_record_check(const void *bytes, uint64_t length, const uint8_t boot[BOOT_ID_BYTES], struct error *err)
{
    const struct push_record_layout *layout = bytes;
    const char *wrong = length == whole.length ? check(layout, boot) : "it was not finished";
    if (wrong)
        return error_set(err, EINVAL, "the record of a push can't be used: %s", wrong);
    wrong = find_damage(layout);
    return !wrong ? 0
                  : error_set(err, EBADMSG,
                              "the record of job '%s' in memory is damaged: it does not say %s; files that it has made "
                              "are still there",
                              layout->sealed.job, wrong);
}

/* The files stay: they may be whole, and their user's. A kill in between leaves a record that is damaged, or this one. */
static void give_up(struct push_record_layout *layout, const struct error *err)
{
    begin_words(layout);
    layout->cut = (struct push_record_cut){0};
    layout->ends[0] = (struct push_record_end){.status = -EIO};
    snprintf(layout->ends[0].reason, sizeof layout->ends[0].reason, "%s", err->text);
    store_state(layout, PUSH_RECORD_FAILED, 0);
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
    if (status == 0 || status == -EBADMSG) {
        record->layout = (struct push_record_layout *)(void *)record->shm.base;
        if (status < 0 && !MUTANT(push_damage_believed))
            give_up(record->layout, err);
        return status;
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

/* ---- its words ---- */

enum push_record_state push_record_state(const struct push_record *record)
{
    return state_of(state_value(record->layout));
}

const struct push_record_end *push_record_end(const struct push_record *record)
{
    return &record->layout->ends[end_of(state_value(record->layout))];
}

static bool word_is_set(const struct sealed_word *word, uint32_t salt)
{
    uint32_t value;
    return sealed_load(word, salt, &value) && value;
}

bool push_record_is_paused(const struct push_record *record)
{
    return word_is_set(&record->layout->paused, PAUSED_SALT);
}

bool push_record_is_cancelled(const struct push_record *record)
{
    return word_is_set(&record->layout->cancelled, CANCELLED_SALT);
}

uint64_t push_record_speed(const struct push_record *record)
{
    const uint64_t first = record->layout->sealed.speed,
                   speed = sealed_count_load(&record->layout->speed, SPEED_SALT, first);
    return speed <= THROTTLE_RATE_MAX ? speed : first;
}

bool push_record_has_released(const struct push_record_progress *progress)
{
    return word_is_set(&progress->released, RELEASED_SALT);
}

uint64_t push_record_done(const struct push_record_progress *progress)
{
    return sealed_count_load(&progress->done_bytes, DONE_SALT, 0);
}

uint64_t push_record_data(const struct push_record_progress *progress)
{
    return sealed_count_load(&progress->data_bytes, DATA_SALT, 0);
}

void push_record_note_paused(struct push_record *record, bool paused)
{
    if (record->layout)
        sealed_store(&record->layout->paused, PAUSED_SALT, paused);
}

void push_record_note_cancelled(struct push_record *record, bool cancelled)
{
    if (record->layout)
        sealed_store(&record->layout->cancelled, CANCELLED_SALT, cancelled);
}

void push_record_note_speed(struct push_record *record, uint64_t speed)
{
    if (record->layout)
        sealed_count_store(&record->layout->speed, SPEED_SALT, speed);
}

void push_record_note_released(struct push_record_progress *progress)
{
    sealed_store(&progress->released, RELEASED_SALT, 1);
}

void push_record_note_done(struct push_record_progress *progress, uint64_t done_bytes, uint64_t data_bytes)
{
    sealed_count_store(&progress->done_bytes, DONE_SALT, done_bytes);
    sealed_count_store(&progress->data_bytes, DATA_SALT, data_bytes);
}

/* ---- its states ---- */

void push_record_begin(struct push_record *record, const char *snapshot_uuid, const struct push_cut *cut)
{
    struct push_record_layout *layout = record->layout;
    if (!layout)
        return;
    layout->cut.consistency = cut->consistency;
    layout->cut.hold_ns = cut->hold_ns;
    layout->cut.frozen_ns = cut->frozen_ns;
    snprintf(layout->cut.reason, sizeof layout->cut.reason, "%s",
             cut->consistency_reason ? cut->consistency_reason : "");
    memcpy(layout->cut.snapshot, snapshot_uuid, sizeof layout->cut.snapshot);
    store_state(layout, PUSH_RECORD_COPYING, 0);
}

void push_record_copied(struct push_record *record)
{
    if (record->layout)
        store_state(record->layout, PUSH_RECORD_COPIED, 0);
}

static void store_end(struct push_record *record, enum push_record_state state, int status, const char *reason)
{
    struct push_record_layout *layout = record->layout;
    if (!layout)
        return;
    const unsigned other = !end_of(state_value(layout));
    layout->ends[other].status = status;
    memset(layout->ends[other].reason, 0, sizeof layout->ends[other].reason);
    snprintf(layout->ends[other].reason, sizeof layout->ends[other].reason, "%s", reason);
    store_state(layout, state, other);
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
