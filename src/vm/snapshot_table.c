/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A record's life:
 *
 *     FREE -> MAKING (it has a number, under which the disks store what it needs) -> LIVE -> ENDED -> FREE
 *
 * LIVE is the commit word of the whole VM (C2): it is stored when the snapshot is whole on all disks, in the step in which
 * its maker is told, and ENDED before any disk forgets anything of it (C12). Whatever a crash finds in between has never
 * been, or is no more. The word need not be stored while the guest is held, as nobody has heard of the snapshot yet: from
 * the cut on every disk stores what it preserves, so that the snapshot is whole at every moment after it.
 *
 * The session, a random number, ties the memories of the disks to this table: made when the first snapshot is, and gone
 * with the last. The table is made before them and removed after them, so whoever finds it can bury all.
 */
#include "vm/snapshot_table.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"

#define TABLE_MAGIC "FLEECEST"

enum { TABLE_VERSION = 6 };

struct snapshot_table_layout {
    char magic[8]; /* last: without it nothing else counts */
    uint32_t version;
    uint32_t disk_count;
    uint8_t boot[BOOT_ID_BYTES];
    uint8_t session[CACHE_SESSION_BYTES];
    atomic_uint last_epoch, migrates;
    char disks[LIMIT_DISKS][LIMIT_NAME_BYTES + 1];
    uint64_t devices[LIMIT_DISKS], inodes[LIMIT_DISKS];
    struct disk_note notes[LIMIT_DISKS];
    struct snapshot_record records[LIMIT_SNAPSHOTS];
};

static const struct range whole = {0, (sizeof(struct snapshot_table_layout) + 4 * KIB - 1) / (4 * KIB) * (4 * KIB)};

static struct io_shm_name name_of(const struct snapshot_table *table)
{
    return (struct io_shm_name){table->folder, "snapshots"};
}

static void use(struct snapshot_table *table)
{
    table->layout = (struct snapshot_table_layout *)(void *)table->shm.base;
    table->records = table->layout->records;
}

int snapshot_table_create(struct snapshot_table *table, struct io *io, const char *folder,
                          const struct snapshot_table_disk *disks, unsigned disk_count, struct error *err)
{
    *table = (struct snapshot_table){.io = io, .folder = folder};
    const struct io_shm_name name = name_of(table);
    int status = io_shm_adopt(io, &table->shm, &name, err);
    if (status == -EAGAIN)
        return status; /* another daemon of this user serves a VM of this name, in another run-time folder */
    if (status == 0)
        io_shm_destroy(io, &table->shm);
    status = io_shm_create(io, &table->shm, &name, whole.length, err);
    if (status < 0)
        return status;
    status = io_shm_grow(io, &table->shm, whole);
    if (status < 0) {
        io_shm_remove(io, &name);
        io_shm_destroy(io, &table->shm);
        return error_set(err, -status, "no shared memory for the table of snapshots: %s", error_name(status));
    }
    use(table);
    table->layout->version = TABLE_VERSION;
    table->layout->disk_count = disk_count;
    io_boot_id(io, table->layout->boot);
    io_random(io, table->layout->session, sizeof table->layout->session);
    for (unsigned i = 0; i < disk_count; i++) {
        memccpy(table->layout->disks[i], disks[i].name, 0, LIMIT_NAME_BYTES);
        table->layout->devices[i] = disks[i].identity.device;
        table->layout->inodes[i] = disks[i].identity.inode;
    }
    atomic_thread_fence(memory_order_release);
    memcpy(table->layout->magic, TABLE_MAGIC, sizeof table->layout->magic);
    return 0;
}

/* What is wrong with it; NULL: nothing. */
static const char *check(const struct snapshot_table *table)
{
    const struct snapshot_table_layout *layout = table->layout;
    uint8_t boot[BOOT_ID_BYTES];
    if (memcmp(layout->magic, TABLE_MAGIC, sizeof layout->magic) != 0)
        return "it was not finished";
    if (layout->version != TABLE_VERSION)
        return "another version of the daemon made it";
    io_boot_id(table->io, boot);
    if (memcmp(layout->boot, boot, sizeof boot) != 0)
        return "it is of an earlier boot";
    if (layout->disk_count > LIMIT_DISKS)
        return "it is damaged";
    return NULL;
}

static int check_disks(const struct snapshot_table *table, const struct snapshot_table_disk *disks, unsigned disk_count,
                       struct error *err)
{
    const struct snapshot_table_layout *layout = table->layout;
    for (unsigned i = 0; i < disk_count; i++) {
        const unsigned at = snapshot_table_disk(table, disks[i].name);
        if (at == layout->disk_count)
            return error_set(err, EINVAL, "disk %s was not there then", disks[i].name);
        if (layout->devices[at] != disks[i].identity.device || layout->inodes[at] != disks[i].identity.inode)
            return error_set(err, EINVAL, "disk %s is another file than then", disks[i].name);
        if (disk_note_check(&layout->notes[at], table->io, &disks[i].identity, err) < 0) {
            error_prefix(err, "disk %s", disks[i].name);
            err->code = EINVAL;
            return -EINVAL;
        }
    }
    if (layout->disk_count != disk_count)
        return error_set(err, EINVAL, "the VM had %u disks, and has %u now", layout->disk_count, disk_count);
    return 0;
}

