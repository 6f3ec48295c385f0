/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One disk of a push, on its reactor.
 *
 * Three messages are its life, each sent when the one before has come back: begin -> (copy) -> ended; close -> closed. What
 * may change while the copy runs goes through words that both sides see and a nudge to look at them, so a message is never
 * waited for and wishes that follow quickly on one another arrive as the last of them. When `closed` has come back, no nudge
 * is on its way either: messages between two threads keep their order.
 */
#include "vm/push_disk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "driver/nbd.h"

static void disk_news(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, news.message);
    nudge_received(&disk->news);
    disk->hooks.news(disk);
}

static void disk_ended(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, life);
    disk->running = false;
    disk->hooks.ended(disk);
}

/* ---- on the reactor ---- */

static void disk_end(struct push_disk *disk, int status, const struct error *err)
{
    disk->copy = NULL;
    disk->status = status;
    if (status < 0)
        disk->err = *err;
    disk->life.deliver = disk_ended;
    io_post(disk->control, &disk->life);
}

static void copy_has_ended(void *context, int status, const struct error *err)
{
    disk_end(context, status, err);
}

static void copy_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes)
{
    struct push_disk *disk = context;
    (void)total_bytes;
    atomic_store(&disk->done_bytes, done_bytes);
    atomic_store(&disk->data_bytes, data_bytes);
    nudge_send(&disk->news, disk->control);
}

static void copy_has_paused(void *context)
{
    struct push_disk *disk = context;
    atomic_store(&disk->paused_number, disk->pause_obeyed);
    nudge_send(&disk->news, disk->control);
}

/* On a helper thread, before anything of it is released at the snapshot. */
static int copy_is_safe(void *context, const struct copy_run *runs, uint64_t count)
{
    const struct push_disk *disk = context;
    (void)runs;
    (void)count;
    push_record_note_released(disk->progress);
    return 0;
}

static void copy_writing(void *context)
{
    struct push_disk *disk = context;
    target_writing(&disk->progress->written, disk->disk->node.io);
}

static void copy_io_error(void *context, bool reading)
{
    struct push_disk *disk = context;
    disk->failed_io = true;
    disk->failed_reading = reading;
    atomic_store(&disk->failing, true); /* the engine ends when all has come back, which may be never */
    nudge_send(&disk->news, disk->control);
}

static void obey_pause(struct push_disk *disk)
{
    unsigned number = atomic_load(&disk->wishes.pause_number);
    bool pause = atomic_load(&disk->wishes.pause);
    if (!pause && disk->pausing)
        copy_resume(disk->copy);
    disk->pausing = pause;
    if (!pause || number == disk->pause_obeyed)
        return;
    disk->pause_obeyed = number;
    copy_pause(disk->copy);
}

/* Hanging up is for a target that does not answer any more: then also what is under way there fails. */
static void obey(struct push_disk *disk)
{
    uint64_t speed = atomic_load(&disk->wishes.speed);
    if (atomic_load(&disk->wishes.hang_up) && disk->target.is_nbd && disk->target.node)
        nbd_node_hang_up(disk->target.node);
    if (!disk->copy)
        return;
    if (atomic_load(&disk->wishes.cancel) && !disk->cancel_obeyed) {
        disk->cancel_obeyed = true;
        copy_cancel(disk->copy);
    }
    if (disk->cancel_obeyed)
        return;
    if (speed != disk->speed_obeyed)
        copy_set_speed(disk->copy, speed);
    disk->speed_obeyed = speed;
    copy_hurry(disk->copy, atomic_load(&disk->wishes.hurry));
    obey_pause(disk);
}

static void disk_ordered(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, order.message);
    nudge_received(&disk->order);
    obey(disk);
}

/* Of a disk that is not pushed: releases the snapshot piece by piece, so that its guest pays for nothing. */
static void release_piece(struct push_disk *disk);

