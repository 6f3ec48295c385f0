// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Where it is written, in the state of August 2026:
 *
 *   QEMU               hw/virtio/vhost-user.c, hw/block/vhost-user-blk.c
 *   cloud-hypervisor   virtio-devices/src/vhost_user/{blk,mod,vu_common_ctrl}.rs; vmm/src/vm_config.rs
 *   Firecracker        src/vmm/src/devices/virtio/vhost_user.rs, block/vhost_user/device.rs
 *   both of these      vhost/src/vhost_user/{frontend,message}.rs of rust-vmm/vhost
 *   crosvm             devices/src/virtio/vhost_user_frontend/, third_party/vmm_vhost/src/backend_client.rs
 *
 * The last three write the bit of "writable" into GET_CONFIG's flags, which the specification calls that of migration.
 * Firecracker's guests flush only with "cache_type": "Writeback"; without, a back-end must be careful itself. crosvm offers
 * its guest as many queues as the back-end has, with up to 32768 descriptors each.
 */
#include <stddef.h>
#include <string.h>

#include "vmm.h"
#include "wire.h"

#define BIT(n) (UINT64_C(1) << (n))

enum {
    FEATURE_SIZE_MAX = 1,
    FEATURE_GEOMETRY = 4,
    FEATURE_CONFIG_WCE = 11,
    FEATURE_IN_ORDER = 35,
    FEATURE_ORDER_PLATFORM = 36,
    FEATURE_NOTIFICATION_DATA = 38,
    FEATURE_SUSPEND = 43,
    PROTOCOL_DEVICE_STATE = 19,
    PROTOCOL_SHMEM = 20,
    CONFIG_FLAG_WRITABLE = 1,
};

#define BLOCK_FEATURES                                                                                             \
    (BIT(FEATURE_SEG_MAX) | BIT(FEATURE_RO) | BIT(FEATURE_BLK_SIZE) | BIT(FEATURE_FLUSH) | BIT(FEATURE_TOPOLOGY) | \
     BIT(FEATURE_MQ) | BIT(FEATURE_DISCARD) | BIT(FEATURE_WRITE_ZEROES))
#define TRANSPORT (BIT(FEATURE_VERSION_1) | BIT(FEATURE_PROTOCOL))
#define FULL_SPEED                                                                                    \
    (TRANSPORT | BIT(FEATURE_FLUSH) | BIT(FEATURE_SEG_MAX) | BIT(FEATURE_MQ) | BIT(FEATURE_DISCARD) | \
     BIT(FEATURE_WRITE_ZEROES) | BIT(FEATURE_EVENT_IDX))

/* Its manners, with and without a cache that is flushed. */
#define FIRECRACKER                                                                                       \
    .queues = 1, .queue_size = 256, .regions = 2, .one_file = true, .config_flags = CONFIG_FLAG_WRITABLE, \
    .owner_first = true, .sizes_first = true, .base_is_available = true

