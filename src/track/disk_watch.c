/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Was the disk's file changed between the death of a daemon and the start of the next (C19)?
 *
 *     BUSY    it is written, or was a moment ago: what both clocks said at the last look, every WATCH_PERIOD_NS
 *     QUIET   nothing is in flight and nothing was written for a period: the file's size, mtime and ctime
 *
 * QUIET becomes BUSY in the step that hands the next write to the leaf, before the kernel has it; so whenever a kill comes,
 * nobody has written since a QUIET note but somebody else. Then the times must be equal: no clock can be wrong enough to
 * hide a write or to make one up. (Times come from the kernel's coarse clock, which ticks every 1 to 10 ms. The note is
 * taken a whole period after the last write, so the times of a later one differ.)
 *
 * BUSY: writes of the dead process may have landed until its lock was free. So times up to WATCH_LANDING_NS after the last
 * look prove nothing, and later ones were set by somebody else, unless they are those of the last QUIET or of the start.
 * When the clock was set back meanwhile, earlier times prove nothing either, and nothing is believed. Set forward, it can
 * only make us doubt what is right.
 *
 * A write pays nothing: while the disk is busy the observer is in its list for the first write of each period. The guest's
 * writes alone are seen; a leaf that writes to its file at other times (qcow2 with its metadata) is always BUSY.
 *
 * What goes unseen: changes within WATCH_LANDING_NS of the death of a daemon that was BUSY, also when they look so because
 * the clock was set back while the machine was suspended for as long; those by somebody who puts mtime and ctime back, which
 * takes a clock set to the very tick; and all on block devices, whose times say nothing, unless the device was taken away
 * and made anew, which the kernel counts (a loop device has another file then, or a logical volume was removed: its number
 * is given to the next); and on file systems whose times are another machine's.
 *
 * A kill may come between any two stores: the state is stored last where it becomes QUIET, and of the clocks the steady one
 * first, so that a half-made look can't pass for a clock that was right.
 */
#include "track/disk_watch.h"

#include <errno.h>

#include "base/probe.h"

enum { NOTE_UNKNOWN, NOTE_BUSY, NOTE_QUIET };

#define STORE(place, value) __atomic_store_n(&(place), value, __ATOMIC_RELEASE)

static void note_look(struct disk_note *note, struct io *io)
{
    STORE(note->clock_ns, io_now_ns(io));
    STORE(note->wall_ns, io_wall_ns(io));
}

static void note_busy(struct disk_note *note, struct io *io)
{
    note_look(note, io);
    STORE(note->state, NOTE_BUSY);
}

static void note_times(struct disk_note *note, const struct disk_identity *is)
{
    STORE(note->size_bytes, is->size_bytes);
    STORE(note->mtime_ns, is->mtime_ns);
    STORE(note->ctime_ns, is->ctime_ns);
}

static bool times_are_noted(const struct disk_note *note, const struct disk_identity *is)
{
    return note->size_bytes == is->size_bytes && note->mtime_ns == is->mtime_ns && note->ctime_ns == is->ctime_ns;
}

void disk_note_begin(struct disk_note *note, struct io *io, const struct disk_identity *is)
{
    STORE(note->device, is->device);
    STORE(note->inode, is->inode);
    STORE(note->instance, is->instance);
    if (!is->local)
        return;
    note_busy(note, io); /* first: a quiet one must not get other times */
    note_times(note, is);
}

static void watch_leave(struct disk_watch *watch)
{
    if (watch->observing)
        list_remove(&watch->observer.link);
    watch->observing = false;
}

static void watch_look(struct io_timer *timer);

static void watch_again(struct disk_watch *watch)
{
    struct io *io = watch->disk->node.io;
    watch->timer.fire = watch_look;
    io_timer_set(io, &watch->timer, io_now_ns(io) + WATCH_PERIOD_NS);
}

