/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manners of a VMM's front-end: what it lets through to its guest, which messages it sends in which order, what it asks
 * to be acknowledged, and what it does when the back-end was away. Learnt from the sources of the VMMs; none of their code
 * is here. A back-end that serves front_end.c with these manners serves those VMMs.
 */
#ifndef TESTS_VHOST_VMM_H
#define TESTS_VHOST_VMM_H

#include <stdbool.h>
#include <stdint.h>

enum vmm_acks {
    VMM_ACKS_NONE,    /* asks for none, even when they were negotiated */
    VMM_ACKS_ORDERS,  /* of messages that have no answer of their own */
    VMM_ACKS_ANYTHING /* sets the flag on every message, also on those that are answered anyway */
};

struct vmm {
    const char *name;
    uint64_t features, protocol;             /* what it takes of what it is offered */
    uint64_t needs_features, needs_protocol; /* without these the disk is slow, small or not there at all */
    unsigned queues, queue_size;             /* that its guests have when nobody says otherwise */
    unsigned regions;                        /* of memory: below and above the hole under 4 GiB */
    bool one_file;                           /* all of it in one memfd */
    enum vmm_acks acks;
    uint32_t config_flags;
    bool config_in_pieces; /* the guest's accesses to the configuration space are passed on one by one, at any time */
    bool owner_first;      /* SET_OWNER before anything else */
    bool sizes_first;      /* the sizes of all rings, before the in-flight region and all else that is said of a ring */
    bool base_first;       /* a ring's base before its addresses */
    bool error_fd;         /* SET_VRING_ERR */
    bool enable_last;      /* rings are enabled when all of them are set up */
    bool base_is_available; /* a ring's base is what its driver has made available, in a reconnect, too */
    bool features_once;     /* SET_FEATURES is not said again when a guest that was reset chooses the same */
    bool resets;            /* stops the rings when the guest resets the device, and goes on with the connection */
    bool pauses;            /* disables the rings to pause the VM */
    bool reconnects;
    bool remembers; /* in a reconnect it asks for nothing but the features */
};

/* NULL: there is none of that name. Number n of all of them; NULL behind the last. The first one is QEMU. */
const struct vmm *vmm_find(const char *name);
const struct vmm *vmm_at(unsigned n);

#endif
