/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The numbers of vhost-user (QEMU's docs/interop/vhost-user.rst) and of VIRTIO 1.2 that a front-end for a block device
 * needs, written down from these texts and not from src/: a mistake in either reading shows when the two meet.
 * All integers are little-endian, and so are the machines that run these tests.
 */
#ifndef TESTS_VHOST_WIRE_H
#define TESTS_VHOST_WIRE_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs below are the bytes of the wire");

enum {
    MSG_GET_FEATURES = 1,
    MSG_SET_FEATURES,
    MSG_SET_OWNER,
    MSG_RESET_OWNER,
    MSG_SET_MEM_TABLE,
    MSG_SET_LOG_BASE,
    MSG_SET_LOG_FD,
    MSG_SET_VRING_NUM,
    MSG_SET_VRING_ADDR,
    MSG_SET_VRING_BASE,
    MSG_GET_VRING_BASE,
    MSG_SET_VRING_KICK,
    MSG_SET_VRING_CALL,
    MSG_SET_VRING_ERR,
    MSG_GET_PROTOCOL_FEATURES,
    MSG_SET_PROTOCOL_FEATURES,
    MSG_GET_QUEUE_NUM,
    MSG_SET_VRING_ENABLE,
    MSG_SET_BACKEND_REQ_FD = 21,
    MSG_GET_CONFIG = 24,
    MSG_SET_CONFIG = 25,
    MSG_GET_INFLIGHT_FD = 31,
    MSG_SET_INFLIGHT_FD = 32,
    MSG_RESET_DEVICE = 34,
    MSG_GET_MAX_MEM_SLOTS = 36,
    MSG_ADD_MEM_REG = 37,
    MSG_REM_MEM_REG = 38,
    MSG_SET_STATUS = 39,
    MSG_GET_STATUS = 40,
};

enum { WIRE_VERSION = 1, WIRE_REPLY = 4, WIRE_NEED_REPLY = 8, WIRE_HEADER_BYTES = 12, WIRE_PAYLOAD_MAX = 512 };

/* Bits of GET_PROTOCOL_FEATURES. */
enum {
    PROTOCOL_MQ = 0,
    PROTOCOL_LOG_SHMFD = 1,
    PROTOCOL_REPLY_ACK = 3,
    PROTOCOL_BACKEND_REQ = 5,
    PROTOCOL_CONFIG = 9,
    PROTOCOL_INFLIGHT_SHMFD = 12,
    PROTOCOL_RESET_DEVICE = 13,
    PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
    PROTOCOL_STATUS = 16,
};

/* Bits of GET_FEATURES: the block device's, the ring's and the transport's. */
enum {
    FEATURE_SEG_MAX = 2,
    FEATURE_RO = 5,
    FEATURE_BLK_SIZE = 6,
    FEATURE_FLUSH = 9,
    FEATURE_TOPOLOGY = 10,
    FEATURE_MQ = 12,
    FEATURE_DISCARD = 13,
    FEATURE_WRITE_ZEROES = 14,
    FEATURE_LOG_ALL = 26,
    FEATURE_INDIRECT = 28,
    FEATURE_EVENT_IDX = 29,
    FEATURE_PROTOCOL = 30,
    FEATURE_VERSION_1 = 32,
    FEATURE_PACKED = 34,
};

/* The word of SET_VRING_KICK, _CALL and _ERR: the ring's index, and whether no descriptor comes with it. */
enum { VRING_NO_FD = 0x100 };

struct wire_header {
    uint32_t request, flags, size;
};

struct wire_state {
    uint32_t index, num;
};

struct wire_addr {
    uint32_t index, flags;
    uint64_t descriptor, used, available, log; /* user addresses, but the log's */
};

enum { WIRE_LOG_USED = 1 }; /* a flag of SET_VRING_ADDR */

struct wire_log {
    uint64_t size, offset;
};

struct wire_region {
    uint64_t guest, size, user, offset;
};

struct wire_memory {
    uint32_t count, padding;
    struct wire_region regions[8];
};

struct wire_one_region {
    uint64_t padding;
    struct wire_region region;
};

struct wire_config {
    uint32_t offset, size, flags;
    uint8_t bytes[256];
};

/* 24 bytes: QEMU sends the padding behind the last field, too. */
struct wire_inflight {
    uint64_t size, offset;
    uint16_t queues, queue_size;
    uint32_t padding;
};

/* Split rings. */
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct split_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct split_used_element {
    uint32_t id, len;
};

/* Packed rings. */
enum { DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };
enum { EVENTS_ENABLE, EVENTS_DISABLE, EVENTS_DESC };

struct packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id, flags;
};

struct packed_event {
    uint16_t desc, flags; /* desc: the position, and the wrap counter in bit 15 */
};

/* The block device. */
enum { SECTOR = 512, BLK_ID_BYTES = 20, BLK_HEADER_BYTES = 16 };

enum {
    BLK_READ = 0,
    BLK_WRITE = 1,
    BLK_FLUSH = 4,
    BLK_GET_ID = 8,
    BLK_DISCARD = 11,
    BLK_WRITE_ZEROES = 13,
};

enum { BLK_OK, BLK_IOERR, BLK_UNSUPP };
enum { BLK_UNMAP = 1 };

struct blk_header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct blk_segment {
    uint64_t sector;
    uint32_t sectors, flags;
};

/* Up to secure erase, which nobody here uses: 60 bytes. */
struct blk_config {
    uint64_t capacity;
    uint32_t size_max, seg_max;
    uint8_t geometry[4];
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));

_Static_assert(sizeof(struct blk_config) == 60, "the layout of VIRTIO 1.2, 5.2.4");
_Static_assert(sizeof(struct wire_inflight) == 24 && sizeof(struct wire_addr) == 40, "as QEMU sends them");

#endif