int snapshot_table_adopt(struct snapshot_table *table, struct io *io, const char *folder,
                         const struct snapshot_table_disk *disks, unsigned disk_count, struct error *err)
{
    *table = (struct snapshot_table){.io = io, .folder = folder};
    const struct io_shm_name name = name_of(table);
    int status = io_shm_adopt(io, &table->shm, &name, err);
    if (status < 0)
        return status;
    const char *wrong = "it was not finished";
    if (table->shm.reserved_bytes == whole.length &&
        io_shm_grow(io, &table->shm, whole) == 0) { /* it may not be there */
        use(table);
        wrong = check(table);
    }
    if (!wrong)
        return check_disks(table, disks, disk_count, err);
    table->layout = NULL;
    io_shm_remove(io, &name);
    io_shm_destroy(io, &table->shm);
    return error_set(err, EINVAL, "the table of snapshots can't be used: %s", wrong);
}

int snapshot_table_owners(const void *bytes, uint64_t length, struct snapshot_table_disk *disks)
{
    const struct snapshot_table_layout *layout = bytes;
    if (length < offsetof(struct snapshot_table_layout, notes) ||
        memcmp(layout->magic, TABLE_MAGIC, sizeof layout->magic) != 0 || layout->version != TABLE_VERSION ||
        layout->disk_count > LIMIT_DISKS)
        return -EINVAL;
    for (unsigned i = 0; i < layout->disk_count; i++)
        disks[i] = (struct snapshot_table_disk){
            .name = layout->disks[i],
            .identity = {.device = layout->devices[i], .inode = layout->inodes[i]},
        };
    return (int)layout->disk_count;
}

void snapshot_table_forget(const struct snapshot_table *table)
{
    char disk[LIMIT_NAME_BYTES + 1] = "";
    const struct io_shm_name name = name_of(table);
    if (!table->layout)
        return;
    for (unsigned i = 0; i < table->layout->disk_count; i++) {
        memccpy(disk, table->layout->disks[i], 0, LIMIT_NAME_BYTES);
        cache_memory_remove(table->io, table->folder, disk);
    }
    io_shm_remove(table->io, &name);
}

void snapshot_table_destroy(struct snapshot_table *table)
{
    if (!table->layout)
        return;
    snapshot_table_forget(table);
    io_shm_destroy(table->io, &table->shm);
    table->layout = NULL;
    table->records = NULL;
}

unsigned snapshot_table_disk(const struct snapshot_table *table, const char *name)
{
    unsigned at = 0;
    while (at < table->layout->disk_count && strncmp(table->layout->disks[at], name, LIMIT_NAME_BYTES + 1) != 0)
        at++;
    return at;
}

struct disk_note *snapshot_table_note(const struct snapshot_table *table, unsigned disk)
{
    assert(disk < table->layout->disk_count);
    return &table->layout->notes[disk];
}

const uint8_t *snapshot_table_session(const struct snapshot_table *table)
{
    return table->layout->session;
}

unsigned snapshot_table_take(struct snapshot_table *table)
{
    unsigned number = 0;
    while (atomic_load(&table->records[number].state) != RECORD_FREE)
        number++;
    assert(number < LIMIT_SNAPSHOTS);
    struct snapshot_record *record = &table->records[number];
    memset(record, 0, sizeof *record);
    atomic_store(&record->state, RECORD_MAKING);
    return number;
}

void snapshot_table_note_epoch(struct snapshot_table *table, uint32_t epoch)
{
    atomic_store(&table->layout->last_epoch, epoch);
}

uint32_t snapshot_table_epoch(const struct snapshot_table *table)
{
    return atomic_load(&table->layout->last_epoch);
}

void snapshot_table_note_migration(struct snapshot_table *table, bool migrates)
{
    if (table->layout)
        atomic_store(&table->layout->migrates, migrates);
}

/* All are broken before it is forgotten why. */
void snapshot_table_heed_migration(struct snapshot_table *table)
{
    static const char reason[] =
        "the daemon ended while the VM migrated, so that its disks may have been written elsewhere";
    if (!atomic_load(&table->layout->migrates))
        return;
    for (unsigned i = 0; i < LIMIT_SNAPSHOTS; i++) {
        struct snapshot_record *record = &table->records[i];
        if (atomic_load(&record->state) != RECORD_LIVE || atomic_load(&record->broken))
            continue;
        PROBE(vhost_migration_killed);
        snprintf(record->reason, sizeof record->reason, "%s", reason);
        atomic_store(&record->broken, 1);
    }
    snapshot_table_note_migration(table, false);
}
