/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rounds of breaking and retrying.
 *
 * A disk whose cache has no room asks. A round breaks, on every disk, the oldest point that the asking disk named, waits
 * until each has swept out what that freed, and then lets every disk retry. If that was not enough the disk asks again
 * and names the next point: nothing is broken that did not have to be. A disk that lost old data starts a round, too: the
 * points that need it are broken on all other disks.
 *
 *     IDLE -> BREAKING -> RETRYING -> IDLE (or straight into the next round, when somebody asked meanwhile)
 *
 * A round sends one `order` to each disk and gets it back, twice; so a message is never sent while it is on its way.
 * Asking is a nudge: its facts lie in atomics and are read when it arrives. Everything here dies with the daemon, as the
 * points do.
 */
#include "vm/room.h"

#include <assert.h>
#include <stdlib.h>

#include "base/probe.h"

enum room_state { ROOM_IDLE, ROOM_BREAKING, ROOM_RETRYING };

struct room {
    struct io *io, *control;
    struct room_disk **disks;
    unsigned disk_count;
    struct room_hooks hooks;
    enum room_state state;
    unsigned out; /* orders that have not come back */
    bool asked_again;
    uint32_t full_epoch, lost_first, lost_last; /* of this round */
    struct nudge ran_out;
    atomic_uint ran_out_through;
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

void losses_note(struct losses *losses, uint32_t first_epoch, uint32_t last_epoch)
{
    unsigned long long before = atomic_load(&losses->first_and_last), after;
    do {
        uint32_t first = first_epoch, last = last_epoch;
        if (before && (uint32_t)(before >> 32) < first)
            first = (uint32_t)(before >> 32);
        if ((uint32_t)before >
            last) /* those in between have died by then: a loss reaches up to the newest live point */
            last = (uint32_t)before;
        after = (unsigned long long)first << 32 | last;
    } while (!atomic_compare_exchange_weak(&losses->first_and_last, &before, after));
}

bool losses_take(struct losses *losses, uint32_t *first_epoch, uint32_t *last_epoch)
{
    unsigned long long taken = atomic_exchange(&losses->first_and_last, 0);
    *first_epoch = (uint32_t)(taken >> 32);
    *last_epoch = (uint32_t)taken;
    return taken != 0;
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

static void order_break(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, order);
    const struct room *room = disk->room; /* the facts of the round do not change while orders are out */
    struct copy_before_write *cbw = *disk->cbw;
    if (!cbw) {
        order_return(disk);
        return;
    }
    if (room->full_epoch)
        cbw_break(cbw, MUTANT(newest_broken_first) ? room->full_epoch + 1 : 1,
                  MUTANT(newest_broken_first) ? UINT32_MAX : room->full_epoch);
    if (room->lost_first && !MUTANT(other_disks_stay_whole))
        cbw_break(cbw, room->lost_first, room->lost_last);
    disk->swept.quiet = order_swept;
    cbw_when_quiet(cbw, &disk->swept);
}

static void order_retry(struct io_message *message)
{
    struct room_disk *disk = container_of(message, struct room_disk, order);
    if (*disk->cbw)
        cbw_retry(*disk->cbw);
    order_return(disk);
}

void room_full(struct room_disk *disk, uint32_t oldest_live_epoch)
{
    atomic_store(&disk->full_epoch, oldest_live_epoch);
    nudge_send(&disk->ask, disk->room->io);
}

void room_lost(struct room_disk *disk, uint32_t first_epoch, uint32_t last_epoch)
{
    losses_note(&disk->losses, first_epoch, last_epoch);
    nudge_send(&disk->ask, disk->room->io);
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

static void room_begin(struct room *room)
{
    room->asked_again = false;
    room->full_epoch = room->lost_first = room->lost_last = 0;
    for (unsigned i = 0; i < room->disk_count; i++) {
        struct room_disk *disk = room->disks[i];
        uint32_t full = atomic_exchange(&disk->full_epoch, 0), first, last;
        if (full && (!room->full_epoch || full < room->full_epoch))
            room->full_epoch = full;
        if (!losses_take(&disk->losses, &first, &last))
            continue;
        if (!room->lost_first || first < room->lost_first)
            room->lost_first = first;
        if (last > room->lost_last)
            room->lost_last = last;
    }
    if (room->full_epoch) {
        PROBE(room_ran_out);
        if (room->full_epoch > atomic_load(&room->ran_out_through))
            atomic_store(&room->ran_out_through, room->full_epoch);
        nudge_send(&room->ran_out, room->control);
    }
    room_send_orders(room, ROOM_BREAKING, order_break);
}

/* Whether to tell that the room is idle. No point is left, so nobody asks any more; but a disk may have asked, and its
 * nudge be slower than the end of the points: it arrives, and starts a round, which must find the room. */
static void room_look_idle(struct room *room)
{
    if (!room->idle_wanted)
        return;
    bool asked = false;
    for (unsigned i = 0; i < room->disk_count; i++)
        asked = asked || atomic_load(&room->disks[i]->ask.on_its_way);
    if (room->state != ROOM_IDLE || (asked && !MUTANT(room_forgets_who_asked))) {
        PROBE(room_idle_awaited);
        return;
    }
    room->idle_wanted = false;
    io_post(room->control, &room->idle_question);
}

static void room_order_back(struct io_message *message)
{
    struct room *room = container_of(message, struct room_disk, order)->room;
    assert(room->out > 0);
    if (--room->out > 0)
        return;
    if (room->state == ROOM_BREAKING) {
        room_send_orders(room, ROOM_RETRYING, order_retry);
        return;
    }
    room->state = ROOM_IDLE;
    if (room->asked_again) {
        PROBE(room_asked_again);
        room_begin(room);
    } else {
        room_look_idle(room);
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
    room->hooks.ran_out(room->hooks.context, atomic_load(&room->ran_out_through));
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

struct room *room_create(struct io *io, struct io *control, struct room_disk **disks, unsigned disk_count,
                         const struct room_hooks *hooks)
{
    struct room *room = calloc(1, sizeof *room);
    if (!room)
        return NULL;
    room->io = io;
    room->control = control;
    room->disks = disks;
    room->disk_count = disk_count;
    room->hooks = *hooks;
    room->ran_out.message.deliver = room_tell_ran_out;
    for (unsigned i = 0; i < disk_count; i++) {
        disks[i]->room = room;
        disks[i]->ask.message.deliver = room_asked;
    }
    return room;
}

void room_destroy(struct room *room)
{
    assert(room->state == ROOM_IDLE);
    free(room);
}
