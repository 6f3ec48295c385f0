/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A virtqueue of VIRTIO 1.x seen from the device, split or packed: takes chains of descriptors that the driver has made
 * available, and returns them used. All that is read from the rings is the guest's to choose; each value is read once,
 * checked, and then used.
 *
 * What breaks a queue: an index or address outside, a chain that loops or is longer than the queue or has more than
 * LIMIT_VIRTQUEUE_FRAGMENTS, an indirect table of a bad size or inside another, descriptors that the device reads
 * behind ones that it writes, more than 4 GiB in a chain, more chains than the queue has descriptors. A broken queue
 * takes nothing more until the driver resets the device; what was taken before completes.
 *
 * With an in-flight region each chain is entered there before it is taken, and removed after it was returned, so that a
 * restarted daemon finds what its predecessor had taken, and in which order (C10, C14): virtqueue_resubmit().
 *
 * The order of things: create, [set_inflight, resubmit until 0], then take, return and publish as often as wanted. A queue
 * that was just created must be looked at without a kick, and its first publish is true even if nothing was returned: a
 * predecessor may have swallowed the kick, or died before the call.
 *
 * One thread at a time has a queue, its chains and its memory. Nothing here allocates (but for create, set_inflight), waits
 * or calls the system.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_VIRTQUEUE_H
#define FLEECE_EXPORT_VHOST_USER_VIRTQUEUE_H

#include "base/limits.h"
#include "export/vhost_user/dirty_log.h"
#include "export/vhost_user/memory.h"

struct virtqueue;

struct virtqueue_features { /* as negotiated */
    bool packed, event_idx, indirect;
};

struct virtqueue_place {                   /* addresses of the VMM's process, from SET_VRING_ADDR */
    uint64_t descriptors, available, used; /* packed: descriptors, driver's and device's event suppression */
};

struct virtqueue_chain { /* belongs to its caller from virtqueue_take() to virtqueue_return() or virtqueue_drop() */
    struct guest_memory *memory;      /* referenced */
    uint16_t head;                    /* split: index of the descriptor; packed: buffer id */
    uint16_t count;                   /* packed: ring descriptors that it takes */
    uint16_t entry;                   /* packed: of the in-flight region */
    uint16_t read_count, write_count; /* fragments: iov[0 .. read_count) the device reads, then what it writes */
    uint64_t read_bytes, write_bytes; /* of those; both may be 0 */
    struct iovec iov[LIMIT_VIRTQUEUE_FRAGMENTS]; /* in the guest's memory; none is empty */
};

/* NULL, with a sentence: the size is 0, above 32768 or (split) no power of two, rings outside of memory or not aligned. The
 * memory is referenced. `base`: of SET_VRING_BASE; packed: index and wrap bit of the next available descriptor, and above
 * them those of the next used one. */
struct virtqueue *virtqueue_create(const struct virtqueue_features *features, struct guest_memory *memory,
                                   const struct virtqueue_place *place, uint32_t size, uint32_t base,
                                   struct error *err);
/* Chains that are still out go on to hold their memory: virtqueue_drop(). */
void virtqueue_destroy(struct virtqueue *queue);
/* The rings stay at their addresses, which are looked up in the new table, as are those in chains from now on. -EFAULT, and
 * nothing has changed: the rings are not in it. */
int virtqueue_set_memory(struct virtqueue *queue, struct guest_memory *memory, struct error *err);
/* What is written to the rings from now on is marked in the log, which stays as long as it is set; NULL: nothing is. What
 * we may have written before is marked at once: a predecessor that was killed between a write and its mark knows of no mark.
 * `used`: the guest address at which a split queue's used ring counts. -EINVAL, and nothing has changed: its end is behind
 * the log's. */
int virtqueue_set_log(struct virtqueue *queue, const struct dirty_log *log, uint64_t used, struct error *err);
/* For GET_VRING_BASE, when no chain is out. */
uint32_t virtqueue_base(const struct virtqueue *queue);
/* Why it is broken; NULL: it is not. */
const char *virtqueue_broken(const struct virtqueue *queue);

/* The part of the in-flight region that is this queue's; before the first take. Zeroed: there was no predecessor. Else what
 * it left is checked, and what died between two steps of a return is settled; `base` is then taken from there. -EINVAL,
 * with a sentence: it is too small, not aligned to 8 bytes, of another version or size, or damaged; such a queue can
 * only be destroyed. */
int virtqueue_set_inflight(struct virtqueue *queue, void *region, size_t bytes, struct error *err);
/* Nothing in it is in flight, and no queue uses it: it is as one that was never set, by one store. */
void virtqueue_forget_inflight(void *region);
/* Bytes that a queue needs there, a multiple of 64. */
size_t virtqueue_inflight_bytes(const struct virtqueue_features *features, uint32_t size);
/* The next chain that a dead predecessor had taken and not returned, oldest first: 1; 0: none is left; -EPROTO: the queue is
 * broken. Before any take. */
int virtqueue_resubmit(struct virtqueue *queue, struct virtqueue_chain *chain);
bool virtqueue_is_resubmitting(const struct virtqueue *queue); /* there is a next one */

/* The next chain: 1; 0: there is none now; -EPROTO: the queue is broken. */
int virtqueue_take(struct virtqueue *queue, struct virtqueue_chain *chain);
/* The chain is used, `written` bytes of it written. The driver sees it with the next publish. Any order. */
void virtqueue_return(struct virtqueue *queue, struct virtqueue_chain *chain, uint32_t written);
/* The chain will not be returned, because its queue is gone or goes: only its memory is let go of. */
void virtqueue_drop(struct virtqueue_chain *chain);
/* Shows the driver all that was returned; true: it wants to be told (the call eventfd). Once for many returns. */
bool virtqueue_publish(struct virtqueue *queue);
/* Asks for kicks again; true: something has come meanwhile, so go on. The other: no kicks are wanted, we look ourselves;
 * a hint, and after 65,536 chains or a whole turn of the ring one may come all the same. */
bool virtqueue_want_kicks(struct virtqueue *queue);
void virtqueue_want_no_kicks(struct virtqueue *queue);

#endif
