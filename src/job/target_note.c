/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A note of a target is sealed by its stage. What a later stage counts on is stored in an earlier one, which does not count
 * it yet; so there is no moment in which a kill leaves half a note. A stage whose sum is wrong was not stored by anybody:
 * then nothing is opened again, believed or removed.
 *
 * The time of the last write has two places, used in turn, each with a sum. A kill in the middle of a store leaves the
 * other one; that is right, for the write that the store is for was not begun. A place that was damaged leaves an earlier
 * time, and an earlier time can only make us doubt what is right.
 */
#include "job/target_note.h"

#include <errno.h>
#include <string.h>

#include "io/io.h"

enum { NOTE_SALT = 0x6e6f7465, WRITTEN_SALT = 0x77726974 };

static uint32_t note_salt(const struct target_note *note, uint32_t stage)
{
    uint32_t salt = NOTE_SALT;
    if (stage >= TARGET_NAMING)
        salt = crc32c(crc32c(salt, &note->created, sizeof note->created), note->nonce, sizeof note->nonce);
    return stage >= TARGET_KNOWN ? crc32c(salt, &note->is, sizeof note->is) : salt;
}

void target_note_store(struct target_note *note, enum target_stage stage)
{
    sealed_store(&note->stage, note_salt(note, stage), stage);
}

void target_note_begin(struct target_note *note)
{
    target_note_store(note, TARGET_UNTOUCHED); /* first: nothing else counts then */
    note->created = 0;
    memset(note->nonce, 0, sizeof note->nonce);
    note->is = (struct target_identity){0};
}

int target_note_stage(const struct target_note *note)
{
    const uint32_t stage = (uint32_t)atomic_load(&note->stage.word);
    uint32_t same;
    return stage <= TARGET_KNOWN && sealed_load(&note->stage, note_salt(note, stage), &same) ? (int)stage : -EBADMSG;
}

static uint32_t look_sum(uint64_t clock_ns, uint64_t wall_ns)
{
    return sealed_sum(sealed_sum(WRITTEN_SALT, clock_ns), wall_ns);
}

static void look_store(struct target_look *look, uint64_t clock_ns, uint64_t wall_ns)
{
    atomic_store(&look->clock_ns, clock_ns);
    atomic_store(&look->wall_ns, wall_ns);
    atomic_store(&look->sum, look_sum(clock_ns, wall_ns));
}

void target_written_begin(struct target_written *written)
{
    look_store(&written->looks[0], 0, 0);
    look_store(&written->looks[1], 0, 0);
}

void target_writing(struct target_written *written, struct io *io)
{
    look_store(&written->looks[atomic_fetch_add(&written->next, 1) % 2], io_now_ns(io), io_wall_ns(io));
}

int target_written_when(const struct target_written *written, uint64_t *clock_ns, uint64_t *wall_ns)
{
    int status = -EBADMSG;
    *clock_ns = *wall_ns = 0;
    for (unsigned i = 0; i < 2; i++) {
        const struct target_look *look = &written->looks[i];
        const uint64_t clock = atomic_load(&look->clock_ns), wall = atomic_load(&look->wall_ns);
        if (atomic_load(&look->sum) != look_sum(clock, wall))
            continue;
        status = 0;
        if (clock >= *clock_ns) { /* not by the wall's clock: it may have been set back */
            *clock_ns = clock;
            *wall_ns = wall;
        }
    }
    return status;
}
