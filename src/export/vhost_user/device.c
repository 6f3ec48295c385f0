/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What messages mean. A message is done in one step, but those that stop rings: GET_VRING_BASE, RESET_DEVICE and a status of
 * 0. They take nothing more from the rings and wait until what was taken is on the disk and returned, so that nothing of the
 * time before lands in the time after (C14); no other message is looked at meanwhile, since a front-end sends none.
 *
 * When the last ring of a guest that migrates is stopped it may go on elsewhere. Who owns the disk hears of that before the
 * front-end does (struct vhost_home), and is asked before a ring is started again. Were we killed before that last message,
 * the front-end would ask nobody; so he is asked as well when a log comes while rings run, or rings start with one: before
 * the front-end has our answer, and marks of ours that it could copy. That the log is gone he hears, too.
 *
 * Memory changes at once, under requests that go on in what they hold of the old; only when they hold LIMIT_GUEST_TABLES
 * does the next change wait for the oldest.
 *
 * What was said of a running ring (size, addresses, base, features) can't be changed, only said again; but for the logging
 * of a migration, which comes and goes as the front-end wants. Where we write is marked when there is a log and LOG_ALL is
 * negotiated; in the used ring, when its flag says so, too. What is in flight when that changes is marked, or not, as it
 * is when it completes: a migration copies all memory once after the log was set, and what completes later is in the log.
 */
#include <errno.h>
#include <string.h>

#include "base/probe.h"
#include "export/vhost_user/config.h"
#include "export/vhost_user/session.h"

/* The queue that a message is about; NULL, with a sentence: there is none such. */
static struct vhost_queue *queue_of(struct vhost_session *session, uint64_t index, struct error *err)
{
    if (index >= LIMIT_VHOST_QUEUES) {
        error_set(err, EPROTO, "%s for queue %llu; there are %u", session->message.name, (unsigned long long)index,
                  LIMIT_VHOST_QUEUES);
        return NULL;
    }
    if (index >= session->queue_end)
        session->queue_end = (unsigned)index + 1;
    return &session->queues[index];
}

static enum vhost_done wrong(struct vhost_session *session, struct error *err, const char *what)
{
    error_set(err, EPROTO, "%s %s", session->message.name, what);
    return VHOST_WRONG;
}

static enum vhost_done answer_word(struct vhost_session *session, uint64_t word)
{
    memcpy(session->answer.payload, &word, sizeof word);
    session->answer.header.size = sizeof word;
    return VHOST_DONE;
}

static bool any_runs(const struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_end; i++)
        if (session->queues[i].ring)
            return true;
    return false;
}

/* False: the answer comes later. */
static bool home_is(const struct vhost_session *session, enum vhost_place place)
{
    struct vhost_home *home = session->home;
    if (!home || (home->place == place && !home->asked)) /* a session that was torn may have asked */
        return true;
    if (!home->asked) {
        home->asked = true;
        home->wanted = place;
        home->ask(home);
    }
    return false;
}

/* A guest that runs migrates from now on, or does not. */
static bool may_migrate(const struct vhost_session *session, bool logging)
{
    return !any_runs(session) || home_is(session, logging ? VHOST_MIGRATING : VHOST_HERE);
}

static enum vhost_done update_all(struct vhost_session *session, struct error *err)
{
    for (unsigned i = 0; i < session->queue_end; i++)
        if (vhost_queue_update(&session->queues[i], err) < 0)
            return VHOST_WRONG;
    return VHOST_DONE;
}

/* --- features */

/* What is written from now on is marked, or not any more. */
static enum vhost_done update_log(struct vhost_session *session, struct error *err)
{
    session->logging = session->log.map && (session->features & VHOST_BIT(VHOST_F_LOG_ALL));
    if (session->logging && !dirty_log_covers(&session->log, guest_memory_end(session->memory))) {
        error_set(err, EPROTO, "the log of %llu bytes does not cover guest memory up to 0x%llx",
                  (unsigned long long)session->log.map->size_bytes,
                  (unsigned long long)guest_memory_end(session->memory));
        return VHOST_WRONG;
    }
    for (unsigned i = 0; i < session->queue_end; i++)
        if (vhost_queue_update_log(&session->queues[i], err) < 0)
            return VHOST_WRONG;
    return VHOST_DONE;
}

