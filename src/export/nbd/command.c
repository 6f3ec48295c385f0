/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A request header of 28 bytes, judged by one table: whether the command is known, what it may carry, what an export must
 * have offered for it, and how a range outside is answered. No states; nothing of a command is used before it has been
 * judged. Crashes are the session's affair.
 */
#include "export/nbd/command.h"

#include <errno.h>
#include <stddef.h>

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

static struct nbd_refusal refuse(enum nbd_error error, const char *text)
{
    return (struct nbd_refusal){error, text};
}

static struct nbd_refusal check_rights(const struct nbd_command *command, const struct nbd_terms *terms)
{
    uint16_t type = command->type;
    if (rules[type].writes && (terms->flags & NBD_FLAG_READ_ONLY))
        return refuse(NBD_EPERM, "this export is read-only");
    if (rules[type].writes && terms->releases && type != NBD_CMD_TRIM)
        return refuse(NBD_EPERM, "this export is a snapshot: it can't be written to; TRIM releases blocks of it");
    if (rules[type].needs & ~terms->flags)
        return refuse(NBD_EINVAL, "this export does not take this command");
    return refuse(NBD_SUCCESS, NULL);
}

static struct nbd_refusal check_range(const struct nbd_command *command, const struct nbd_terms *terms)
{
    uint16_t type = command->type;
    if (!range_within((struct range){command->offset, command->length}, terms->size_bytes))
        return refuse(rules[type].beyond, "the range goes beyond the end of the export");
    if ((type == NBD_CMD_READ || type == NBD_CMD_WRITE) && command->length > LIMIT_NBD_TRANSFER_BYTES)
        return refuse(NBD_EINVAL, "longer than the 32 MiB that one command may transfer");
    if ((command->flags & NBD_CMD_FLAG_DF) && command->length > LIMIT_NBD_UNFRAGMENTED_BYTES)
        return refuse(NBD_EOVERFLOW, "longer than the 64 KiB that are sent in one piece");
    if (type == NBD_CMD_BLOCK_STATUS && terms->contexts == 0)
        return refuse(NBD_EINVAL, "no metadata context was selected for this export");
    if (type == NBD_CMD_BLOCK_STATUS && command->length == 0)
        return refuse(NBD_EINVAL, "the status of no bytes was asked for");
    return refuse(NBD_SUCCESS, NULL);
}

struct nbd_refusal nbd_command_check(const struct nbd_command *command, const struct nbd_terms *terms)
{
    uint16_t type = command->type;
    if (type >= sizeof rules / sizeof rules[0] || !rules[type].known)
        return refuse(NBD_EINVAL, "there is no command of this number");
    if (command->flags & ~(rules[type].flags | NBD_CMD_FLAG_FUA))
        return refuse(NBD_EINVAL, "this command does not take these flags");
    if ((command->flags & NBD_CMD_FLAG_DF) && !terms->structured)
        return refuse(NBD_EINVAL, "DF needs structured replies");
    struct nbd_refusal refusal = check_rights(command, terms);
    if (refusal.error)
        return refusal;
    if (rules[type].has_range)
        return check_range(command, terms);
    if (command->offset || command->length)
        return refuse(NBD_EINVAL, "this command takes no range");
    return refuse(NBD_SUCCESS, NULL);
}

/* A released block is the client's mistake, which no retry mends: EINVAL, as QEMU answers it. */
static const struct {
    int code;
    enum nbd_error error;
    const char *text;
} failures[] = {
    {EPERM, NBD_EPERM, NULL},
    {EROFS, NBD_EPERM, NULL},
    {ENOMEM, NBD_ENOMEM, NULL},
    {EINVAL, NBD_EINVAL, NULL},
    {ENODATA, NBD_EINVAL, "blocks of this range were released, or are not in the snapshot's needed set"},
    {ENOSPC, NBD_ENOSPC, NULL},
    {EDQUOT, NBD_ENOSPC, NULL},
    {EFBIG, NBD_ENOSPC, NULL},
    {EOVERFLOW, NBD_EOVERFLOW, NULL},
    {EOPNOTSUPP, NBD_ENOTSUP, NULL},
    {ESHUTDOWN, NBD_ESHUTDOWN, "the export is going away"},
};

struct nbd_refusal nbd_refusal_of(int status, const struct nbd_terms *terms)
{
    if (status == 0)
        return refuse(NBD_SUCCESS, NULL);
    for (size_t i = 0; i < sizeof failures / sizeof failures[0]; i++)
        if (failures[i].code == -status)
            return refuse(failures[i].error, failures[i].text);
    return refuse(NBD_EIO, terms->releases
                               ? "the snapshot is broken, or its disk failed: 'fleece snapshot list' says why"
                               : "the disk failed");
}
