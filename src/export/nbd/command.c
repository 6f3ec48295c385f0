/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "export/nbd/command.h"

#include <errno.h>

#include "base/limits.h"
#include "base/range.h"

bool nbd_command_parse(const uint8_t *bytes, struct nbd_command *command)
{
    command->flags = wire_get16(bytes + 4);
    command->type = wire_get16(bytes + 6);
    command->cookie = wire_get64(bytes + 8);
    command->offset = wire_get64(bytes + 16);
    command->length = wire_get32(bytes + 24);
    return wire_get32(bytes) == NBD_REQUEST_MAGIC;
}

/* What each command may carry, and the transmission flag without which it must not be sent. FUA is legal everywhere. */
static const struct {
    bool known, writes, has_range;
    uint16_t flags, needs;
    enum nbd_error beyond; /* answer to a range outside of the export */
} rules[] = {
    [NBD_CMD_READ] = {true, false, true, NBD_CMD_FLAG_DF, 0, NBD_EINVAL},
    [NBD_CMD_WRITE] = {true, true, true, 0, 0, NBD_ENOSPC},
    [NBD_CMD_FLUSH] = {true, false, false, 0, NBD_FLAG_SEND_FLUSH, NBD_EINVAL},
    [NBD_CMD_TRIM] = {true, true, true, 0, NBD_FLAG_SEND_TRIM, NBD_EINVAL},
    [NBD_CMD_CACHE] = {true, false, true, 0, NBD_FLAG_SEND_CACHE, NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {true, true, true, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              NBD_FLAG_SEND_WRITE_ZEROES, NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {true, false, true, NBD_CMD_FLAG_REQ_ONE, 0, NBD_EINVAL},
};

enum nbd_error nbd_command_check(const struct nbd_command *command, const struct nbd_terms *terms)
{
    uint16_t type = command->type;
    if (type >= sizeof rules / sizeof rules[0] || !rules[type].known)
        return NBD_EINVAL;
    if (command->flags & ~(rules[type].flags | NBD_CMD_FLAG_FUA))
        return NBD_EINVAL;
    if ((command->flags & NBD_CMD_FLAG_DF) && !terms->structured)
        return NBD_EINVAL;
    if (rules[type].writes && (terms->flags & NBD_FLAG_READ_ONLY))
        return NBD_EPERM;
    if (rules[type].needs & ~terms->flags)
        return NBD_EINVAL;
    if (!rules[type].has_range)
        return command->offset || command->length ? NBD_EINVAL : NBD_SUCCESS;
    if (!range_within((struct range){command->offset, command->length}, terms->size_bytes))
        return rules[type].beyond;
    if ((type == NBD_CMD_READ || type == NBD_CMD_WRITE) && command->length > LIMIT_NBD_TRANSFER_BYTES)
        return NBD_EINVAL;
    if ((command->flags & NBD_CMD_FLAG_DF) && command->length > LIMIT_NBD_UNFRAGMENTED_BYTES)
        return NBD_EOVERFLOW;
    if (type == NBD_CMD_BLOCK_STATUS && (terms->contexts == 0 || command->length == 0))
        return NBD_EINVAL;
    return NBD_SUCCESS;
}

enum nbd_error nbd_error_of(int code)
{
    switch (code < 0 ? -code : code) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
