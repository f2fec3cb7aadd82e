/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_version: the one place that says which version this is.
 */
#ifndef RDMA_VERSION_H
#define RDMA_VERSION_H

#define MOD_RDMA_VERSION "0.1.0"

#endif /* RDMA_VERSION_H */
