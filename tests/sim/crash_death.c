/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In the middle of what a daemon has died: every one of these must happen in a run. */
#include "base/probe.h"
#include "crash.h"

static void note_recovery(const struct crash_life *life)
{
    if (!life->tracker)
        return;
    switch (tracker_recovery(life->tracker)) {
    case TRACKER_NEW:
        PROBE(track_death_while_a_sidecar_is_made);
        break;
    case TRACKER_CLEAN:
        PROBE(track_death_in_a_clean_opening);
        break;
    case TRACKER_ADOPTED:
        PROBE(track_death_in_adoption);
        break;
    case TRACKER_REPLAYED:
        PROBE(track_death_in_replay);
        break;
    case TRACKER_VOID:
        PROBE(track_death_in_a_void_opening);
        break;
    }
}

static void note_act(const struct crash_op *op)
{
    switch (op->act) {
    case ACT_PREPARE:
        PROBE(track_death_in_prepare);
        break;
    case ACT_RECORD:
        PROBE(track_death_in_record);
        break;
    case ACT_COMMIT:
        PROBE(track_death_in_commit);
        break;
    case ACT_REMOVE:
        PROBE(track_death_in_remove);
        break;
    case ACT_ANNOUNCE:
        PROBE(track_death_in_announcement);
        break;
    case ACT_GROWN:
        PROBE(track_death_in_growth);
        break;
    case ACT_CLOSE:
        PROBE(track_death_in_close);
        break;
    case ACT_OPEN:
        note_recovery(op->life);
        break;
    }
}

void death_note(const struct crash_sim *sim)
{
    const struct crash_life *life = sim->life;
    for (unsigned i = 0; i <= CRASH_OPS; i++)
        if (life->ops[i].busy)
            note_act(&life->ops[i]);
    if (life->making && life->making->cut && !life->making->record_asked)
        PROBE(track_death_between_cut_and_record);
    if (sim->under_way[CRASH_SUPER])
        PROBE(track_death_in_superblock_write);
    if (sim->under_way[CRASH_LOG])
        PROBE(track_death_in_log_write);
    if (sim->under_way[CRASH_PAGE])
        PROBE(track_death_in_page_write);
    if (sim->under_way[CRASH_SYNC])
        PROBE(track_death_in_sync_of_pages);
    if (sim->death == DEATH_IN_TICK)
        PROBE(track_death_in_a_tick);
}
