/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_body: one response body on its way by RDMA, seen from the server: one
 * id, from the reservation of what it needs to both last words.
 *
 * The caller (the output filter, on a worker) sees the same steps for both
 * kinds:
 *
 *      open -> { space -> fill it -> commit } ... -> finish -> send the head
 *        \________________ abandon ______________________/
 *
 *   server-write  space is a block of the pool; commit posts RDMA WRITEs;
 *                 finish says WRITTEN(fin) and waits until it has been sent
 *   client-read   space lies in the connection's arena; finish makes it a
 *                 lease: from then on the progress thread owns the body, no
 *                 worker waits for the client
 *
 * States of an id, PROTOCOL.md: RESERVED -> ACTIVE -> SAID -> CLOSED.
 *
 * Threads: open to finish or abandon belong to one worker; the rest happens on
 * the progress thread under the connection's lock. After finish or abandon the
 * caller's pointer is dead.
 */
#ifndef RDMA_BODY_H
#define RDMA_BODY_H

#include "rdma_cache.h"

typedef struct rdma_body rdma_body;

/* Reserve all that a body of total bytes needs, on this slot, which stays the
 * caller's (the body takes a reference of its own). Waits for the connect if
 * that is still under way. req is copied. RDMA_HDR_NOT_DECLINED with *out, or
 * why not (nothing has been posted): SMALL never; WINDOW: larger than the
 * client's window or than an arena may be; MEMORY; BUSY (also an id used
 * before); CONNECT; DEVICE. */
rdma_hdr_declined rdma_body_open(rdma_cache_slot *slot,
                                 const rdma_hdr_request *req, uint64_t total,
                                 rdma_body **out);

/* Where the next bytes of the body go: *room bytes (1 and up). May wait, at
 * most RdmaTimeout. NULL: the connection or a deadline failed: abandon. */
char *rdma_body_space(rdma_body *b, size_t *room);
/* n bytes of that space have been filled. 0, or -1: abandon. More bytes than
 * total are refused. */
int rdma_body_commit(rdma_body *b, size_t n);

/* All total bytes have been committed. 0: *head says what the response field
 * must say, and the head must now be sent. -1: abandon. */
int rdma_body_finish(rdma_body *b, rdma_hdr_response *head);

/* Give up before finish has succeeded. ABORT if anything was posted. Returns 0
 * if nothing was (the answer is declined=why), else the conn that declined=
 * failed must name. */
uint32_t rdma_body_abandon(rdma_body *b);

/* ---- for rdma_cache, on its progress thread ---------------------------- */

/* [connection locked] The handler's message() and closed(). */
int rdma_body_message(rdma_conn *c, const rdma_hdr_msg *m);
void rdma_body_closed(rdma_conn *c);
/* [connection locked] See to leases. Returns the next deadline. */
rdma_conn_time rdma_body_expire(rdma_conn *c, rdma_conn_time now);

#endif /* RDMA_BODY_H */
