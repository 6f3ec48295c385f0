/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The shared memory operations of the reactor: unlinked tmpfs memory. Any thread. */
#ifndef FLEECE_IO_SHM_H
#define FLEECE_IO_SHM_H

#include "io/io.h"

int shm_create(struct io *io, struct io_shm *shm, uint64_t reserve_bytes, struct error *err);
int shm_grow(struct io *io, struct io_shm *shm, struct range range);
void shm_populate(struct io *io, struct io_shm *shm, struct range range);
void shm_punch(struct io *io, struct io_shm *shm, struct range range);
void shm_destroy(struct io *io, struct io_shm *shm);

#endif
