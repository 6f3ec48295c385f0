/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A part of a write that failed gives the new clusters back that it had taken, but for those that a mapping names.
 *
 *     data, sync or table failed -> all I/O of the part has ended -> room among the freed -> freed, by the next commit
 *
 * Which these are is known from memory: a table in the file never names what its page did not name before, and the page is
 * changed cluster by cluster (`named`), while the clusters of the part are locked. So nothing on the disk can name the
 * others, whatever a crash leaves. They go the way of all that became free (commit.c): counted down behind a commit, punched
 * out, since the data may be there in part, and used again then. A crash before that leaks them, as it does with all that
 * was counted ahead.
 *
 * Kept are:
 *
 *   - clusters that the table in memory names: its write may have failed, or have landed all the same, in whole or in part.
 *     They are mapped, hold the data, or zeroes, and do not leak: the page stays dirty and is written again.
 *   - all of them, when there is no room to note them and the commit that was to make it fails: a leak, which qemu-img
 *     check finds and repairs.
 *
 * While I/O of the part is under way, data beside its table, they are not given back: it would land in whatever they are
 * used for next.
 */
#include "base/probe.h"
#include "driver/qcow2/internal.h"

int unnamed_give_back(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    const unsigned count = (unsigned)(w->locked.length >> image->cluster_bits);
    uint64_t plain = w->host, packed = w->pack ? w->packed_host : 0;
    const int status = freed_reserve(image, LIMIT_QCOW2_PACK_CLUSTERS + 1, &w->waiter);
    if (status < 0)
        return status;
    for (unsigned i = 0; i < count; i++) {
        const bool is_packed = w->pack && w->sizes[i] > 0;
        const uint64_t bytes = is_packed ? w->sizes[i] : image->cluster_bytes;
        uint64_t *place = is_packed ? &packed : &plain;
        if (*place == 0) /* it had not come so far */
            continue;
        if (i >= w->named || MUTANT(qcow2_named_given_back)) {
            PROBE(qcow2_given_back);
            freed_add(image, *place, bytes, false);
        }
        *place += bytes;
    }
    return 0;
}
