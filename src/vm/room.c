/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rounds of squeezing, breaking and retrying.
 *
 * A disk whose cache has no room asks. The last resorts come in their order:
 *
 *     SQUEEZING  every disk makes room by what costs nobody anything (spills, what was only read is dropped), and says
 *                whether more may come: of a spill under way, or of a consumer that releases. If so, nothing more happens
 *                until it comes (`freed`), or the disk asks again: after a while, or because its writes have waited
 *                as long as they may. If not, all retry once: room may have come while nobody was listening.
 *     BREAKING   on every disk the oldest point that an asking disk named breaks; each sweeps out what that freed
 *     RETRYING   every disk decides its waiting writes again
 *
 * If that was not enough the disk asks again and names the next point: nothing is broken that did not have to be.
 *
 * A disk that has lost old data tells all other disks itself, and they break the points that needed it at once.
 *
 *     IDLE -> SQUEEZING -> IDLE (hopeful) | RETRYING -> IDLE
 *     IDLE -> BREAKING -> RETRYING -> IDLE (or straight into the next round, when somebody asked meanwhile)
 *
 * A round sends one `order` to each disk and gets it back; so a message is never sent while it is on its way. Asking is a
 * nudge: its facts lie in atomics and are read when it arrives. Everything here dies with the daemon, as the points do.
 */
#include "vm/room.h"

#include <assert.h>
#include <stdlib.h>

#include "base/probe.h"

enum room_state { ROOM_IDLE, ROOM_SQUEEZING, ROOM_BREAKING, ROOM_RETRYING };

struct room {
    struct io *io, *control;
    struct room_disk **disks;
    unsigned disk_count;
    struct room_hooks hooks;
    enum room_state state;
    unsigned out; /* orders that have not come back */
    bool asked_again, freed_again;
    bool in_vain; /* all have retried since the last squeeze that gave no hope */
    struct budget *ram_budget;
    struct room_shortage shortage; /* of this round; through_epoch 0: nobody is full */
    struct nudge ran_out;
    atomic_uint ran_out_through;
    atomic_bool ran_out_overdue;
    atomic_int ran_out_failure;
    /* room_when_idle(): */
    struct io_message idle_question;
    bool idle_wanted;
    void (*idle)(void *argument);
    void *idle_argument;
};

void nudge_send(struct nudge *nudge, struct io *to)
{
    if (!atomic_exchange(&nudge->on_its_way, true))
        io_post(to, &nudge->message);
}

void nudge_received(struct nudge *nudge)
{
    atomic_store(&nudge->on_its_way, false);
}

static unsigned long long loss_pack(struct loss loss)
{
    return (unsigned long long)-loss.status << 32 | (unsigned long long)loss.how << EPOCH_BITS | loss.epoch;
}

static struct loss loss_unpack(unsigned long long word)
{
    const uint32_t low = (uint32_t)word;
    return (struct loss){low & ((UINT32_C(1) << EPOCH_BITS) - 1), low >> EPOCH_BITS, -(int)(word >> 32)};
}

void losses_note(struct losses *losses, struct loss loss)
{
    for (unsigned i = 0; i < 2 * LIMIT_SNAPSHOTS; i++) {
        unsigned long long before = 0;
        if (atomic_compare_exchange_strong(&losses->places[i], &before, loss_pack(loss)) ||
            loss_unpack(before).epoch == loss.epoch)
            return;
    }
    abort(); /* better than a broken snapshot that is served */
}

bool losses_take(struct losses *losses, struct loss *loss)
{
    for (unsigned i = 0; i < 2 * LIMIT_SNAPSHOTS; i++) {
        unsigned long long taken = atomic_exchange(&losses->places[i], 0);
        *loss = loss_unpack(taken);
        if (taken)
            return true;
    }
    return false;
}

/* ---- on the disk's reactor ---- */

static void room_order_back(struct io_message *message);

static void order_return(struct room_disk *disk)
{
    disk->order.deliver = room_order_back;
    io_post(disk->room->io, &disk->order);
}

static void order_swept(struct cbw_waiter *waiter)
{
    order_return(container_of(waiter, struct room_disk, swept));
}

static void order_squeeze(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, order);
    disk->hopeful = *disk->cbw && cbw_squeeze(*disk->cbw);
    order_return(disk);
}

static void order_break(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, order);
    const struct room *room = disk->room; /* the facts of the round do not change while orders are out */
    struct copy_before_write *cbw = *disk->cbw;
    if (!cbw) {
        order_return(disk);
        return;
    }
    const uint32_t full_epoch = room->shortage.through_epoch;
    if (full_epoch)
        cbw_break(cbw, MUTANT(newest_broken_first) ? full_epoch + 1 : 1,
                  MUTANT(newest_broken_first) ? UINT32_MAX : full_epoch);
    disk->swept.swept_only = true;
    disk->swept.quiet = order_swept;
    cbw_when_quiet(cbw, &disk->swept);
}

