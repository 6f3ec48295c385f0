/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors that somebody else has made and sent us. Any thread. */
#ifndef FLEECE_IO_STRANGER_H
#define FLEECE_IO_STRANGER_H

#include <stdbool.h>

/* Whether nobody can keep us waiting by it: not when it is looked at, waited for or mapped, nor when it is closed. Does not
 * ask whom it belongs to. */
bool stranger_is_harmless(int fd);

#endif