static void watch_touch(struct disk_watch *watch)
{
    watch_leave(watch);
    if (watch->note->state != NOTE_QUIET || MUTANT(track_note_stays_quiet))
        return;
    note_busy(watch->note, watch->disk->node.io);
    watch_again(watch);
}

/* The first write since it was put in. */
static void watch_written(struct write_observer *observer, struct range range)
{
    (void)range;
    watch_touch(container_of(observer, struct disk_watch, observer));
}

void disk_watch_hold(struct disk_watch *watch)
{
    watch->held = true;
    if (watch->note)
        watch_touch(watch);
}

void disk_watch_release(struct disk_watch *watch)
{
    watch->held = false;
}

/* Whether the file's times can be noted. */
static bool watch_quiet(struct disk_watch *watch)
{
    struct disk_note *note = watch->note;
    if (watch->disk->leaf->gives_back || watch->held) /* it may write by itself; it is about to grow */
        return false;
    const struct disk_identity is = watch->identify(watch->context);
    if (is.size_bytes == 0)
        return false;
    PROBE(track_quiet_noted);
    note_times(note, &is);
    STORE(note->state, NOTE_QUIET);
    return true;
}

static void watch_look(struct io_timer *timer)
{
    struct disk_watch *watch = container_of(timer, struct disk_watch, timer);
    const bool idle = watch->disk->writes_in_flight == 0;
    if (watch->observing && watch->idle && watch_quiet(watch))
        return;
    note_look(watch->note, watch->disk->node.io);
    watch->idle = idle;
    if (!watch->observing)
        list_append(&watch->disk->observers, &watch->observer.link);
    watch->observing = true;
    watch_again(watch);
}

void disk_watch_start(struct disk_watch *watch, struct disk *disk, struct disk_note *note,
                      struct disk_identity (*identify)(void *context), void *context)
{
    if (watch->note || !identify)
        return;
    const struct disk_identity is = identify(context);
    disk_note_begin(note, disk->node.io, &is);
    if (!is.local)
        return;
    *watch = (struct disk_watch){
        .disk = disk,
        .note = note,
        .identify = identify,
        .context = context,
        .observer = {.written = watch_written},
    };
    watch_again(watch);
}

void disk_watch_stop(struct disk_watch *watch)
{
    if (!watch->note)
        return;
    watch_leave(watch);
    io_timer_cancel(watch->disk->node.io, &watch->timer);
    watch->note = NULL;
}

int disk_note_check(const struct disk_note *note, struct io *io, const struct disk_identity *is, struct error *err)
{
    const uint64_t newest_ns = is->mtime_ns > is->ctime_ns ? is->mtime_ns : is->ctime_ns;
    const int64_t ahead_then = (int64_t)(note->wall_ns - note->clock_ns),
                  ahead_now = (int64_t)(io_wall_ns(io) - io_now_ns(io));
    if (note->instance != 0 && is->instance != 0 && note->instance != is->instance)
        return error_set(err, ESTALE,
                         "the disk's device has been taken away and made anew since the daemon was killed");
    if (!is->local || note->state == NOTE_UNKNOWN || MUTANT(track_note_not_asked))
        return 0;
    if (times_are_noted(note, is))
        return 0;
    if (note->state == NOTE_QUIET) {
        PROBE(track_quiet_file_changed);
        return error_set(err, ESTALE, "somebody has changed the disk's file since the daemon was killed");
    }
    if (newest_ns > note->wall_ns + WATCH_LANDING_NS) {
        PROBE(track_busy_file_changed);
        return error_set(err, ESTALE,
                         "somebody has changed the disk's file: it was written %llu s after the daemon was killed",
                         (unsigned long long)((newest_ns - note->wall_ns) / NS_PER_S));
    }
    if (ahead_now + (int64_t)WATCH_CLOCK_SLACK_NS < ahead_then) {
        PROBE(track_clock_set_back);
        return error_set(
            err, ESTALE,
            "the machine's clock was set back since the daemon was killed, so that it can't be told whether "
            "somebody has changed the disk's file");
    }
    return 0;
}