/* Answered with what was said: QEMU takes any payload, cloud-hypervisor waits for all of this one. */
static enum vhost_done set_log_base(struct vhost_session *session, struct error *err)
{
    if (!may_migrate(session, true))
        return VHOST_WAITS;
    if (dirty_log_set(&session->log, &session->message.log, session->fds[0], err) < 0 ||
        update_log(session, err) == VHOST_WRONG) {
        error_prefix(err, "SET_LOG_BASE");
        return VHOST_WRONG;
    }
    memcpy(session->answer.payload, &session->message.log, sizeof session->message.log);
    session->answer.header.size = sizeof session->message.log;
    return VHOST_DONE;
}

static enum vhost_done set_log_event(struct vhost_session *session)
{
    vhost_event_set(&session->logged, session->fds[0]);
    session->fds[0] = -1;
    return VHOST_DONE;
}

static enum vhost_done set_features(struct vhost_session *session, struct error *err)
{
    uint64_t unknown = session->message.word & ~vhost_config_features(session->node);
    if (unknown) {
        error_set(err, EPROTO, "SET_FEATURES with what was not offered (0x%llx)", (unsigned long long)unknown);
        return VHOST_WRONG;
    }
    const uint64_t other = session->message.word ^ session->features;
    if ((other & ~VHOST_BIT(VHOST_F_LOG_ALL)) && any_runs(session))
        return wrong(session, err, "with other features while rings run");
    if (!may_migrate(session, session->log.map && (session->message.word & VHOST_BIT(VHOST_F_LOG_ALL))))
        return VHOST_WAITS;
    session->features = session->message.word;
    if (update_log(session, err) == VHOST_WRONG) {
        error_prefix(err, "SET_FEATURES");
        return VHOST_WRONG;
    }
    return update_all(session, err);
}

static enum vhost_done set_protocol_features(struct vhost_session *session, struct error *err)
{
    uint64_t unknown = session->message.word & ~vhost_config_protocol_features();
    if (unknown) {
        error_set(err, EPROTO, "SET_PROTOCOL_FEATURES with what was not offered (0x%llx)", (unsigned long long)unknown);
        return VHOST_WRONG;
    }
    session->protocol_features = session->message.word;
    return VHOST_DONE;
}

/* --- memory */

/* False: requests under way hold the tables of so many changes before that there may be no other one. */
static bool may_change_memory(const struct vhost_session *session)
{
    return session->table_users[(session->table + 1) % LIMIT_GUEST_TABLES] == 0;
}

/* Takes over the reference. */
static enum vhost_done use_memory(struct vhost_session *session, struct guest_memory *memory, struct error *err)
{
    int result = 0;
    for (unsigned i = 0; i < session->queue_end && result == 0; i++) {
        struct vhost_queue *queue = &session->queues[i];
        if (!queue->ring || MUTANT(vhost_ring_keeps_old_memory))
            continue;
        if (queue->in_flight > 0)
            PROBE(vhost_new_memory_under_load);
        result = memory ? virtqueue_set_memory(queue->ring, memory, err)
                        : error_set(err, EPROTO, "no memory is left for its rings");
        if (result < 0)
            error_prefix(err, "%s: queue %u", session->message.name, i);
    }
    guest_memory_unref(session->memory);
    session->memory = memory;
    session->table = (session->table + 1) % LIMIT_GUEST_TABLES;
    if (result == 0 && update_log(session, err) == VHOST_WRONG)
        result = error_prefix(err, "%s", session->message.name);
    return result < 0 ? VHOST_WRONG : VHOST_DONE;
}

static struct guest_region region_of(const struct vhost_region *region)
{
    return (struct guest_region){.guest_address = region->guest_address,
                                 .user_address = region->user_address,
                                 .size_bytes = region->size,
                                 .file_offset = region->offset};
}

