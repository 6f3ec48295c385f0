/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The shared memory operations of the reactor: tmpfs files, with a name or without. Any thread. */
#ifndef FLEECE_IO_SHM_H
#define FLEECE_IO_SHM_H

#include "io/io.h"

int shm_create(struct io *io, struct io_shm *shm, const struct io_shm_name *name, uint64_t reserve_bytes,
               struct error *err);
int shm_adopt(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err);
void shm_remove(struct io *io, const struct io_shm_name *name);
int shm_grow(struct io *io, struct io_shm *shm, struct range range);
void shm_populate(struct io *io, struct io_shm *shm, struct range range);
void shm_punch(struct io *io, struct io_shm *shm, struct range range);
void shm_destroy(struct io *io, struct io_shm *shm);

#endif
