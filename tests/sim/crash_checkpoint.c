/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checkpoints of the crash simulation: what is done with them at random, and what of it must be so after a restart.
 *
 * One at a time is on its way: prepare, hold, cut, record; commits and removals come whenever they like.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"

static void checkpoint_drop(struct crash_sim *sim, struct crash_checkpoint *checkpoint)
{
    struct crash_checkpoint **at = &sim->checkpoints;
    while (*at != checkpoint)
        at = &(*at)->next;
    *at = checkpoint->next;
    if (sim->life && sim->life->making == checkpoint)
        sim->life->making = NULL;
    for (unsigned i = 0; sim->life && i < CRASH_OPS; i++)
        if (sim->life->ops[i].checkpoint == checkpoint)
            sim->life->ops[i].checkpoint = NULL;
    free(checkpoint->image);
    free(checkpoint);
}

void checkpoints_forget_all(struct crash_sim *sim)
{
    while (sim->checkpoints)
        checkpoint_drop(sim, sim->checkpoints);
}

void checkpoints_invalidated(struct crash_sim *sim)
{
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; checkpoint; checkpoint = checkpoint->next)
        checkpoint->invalid = checkpoint->invalid || checkpoint->cut;
}

static unsigned count(const struct crash_sim *sim)
{
    unsigned number = 0;
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; checkpoint; checkpoint = checkpoint->next)
        number++;
    return number;
}

/* Answers of the tracker. */

static void answer_unexpected(struct crash_op *op, const char *what)
{
    struct crash_sim *sim = op->life->sim;
    if (!sim->excuse)
        crash_fail(sim, "%s failed, though nothing else has: %d, %s", what, op->op.status, op->op.error.text);
    if (!op->op.error.text[0])
        crash_fail(sim, "%s failed with %d and without a sentence", what, op->op.status);
    crash_trace(sim, "%s failed: %s", what, op->op.error.text);
}

static void prepared(struct crash_op *op)
{
    struct crash_life *life = op->life;
    if (op->op.status == 0) {
        life->prepared = true;
        return;
    }
    answer_unexpected(op, "tracker_prepare()");
    checkpoint_drop(life->sim, op->checkpoint);
}

static void recorded(struct crash_op *op)
{
    struct crash_life *life = op->life;
    life->making = NULL;
    life->prepared = false;
    if (op->op.status == 0) {
        op->checkpoint->recorded = true;
        return;
    }
    answer_unexpected(op, "tracker_record()"); /* gone; but a superblock that failed may be found after a restart */
}

static void answered(struct crash_op *op)
{
    struct crash_life *life = op->life;
    struct crash_sim *sim = life->sim;
    struct crash_checkpoint *checkpoint = op->checkpoint;
    if (op->act == ACT_COMMIT) {
        if (op->op.status == 0)
            checkpoint->committed = true;
        else if (op->op.status != -ENOENT || !checkpoint || !checkpoint->remove_asked)
            answer_unexpected(op, "tracker_commit()");
    } else if (op->op.status == 0) {
        checkpoint_drop(sim, checkpoint);
    } else {
        answer_unexpected(op, "tracker_remove()");
    }
}

static void opened(struct crash_op *op)
{
    struct crash_life *life = op->life;
    struct crash_sim *sim = life->sim;
    life->open_status = op->op.status;
    life->err = op->op.error;
    life->open = op->op.status == 0;
    life->open_failed = !life->open;
    if (life->open)
        sim->grow_to = 0;
    if (life->open_failed && !sim->damaged && !sim->excuse && sim->born)
        crash_fail(sim, "tracker_open(): %d, %s", op->op.status, op->op.error.text);
    if (life->open_failed)
        crash_trace(sim, "tracker_open() failed: %s", op->op.error.text);
}

