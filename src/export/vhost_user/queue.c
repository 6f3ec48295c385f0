/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 *   said of (size, addresses, base) -> kicked: the ring exists -> taking -> halted -> still -> stopped
 *
 * The ring is made when SET_VRING_KICK has come, from what was said before, and looked at without a kick, since there may be
 * work in it from before. It is served while the front-end has it enabled (or knows no enabling). To stop it, nothing
 * more is taken, and what was taken is returned and shown first: only then is its base where a successor goes on (C14).
 *
 * Chains are taken in batches, of which each goes to the kernel before the next is taken. They are begun only when it is
 * sure that the guest's memory was there to be read: what is found in a page that the VMM has taken away is zeroes, not
 * requests.
 *
 * A ring that breaks while a predecessor's chains are resubmitted keeps them in the in-flight region when it is stopped, and
 * breaks again when it is started: they were the guest's requests and were not answered, so nobody but the guest may give
 * them up. Its reset does (RESET_DEVICE here; QEMU has another region made).
 */
#include "export/vhost_user/queue.h"

#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "export/vhost_user/session.h"

static void queue_break(struct vhost_queue *queue)
{
    if (queue->broken)
        return;
    PROBE(vhost_ring_is_broken);
    queue->broken = true;
    vhost_session_complain(queue->session, "queue %u takes nothing more until the guest resets it: %s", queue->index,
                           virtqueue_broken(queue->ring));
    vhost_event_signal(&queue->error);
}

/* The next chain into a request; NULL: there is none, or nothing to hold it. */
static struct vhost_request *queue_take(struct vhost_queue *queue)
{
    struct vhost_session *session = queue->session;
    struct vhost_request *request = vhost_session_take_request(session);
    if (!request) {
        queue->starved = true;
        return NULL;
    }
    int result = 0;
    if (queue->resubmitting && !MUTANT(vhost_left_is_lost))
        result = virtqueue_resubmit(queue->ring, &request->chain);
    if (result > 0)
        PROBE(vhost_resubmitted);
    if (result == 0) {
        queue->resubmitting = false;
        result = virtqueue_take(queue->ring, &request->chain);
    }
    if (result > 0) {
        request->queue = queue;
        request->table = session->table;
        session->table_users[request->table]++;
        const uint64_t bytes = request->chain.read_bytes + request->chain.write_bytes;
        const uint64_t most = LIMIT_VHOST_TRANSFER_PIECES * LIMIT_REQUEST_BYTES;
        vhost_session_charge(request, bytes < most ? bytes : most);
        return request;
    }
    vhost_session_put_request(session, request);
    if (result < 0)
        queue_break(queue);
    return NULL;
}

static bool queue_is_served(const struct vhost_queue *queue)
{
    return queue->ring && queue->taking && !queue->broken && queue->session->state == VHOST_SESSION_SERVING;
}

static void queue_publish(struct vhost_queue *queue)
{
    struct vhost_session *session = queue->session;
    if (session->state == VHOST_SESSION_CLOSED || !queue->ring) {
        vhost_session_wake(session);
        return;
    }
    if (virtqueue_publish(queue->ring)) {
        atomic_fetch_add_explicit(&session->counters->calls, 1, memory_order_relaxed);
        vhost_event_signal(&queue->call);
    }
    if (session->logging)
        vhost_event_signal(&session->logged);
    if (session->waiting || session->state == VHOST_SESSION_LEAVING)
        vhost_session_wake(session);
    else if (queue_is_served(queue))
        vhost_poll_extend(session, false);
}

/* As many as are under way already: a disk at rest begins with the first while we prepare the others. Or twice as many as
 * the last time, if those were not all: they may end as fast as they come. */
static unsigned batch_limit(const struct vhost_queue *queue)
{
    unsigned limit = queue->resubmitting ? LIMIT_VHOST_BATCH : 2 * queue->batch;
    if (limit < queue->session->in_flight)
        limit = queue->session->in_flight;
    if (limit < VHOST_BATCH_MIN)
        limit = VHOST_BATCH_MIN;
    return limit < LIMIT_VHOST_BATCH ? limit : LIMIT_VHOST_BATCH;
}

/* A batch or more was taken in this tick: it may be enough for it. */
static void watch_turn(struct vhost_session *session)
{
    const uint64_t now_ns = io_now_ns(session->io);
    if (session->turn_began_ns == 0)
        session->turn_began_ns = now_ns;
    else if (now_ns - session->turn_began_ns >= VHOST_TURN_NS)
        session->taken = LIMIT_VHOST_REQUESTS;
}

