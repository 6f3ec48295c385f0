/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An export on the reactor of its node.
 *
 * C14: before a new connection's first command, what earlier connections left behind is settled, so that an old write
 * never lands on top of a newer one. A session departs when its client is known to be gone, and is settled when nothing
 * of it is under way and nothing more will be submitted. A session that comes waits for those that had departed when it
 * came. The kernel may tell us of a hang-up later than of the connection that followed it: so a session that comes passes
 * a barrier first, an operation on the ring whose completion is seen after every hang-up that happened before, since the
 * poll for that was armed long ago.
 */
#include "export/nbd/home.h"

#include <assert.h>
#include <stdlib.h>

#include "export/nbd/session.h"

static void sweep(struct io_timer *timer)
{
    struct nbd_reactor *reactor = container_of(timer, struct nbd_reactor, sweep);
    list_each_safe (node, &reactor->sessions)
        nbd_session_sweep(container_of(node, struct nbd_session, reactor_link));
    nbd_pool_trim(&reactor->pool);
    if (!list_empty(&reactor->sessions) || reactor->pool.empty_count > 0)
        io_timer_set(reactor->io, timer, io_now_ns(reactor->io) + NBD_SWEEP_NS);
}

static void reactor_rest(struct io_message *message)
{
    struct nbd_reactor *reactor = container_of(message, struct nbd_reactor, rest);
    assert(io_on_owner(reactor->io) && list_empty(&reactor->sessions));
    io_timer_cancel(reactor->io, &reactor->sweep);
    while (!list_empty(&reactor->spare))
        free(container_of(list_take_first(&reactor->spare), struct nbd_request, link));
    reactor->spare_count = 0;
    nbd_pool_fini(&reactor->pool);
    io_post(reactor->server_io, &reactor->rested);
}

struct nbd_reactor *nbd_reactor_create(struct io *io, struct nbd_budget *budget)
{
    struct nbd_reactor *reactor = calloc(1, sizeof *reactor);
    if (!reactor)
        return NULL;
    reactor->io = io;
    reactor->sweep.fire = sweep;
    reactor->rest.deliver = reactor_rest;
    list_init(&reactor->sessions);
    list_init(&reactor->spare);
    nbd_pool_init(&reactor->pool, budget);
    return reactor;
}

void nbd_reactor_destroy(struct nbd_reactor *reactor)
{
    assert(list_empty(&reactor->sessions) && list_empty(&reactor->spare));
    free(reactor);
}

void nbd_home_join(struct nbd_home *home, struct nbd_session *session)
{
    assert(io_on_owner(home->reactor->io));
    list_append(&home->sessions, &session->home_link);
    list_append(&home->reactor->sessions, &session->reactor_link);
    if (!io_timer_armed(&home->reactor->sweep))
        io_timer_set(home->reactor->io, &home->reactor->sweep, io_now_ns(home->reactor->io) + NBD_SWEEP_NS);
    if (home->removed)
        nbd_session_close(session);
}

/* The departures that the session has to wait for are over. */
static bool gate_open(const struct nbd_home *home, const struct nbd_session *session)
{
    return list_empty(&home->leaving) ||
           list_first(&home->leaving, struct nbd_session, gate_link)->gate > session->gate;
}

static void open_gates(struct nbd_home *home)
{
    list_each_safe (node, &home->waiting) {
        struct nbd_session *session = container_of(node, struct nbd_session, gate_link);
        if (!gate_open(home, session))
            break; /* those behind came later, and wait for more */
        list_remove(&session->gate_link);
        nbd_session_begin(session);
    }
}

void nbd_home_admit(struct nbd_session *session)
{
    struct nbd_home *home = session->home;
    session->gate = home->departures;
    if (gate_open(home, session))
        nbd_session_begin(session);
    else
        list_append(&home->waiting, &session->gate_link);
}

void nbd_home_depart(struct nbd_session *session)
{
    struct nbd_home *home = session->home;
    if (session->departed)
        return;
    session->departed = true;
    if (list_linked(&session->gate_link)) /* it was waiting itself */
        list_remove(&session->gate_link);
    session->gate = ++home->departures;
    list_append(&home->leaving, &session->gate_link);
}

void nbd_home_settle(struct nbd_session *session)
{
    assert(session->departed && session->submitted == 0);
    if (session->settled)
        return;
    session->settled = true;
    list_remove(&session->gate_link);
    open_gates(session->home);
}

void nbd_home_part(struct nbd_session *session)
{
    struct nbd_home *home = session->home;
    assert(session->settled);
    list_remove(&session->home_link);
    list_remove(&session->reactor_link);
    atomic_fetch_sub(&home->connections, 1);
    atomic_fetch_sub(home->all_connections, 1);
    nbd_home_check(home);
}

void nbd_home_check(struct nbd_home *home)
{
    if (home->removed && list_empty(&home->sessions) && list_empty(&home->read_once))
        io_post(home->server_io, &home->gone);
}

void nbd_home_remove(struct nbd_home *home)
{
    assert(io_on_owner(home->reactor->io) && !home->removed);
    home->removed = true;
    nbd_read_once_stop(home);
    if (list_empty(&home->sessions)) {
        nbd_home_check(home);
        return;
    }
    list_each_safe (node, &home->sessions)
        nbd_session_shut(container_of(node, struct nbd_session, home_link));
}