static enum vhost_done set_mem_table(struct vhost_session *session, struct error *err)
{
    struct guest_memory *memory = NULL;
    if (!may_change_memory(session))
        return VHOST_WAITS;
    for (uint32_t i = 0; i < session->message.memory.count; i++) {
        struct guest_region region = region_of(&session->message.regions[i]);
        struct guest_memory *next = guest_memory_with(memory, &region, session->fds[i], err);
        guest_memory_unref(memory);
        if (!next) {
            error_prefix(err, "SET_MEM_TABLE, region %u", i);
            return VHOST_WRONG;
        }
        memory = next;
    }
    return use_memory(session, memory, err);
}

static enum vhost_done change_memory(struct vhost_session *session, struct error *err)
{
    struct guest_region region = region_of(&session->message.region.region);
    struct guest_memory *next = NULL;
    if (!may_change_memory(session))
        return VHOST_WAITS;
    if (session->message.id == VHOST_ADD_MEM_REG)
        next = guest_memory_with(session->memory, &region, session->fds[0], err);
    else if (session->memory)
        next = guest_memory_without(session->memory, &region, err);
    else
        error_set(err, EPROTO, "there is no memory");
    if (!next) {
        error_prefix(err, "%s", session->message.name);
        return VHOST_WRONG;
    }
    return use_memory(session, next, err);
}

/* --- rings */

static enum vhost_done set_vring_num(struct vhost_session *session, struct error *err)
{
    uint32_t size = session->message.state.num;
    struct vhost_queue *queue = queue_of(session, session->message.state.index, err);
    if (!queue)
        return VHOST_WRONG;
    if (size == 0 || size > LIMIT_VIRTQUEUE_SIZE) {
        error_set(err, EPROTO, "SET_VRING_NUM of %u; a queue has 1 to %u descriptors", size, LIMIT_VIRTQUEUE_SIZE);
        return VHOST_WRONG;
    }
    if (!(session->features & VHOST_BIT(VIRTIO_F_RING_PACKED)) && (size & (size - 1))) {
        error_set(err, EPROTO, "SET_VRING_NUM of %u; a split ring has a power of two", size);
        return VHOST_WRONG;
    }
    if (queue->ring && size != queue->size)
        return wrong(session, err, "with another size while the ring runs");
    queue->size = size;
    return VHOST_DONE;
}

static enum vhost_done set_vring_addr(struct vhost_session *session, struct error *err)
{
    const struct vhost_vring_addr *addr = &session->message.addr;
    struct vhost_queue *queue = queue_of(session, addr->index, err);
    if (!queue)
        return VHOST_WRONG;
    if (addr->flags & ~(uint32_t)VHOST_VRING_F_LOG)
        return wrong(session, err, "with unknown flags");
    struct virtqueue_place place = {addr->descriptors, addr->available, addr->used};
    if (queue->ring && memcmp(&place, &queue->place, sizeof place) != 0)
        return wrong(session, err, "with other addresses while the ring runs");
    queue->place = place;
    queue->placed = true;
    queue->logged = addr->flags & VHOST_VRING_F_LOG;
    queue->log_used = addr->log;
    if (vhost_queue_update_log(queue, err) < 0) {
        error_prefix(err, "SET_VRING_ADDR");
        return VHOST_WRONG;
    }
    return VHOST_DONE;
}

static enum vhost_done set_vring_base(struct vhost_session *session, struct error *err)
{
    struct vhost_queue *queue = queue_of(session, session->message.state.index, err);
    if (!queue)
        return VHOST_WRONG;
    if (queue->ring)
        return wrong(session, err, "while the ring runs");
    queue->base = queue->ended_at = session->message.state.num;
    return VHOST_DONE;
}

/* A ring of a guest that migrates has stopped. False: it was the last one, and the answer comes later. */
static bool may_part(const struct vhost_session *session)
{
    return any_runs(session) || home_is(session, VHOST_ELSEWHERE);
}

