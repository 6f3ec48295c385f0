/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When to look at the rings.
 *
 *   ASLEEP: drivers kick.  -- a kick, requests returned --> AWAKE: kicks are not wanted, each tick looks at all rings
 *   AWAKE  -- nothing came for the length of the window --> ASLEEP, once no ring had anything when it was asked for kicks
 *
 * A kick costs the guest an exit, and us a wake-up; a look costs 20 ns. So after work the rings are watched for a
 * window that learns: a kick that comes soon after we fell asleep (within VHOST_POLL_MAX_NS) would have been found by
 * looking a little longer, and doubles it; one that comes much later shows that looking was in vain, and halves it,
 * down to nothing at all. While the window is open the reactor does not sleep; an idle disk costs no processor time.
 *
 * Watching must not keep from working what is waited for. On ext4 the kernel ends a direct write in a worker on the
 * processor that the disk interrupts. The first end wakes us; if we then watch on that same processor, the ends of all
 * other writes wait until we sleep, one for each window: a quarter of the speed, with 32 requests under way. The guest's
 * processors are threads of this machine, too. So after a look that finds nothing the processor is offered to others. If
 * it was gone for VHOST_CONTENDED_NS, somebody computes there, who would give way to a sleeper that is woken, not to us;
 * so for VHOST_CONTENDED_TIMES as long we sleep at once, and lose 1.5 % at most.
 *
 * With a priority or a control group of our own the offer may not reach that worker. But then each sleep is ended by a
 * request's end, and at once; VHOST_SHORT_SLEEPS of these in a row, and rings are not watched for VHOST_REST_NS.
 *
 * A ring without a kick eventfd is looked at by a slow clock as well. What was sent as one may be signalled all the time (a
 * timer, somebody who writes it in a loop), which costs its owner little and us a look at each tick. So after
 * VHOST_VAIN_KICKS that found nothing its ring is deaf until the slow clock has looked, and after one more again, until
 * there is something in it.
 *
 * While work comes the timer fires in each tick. Between two of its times at most LIMIT_VHOST_REQUESTS chains are taken, for
 * VHOST_TURN_NS: no more can be under way, but those that are answered at once (GET_ID, what is refused) would go on and on,
 * while other disks of this reactor wait.
 */
#include "base/probe.h"
#include "export/vhost_user/session.h"

static bool look_at_all(struct vhost_session *session)
{
    const unsigned first = session->turn; /* which changes meanwhile */
    bool found = false;
    for (unsigned i = 0; i < session->queue_end; i++)
        if (vhost_queue_serve(&session->queues[(first + i) % session->queue_end]))
            found = true;
    return found;
}

/* False: a ring had something. */
static bool fall_asleep(struct vhost_session *session, uint64_t now_ns)
{
    bool more = false;
    for (unsigned i = 0; i < session->queue_end; i++) {
        if (!vhost_queue_sleep(&session->queues[i]))
            continue;
        vhost_queue_look(&session->queues[i]);
        more = true;
    }
    session->asleep = !more;
    session->slept_ns = now_ns;
    return !more;
}

/* Nothing was found. Whether to look once more, after those who wait for this processor. */
static bool watch_on(struct vhost_session *session, uint64_t now_ns)
{
    if (now_ns >= session->poll_until_ns || now_ns < session->contended_until_ns)
        return false;
    io_yield(session->io);
    const uint64_t away_ns = io_now_ns(session->io) - now_ns;
    if (away_ns >= VHOST_CONTENDED_NS)
        session->contended_until_ns = now_ns + away_ns * VHOST_CONTENDED_TIMES;
    return true;
}

static void poll_fired(struct io_timer *timer)
{
    struct vhost_session *session = container_of(timer, struct vhost_session, poll);
    session->taken = 0;
    session->turn_began_ns = 0;
    bool found = look_at_all(session);
    if (session->state != VHOST_SESSION_SERVING)
        return;
    uint64_t now_ns = io_now_ns(session->io);
    if (found) {
        atomic_fetch_add_explicit(&session->counters->polled, 1, memory_order_relaxed);
        session->poll_until_ns = now_ns + session->poll_window_ns;
    }
    if (found || watch_on(session, now_ns) || !fall_asleep(session, now_ns))
        io_timer_set(session->io, timer, now_ns);
}

static bool has_ring_without_kick(const struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_end; i++) {
        const struct vhost_queue *queue = &session->queues[i];
        if (queue->ring && queue->taking && (queue->deaf || !vhost_event_is_set(&queue->kick)))
            return true;
    }
    return false;
}

static void no_kick_fired(struct io_timer *timer)
{
    struct vhost_session *session = container_of(timer, struct vhost_session, no_kick);
    if (session->state != VHOST_SESSION_SERVING || !has_ring_without_kick(session))
        return;
    if (look_at_all(session))
        PROBE(vhost_slow_clock_found);
    for (unsigned i = 0; i < session->queue_end; i++)
        vhost_queue_listen(&session->queues[i]);
    if (session->state == VHOST_SESSION_SERVING)
        io_timer_set(session->io, timer, io_now_ns(session->io) + VHOST_NO_KICK_NS);
}

static void learn(struct vhost_session *session, uint64_t slept_ns)
{
    uint64_t window_ns = session->poll_window_ns;
    if (slept_ns > VHOST_POLL_MAX_NS)
        window_ns /= 2;
    else if (window_ns < VHOST_POLL_MAX_NS)
        window_ns = window_ns ? 2 * window_ns : VHOST_POLL_MIN_NS;
    session->poll_window_ns = window_ns < VHOST_POLL_MIN_NS ? 0 : window_ns;
}

/* A request's end has woken us, others are under way: whether it had only waited for us to sleep, and they still do. */
static void suspect(struct vhost_session *session, uint64_t now_ns)
{
    if (session->in_flight < 2 || session->poll_window_ns == 0 || now_ns < session->contended_until_ns)
        return;
    session->short_sleeps = now_ns - session->slept_ns < VHOST_SHORT_SLEEP_NS ? session->short_sleeps + 1 : 0;
    if (session->short_sleeps < VHOST_SHORT_SLEEPS)
        return;
    session->short_sleeps = 0;
    session->contended_until_ns = now_ns + VHOST_REST_NS;
}

void vhost_poll_extend(struct vhost_session *session, bool by_kick)
{
    if (session->state != VHOST_SESSION_SERVING)
        return;
    uint64_t now_ns = io_now_ns(session->io);
    if (session->asleep) {
        if (by_kick)
            learn(session, now_ns - session->slept_ns);
        else
            suspect(session, now_ns);
        session->asleep = false;
        for (unsigned i = 0; i < session->queue_end; i++)
            vhost_queue_wake(&session->queues[i]);
    }
    session->poll_until_ns = now_ns + session->poll_window_ns;
    io_timer_set(session->io, &session->poll, now_ns);
    if (!io_timer_armed(&session->no_kick) && has_ring_without_kick(session) && !MUTANT(vhost_no_slow_clock))
        io_timer_set(session->io, &session->no_kick, now_ns + VHOST_NO_KICK_NS);
}

void vhost_poll_soon(struct vhost_session *session)
{
    io_timer_set(session->io, &session->poll, io_now_ns(session->io));
}

void vhost_poll_init(struct vhost_session *session)
{
    session->poll.fire = poll_fired;
    session->no_kick.fire = no_kick_fired;
    session->asleep = true;
}

void vhost_poll_fini(struct vhost_session *session)
{
    io_timer_cancel(session->io, &session->poll);
    io_timer_cancel(session->io, &session->no_kick);
}