bool vhost_queue_serve(struct vhost_queue *queue)
{
    struct vhost_session *session = queue->session;
    if (!queue_is_served(queue))
        return false;
    if (session->taken >= LIMIT_VHOST_REQUESTS) {
        vhost_poll_soon(session);
        return true;
    }
    if (list_linked(&queue->publish.link)) /* the guest goes on while we take what it has sent before */
        queue_publish(queue);
    struct list taken;
    list_init(&taken);
    unsigned count = 0;
    const unsigned limit = batch_limit(queue);
    queue->starved = false;
    for (struct vhost_request *request; count < limit && (request = queue_take(queue)); count++)
        list_append(&taken, &request->link);
    queue->in_flight += count;
    session->in_flight += count;
    session->taken += count;
    if (count > 0) {
        queue->vain_kicks = 0;
        session->turn = (queue->index + 1) % session->queue_end;
    }
    atomic_fetch_add_explicit(&session->counters->requests, count, memory_order_relaxed);
    if (vhost_session_is_torn(session)) {
        struct error err;
        error_set(&err, EFAULT, "the VMM has cut its shared memory short");
        vhost_session_close(session, &err);
    }
    for (struct list_node *node; (node = list_take_first(&taken));) {
        struct vhost_request *request = container_of(node, struct vhost_request, link);
        if (session->state == VHOST_SESSION_CLOSED)
            vhost_session_finish(request, 0);
        else
            vhost_request_begin(request);
    }
    if (session->taken >= LIMIT_VHOST_BATCH)
        watch_turn(session);
    queue->batch = count == limit ? count : 0;
    if (count == limit && queue->resubmitting) /* all of it now, lest we leave before the next tick */
        vhost_queue_look(queue);
    else if (count == limit && session->state == VHOST_SESSION_SERVING)
        vhost_poll_soon(session);
    return count > 0;
}

static void look(struct io_task *task)
{
    struct vhost_queue *queue = container_of(task, struct vhost_queue, look);
    bool starved = queue->starved; /* no kicks were asked for then */
    if (queue->session->state == VHOST_SESSION_CLOSED)
        vhost_session_wake(queue->session); /* it may have waited for nothing else */
    if (vhost_queue_serve(queue) || starved)
        vhost_poll_extend(queue->session, false);
}

void vhost_queue_look(struct vhost_queue *queue)
{
    io_task_queue(queue->session->io, &queue->look);
}

static void publish(struct io_task *task)
{
    queue_publish(container_of(task, struct vhost_queue, publish));
}

static void kick_came(struct vhost_event *event)
{
    struct vhost_queue *queue = container_of(event, struct vhost_queue, kick);
    atomic_fetch_add_explicit(&queue->session->counters->kicks, 1, memory_order_relaxed);
    if (++queue->vain_kicks > VHOST_VAIN_KICKS) {
        queue->deaf = true;
        vhost_event_stop(event);
    }
    vhost_poll_extend(queue->session, true);
    vhost_queue_look(queue);
}

static void kick_idle(struct vhost_event *event)
{
    struct vhost_session *session = container_of(event, struct vhost_queue, kick)->session;
    vhost_session_wake(session);
    if (!vhost_event_is_set(event)) /* it has failed: the clock looks instead */
        vhost_poll_extend(session, false);
}

static void call_idle(struct vhost_event *event)
{
    vhost_session_wake(container_of(event, struct vhost_queue, call)->session);
}

static void error_idle(struct vhost_event *event)
{
    vhost_session_wake(container_of(event, struct vhost_queue, error)->session);
}

void vhost_queue_init(struct vhost_queue *queue, struct vhost_session *session, unsigned index)
{
    queue->session = session;
    queue->index = index;
    queue->look.run = look;
    queue->publish.run = publish;
    vhost_event_init(&queue->kick, session->io, kick_came, kick_idle);
    vhost_event_init(&queue->call, session->io, NULL, call_idle);
    vhost_event_init(&queue->error, session->io, NULL, error_idle);
}

static int queue_start(struct vhost_queue *queue, struct error *err)
{
    struct vhost_session *session = queue->session;
    const char *missing = !session->memory ? "the guest's memory" : !queue->size ? "its size" : NULL;
    if (!queue->placed && !missing)
        missing = "its addresses";
    if (missing)
        return error_set(err, EPROTO, "SET_VRING_KICK of queue %u before %s is known", queue->index, missing);
    struct virtqueue_features features = {.packed = session->features & VHOST_BIT(VIRTIO_F_RING_PACKED),
                                          .event_idx = session->features & VHOST_BIT(VIRTIO_F_EVENT_IDX),
                                          .indirect = session->features & VHOST_BIT(VIRTIO_F_INDIRECT_DESC)};
    queue->ring = virtqueue_create(&features, session->memory, &queue->place, queue->size, queue->base, err);
    if (!queue->ring)
        return error_prefix(err, "queue %u", queue->index);
    size_t bytes = virtqueue_inflight_bytes(&features, queue->size);
    int result = 0;
    void *region = inflight_region_of(&session->inflight, queue->index, queue->size, bytes, err);
    if (region)
        result = virtqueue_set_inflight(queue->ring, region, bytes, err);
    else if (session->inflight.map)
        result = -EPROTO;
    if (result < 0) {
        virtqueue_destroy(queue->ring);
        queue->ring = NULL;
        return error_prefix(err, "queue %u", queue->index);
    }
    queue->resubmitting = region != NULL;
    queue->broken = false;
    atomic_fetch_add(&session->counters->queues, 1);
    return MUTANT(vhost_log_lacks_new_rings) ? 0 : vhost_queue_update_log(queue, err);
}

