/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "serve.h"
int serve(const struct sockaddr_storage *local, uint16_t port)
{
    return local == 0 && port;
}