static void piece_released(struct request *req, int status)
{
    struct push_disk *disk = container_of(req, struct push_disk, release);
    disk->released_bytes = range_end(req->range);
    if (status < 0 || atomic_load(&disk->wishes.cancel)) /* what stays costs room, and goes with the snapshot */
        disk_end(disk, 0, NULL);
    else
        release_piece(disk);
}

static void release_piece(struct push_disk *disk)
{
    uint64_t left = disk->view->size_bytes - disk->released_bytes;
    if (left == 0 || !disk->view->can_release) {
        disk_end(disk, 0, NULL);
        return;
    }
    disk->release = (struct request){
        .kind = REQUEST_DISCARD,
        .range = {disk->released_bytes, left < LIMIT_NBD_RANGE_BYTES ? left : LIMIT_NBD_RANGE_BYTES},
        .done = piece_released};
    node_submit(disk->view, &disk->release);
}

/* Only of a file of this machine can be told whether somebody else has written it. */
static bool notes_releases(const struct push_disk *disk)
{
    return !disk->target.is_watched && disk->options.release && disk->progress;
}

static void disk_begin(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, life);
    if (!disk->where) {
        release_piece(disk);
        return;
    }
    const struct copy_options options = {.io = disk->disk->node.io,
                                         .source = disk->view,
                                         .target = disk->target.node,
                                         .source_name = disk->source_name,
                                         .target_name = disk->target.where,
                                         .target_is_zero = disk->target.is_zero,
                                         .advice = disk->options.advice,
                                         .release = disk->options.release,
                                         .needed_only = disk->options.needed_only,
                                         .workers = disk->target.may_hang ? PUSH_APART_WORKERS : disk->options.workers,
                                         .speed = disk->speed_obeyed = atomic_load(&disk->wishes.speed),
                                         .progress = copy_progress,
                                         .paused = copy_has_paused,
                                         .record = notes_releases(disk) ? copy_is_safe : NULL,
                                         .writing = disk->progress ? copy_writing : NULL,
                                         .io_error = copy_io_error,
                                         .done = copy_has_ended,
                                         .context = disk};
    struct error err;
    disk->copy = copy_start(&options);
    if (disk->copy)
        obey(disk);
    else
        disk_end(disk, error_set(&err, ENOMEM, "no memory for the copy of disk %s", disk->disk->name), &err);
}

static void disk_closed(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, life);
    disk->target.node = NULL;
    disk->hooks.closed(disk);
}

static void disk_close(struct io_message *message)
{
    struct push_disk *disk = container_of(message, struct push_disk, life);
    if (disk->target.node)
        node_destroy(disk->target.node);
    message->deliver = disk_closed;
    io_post(disk->control, message);
}

/* ---- on the control thread ---- */

void push_disk_begin(struct push_disk *disk)
{
    assert(!disk->running);
    disk->running = disk->begun = true;
    disk->order.message.deliver = disk_ordered;
    disk->news.message.deliver = disk_news;
    disk->life.deliver = disk_begin;
    io_post(disk->disk->node.io, &disk->life);
}

void push_disk_nudge(struct push_disk *disk)
{
    if (disk->begun && !disk->closing)
        nudge_send(&disk->order, disk->disk->node.io);
}

uint64_t push_disk_done(const struct push_disk *disk)
{
    const uint64_t done_bytes = atomic_load(&disk->done_bytes);
    return done_bytes > disk->before_done_bytes ? done_bytes : disk->before_done_bytes;
}

/* What was on its way when the daemon was killed is copied twice, and counted once more. */
uint64_t push_disk_data(const struct push_disk *disk)
{
    const uint64_t data_bytes = disk->before_data_bytes + atomic_load(&disk->data_bytes);
    return data_bytes < disk->size_bytes ? data_bytes : disk->size_bytes;
}

void push_disk_note(struct push_disk *disk)
{
    if (disk->progress)
        push_record_note_done(disk->progress, push_disk_done(disk), push_disk_data(disk));
}

void push_disk_close(struct push_disk *disk)
{
    assert(!disk->running && !disk->closing);
    disk->closing = true;
    disk->life.deliver = disk_close;
    io_post(disk->disk->node.io, &disk->life);
}
