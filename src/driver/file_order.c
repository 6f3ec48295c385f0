/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The order of writes. A guest's writes that overlap may land in any order, and so may ours; but a read-modify-write
 * writes bytes back that it has read before, and must not undo what another write put there meanwhile. So:
 *
 *   a read-modify-write ("exclusive") waits for every earlier write that touches one of its blocks, of any kind;
 *   every later write that touches one of its blocks waits for it.
 *
 * All writes are in one list in the order of their arrival, so waiting is first come, first served and cannot be
 * circular. While no exclusive write is there nobody looks at the list: a plain write costs an insertion.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/probe.h"
#include "driver/file_internal.h"

static bool must_wait(struct file_node *file, struct request *req)
{
    struct range mine = file_touched(file, req->range);
    list_each (node, &file->writes) {
        struct request *earlier = container_of(node, struct request, link);
        if (earlier == req)
            return false;
        if ((file_op_of(earlier)->exclusive || (file_op_of(req)->exclusive && !MUTANT(file_exclusive_overtakes))) &&
            range_overlaps(mine, file_touched(file, earlier->range)))
            return true;
    }
    abort(); /* it is in the list */
}

void file_order_enter(struct request *req, bool exclusive)
{
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    op->exclusive = exclusive;
    list_append(&file->writes, &req->link);
    file->writes_exclusive += exclusive;
    op->started = !file->writes_exclusive || MUTANT(file_order_ignored) || !must_wait(file, req);
    if (op->started) {
        file_start_write(req);
    } else {
        PROBE(file_write_waits);
        file->writes_waiting++;
    }
}

static struct request *first_startable(struct file_node *file)
{
    list_each (node, &file->writes) {
        struct request *req = container_of(node, struct request, link);
        if (!file_op_of(req)->started && !must_wait(file, req))
            return req;
    }
    return NULL;
}

void file_order_leave(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    assert(op->started);
    list_remove(&req->link);
    file->writes_exclusive -= op->exclusive;
    if (file->starting_writes)
        return;
    /* Starting one may end it at once and come back here: so this loop looks from the top each time, and there is but one
     * of it, however many go on. */
    file->starting_writes = true;
    for (struct request *next; file->writes_waiting && (next = first_startable(file));) {
        file_op_of(next)->started = true;
        file->writes_waiting--;
        file_start_write(next);
    }
    file->starting_writes = false;
}
