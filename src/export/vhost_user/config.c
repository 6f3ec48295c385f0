/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The logical block is a sector of 512 bytes, whatever the disk beneath: the block layer serves any alignment. The physical
 * block tells the guest what costs no read-modify-write: at least 4 KiB, in which snapshots preserve.
 *
 * Not offered: CONFIG_WCE, since a guest that has switched its cache to write-through is not heard of again after a
 * reconnect, and would lose writes that it takes for durable. A guest that does without FLUSH gets every write durable
 * at once.
 */
#include "export/vhost_user/config.h"

uint64_t vhost_config_sectors(const struct node *node)
{
    return node_size(node) / IMAGE_SECTOR_BYTES;
}

uint64_t vhost_config_features(const struct node *node)
{
    uint64_t features = VHOST_BIT(VIRTIO_BLK_F_SEG_MAX) | VHOST_BIT(VIRTIO_BLK_F_BLK_SIZE) |
                        VHOST_BIT(VIRTIO_BLK_F_FLUSH) | VHOST_BIT(VIRTIO_BLK_F_TOPOLOGY) | VHOST_BIT(VIRTIO_BLK_F_MQ) |
                        VHOST_BIT(VHOST_F_LOG_ALL) | VHOST_BIT(VIRTIO_F_ANY_LAYOUT) |
                        VHOST_BIT(VIRTIO_F_INDIRECT_DESC) | VHOST_BIT(VIRTIO_F_EVENT_IDX) |
                        VHOST_BIT(VHOST_F_PROTOCOL_FEATURES) | VHOST_BIT(VIRTIO_F_VERSION_1) |
                        VHOST_BIT(VIRTIO_F_RING_PACKED);
    if (node->read_only)
        return features | VHOST_BIT(VIRTIO_BLK_F_RO);
    if (node->can_discard)
        features |= VHOST_BIT(VIRTIO_BLK_F_DISCARD);
    return features | VHOST_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
}

uint64_t vhost_config_protocol_features(void)
{
    return VHOST_BIT(VHOST_PROTOCOL_MQ) | VHOST_BIT(VHOST_PROTOCOL_LOG_SHMFD) | VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK) |
           VHOST_BIT(VHOST_PROTOCOL_BACKEND_REQ) | VHOST_BIT(VHOST_PROTOCOL_CONFIG) |
           VHOST_BIT(VHOST_PROTOCOL_INFLIGHT) | VHOST_BIT(VHOST_PROTOCOL_RESET_DEVICE) |
           VHOST_BIT(VHOST_PROTOCOL_MEM_SLOTS) | VHOST_BIT(VHOST_PROTOCOL_STATUS);
}

void vhost_config_space(const struct node *node, struct virtio_blk_config *config)
{
    uint32_t physical = node->alignment_bytes > BLOCK_BYTES_MIN ? node->alignment_bytes : (uint32_t)BLOCK_BYTES_MIN;
    uint32_t sectors = physical / (uint32_t)IMAGE_SECTOR_BYTES;
    *config = (struct virtio_blk_config){
        .capacity = vhost_config_sectors(node),
        .seg_max = VIRTIO_BLK_SEGMENTS,
        .blk_size = IMAGE_SECTOR_BYTES,
        .physical_block_exp = (uint8_t)__builtin_ctz(sectors),
        .min_io_size = (uint16_t)sectors,
        .writeback = 1,
        .num_queues = LIMIT_VHOST_QUEUES,
    };
    if (node->read_only)
        return;
    uint32_t most = (uint32_t)(VIRTIO_BLK_RANGE_BYTES / IMAGE_SECTOR_BYTES);
    config->max_write_zeroes_sectors = most;
    config->max_write_zeroes_seg = VIRTIO_BLK_RANGES;
    config->write_zeroes_may_unmap = 1;
    if (!node->can_discard)
        return;
    config->max_discard_sectors = most;
    config->max_discard_seg = VIRTIO_BLK_RANGES;
    config->discard_sector_alignment = sectors;
}
