/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * transfer: one id, as the client sees it, from the request to the moment when
 * its window may be used again.
 *
 *     SENT --message--> BOUND --head--> TAKING --all there--> DONE
 *      |                  |               |
 *      | given up         |    given up, ABORT, connection lost, D3
 *      v                  v               v
 *    ASIDE --message--> WAIT_LAST --the server's last word, or the QP is
 *                                   gone--> FAILED; DONE if by TCP
 *
 * (PROTOCOL.md, "The client's states for one id", has every arrow.)
 *
 * Here is no I/O: the endpoint's thread feeds in what has happened (messages,
 * completions, lost connections), asks what is due (the next word, the next
 * READ) and does it; the application's thread feeds in the head and takes
 * bytes. Every function is called with the endpoint's lock held.
 *
 * Whose memory: the window is the client's in DONE and FAILED only, and only
 * when no READ is in flight. See PROTOCOL.md, "Whose memory, when".
 */
#ifndef RDMAHTTP_TRANSFER_H
#define RDMAHTTP_TRANSFER_H

#include <stddef.h>
#include <stdint.h>

#include "../rdma_conn.h"
#include "../rdma_hdr.h"

#define RDMAHTTP_TRANSFER_WHY 160 /* bytes of an explanation */

/* How long the server may take for its last word after our ABORT. */
#define RDMAHTTP_TRANSFER_GRACE ((rdma_conn_time)5 * 1000000)

/* A slow sink is reported at least so often: the server must see that bytes are
 * being taken. */
#define RDMAHTTP_TRANSFER_REPORT ((rdma_conn_time)1 * 1000000)

#define RDMAHTTP_PARTS 2 /* outstanding, at most: PROTOCOL.md, 9.2 */

typedef enum rdmahttp_state {
    RDMAHTTP_SENT,
    RDMAHTTP_BOUND,
    RDMAHTTP_TAKING,
    RDMAHTTP_ASIDE,
    RDMAHTTP_WAIT_LAST,
    RDMAHTTP_DONE,
    RDMAHTTP_FAILED
} rdmahttp_state;

const char *rdmahttp_state_name(rdmahttp_state state);

/* An RDMA connection that the endpoint has accepted. The endpoint's thread owns
 * it; a transfer points to the one that it is bound to until the QP is gone. */
typedef struct rdmahttp_peer {
    struct rdmahttp_peer *next;
    struct rdmahttp_endpoint *ep;
    rdma_conn *conn;
    uint32_t number;
    rdma_hdr_kind kind;
    int open;              /* HELLO has come */
    int closed;            /* nothing comes or goes any more; to be destroyed */
    int doomed;            /* to be closed by the endpoint's thread */
    int stalled;           /* no READ can be posted before one has completed */
    rdma_conn_time opened; /* accepted: HELLO is due soon after */
    rdma_conn_time asked;  /* by a PING that has no answer yet; 0: not */
} rdmahttp_peer;

struct rdmahttp_transfer;

/* A stretch of the body in the server's memory. */
typedef struct rdmahttp_part {
    uint64_t from, end; /* body offsets */
    uint32_t stag;
    uint64_t to;
} rdmahttp_part;

/* A READ in flight. The wr is first: the completion hands it back. */
typedef struct rdmahttp_read {
    rdma_conn_wr wr;
    struct rdmahttp_transfer *t;
    uint64_t from; /* body offset */
    uint32_t len;
    int busy;
    int done; /* completed, waits for an earlier one */
} rdmahttp_read;

typedef struct rdmahttp_word {
    rdma_conn_wr wr; /* the SEND of our last word */
    struct rdmahttp_transfer *t;
    int busy;
} rdmahttp_word;

