/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a disk offers to a guest: features and configuration space, from what its node can do. */
#ifndef FLEECE_EXPORT_VHOST_USER_CONFIG_H
#define FLEECE_EXPORT_VHOST_USER_CONFIG_H

#include "block/node.h"
#include "export/vhost_user/wire.h"

/* Whole sectors of the node: what a guest sees of it. */
uint64_t vhost_config_sectors(const struct node *node);
uint64_t vhost_config_features(const struct node *node); /* of VIRTIO, and bit 30 */
uint64_t vhost_config_protocol_features(void);
void vhost_config_space(const struct node *node, struct virtio_blk_config *config);

#endif