int vhost_queue_update_log(struct vhost_queue *queue, struct error *err)
{
    const struct vhost_session *session = queue->session;
    if (!queue->ring)
        return 0;
    const struct dirty_log *log = session->logging && queue->logged ? &session->log : NULL;
    return virtqueue_set_log(queue->ring, log, queue->log_used, err) < 0 ? error_prefix(err, "queue %u", queue->index)
                                                                         : 0;
}

int vhost_queue_update(struct vhost_queue *queue, struct error *err)
{
    const struct vhost_session *session = queue->session;
    if (!queue->kicked)
        return 0;
    if (!queue->ring) {
        int result = queue_start(queue, err);
        if (result < 0)
            return result;
        if (!MUTANT(vhost_predecessors_call_is_lost))
            io_task_queue(session->io, &queue->publish); /* a predecessor may have died before its call */
    }
    queue->taking = queue->enabled || !(session->features & VHOST_BIT(VHOST_F_PROTOCOL_FEATURES));
    if (!queue->taking)
        return 0;
    if (!queue->deaf)
        vhost_event_wait(&queue->kick);
    if (MUTANT(vhost_new_ring_is_not_looked_at))
        return 0;
    vhost_poll_extend(queue->session, false);
    vhost_queue_look(queue);
    return 0;
}

void vhost_queue_listen(struct vhost_queue *queue)
{
    if (!queue->deaf)
        return;
    queue->deaf = false;
    if (queue->taking)
        vhost_event_wait(&queue->kick);
}

bool vhost_queue_sleep(struct vhost_queue *queue)
{
    if (!queue_is_served(queue) || queue->starved)
        return false;
    bool more = virtqueue_want_kicks(queue->ring);
    if (more)
        PROBE(vhost_slept_too_soon);
    if (!virtqueue_broken(queue->ring))
        return more && !MUTANT(vhost_last_look_is_forgotten);
    queue_break(queue);
    return false;
}

void vhost_queue_wake(struct vhost_queue *queue)
{
    if (queue_is_served(queue))
        virtqueue_want_no_kicks(queue->ring);
}

void vhost_queue_halt(struct vhost_queue *queue)
{
    queue->taking = false;
    vhost_event_stop(&queue->kick);
}

bool vhost_queue_is_still(const struct vhost_queue *queue)
{
    return queue->in_flight == 0 && !list_linked(&queue->publish.link);
}

/* A predecessor's chains that were not resubmitted yet, or that broke the ring. */
static bool keeps_what_was_left(const struct vhost_queue *queue)
{
    return queue->resubmitting && (queue->broken || virtqueue_is_resubmitting(queue->ring));
}

void vhost_queue_stop(struct vhost_queue *queue)
{
    assert(vhost_queue_is_still(queue) && !queue->taking);
    if (queue->ring) {
        if (!MUTANT(vhost_base_is_forgotten))
            queue->base = queue->ended_at = virtqueue_base(queue->ring);
        if (!MUTANT(vhost_stopped_ring_keeps_its_part) &&
            !keeps_what_was_left(queue)) /* nothing is in flight: the next ring may begin elsewhere, at another base */
            inflight_region_clear(&queue->session->inflight, queue->index);
        virtqueue_destroy(queue->ring);
        queue->ring = NULL;
        atomic_fetch_sub(&queue->session->counters->queues, 1);
    }
    queue->kicked = queue->deaf = false;
    queue->vain_kicks = 0;
    vhost_event_set(&queue->kick, -1);
}

void vhost_queue_reset(struct vhost_queue *queue, bool forgets)
{
    vhost_queue_stop(queue);
    if (forgets && !MUTANT(vhost_reset_forgets_nothing)) {
        inflight_region_clear(&queue->session->inflight, queue->index);
        queue->ended_at = 0;
    }
    queue->size = queue->base = 0;
    queue->placed = queue->enabled = false;
}

void vhost_queue_abandon(struct vhost_queue *queue)
{
    vhost_queue_halt(queue);
    vhost_event_set(&queue->kick, -1);
    vhost_event_set(&queue->call, -1);
    vhost_event_set(&queue->error, -1);
}

bool vhost_queue_is_busy(const struct vhost_queue *queue)
{
    return queue->in_flight > 0 || vhost_event_is_busy(&queue->kick) || vhost_event_is_busy(&queue->call) ||
           vhost_event_is_busy(&queue->error) || list_linked(&queue->look.link) || list_linked(&queue->publish.link);
}

void vhost_queue_fini(struct vhost_queue *queue)
{
    assert(!vhost_queue_is_busy(queue));
    if (!queue->ring)
        return;
    virtqueue_destroy(queue->ring);
    queue->ring = NULL;
    atomic_fetch_sub(&queue->session->counters->queues, 1);
}
