/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the server's engine and of the client's endpoint share.
 */
#ifndef COMMON_H
#define COMMON_H

#include <check.h>
#include <stddef.h>
#include <stdint.h>

#include "../../rdma_conn.h"

/* Tests with these fixtures. */
TCase *common_group(Suite *s, const char *name, void (*setup)(void),
                    void (*teardown)(void));
/* Runs the suite, with the seed. Returns what main() returns. */
int common_main(const char *name, void (*add)(Suite *s));

/* SEND these bytes, around all rules, by way of `at`, memory that has this key.
 * Returns 0 or an errno of ibv_post_send(). */
int common_send_raw(rdma_conn *c, void *at, uint32_t lkey, const void *bytes,
                    size_t len);

#endif /* COMMON_H */