static const struct vmm vmms[] = {
    {
        .name = "qemu",
        .features = TRANSPORT | BLOCK_FEATURES | BIT(FEATURE_INDIRECT) | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_PACKED),
        .protocol = BIT(PROTOCOL_MQ) | BIT(PROTOCOL_REPLY_ACK) | BIT(PROTOCOL_BACKEND_REQ) | BIT(PROTOCOL_CONFIG) |
                    BIT(PROTOCOL_INFLIGHT_SHMFD) | BIT(PROTOCOL_RESET_DEVICE) | BIT(PROTOCOL_CONFIGURE_MEM_SLOTS) |
                    BIT(PROTOCOL_STATUS) | BIT(PROTOCOL_LOG_SHMFD),
        .needs_features = FULL_SPEED | BIT(FEATURE_INDIRECT),
        .needs_protocol = BIT(PROTOCOL_MQ) | BIT(PROTOCOL_CONFIG) | BIT(PROTOCOL_INFLIGHT_SHMFD),
        .queues = 1,
        .queue_size = 128,
        .regions = 1,
        .acks = VMM_ACKS_ORDERS,
        .base_first = true,
        .error_fd = true,
        .resets = true,
        .reconnects = true,
    },
    {
        .name = "cloud-hypervisor",
        .features = TRANSPORT | BLOCK_FEATURES | BIT(FEATURE_SIZE_MAX) | BIT(FEATURE_GEOMETRY) |
                    BIT(FEATURE_CONFIG_WCE) | BIT(FEATURE_INDIRECT) | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_IN_ORDER) |
                    BIT(FEATURE_ORDER_PLATFORM) | BIT(FEATURE_NOTIFICATION_DATA) | BIT(FEATURE_LOG_ALL),
        .protocol = BIT(PROTOCOL_CONFIG) | BIT(PROTOCOL_MQ) | BIT(PROTOCOL_CONFIGURE_MEM_SLOTS) |
                    BIT(PROTOCOL_REPLY_ACK) | BIT(PROTOCOL_INFLIGHT_SHMFD) | BIT(PROTOCOL_LOG_SHMFD) |
                    BIT(PROTOCOL_DEVICE_STATE),
        .needs_features = FULL_SPEED | BIT(FEATURE_INDIRECT),
        .needs_protocol = BIT(PROTOCOL_MQ) | BIT(PROTOCOL_CONFIG) | BIT(PROTOCOL_INFLIGHT_SHMFD) |
                          BIT(PROTOCOL_REPLY_ACK) | BIT(PROTOCOL_CONFIGURE_MEM_SLOTS),
        .queues = 2,
        .queue_size = 128,
        .regions = 2,
        .acks = VMM_ACKS_ANYTHING,
        .config_flags = CONFIG_FLAG_WRITABLE,
        .owner_first = true,
        .sizes_first = true,
        .enable_last = true,
        .base_is_available = true,
        .resets = true,
        .pauses = true,
        .reconnects = true,
        .remembers = true,
    },
    {
        .name = "firecracker",
        .features = TRANSPORT | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_RO) | BIT(FEATURE_FLUSH),
        .protocol = BIT(PROTOCOL_CONFIG),
        .needs_features = TRANSPORT | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_FLUSH),
        .needs_protocol = BIT(PROTOCOL_CONFIG),
        FIRECRACKER,
    },
    {
        .name = "firecracker-unsafe", /* what "cache_type" is when nobody says it */
        .features = TRANSPORT | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_RO),
        .protocol = BIT(PROTOCOL_CONFIG),
        .needs_features = TRANSPORT | BIT(FEATURE_EVENT_IDX),
        .needs_protocol = BIT(PROTOCOL_CONFIG),
        FIRECRACKER,
    },
    {
        .name = "crosvm",
        .features = TRANSPORT | (BIT(24) - 1) | BIT(FEATURE_EVENT_IDX) | BIT(FEATURE_SUSPEND),
        .protocol = BIT(PROTOCOL_CONFIG) | BIT(PROTOCOL_MQ) | BIT(PROTOCOL_BACKEND_REQ) | BIT(PROTOCOL_REPLY_ACK) |
                    BIT(PROTOCOL_DEVICE_STATE) | BIT(PROTOCOL_SHMEM),
        .needs_features = FULL_SPEED,
        .needs_protocol = BIT(PROTOCOL_MQ) | BIT(PROTOCOL_CONFIG),
        .queues = 2,
        .queue_size = 32768,
        .regions = 2,
        .one_file = true,
        .config_flags = CONFIG_FLAG_WRITABLE,
        .config_in_pieces = true,
        .owner_first = true,
        .features_once = true,
        .resets = true,
    },
};

const struct vmm *vmm_at(unsigned n)
{
    return n < sizeof(vmms) / sizeof(vmms[0]) ? &vmms[n] : NULL;
}

const struct vmm *vmm_find(const char *name)
{
    for (unsigned i = 0; vmm_at(i); i++)
        if (strcmp(vmms[i].name, name) == 0)
            return &vmms[i];
    return NULL;
}
