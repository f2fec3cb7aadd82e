/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_siw: what the Soft-iWARP driver needs beyond verbs.
 */
#ifndef RDMA_SIW_H
#define RDMA_SIW_H

#include <infiniband/verbs.h>

/* Call it when a device has been opened, before anything else is made on it.
 * Returns a CQ to be destroyed last of all, or NULL: not siw, or no memory
 * (then a process can have some eighteen connections).
 *
 * Queues are mapped into the process at offsets that the kernel numbers, page
 * by page; libsiw (up to rdma-core 44 at least) takes the offset 0x90000 for
 * "none" and fails, again and again, as the number is free again after each
 * failure. One large queue at the beginning lies across it. */
struct ibv_cq *rdma_siw_guard(struct ibv_context *device);

#endif /* RDMA_SIW_H */
