/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Fuzzes whole connections, either end: the real state machines of the server
 * (rdma_conn, rdma_body) or of the client (endpoint, transfer) against a peer, a
 * device and a clock that do what the input says. The first byte picks the end.
 * conn_server.c and conn_client.c say what each may never do.
 */
#include "conn_stub.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    conn_input(data, size);
    conn_reset();
    if (conn_byte() & 1)
        conn_fuzz_client();
    else
        conn_fuzz_server();
    return 0;
}
