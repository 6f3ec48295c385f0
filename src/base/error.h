/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors of the control path: one sentence that names the thing, the value and what would be right, and an errno that
 * says of which kind it is. The data path returns 0 or -errno and carries no sentence.
 */
#ifndef FLEECE_BASE_ERROR_H
#define FLEECE_BASE_ERROR_H

#include "base/limits.h"

struct error {
    int code; /* errno of its kind, positive; 0: no error */
    char text[LIMIT_ERROR_BYTES];
};

/* Sets *err (unless NULL) and returns -code, so that callers can `return error_set(...)`. No newline, no final dot. */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Puts "text: " before the sentence that is there. Returns -err->code. */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The field's words for an errno ("No space left on device"), thread-safe. */
const char *error_name(int code);

#endif
