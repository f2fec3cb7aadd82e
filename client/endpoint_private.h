/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The inside of an endpoint, for its two files: endpoint.c (opening, closing,
 * what applications call) and serve.c (its thread). Nobody else includes this.
 */
#ifndef RDMAHTTP_ENDPOINT_PRIVATE_H
#define RDMAHTTP_ENDPOINT_PRIVATE_H

#include <netinet/in.h>
#include <pthread.h>

#include "endpoint.h"

#define RDMAHTTP_ADDRESSES 8 /* of servers that we have HTTP connections to */

typedef struct rdmahttp_window {
    rdma_mem_region region;
    int taken;
} rdmahttp_window;

struct rdmahttp_endpoint {
    const rdmahttp_conf *conf; /* constant from here on */
    char address[INET6_ADDRSTRLEN];
    uint16_t port;
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    size_t window_len;
    unsigned windows;
    rdma_mem *mem;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct ibv_pd *pd;
    struct ibv_cq *guard; /* of rdma_siw */
    struct ibv_comp_channel *channel;
    int wake_fd;
    pthread_t thread;
    int has_thread;
    rdma_conn_time probed; /* the thread's */

    pthread_mutex_t lock; /* guards what follows, and all transfers */
    pthread_cond_t cond;  /* for who closes: a transfer has moved */
    int stop;
    int removed; /* the device is leaving: nothing begins any more */
    uint32_t next_id;
    uint32_t next_number;
    rdmahttp_window *window;
    rdmahttp_transfer *transfers;
    rdmahttp_peer *peers;
    struct sockaddr_storage expected[RDMAHTTP_ADDRESSES];
    unsigned nexpected;
};

void rdmahttp_endpoint_lock(rdmahttp_endpoint *ep);
/* Whoever waits for a transfer looks again. */
void rdmahttp_endpoint_unlock(rdmahttp_endpoint *ep);
/* The endpoint's thread looks for what is due. */
void rdmahttp_endpoint_wake(rdmahttp_endpoint *ep);

/* [locked] Something has happened to the transfer: who waits for it looks. */
void rdmahttp_endpoint_moved(rdmahttp_transfer *t);

/* Same address, whatever the ports; IPv4-mapped counts as IPv4. */
int rdmahttp_endpoint_same(const struct sockaddr *a, const struct sockaddr *b);
/* The literal, in buf; "?" if there is none. */
const char *rdmahttp_endpoint_text(const struct sockaddr *sa, char *buf,
                                   socklen_t size);

/* No connect request comes any more. */
void rdmahttp_endpoint_deaf(rdmahttp_endpoint *ep);
/* Nothing of the device is left; no connection is, and no window is used. */
void rdmahttp_endpoint_let_go(rdmahttp_endpoint *ep);

/* serve.c: the thread; until ep->stop, or the device has been let go of. */
void *rdmahttp_serve(void *ep);
/* After the thread, on its behalf: take what the CM channel still has, and end
 * every connection. */
void rdmahttp_serve_end(rdmahttp_endpoint *ep);

#endif /* RDMAHTTP_ENDPOINT_PRIVATE_H */
