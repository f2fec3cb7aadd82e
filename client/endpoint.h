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

/* A new id with a window. NULL: no window is free, or out of memory. */
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
                           const rdma_hdr_response *resp);
void rdmahttp_endpoint_declined(rdmahttp_endpoint *ep, rdmahttp_transfer *t);
void rdmahttp_endpoint_give_up(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                               uint32_t reason, const char *why);

/* Take the body: hand every byte to write() in order. 0: complete. -1: the
 * transfer has failed and is given up, t->why says why. -2: write() said no. */
int rdmahttp_endpoint_take(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           int (*write)(void *baton, const void *bytes,
                                        size_t n),
                           void *baton);

#endif /* RDMAHTTP_ENDPOINT_H */