static void op_done(struct tracker_op *tracker_op)
{
    struct crash_op *op = container_of(tracker_op, struct crash_op, op);
    struct crash_life *life = op->life;
    crash_trace(life->sim, "tracker: act %d of %s is done: %d", (int)op->act,
                op->checkpoint ? op->checkpoint->id.name : "-", op->op.status);
    op->busy = false;
    life->ops_busy--;
    life->sim->busy_ns = world_now(life->sim->world);
    switch (op->act) {
    case ACT_PREPARE:
        prepared(op);
        break;
    case ACT_RECORD:
        recorded(op);
        break;
    case ACT_COMMIT:
    case ACT_REMOVE:
        answered(op);
        break;
    case ACT_OPEN:
        opened(op);
        break;
    case ACT_ANNOUNCE:
    case ACT_GROWN:
        if (op->op.status < 0)
            answer_unexpected(op, "growing");
        growth_answered(op);
        break;
    case ACT_CLOSE:
        if (op->op.status < 0)
            answer_unexpected(op, "tracker_close()");
        life->closed = true;
        break;
    }
}

void life_op(struct crash_life *life, enum crash_act act, struct crash_checkpoint *checkpoint)
{
    unsigned place = 0;
    while (life->ops[place].busy)
        place++;
    struct crash_op *op = &life->ops[place];
    *op = (struct crash_op){.life = life, .act = act, .checkpoint = checkpoint, .busy = true, .op.done = op_done};
    life->ops_busy++;
    crash_trace(life->sim, "tracker: act %d of %s", (int)act, checkpoint ? checkpoint->id.name : "-");
    switch (act) {
    case ACT_PREPARE:
        tracker_prepare(life->tracker, &checkpoint->id, &op->op);
        break;
    case ACT_RECORD:
        checkpoint->record_asked = true;
        tracker_record(life->tracker, &op->op);
        break;
    case ACT_COMMIT:
        checkpoint->commit_asked = true;
        tracker_commit(life->tracker, checkpoint->id.uuid, &op->op);
        break;
    case ACT_REMOVE:
        checkpoint->remove_asked = true;
        tracker_remove(life->tracker, checkpoint->id.uuid, &op->op);
        break;
    case ACT_ANNOUNCE:
        tracker_announce_growth(life->tracker, life->sim->grow_to, &op->op);
        break;
    case ACT_GROWN:
        tracker_record_growth(life->tracker, &op->op);
        break;
    case ACT_CLOSE:
        tracker_close(life->tracker, &op->op);
        break;
    case ACT_OPEN:
        tracker_open(life->tracker, &op->op);
        break;
    }
}

/* The cut. */

static void cut_run(struct io_task *task)
{
    struct crash_life *life = container_of(task, struct crash_life, cut);
    struct crash_sim *sim = life->sim;
    life->holding = false;
    if (life->invalidated || crash_chance(sim, 64)) {
        crash_trace(sim, "the cut of %s is given up", life->making->id.name);
        checkpoint_abandon(life);
    } else {
        crash_trace(sim, "cut: %s", life->making->id.name);
        tracker_cut(life->tracker);
        life->making->cut = true;
        oracle_image(sim, life->making);
        life->making->size = life_disk_size(life);
        life->making->cut_stamp = ++sim->stamp;
        guests_restamp(life);
    }
    disk_release(life->disk);
    if (life->making && life->ops_busy < CRASH_OPS && crash_chance(sim, 700))
        life_op(life, ACT_RECORD, life->making);
}

static void drained(void *context)
{
    struct crash_life *life = context;
    life->cut.run = cut_run;
    io_task_queue(life->io, &life->cut);
}

void checkpoint_abandon(struct crash_life *life)
{
    if (life->prepared)
        tracker_abandon(life->tracker);
    life->prepared = false;
    checkpoint_drop(life->sim, life->making);
}

static void make(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    if (count(sim) >= CRASH_CHECKPOINTS || life->growing)
        return;
    struct crash_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        abort();
    snprintf(checkpoint->id.name, sizeof checkpoint->id.name, "c%u", ++sim->names);
    uuid_make(life->io, checkpoint->id.uuid);
    checkpoint->id.created_wall_ns = io_wall_ns(life->io);
    struct crash_checkpoint **end = &sim->checkpoints;
    while (*end)
        end = &(*end)->next;
    *end = checkpoint;
    life->making = checkpoint;
    life_op(life, ACT_PREPARE, checkpoint);
}