static void order_retried(struct io_task *task)
{
    order_return(container_of(task, struct room_disk, retried));
}

static void order_retry(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, order);
    if (!*disk->cbw) {
        order_return(disk);
        return;
    }
    cbw_retry(*disk->cbw);
    io_task_queue(disk->disk->node.io,
                  &disk->retried); /* behind those that were waked: if they ask, that comes first */
}

void room_full(struct room_disk *disk, uint32_t oldest_live_epoch, bool overdue, int failure)
{
    if (overdue)
        atomic_store(&disk->overdue, true);
    atomic_store(&disk->failure, failure);
    atomic_store(&disk->full_epoch, oldest_live_epoch);
    atomic_store(&disk->room->ram_budget->wanted, true);
    nudge_send(&disk->ask, disk->room->io);
}

void room_freed(struct room_disk *disk)
{
    nudge_send(&disk->freed, disk->room->io);
}

/* Not by a round: what one disk has lost must not be served by the others while a thread hangs that a round waits for. */
void room_lost(struct room_disk *disk, struct loss loss)
{
    struct room *room = disk->room;
    for (unsigned i = 0; i < room->disk_count && !MUTANT(other_disks_stay_whole); i++) {
        struct room_disk *other = room->disks[i];
        if (other == disk)
            continue;
        losses_note(&other->losses, loss);
        nudge_send(&other->breaks, other->disk->node.io);
    }
}

static void disk_told_break(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, breaks.message);
    struct loss loss;
    room_freed(disk); /* first: while one of the two is on its way the room is not idle, and stays */
    nudge_received(&disk->breaks);
    while (losses_take(&disk->losses, &loss))
        if (*disk->cbw)
            cbw_break(*disk->cbw, loss.epoch, loss.epoch);
}

/* ---- on the room's reactor ---- */

static void room_send_orders(struct room *room, enum room_state state, void (*order)(struct io_message *))
{
    room->state = state;
    room->out = room->disk_count;
    for (unsigned i = 0; i < room->disk_count; i++) {
        room->disks[i]->order.deliver = order;
        io_post(room->disks[i]->disk->node.io, &room->disks[i]->order);
    }
}

/* What the disks have asked since the last round. */
static void room_gather(struct room *room)
{
    struct room_shortage *shortage = &room->shortage;
    *shortage = (struct room_shortage){0};
    for (unsigned i = 0; i < room->disk_count; i++) {
        struct room_disk *disk = room->disks[i];
        uint32_t full = atomic_exchange(&disk->full_epoch, 0);
        bool overdue = atomic_exchange(&disk->overdue, false);
        if (full && (!shortage->through_epoch || full < shortage->through_epoch))
            shortage->through_epoch = full;
        if (full) {
            shortage->overdue = shortage->overdue || overdue;
            shortage->failure = shortage->failure ? shortage->failure : atomic_load(&disk->failure);
        }
    }
}

static void room_break(struct room *room)
{
    const struct room_shortage *shortage = &room->shortage;
    PROBE(room_ran_out);
    if (shortage->through_epoch > atomic_load(&room->ran_out_through)) {
        atomic_store(&room->ran_out_overdue, shortage->overdue);
        atomic_store(&room->ran_out_failure, shortage->failure);
        atomic_store(&room->ran_out_through, shortage->through_epoch);
    }
    room->in_vain = false;
    nudge_send(&room->ran_out, room->control);
    room_send_orders(room, ROOM_BREAKING, order_break);
}

static void room_begin(struct room *room)
{
    room->asked_again = false;
    room_gather(room);
    if (room->shortage.through_epoch) /* again: the last round may have ended while it was asked */
        atomic_store(&room->ram_budget->wanted, true);
    if (room->shortage.through_epoch && (!room->shortage.overdue || MUTANT(overdue_ignored)) && !room->in_vain)
        room_send_orders(room, ROOM_SQUEEZING, order_squeeze);
    else if (room->shortage.through_epoch)
        room_break(room);
    else
        room_send_orders(room, ROOM_RETRYING, order_retry);
}

/* Whether to tell that the room is idle. No point is left, so nobody asks any more; but a disk may have asked, and its
 * nudge be slower than the end of the points: it arrives, and starts a round, which must find the room. */
