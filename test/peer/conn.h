/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* RDMA connections of either end: queue pair, receives, credits, queue. */
#ifndef CONN_H
#define CONN_H

#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

struct cm_event;

/* Whatever a cm id's context points to begins with this. */
struct cm_owner {
    void (*event)(struct cm_owner *owner, const struct cm_event *e);
};
struct cm_event {
    enum rdma_cm_event_type type;
    int status;
    struct rdma_cm_id *id;
    struct rdma_conn_param param;
    uint8_t data[256];
    size_t data_len;
};

struct rdma_cm_id *cm_new(struct cm_owner *owner);

struct conn;
struct conn_ops {
    void (*event)(struct conn *c, const struct cm_event *e);
    void (*message)(struct conn *c, const struct message *m);
    /* It leaves now, with the credits that it carries. */
    void (*posted)(struct conn *c, const struct message *m);
    /* A READ or WRITE has ended. */
    void (*moved)(struct conn *c, void *cookie, bool fine);
    /* It is being destroyed: the queue pair is gone. The conn itself is
     * valid until the loop's round ends. */
    void (*lost)(struct conn *c, const char *why);
};

enum { QUEUE_MAX = 4096, RECEIVE_SIZE = 64 };

struct waiting {
    struct waiting *next;
    struct message m;
};

struct conn {
    struct cm_owner owner;
    const struct conn_ops *ops;
    void *user;
    struct rdma_cm_id *id;
    struct ibv_cq *cq;
    struct ibv_mr *mr;
    uint8_t *receives;
    uint32_t number;
    uint8_t kind, depth, peer;
    unsigned avail, owed;
    unsigned sends, sends_max;
    unsigned moves, moves_max;
    struct waiting *queue;
    bool established; /* the event, or the HELLO, has come */
    bool open;        /* it may post */
    bool held;        /* its completions are left alone */
    bool gone;
    bool disconnect_off; /* destroy without disconnect */
    bool floods;         /* it gives no credits back, and needs none */
    double last_in, pinged;
    uint64_t in[MESSAGE_TYPES], out[MESSAGE_TYPES];
};

/* Makes the queue pair, posts the receives, arms the completion queue. NULL:
 * no resources; the id is then still the caller's. */
struct conn *conn_new(struct rdma_cm_id *id, struct ibv_pd *pd, uint8_t kind,
                      uint8_t depth, unsigned moves, const struct conn_ops *ops,
                      void *user);
void conn_peer(struct conn *c, uint8_t depth);

/* By the rules of credits. */
void conn_say(struct conn *c, const struct message *m);
/* Waits in the queue: replaced by, or removed for, a later one. */
bool conn_fin_queued(const struct conn *c, uint32_t id);
void conn_flush(struct conn *c);
/* `len` bytes against all rules; false when the device refuses. */
bool conn_post_raw(struct conn *c, const uint8_t *data, size_t len);

/* SEND with Invalidate: a PING that takes the other end a tag. */
bool conn_invalidate(struct conn *c, uint32_t stag);
/* PINGs from now on until the other end has enough of it. */
void conn_flood(struct conn *c);

bool conn_move(struct conn *c, enum ibv_wr_opcode opcode, void *local,
               const struct ibv_mr *mr, uint32_t len, uint32_t stag,
               uint64_t to, void *cookie, bool signaled);

void conn_poll(struct conn *c);
void conn_hold(struct conn *c, bool held);
/* Takes what is in the completion queue, disconnects, destroys. */
void conn_destroy(struct conn *c, const char *why);

#endif