static void go_on_making(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    if (!life->prepared || life->holding || life->making->record_asked)
        return;
    if (life->making->cut) {
        life_op(life, ACT_RECORD, life->making);
    } else if (crash_chance(sim, 80)) {
        checkpoint_abandon(life);
    } else {
        life->holding = true;
        disk_hold(life->disk, drained, life);
    }
}

static struct crash_checkpoint *any_recorded(struct crash_sim *sim)
{
    unsigned number = (unsigned)crash_below(sim, CRASH_CHECKPOINTS);
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; checkpoint; checkpoint = checkpoint->next)
        if (number-- == 0)
            return checkpoint->recorded && !checkpoint->remove_asked ? checkpoint : NULL;
    return NULL;
}

void checkpoint_act(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    if (life->ops_busy >= CRASH_OPS)
        return;
    uint64_t dice = crash_below(sim, 8);
    if (dice < 5) {
        if (life->making)
            go_on_making(life);
        else
            make(life);
        return;
    }
    struct crash_checkpoint *checkpoint = any_recorded(sim);
    if (!checkpoint)
        return;
    if (dice == 5)
        life_op(life, ACT_REMOVE, checkpoint);
    else if (!checkpoint->invalid)
        life_op(life, ACT_COMMIT, checkpoint);
}

/* After a restart: what the tracker says, against what it had said. */

static void check_one(struct crash_sim *sim, struct crash_checkpoint *checkpoint, const struct checkpoint_info *info,
                      bool newest)
{
    const char *name = checkpoint->id.name;
    if (info->state != CHECKPOINT_INVALID && sim->must_be_invalid)
        crash_fail(sim, "checkpoint %s is valid, though the files were changed behind our back (C19)", name);
    if (sim->tamper == TAMPER_OLD_SIDECAR)
        return;
    if (!checkpoint->record_asked)
        crash_fail(sim, "checkpoint %s is there, though nobody has asked for it to be recorded", name);
    if (strcmp(info->id.name, name) != 0 || info->id.created_wall_ns != checkpoint->id.created_wall_ns)
        crash_fail(sim, "checkpoint %s has another name or time now", name);
    if (info->state == CHECKPOINT_COMMITTED && !checkpoint->commit_asked)
        crash_fail(sim, "checkpoint %s has become committed by itself (C21)", name);
    if (info->state == CHECKPOINT_PENDING && checkpoint->committed)
        crash_fail(sim, "checkpoint %s is pending again", name);
    if (info->state == CHECKPOINT_INVALID && !sim->excuse)
        crash_fail(sim, "checkpoint %s is invalid, though nothing has failed: %s", name,
                   tracker_invalid_reason(sim->life->tracker));
    if (info->state == CHECKPOINT_INVALID && newest && !tracker_invalid_reason(sim->life->tracker))
        crash_fail(sim, "checkpoint %s is invalid without a reason", name);
    checkpoint->recorded = true;
    checkpoint->remove_asked = false;
    checkpoint->commit_asked = checkpoint->committed = info->state == CHECKPOINT_COMMITTED;
    checkpoint->invalid = info->state == CHECKPOINT_INVALID;
}

void checkpoints_after_restart(struct crash_sim *sim)
{
    struct checkpoint_info infos[LIMIT_CHECKPOINTS];
    unsigned found = 0, known = tracker_checkpoints(sim->life->tracker, infos, LIMIT_CHECKPOINTS);
    for (struct crash_checkpoint *checkpoint = sim->checkpoints, *next; checkpoint; checkpoint = next) {
        next = checkpoint->next;
        unsigned i = 0;
        while (i < known && strcmp(infos[i].id.uuid, checkpoint->id.uuid) != 0)
            i++;
        if (i < known) {
            found++;
            check_one(sim, checkpoint, &infos[i], i == known - 1);
        } else {
            if (checkpoint->recorded && !checkpoint->remove_asked && sim->tamper != TAMPER_OLD_SIDECAR)
                crash_fail(sim, "checkpoint %s has gone", checkpoint->id.name);
            checkpoint_drop(sim, checkpoint);
        }
    }
    if (found != known && sim->tamper != TAMPER_OLD_SIDECAR)
        crash_fail(sim, "there are %u checkpoints that nobody has made", known - found);
}
