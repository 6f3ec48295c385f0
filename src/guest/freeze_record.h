/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The record of a freeze: a small file in the run-time folder, there from before the first thing is frozen until all is
 * thawed. Whoever finds it after a kill -9 thaws. It outlives the process, not the machine: nor does the guest.
 */
#ifndef FLEECE_GUEST_FREEZE_RECORD_H
#define FLEECE_GUEST_FREEZE_RECORD_H

#include <stdbool.h>

#include "guest/hooks.h"

struct freeze_record {
    char agent[LIMIT_AGENT_ADDRESS_BYTES]; /* address of the guest agent that may have frozen; "": none */
    char snapshot[LIMIT_NAME_BYTES + 1];   /* that it is for */
    struct hook_list hooks;                /* those that were started, or may have been */
    struct hook_process running;           /* the last of them, when it has not ended */
};

/* In place of what was there, as one step. -errno with a sentence. Blocks as short as a file in memory takes. */
int freeze_record_store(const char *path, const struct freeze_record *record, struct error *err);
/* -ENOENT: there is none. -EINVAL with a sentence: it can't be read, or is no record; nothing of it is to be used. */
int freeze_record_load(const char *path, struct freeze_record *record, struct error *err);
void freeze_record_remove(const char *path);

#endif
