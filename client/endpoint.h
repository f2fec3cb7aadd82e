/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * endpoint: the client's side of RDMA for one origin: a listener on one local
 * address, a token, a protection domain, windows, ids, the connections that
 * the server has made, and the thread that serves them all.
 *
 * Threads. The endpoint's thread alone calls rdma_conn: it accepts, receives,
 * speaks, posts READs and destroys. Applications' threads change transfers
 * under the endpoint's lock and wake it. Lock order: a connection's lock, then
 * the endpoint's; no function of rdma_conn is called with the endpoint's held.
 */
#ifndef RDMAHTTP_ENDPOINT_H
#define RDMAHTTP_ENDPOINT_H

#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

#include "log.h"
#include "rdmahttp.h"
#include "transfer.h"

typedef struct rdmahttp_endpoint rdmahttp_endpoint;

/* Listen on local (its port is ignored). Out of windows, descriptors, memory
 * or without a device: -1, and why (RDMAHTTP_TEXT_MAX bytes) says what. conf
 * outlives the endpoint. */
int rdmahttp_endpoint_open(const rdmahttp_conf *conf,
                           const struct sockaddr_storage *local,
                           rdmahttp_endpoint **out, char *why);

/* Every transfer has been released. Lets queued last words go, for a second at
 * most, then disconnects. */
void rdmahttp_endpoint_close(rdmahttp_endpoint *ep);

/* The local address as a literal. */
const char *rdmahttp_endpoint_address(const rdmahttp_endpoint *ep);

/* We have an HTTP connection to this address (a literal) for this origin: RDMA
 * from there is welcome. */
void rdmahttp_endpoint_expect(rdmahttp_endpoint *ep, const char *address);

/* A new id with a window. NULL: no window is free, out of memory, or the device
 * has gone. */
rdmahttp_transfer *rdmahttp_endpoint_begin(rdmahttp_endpoint *ep);
/* The application has done with it; it may live on until it is over. */
void rdmahttp_endpoint_release(rdmahttp_endpoint *ep, rdmahttp_transfer *t);

/* The request field for it into buf (RDMA_HDR_FORMAT_MAX bytes), and, for
 * people, without token and tag, into masked (the same). 0 or -1. */
int rdmahttp_endpoint_field(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                            char *buf, char *masked);

/* The transfer functions of the same names, with the endpoint's lock and what
 * follows from them. */
/* bind: -1: no such connection was ever accepted. */
int rdmahttp_endpoint_bind(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           uint32_t conn);
int rdmahttp_endpoint_head(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           const rdma_hdr_response *resp, int stream);
void rdmahttp_endpoint_declined(rdmahttp_endpoint *ep, rdmahttp_transfer *t);
void rdmahttp_endpoint_give_up(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                               uint32_t reason, const char *why);

/* So many bytes of the body are there, or offered, as the server has said by
 * RDMA. */
uint64_t rdmahttp_endpoint_announced(rdmahttp_endpoint *ep,
                                     const rdmahttp_transfer *t);

/* From now on, until it is released: after RDMAHTTP_TAKE_WAIT call waker, once
 * and by any thread, when there may be more. It must not call us. */
void rdmahttp_endpoint_watch(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                             void (*waker)(void *baton), void *baton);

typedef enum rdmahttp_taken {
    RDMAHTTP_TAKE_WAIT,   /* nothing is there now */
    RDMAHTTP_TAKE_MORE,   /* some was; look again */
    RDMAHTTP_TAKE_ALL,    /* complete */
    RDMAHTTP_TAKE_FAILED, /* the transfer is given up, t->why says why */
    RDMAHTTP_TAKE_WRONG,  /* the same, and the server broke the protocol */
    RDMAHTTP_TAKE_LEFT    /* write() said no; the same */
} rdmahttp_taken;

/* Hand to write(), in order, what has come of the body, and some of it only;
 * never waits. *deadline is 0 at first: it is when the transfer is given up for
 * want of progress. It does not run while the source of a stream may be
 * thinking, which is never so when closing is 1: HTTP has ended. */
rdmahttp_taken
rdmahttp_endpoint_take(rdmahttp_endpoint *ep, rdmahttp_transfer *t, int closing,
                       rdma_conn_time *deadline,
                       int (*write)(void *baton, const void *bytes, size_t n),
                       void *baton);

#endif /* RDMAHTTP_ENDPOINT_H */
