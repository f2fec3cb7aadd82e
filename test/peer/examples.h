/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* Replays the worked examples of the protocol's document. */
#ifndef EXAMPLES_H
#define EXAMPLES_H

int examples_run(const char *path);

#endif