static enum vhost_done get_vring_base(struct vhost_session *session, struct error *err)
{
    struct vhost_queue *queue = queue_of(session, session->message.state.index, err);
    if (!queue)
        return VHOST_WRONG;
    vhost_queue_halt(queue);
    if (session->home && session->home->asked)
        return VHOST_WAITS;
    if (!vhost_queue_is_still(queue) && !MUTANT(vhost_ring_stops_at_once)) {
        PROBE(vhost_stop_waits); /* C14 */
        return VHOST_WAITS;
    }
    if (vhost_session_is_torn(session)) { /* what was marked in a log that is torn, the front-end will not find */
        error_set(err, EFAULT, "the VMM has cut its shared memory short");
        return VHOST_WRONG;
    }
    const bool ran = queue->ring;
    vhost_queue_stop(queue);
    if (ran && session->logging && !may_part(session))
        return VHOST_WAITS; /* when it comes here again it has been asked, and nothing ran any more */
    struct vhost_vring_state state = {queue->index, queue->ended_at};
    memcpy(session->answer.payload, &state, sizeof state);
    session->answer.header.size = sizeof state;
    return VHOST_DONE;
}

static enum vhost_done set_vring_event(struct vhost_session *session, struct error *err)
{
    struct vhost_queue *queue = queue_of(session, session->message.word & VHOST_VRING_INDEX_MASK, err);
    if (!queue)
        return VHOST_WRONG;
    if (session->message.id == VHOST_SET_VRING_KICK &&
        !home_is(session, session->logging ? VHOST_MIGRATING : VHOST_HERE))
        return VHOST_WAITS;
    int fd = -1;
    if (session->fd_count == 1) {
        fd = session->fds[0];
        session->fds[0] = -1;
    }
    if (session->message.id == VHOST_SET_VRING_CALL) {
        vhost_event_set(&queue->call, fd);
        if (queue->ring) /* what the old one was told after the front-end had looked at it last is said again */
            vhost_event_signal(&queue->call);
    } else if (session->message.id == VHOST_SET_VRING_ERR) {
        vhost_event_set(&queue->error, fd);
    } else {
        vhost_event_set(&queue->kick, fd);
        queue->kicked = true;
        if (vhost_queue_update(queue, err) < 0)
            return VHOST_WRONG;
    }
    return VHOST_DONE;
}

static enum vhost_done set_vring_enable(struct vhost_session *session, struct error *err)
{
    struct vhost_queue *queue = queue_of(session, session->message.state.index, err);
    if (!queue)
        return VHOST_WRONG;
    if (session->message.state.num > 1)
        return wrong(session, err, "with neither 0 nor 1");
    queue->enabled = session->message.state.num;
    return vhost_queue_update(queue, err) < 0 ? VHOST_WRONG : VHOST_DONE;
}

static enum vhost_done reset(struct vhost_session *session)
{
    bool still = true;
    for (unsigned i = 0; i < session->queue_end; i++) {
        vhost_queue_halt(&session->queues[i]);
        still &= vhost_queue_is_still(&session->queues[i]);
    }
    if (session->home && session->home->asked)
        return VHOST_WAITS;
    if (!still && !MUTANT(vhost_reset_at_once)) {
        PROBE(vhost_reset_waits); /* C14 */
        return VHOST_WAITS;
    }
    const bool migrates = any_runs(session) && session->logging;
    for (unsigned i = 0; i < session->queue_end; i++)
        vhost_queue_reset(&session->queues[i], session->message.id == VHOST_RESET_DEVICE);
    session->features = session->status = 0;
    session->logging = false;
    if (migrates && !may_part(session)) /* QEMU resets a device before it stops its rings */
        return VHOST_WAITS;
    /* Memory, eventfds for calls and the in-flight region stay: the front-end keeps count of them. */
    return VHOST_DONE;
}

/* QEMU before 8.2 sets a status of 0 to stop a device, when the VM is paused or migrates, too, and asks for the bases of its
 * rings after that: they tell where they ended still. The requests under way belong to the time before (C14): they are
 * returned first. */
static enum vhost_done set_status(struct vhost_session *session)
{
    if (session->message.word == 0)
        return reset(session);
    session->status = session->message.word & 0xff;
    return VHOST_DONE;
}

/* --- configuration space, in-flight region */

