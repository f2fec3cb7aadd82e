/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_siw.h"

#define SIW_VENDOR  0x626d74 /* of struct ibv_device_attr */
#define GUARD_BYTES 0x91000  /* one page more than the offset in question */
#define CQE_BYTES   32

struct ibv_cq *rdma_siw_guard(struct ibv_context *device)
{
    struct ibv_device_attr attr;

    if (ibv_query_device(device, &attr) || attr.vendor_id != SIW_VENDOR) {
        return NULL;
    }
    return ibv_create_cq(device, GUARD_BYTES / CQE_BYTES, NULL, NULL, 0);
}
