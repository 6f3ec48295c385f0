/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a snapshot says of itself, on the control thread: the parts of it that reactors fill in are settled by then. */
#include <assert.h>

#include "vm/snapshot_internal.h"

struct node *snapshot_view(const struct snapshot *snapshot, unsigned disk_index)
{
    assert(disk_index < snapshot->vm->disk_count);
    return snapshot->parts[disk_index].view;
}

uint64_t snapshot_size(const struct snapshot *snapshot, unsigned disk_index)
{
    const struct node *view = snapshot_view(snapshot, disk_index);
    return view ? view->size_bytes : node_size(&snapshot->vm->disks[disk_index].disk->node);
}

static uint64_t grace_left_ns(const struct snapshot *snapshot)
{
    const uint64_t now_ns = io_now_ns(snapshot->vm->io);
    return snapshot->grace_until_ns > now_ns ? snapshot->grace_until_ns - now_ns : 1;
}

void snapshot_disk_info(const struct snapshot *snapshot, unsigned disk_index, struct snapshot_disk_info *info)
{
    assert(disk_index < snapshot->vm->disk_count);
    const struct part *part = &snapshot->parts[disk_index];
    *info = (struct snapshot_disk_info){
        .incremental = part->incremental,
        .dirty_bytes = part->incremental ? part->dirty_bytes : 0,
        .reason = snapshot->since.name[0] && !part->incremental ? part->full_reason : NULL,
        .checkpoint = part->recorded,
        .checkpoint_reason = snapshot->checkpoint.name[0] && !part->recorded ? part->checkpoint_reason : NULL,
    };
}

void snapshot_info(const struct snapshot *snapshot, struct snapshot_info *info)
{
    enum snapshot_state state = SNAPSHOT_CREATING;
    if (snapshot->step > LIVE)
        state = SNAPSHOT_DELETING;
    else if (snapshot->step == LIVE)
        state = snapshot->broken ? SNAPSHOT_BROKEN : SNAPSHOT_LIVE;
    *info = (struct snapshot_info){
        .name = snapshot->name,
        .uuid = snapshot->uuid,
        .reason = snapshot->broken ? snapshot->reason : NULL,
        .state = state,
        .leased = snapshot->lease != NULL,
        .restartable = snapshot->record != NULL,
        .bitmap = snapshot->bitmap[0] ? snapshot->bitmap : NULL,
        .since_name = snapshot->since.name[0] ? snapshot->since.name : NULL,
        .since_uuid = snapshot->since.name[0] ? snapshot->since.uuid : NULL,
        .checkpoint_name = snapshot->checkpoint.name[0] ? snapshot->checkpoint.name : NULL,
        .checkpoint_uuid = snapshot->checkpoint.name[0] ? snapshot->checkpoint.uuid : NULL,
        .grace_left_ns = io_timer_armed(&snapshot->grace) ? grace_left_ns(snapshot) : 0,
        .read_once = snapshot->read_once,
        .created_wall_ns = snapshot->created_wall_ns,
        .consistency = snapshot->consistency,
        .consistency_reason = snapshot->consistency_reason[0] ? snapshot->consistency_reason : NULL,
        .frozen_ns = snapshot->frozen_ns,
        .hold_ns = snapshot->hold_ns,
        .cut_attempts = snapshot->attempts,
    };
}