static enum vhost_done get_config(struct vhost_session *session)
{
    uint8_t space[LIMIT_VHOST_CONFIG_BYTES] = {0};
    struct virtio_blk_config config;
    struct vhost_config head = session->message.config;
    vhost_config_space(session->node, &config);
    memcpy(space, &config, sizeof config);
    if (head.offset > sizeof space || head.size > sizeof space - head.offset)
        return VHOST_DONE; /* an empty answer says that it can't be */
    memcpy(session->answer.payload, &head, sizeof head);
    memcpy(session->answer.payload + sizeof head, space + head.offset, head.size);
    session->answer.header.size = (uint32_t)sizeof head + head.size;
    return VHOST_DONE;
}

/* Nothing in it can be written; what a migration brings along is what we say ourselves. */
static enum vhost_done set_config(struct vhost_session *session)
{
    session->refused = !(session->message.config.flags & VHOST_CONFIG_MIGRATION);
    return VHOST_DONE;
}

static enum vhost_done get_inflight(struct vhost_session *session, struct error *err)
{
    struct vhost_inflight answer;
    if (any_runs(session))
        return wrong(session, err, "while rings run");
    if (inflight_region_make(&session->inflight, &session->message.inflight, &answer, &session->reply.fds[0], err) < 0)
        return VHOST_WRONG;
    session->reply.fd_count = 1;
    memcpy(session->answer.payload, &answer, sizeof answer);
    session->answer.header.size = session->message.size; /* with the padding that they sent */
    return VHOST_DONE;
}

static enum vhost_done set_inflight(struct vhost_session *session, struct error *err)
{
    if (any_runs(session))
        return wrong(session, err, "while rings run");
    int result = inflight_region_adopt(&session->inflight, &session->message.inflight, session->fds[0], err);
    return result < 0 ? VHOST_WRONG : VHOST_DONE;
}

enum vhost_done vhost_device_do(struct vhost_session *session, struct error *err)
{
    switch (session->message.id) {
    case VHOST_GET_FEATURES:
        return answer_word(session, vhost_config_features(session->node));
    case VHOST_SET_FEATURES:
        return set_features(session, err);
    case VHOST_SET_OWNER:
    case VHOST_RESET_OWNER: /* means nothing any more, says the text */
        return VHOST_DONE;
    case VHOST_SET_MEM_TABLE:
        return set_mem_table(session, err);
    case VHOST_SET_LOG_BASE:
        return set_log_base(session, err);
    case VHOST_SET_LOG_FD:
        return set_log_event(session);
    case VHOST_SET_VRING_NUM:
        return set_vring_num(session, err);
    case VHOST_SET_VRING_ADDR:
        return set_vring_addr(session, err);
    case VHOST_SET_VRING_BASE:
        return set_vring_base(session, err);
    case VHOST_GET_VRING_BASE:
        return get_vring_base(session, err);
    case VHOST_SET_VRING_KICK:
    case VHOST_SET_VRING_CALL:
    case VHOST_SET_VRING_ERR:
        return set_vring_event(session, err);
    case VHOST_GET_PROTOCOL_FEATURES:
        return answer_word(session, vhost_config_protocol_features());
    case VHOST_SET_PROTOCOL_FEATURES:
        return set_protocol_features(session, err);
    case VHOST_GET_QUEUE_NUM:
        return answer_word(session, LIMIT_VHOST_QUEUES);
    case VHOST_SET_VRING_ENABLE:
        return set_vring_enable(session, err);
    case VHOST_SET_BACKEND_REQ_FD:
        back_channel_set(&session->back, session->fds[0]);
        session->fds[0] = -1;
        return VHOST_DONE;
    case VHOST_GET_CONFIG:
        return get_config(session);
    case VHOST_SET_CONFIG:
        return set_config(session);
    case VHOST_GET_INFLIGHT_FD:
        return get_inflight(session, err);
    case VHOST_SET_INFLIGHT_FD:
        return set_inflight(session, err);
    case VHOST_RESET_DEVICE:
        return reset(session);
    case VHOST_GET_MAX_MEM_SLOTS:
        return answer_word(session, LIMIT_GUEST_REGIONS);
    case VHOST_ADD_MEM_REG:
    case VHOST_REM_MEM_REG:
        return change_memory(session, err);
    case VHOST_SET_STATUS:
        return set_status(session);
    case VHOST_GET_STATUS:
        return answer_word(session, session->status);
    }
    return VHOST_WRONG; /* the form has been checked */
}