typedef struct rdmahttp_transfer {
    struct rdmahttp_transfer *next; /* the endpoint's list */
    struct rdmahttp_endpoint *ep;
    rdmahttp_state state;
    uint32_t id;
    rdma_hdr_kind offered[2];

    /* The window, or for READs the ring that they go into. */
    unsigned window; /* the endpoint's index */
    int has_window;  /* it is still this transfer's */
    char *base;
    uint64_t len;

    /* Which connection. */
    rdmahttp_peer *peer; /* NULL: not bound, or its QP is gone */
    uint32_t conn;       /* 0: not bound */
    rdma_hdr_kind kind;

    /* What the head said. */
    int head;   /* it has come */
    int by_tcp; /* it said that the body comes by TCP */
    int stream; /* it is W2 or R2: HTTP stays open as long as the body */
    int has_total;
    uint64_t total; /* bytes */

    /* READ: what is announced and not covered by a CONSUMED of ours, in the
     * body's order. Before the head has come, its part is missing. */
    rdmahttp_part part[RDMAHTTP_PARTS];
    unsigned parts;

    /* Where it stands; body offsets, in bytes, each <= the one before. */
    uint64_t announced; /* by WRITTEN, OFFER or the head */
    uint64_t posted;    /* READ: asked for */
    uint64_t arrived;   /* in our memory, all before it too */
    uint64_t consumed;  /* with the sink */
    uint64_t reported;  /* last CONSUMED */
    rdma_conn_time reported_at;
    int fin; /* announced is the whole body */

    int they_said; /* the server's last word has come */
    int we_said;   /* ours is queued or sent */
    int abort;     /* an ABORT is due, for this reason */
    uint32_t reason;
    int qp_gone; /* the connection's QP has been destroyed */
    int broken;  /* will not be by RDMA */
    int wrong;   /* because the server broke the protocol */
    char why[RDMAHTTP_TRANSFER_WHY]; /* then: for people */
    rdma_conn_time deadline; /* in WAIT_LAST: then the connection has to go */
    int released;            /* the application has let go of it */
    /* The application waits: call this, once, when something has moved. */
    void (*waker)(void *baton);
    void *waker_baton;
    int waiting;

    unsigned reads; /* in flight */
    rdmahttp_read read[RDMA_CONN_READS];
    rdmahttp_word word;
} rdmahttp_transfer;

/* For the endpoint's log: every change of state passes here. */
void rdmahttp_endpoint_changed(const rdmahttp_transfer *t,
                               rdmahttp_state before, const char *why);

/* ---- what has happened ------------------------------------------------- */

/* A message for this id has come on peer. 0, or -1: the peer broke the
 * protocol, or came second: its connection has to go. */
int rdmahttp_transfer_message(rdmahttp_transfer *t, rdmahttp_peer *peer,
                              const rdma_hdr_msg *m);

/* A head that can be read names conn; peer NULL: it is gone. Whatever else is
 * wrong with the head, we know whom to say ABORT to. */
void rdmahttp_transfer_bind(rdmahttp_transfer *t, uint32_t conn,
                            rdmahttp_peer *peer);

/* The head says that the body comes by RDMA, in one piece or as a stream; peer
 * is the connection it names, NULL if it is no more; it may be closed. Bound
 * before. 0, or -1: the response has failed, t->why says why, and the transfer
 * is given up. */
int rdmahttp_transfer_head(rdmahttp_transfer *t, const rdma_hdr_response *resp,
                           int stream, rdmahttp_peer *peer);

/* The head says that the body comes by TCP; with declined=failed, which names a
 * connection, bound before. */
void rdmahttp_transfer_declined(rdmahttp_transfer *t);

/* No more of this: for reason (rdma_hdr_abort), because why. Harmless when it
 * is over already. */
void rdmahttp_transfer_give_up(rdmahttp_transfer *t, uint32_t reason,
                               const char *why);

/* Its connection is closed; its connection's QP is no more. */
void rdmahttp_transfer_lost(rdmahttp_transfer *t);
void rdmahttp_transfer_qp_gone(rdmahttp_transfer *t);

void rdmahttp_transfer_read_done(rdmahttp_transfer *t, rdmahttp_read *r,
                                 int ok);
/* The READ could not be posted. */
void rdmahttp_transfer_read_undo(rdmahttp_transfer *t, rdmahttp_read *r);

/* The application has taken n bytes more. */
void rdmahttp_transfer_consume(rdmahttp_transfer *t, uint64_t n);

/* ---- what is due ------------------------------------------------------- */

/* 1: say *m now (if *last, it is our last word), else 0. */
int rdmahttp_transfer_next_word(rdmahttp_transfer *t, rdma_hdr_msg *m,
                                int *last);

/* 1: a word or a READ is due; by the clock alone a word may be later on. */
int rdmahttp_transfer_due(const rdmahttp_transfer *t);

/* The READ to post now, into t->base + *at from *to by *stag; NULL: none. */
rdmahttp_read *rdmahttp_transfer_next_read(rdmahttp_transfer *t, uint64_t *at,
                                           uint64_t *to, uint32_t *stag);

/* Bytes that the application may take now, in one piece; *at is where. */
size_t rdmahttp_transfer_ready(const rdmahttp_transfer *t, const char **at);
/* 1: nothing to take, and the server need not have more: the source of a stream
 * may be thinking. */
int rdmahttp_transfer_quiet(const rdmahttp_transfer *t);
/* 1: the application has taken all, and all is proved. */
int rdmahttp_transfer_complete(const rdmahttp_transfer *t);
/* 1: the window may be used again. */
int rdmahttp_transfer_idle(const rdmahttp_transfer *t);
/* 1: nothing refers to it or will. */
int rdmahttp_transfer_over(const rdmahttp_transfer *t);

#endif /* RDMAHTTP_TRANSFER_H */
