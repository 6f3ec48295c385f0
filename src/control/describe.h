/* SPDX-License-Identifier: GPL-2.0-or-later */
/* JSON of the things that several commands and events show. New references; NULL: no memory. */
#ifndef FLEECE_CONTROL_DESCRIBE_H
#define FLEECE_CONTROL_DESCRIBE_H

#include <jansson.h>

#include "control/server.h"
#include "job/job.h"
#include "vm/checkpoints.h"

/* Any bytes as a JSON string: those that are not UTF-8 become '?'. */
json_t *describe_text(const char *text);
/* "2026-01-31T12:00:00.123456Z" */
json_t *describe_time(uint64_t wall_ns);
/* {"fleece": {"major", "minor", "micro"}, "package"} */
json_t *describe_version(void);
json_t *describe_snapshots(const struct vm *vm); /* all, in the order of their cuts */
json_t *describe_snapshot(const struct snapshot *snapshot);
/* Where its views can be read, and what there is to say of each disk: [{"disk", "export", "size", "uri", …}]. */
json_t *describe_views(const struct control_host *host, const struct snapshot *snapshot);
/* "off", "disconnect", "eager". False: it is none of them. */
bool describe_read_once_parse(const char *name, enum read_once *read_once);
/* {"fill-bytes", "fill-bytes-max", "fill-rate", "seconds-to-full"}, the last one only when it grows. */
json_t *describe_fill(const struct vm_cache_fill *fill);
json_t *describe_checkpoint_id(const struct checkpoint_id *id); /* {"name", "uuid", "created", "created-ns"} */
json_t *describe_checkpoints(const struct vm_checkpoints *checkpoints);
json_t *describe_tracking(const struct vm_tracking_disk *disk);
json_t *describe_disk(const struct vm_disk_status *disk, const char *driver, const char *file);
json_t *describe_export(const struct control_host *host, const struct nbd_export_status *export);
/* Who freezes it, and how that is; null when nobody does. */
json_t *describe_guest(const struct control_host *host);
/* "auto", "crash", "required". False: it is none. */
bool describe_consistency_parse(const char *name, enum consistency_wish *wish);
json_t *describe_vhost_users(const struct control_host *host);
/* Members of the NBD server's status. */
json_t *describe_read_once(const struct nbd_server_status *server);
json_t *describe_job(const struct job *job);       /* as query-jobs shows it */
json_t *describe_block_job(const struct job *job); /* as query-block-jobs shows it, and the disks */
json_t *describe_push(const struct job *job);      /* as fleece-push answers */
/* The NBD URI of an export at the first address, or null when the server listens nowhere. */
json_t *describe_uri(const struct control_host *host, const char *export_name);

#endif