static void room_look_idle(struct room *room)
{
    if (!room->idle_wanted)
        return;
    bool asked = false;
    for (unsigned i = 0; i < room->disk_count; i++) {
        struct room_disk *disk = room->disks[i];
        asked = asked || atomic_load(&disk->ask.on_its_way) || atomic_load(&disk->breaks.on_its_way) ||
                atomic_load(&disk->freed.on_its_way); /* last: the answer to a break */
    }
    if (room->state != ROOM_IDLE || (asked && !MUTANT(room_forgets_who_asked))) {
        PROBE(room_idle_awaited);
        return;
    }
    room->idle_wanted = false;
    io_post(room->control, &room->idle_question);
}

/* All disks have done what they can for room: is there hope? */
static void room_squeezed(struct room *room)
{
    bool hopeful = false;
    for (unsigned i = 0; i < room->disk_count; i++)
        hopeful = hopeful || room->disks[i]->hopeful;
    if (hopeful) {
        PROBE(room_waits);
        room->state = ROOM_IDLE;
    } else {
        room->in_vain = true;
        room_send_orders(room, ROOM_RETRYING, order_retry);
    }
}

/* The round is over: the next one, or rest. */
static void room_rest(struct room *room)
{
    room->state = ROOM_IDLE;
    bool freed = room->freed_again;
    room->freed_again = false;
    if (freed)
        room->in_vain = false;
    if (room->asked_again) {
        PROBE(room_asked_again);
        room_begin(room);
    } else if (freed) {
        room_send_orders(room, ROOM_RETRYING, order_retry);
    } else {
        room_look_idle(room);
    }
}

static void room_order_back(struct io_message *message)
{
    struct room *room = container_of(message, struct room_disk, order)->room;
    assert(room->out > 0);
    if (--room->out > 0)
        return;
    switch (room->state) {
    case ROOM_SQUEEZING:
        room_squeezed(room);
        if (room->state == ROOM_IDLE)
            room_rest(room);
        break;
    case ROOM_BREAKING:
        room_send_orders(room, ROOM_RETRYING, order_retry);
        break;
    case ROOM_RETRYING:
        if (!room->asked_again) { /* all have found room */
            room->in_vain = false;
            atomic_store(&room->ram_budget->wanted, false);
        }
        room_rest(room);
        break;
    case ROOM_IDLE:
        abort();
    }
}

/* Room came back on a disk while writes of some disk wait for it. */
static void room_told_freed(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, freed.message);
    struct room *room = disk->room;
    nudge_received(&disk->freed);
    room->freed_again = true;
    if (room->state == ROOM_IDLE) {
        PROBE(room_freed);
        room_rest(room);
    }
}

static void room_asked(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, ask.message);
    struct room *room = disk->room;
    nudge_received(&disk->ask);
    if (room->state == ROOM_IDLE)
        room_begin(room);
    else
        room->asked_again = true;
}

/* ---- on the control thread ---- */

static void room_tell_ran_out(struct io_message *message)
{
    struct room *room = container_of(message, struct room, ran_out.message);
    nudge_received(&room->ran_out);
    const struct room_shortage shortage = {atomic_load(&room->ran_out_through), atomic_load(&room->ran_out_overdue),
                                           atomic_load(&room->ran_out_failure)};
    room->hooks.ran_out(room->hooks.context, shortage);
}

static void room_is_idle(struct io_message *message)
{
    struct room *room = container_of(message, struct room, idle_question);
    room->idle(room->idle_argument);
}

static void room_idle_asked(struct io_message *message)
{
    struct room *room = container_of(message, struct room, idle_question);
    message->deliver = room_is_idle;
    room->idle_wanted = true;
    room_look_idle(room);
}

void room_when_idle(struct room *room, void (*idle)(void *argument), void *argument)
{
    room->idle = idle;
    room->idle_argument = argument;
    room->idle_question.deliver = room_idle_asked;
    io_post(room->io, &room->idle_question);
}

struct room *room_create(struct io *io, struct io *control, struct budget *ram_budget, struct room_disk **disks,
                         unsigned disk_count, const struct room_hooks *hooks)
{
    struct room *room = calloc(1, sizeof *room);
    if (!room)
        return NULL;
    room->io = io;
    room->control = control;
    room->ram_budget = ram_budget;
    room->disks = disks;
    room->disk_count = disk_count;
    room->hooks = *hooks;
    room->ran_out.message.deliver = room_tell_ran_out;
    for (unsigned i = 0; i < disk_count; i++) {
        disks[i]->room = room;
        disks[i]->ask.message.deliver = room_asked;
        disks[i]->retried.run = order_retried;
        disks[i]->freed.message.deliver = room_told_freed;
        disks[i]->breaks.message.deliver = disk_told_break;
    }
    return room;
}

void room_destroy(struct room *room)
{
    assert(room->state == ROOM_IDLE);
    free(room);
}
