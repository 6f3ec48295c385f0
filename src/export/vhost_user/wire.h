/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The numbers and layouts of vhost-user (QEMU's docs/interop/vhost-user.rst) and of VIRTIO 1.2's block device. Messages are
 * in the byte order of the machine, VIRTIO's structures in little-endian: we run on machines where that is the same.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_WIRE_H
#define FLEECE_EXPORT_VHOST_USER_WIRE_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "VIRTIO 1.x is little-endian, and nothing here swaps bytes");

enum vhost_request_id {
    VHOST_GET_FEATURES = 1,
    VHOST_SET_FEATURES = 2,
    VHOST_SET_OWNER = 3,
    VHOST_RESET_OWNER = 4,
    VHOST_SET_MEM_TABLE = 5,
    VHOST_SET_LOG_BASE = 6,
    VHOST_SET_LOG_FD = 7,
    VHOST_SET_VRING_NUM = 8,
    VHOST_SET_VRING_ADDR = 9,
    VHOST_SET_VRING_BASE = 10,
    VHOST_GET_VRING_BASE = 11,
    VHOST_SET_VRING_KICK = 12,
    VHOST_SET_VRING_CALL = 13,
    VHOST_SET_VRING_ERR = 14,
    VHOST_GET_PROTOCOL_FEATURES = 15,
    VHOST_SET_PROTOCOL_FEATURES = 16,
    VHOST_GET_QUEUE_NUM = 17,
    VHOST_SET_VRING_ENABLE = 18,
    VHOST_SET_BACKEND_REQ_FD = 21,
    VHOST_GET_CONFIG = 24,
    VHOST_SET_CONFIG = 25,
    VHOST_GET_INFLIGHT_FD = 31,
    VHOST_SET_INFLIGHT_FD = 32,
    VHOST_RESET_DEVICE = 34,
    VHOST_GET_MAX_MEM_SLOTS = 36,
    VHOST_ADD_MEM_REG = 37,
    VHOST_REM_MEM_REG = 38,
    VHOST_SET_STATUS = 39,
    VHOST_GET_STATUS = 40,
};

/* The other way, on the socket that SET_BACKEND_REQ_FD has brought. */
enum { VHOST_BACKEND_CONFIG_CHANGE_MSG = 2 };

enum vhost_header_flags {
    VHOST_VERSION = 1,
    VHOST_VERSION_MASK = 3,
    VHOST_REPLY = 4,
    VHOST_NEED_REPLY = 8,
};

enum vhost_protocol_feature { /* bit numbers */
                              VHOST_PROTOCOL_MQ = 0,
                              VHOST_PROTOCOL_LOG_SHMFD = 1,
                              VHOST_PROTOCOL_REPLY_ACK = 3,
                              VHOST_PROTOCOL_BACKEND_REQ = 5,
                              VHOST_PROTOCOL_CONFIG = 9,
                              VHOST_PROTOCOL_INFLIGHT = 12,
                              VHOST_PROTOCOL_RESET_DEVICE = 13,
                              VHOST_PROTOCOL_MEM_SLOTS = 15,
                              VHOST_PROTOCOL_STATUS = 16,
};

enum virtio_feature { /* bit numbers */
                      VIRTIO_BLK_F_SEG_MAX = 2,
                      VIRTIO_BLK_F_RO = 5,
                      VIRTIO_BLK_F_BLK_SIZE = 6,
                      VIRTIO_BLK_F_FLUSH = 9,
                      VIRTIO_BLK_F_TOPOLOGY = 10,
                      VIRTIO_BLK_F_MQ = 12,
                      VIRTIO_BLK_F_DISCARD = 13,
                      VIRTIO_BLK_F_WRITE_ZEROES = 14,
                      VHOST_F_LOG_ALL = 26,
                      VIRTIO_F_ANY_LAYOUT = 27,
                      VIRTIO_F_INDIRECT_DESC = 28,
                      VIRTIO_F_EVENT_IDX = 29,
                      VHOST_F_PROTOCOL_FEATURES = 30,
                      VIRTIO_F_VERSION_1 = 32,
                      VIRTIO_F_RING_PACKED = 34,
};

#define VHOST_BIT(number) (UINT64_C(1) << (number))

struct vhost_header {
    uint32_t request, flags, size;
};

enum { VHOST_HEADER_BYTES = sizeof(struct vhost_header) };

struct vhost_vring_state {
    uint32_t index, num;
};

struct vhost_vring_addr {
    uint32_t index, flags;
    uint64_t descriptors, used, available, log;
};

enum { VHOST_VRING_F_LOG = 1 };

/* The word of SET_VRING_KICK, _CALL and _ERR. */
enum { VHOST_VRING_INDEX_MASK = 0xff, VHOST_VRING_NO_FD = 0x100 };

struct vhost_log {
    uint64_t size, offset;
};

/* A bit of the log is a page of so many bytes, whatever the pages of the machine. */
enum { VHOST_LOG_PAGE = 4096 };

struct vhost_region {
    uint64_t guest_address, size, user_address, offset;
};

struct vhost_memory { /* followed by its regions */
    uint32_t count, padding;
};

struct vhost_one_region {
    uint64_t padding;
    struct vhost_region region;
};

struct vhost_config { /* followed by its bytes */
    uint32_t offset, size, flags;
};

enum { VHOST_CONFIG_MIGRATION = 1 };

/* 20 bytes by the text; 24 on the wire of those who send the struct as their compiler pads it. */
struct vhost_inflight {
    uint64_t size, offset;
    uint16_t queues, queue_size;
};

enum { VHOST_INFLIGHT_BYTES = 20 };

/* The configuration space of the block device, as far as it goes without zones and secure erase. */
struct virtio_blk_config {
    uint64_t capacity; /* sectors of 512 bytes, as all below but where it says otherwise */
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size; /* bytes */
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size; /* blocks of blk_size, as the next one */
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));

_Static_assert(sizeof(struct virtio_blk_config) == 60, "as VIRTIO lays it out");

enum virtio_blk_type {
    VIRTIO_BLK_T_IN = 0,
    VIRTIO_BLK_T_OUT = 1,
    VIRTIO_BLK_T_FLUSH = 4,
    VIRTIO_BLK_T_GET_ID = 8,
    VIRTIO_BLK_T_DISCARD = 11,
    VIRTIO_BLK_T_WRITE_ZEROES = 13,
};

enum virtio_blk_status { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP };

struct virtio_blk_header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct virtio_blk_range { /* of DISCARD and WRITE_ZEROES */
    uint64_t sector;
    uint32_t sectors, flags;
};

enum { VIRTIO_BLK_RANGE_UNMAP = 1 };

enum { VIRTIO_BLK_ID_BYTES = 20 };

#endif
