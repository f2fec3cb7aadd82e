/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * log: lines for people, through the application's function.
 */
#ifndef RDMAHTTP_LOG_H
#define RDMAHTTP_LOG_H

#include "rdmahttp.h"

/* One line; level as in rdmahttp.h. What a terminal would act on, or is not
 * ASCII, becomes a question mark. */
void rdmahttp_log(const rdmahttp_conf *conf, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put asterisks in the place of an RDMA field's token, steering tag and address:
 * whoever knows them can write to memory. */
void rdmahttp_log_mask(char *field);

#endif /* RDMAHTTP_LOG_H */
