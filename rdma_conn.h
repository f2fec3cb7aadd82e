/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_conn: one RDMA connection, either end.
 *
 * Owns: the CM id, the QP, its two CQs, the receive and send slots, the credits
 * and the queue of messages. Knows nothing of ids, bodies, windows or leases:
 * whoever owns the connection gets the messages through a handler.
 *
 * The server calls rdma_conn_connect(), the client rdma_conn_accept(). HELLO,
 * PING, PONG and the credits are dealt with in here.
 *
 * States (rdma_conn_state), changed in one place, logged through the handler:
 *
 *   CONNECTING --HELLO went / has come--> OPEN --anything final--> CLOSED
 *         \________________________________________________________/
 *
 * Threads. Every connection has a lock. [locked] functions are called with it
 * held; all handler functions and every wr->done are called with it held, and
 * may call [locked] functions, but not rdma_conn_destroy(). A connection has
 * two completion queues, so that nobody's wait takes another's completions:
 *
 *   receive CQ  on a channel of the owner: the owner's thread calls
 *               rdma_conn_receive() for each event
 *   send CQ     reaped by whoever waits in rdma_conn_wait() (a channel of the
 *               connection's own) or, when the owner gave conf->send_channel,
 *               by the owner's thread with rdma_conn_reap()
 *
 * Lock order: the owner's lock, then the connection's, then rdma_mem's.
 */
#ifndef RDMA_CONN_H
#define RDMA_CONN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "rdma_hdr.h"
#include "rdma_mem.h"

#define RDMA_CONN_DEPTH 32 /* receives that we post: our credit */
#define RDMA_CONN_DATA  64 /* WRITEs or READs in flight, at most */
#define RDMA_CONN_READS 4  /* READs in flight: initiator depth */

typedef struct rdma_conn rdma_conn;

/* Monotonic time in microseconds; deadlines are in it. */
typedef int64_t rdma_conn_time;
rdma_conn_time rdma_conn_now(void);
#define RDMA_CONN_NEVER INT64_MAX

typedef enum rdma_conn_state {
    RDMA_CONN_CONNECTING,
    RDMA_CONN_OPEN,
    RDMA_CONN_CLOSED
} rdma_conn_state;

/* Why a connection is CLOSED, or never came up. */
typedef enum rdma_conn_cause {
    RDMA_CONN_CAUSE_NONE = 0,
    RDMA_CONN_CAUSE_LOCAL,       /* we closed it: not needed any more */
    RDMA_CONN_CAUSE_PEER,        /* DISCONNECTED or a flush */
    RDMA_CONN_CAUSE_PROTOCOL,    /* the peer broke PROTOCOL.md */
    RDMA_CONN_CAUSE_TIMEOUT,     /* a deadline passed */
    RDMA_CONN_CAUSE_DEVICE,      /* none for this address, gone, or failing */
    RDMA_CONN_CAUSE_RESOURCES,   /* no memory, descriptors, QPs, memlock */
    RDMA_CONN_CAUSE_UNREACHABLE, /* no route, nobody listens, no answer */
    RDMA_CONN_CAUSE_REJECTED,    /* the client said no: see reject */
    RDMA_CONN_CAUSE_CANCELLED,   /* *cancel was set */
    RDMA_CONN_CAUSE_IDLE,        /* we closed it: nobody has used it for long */
    RDMA_CONN_CAUSE_EVICTED,     /* to make room for another one */
    RDMA_CONN_CAUSE_STOPPING     /* because we stop */
} rdma_conn_cause;

const char *rdma_conn_state_name(rdma_conn_state s);
const char *rdma_conn_cause_name(rdma_conn_cause c);

/* A work request that moves data. Lives in its owner's memory from the post
 * until done() has been called, which happens exactly once for each post that
 * returned 0: at its completion (ok says which), or, if none came, with ok 0 in
 * rdma_conn_destroy() after the QP is gone. */
typedef struct rdma_conn_wr {
    struct rdma_conn_wr *next, *prev; /* the connection's list of them */
    uint32_t len;                     /* bytes of data; the connection's, too */
    void (*done)(struct rdma_conn_wr *wr, rdma_conn *c, int ok);
} rdma_conn_wr;

typedef struct rdma_conn_handler {
    /* WRITTEN, OFFER, CONSUMED or ABORT has come; HELLO has been seen before
     * (client) or said (server). Return 0, or -1: the peer broke the protocol,
     * the connection is closed for it. */
    int (*message)(void *baton, rdma_conn *c, const rdma_hdr_msg *m);
    /* CONNECTING became OPEN. May be NULL. */
    void (*opened)(void *baton, rdma_conn *c);
    /* The state is CLOSED now: no message comes any more (those that had been
     * received were delivered first), nothing can be posted. Work requests are
     * done at the latest in rdma_conn_destroy(). Called once. */
    void (*closed)(void *baton, rdma_conn *c);
    /* Messages are queued, and the peer would take them, but our own SENDs have
     * not completed yet: rdma_conn_reap() is to be called in some milliseconds.
     * May be NULL if the send channel is shared, whose events do that. */
    void (*stalled)(void *baton, rdma_conn *c);
    /* One line for people about this connection; level is syslog's: 3 error, 6
     * info, 7 debug, 8 trace. Never contains a token or an stag. May be NULL. */
    void (*log)(void *baton, rdma_conn *c, int level, const char *line);
} rdma_conn_handler;

typedef struct rdma_conn_conf {
    rdma_hdr_kind kind;
    unsigned depth; /* 0: RDMA_CONN_DEPTH */
    rdma_mem *mem;  /* pays for the slots; outlives the connection */
    /* The protection domain to use on the id's device: called when the device is
     * known. NULL function: the connection allocates one of its own, and frees
     * it when destroyed (read kind at the server). A NULL domain returned:
     * RDMA_CONN_CAUSE_RESOURCES, or, with errno ENODEV, _DEVICE. */
    struct ibv_pd *(*domain)(void *baton, struct rdma_cm_id *id);
    /* The channel for receive completions on that device; non-blocking,
     * borrowed. Its events carry the rdma_conn as context. */
    struct ibv_comp_channel *(*channel)(void *baton, struct rdma_cm_id *id);
    int own_send_channel; /* 1: rdma_conn_wait(); 0: shares channel() */
    int hang_up_later;    /* 1: the owner has a thread that hangs up after
                           * closed(), and destroys; 0: rdma_conn_close() hangs
                           * up, the thread that reads the channels destroys */
    unsigned reads;       /* client, read kind: READs in flight, 1 and up; what
                           * the connect request allows, RDMA_CONN_READS at most
                           */
    const rdma_conn_handler *handler;
    void *baton;
} rdma_conn_conf;

/* ---- making one -------------------------------------------------------- */

typedef struct rdma_conn_target {
    struct sockaddr_storage local;  /* port 0: any */
    struct sockaddr_storage remote; /* with the port */
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    rdma_conn_time deadline;
    /* Looked at before and after every step; set by another thread to give up.
     * rdma_connect() may block in the kernel for minutes: whoever sets it, or
     * sees the deadline pass, also sends the calling thread a signal whose
     * handler lacks SA_RESTART, again and again until this has returned. */
    const int *cancel;
} rdma_conn_target;

typedef struct rdma_conn_failure {
    rdma_conn_cause cause;
    rdma_hdr_reject reject; /* with RDMA_CONN_CAUSE_REJECTED */
    int error;              /* errno, or 0 */
    const char *step;       /* "rdma_connect", ...: static */
    int removed;            /* with RDMA_CONN_CAUSE_DEVICE: it is going away */
} rdma_conn_failure;

/* Server: connect to a client's endpoint, say HELLO. Blocks up to the deadline:
 * for a connector thread only. On success *out is OPEN, its CM id on `events`
 * (the owner reads that channel and calls rdma_conn_event()); conf->baton may
 * get handler calls from this moment on. On failure *out is NULL, *why says
 * why, nothing is held and no handler function but log has been called.
 * Returns 0 or -1. */
int rdma_conn_connect(const rdma_conn_conf *conf, const rdma_conn_target *to,
                      struct rdma_event_channel *events, rdma_conn **out,
                      rdma_conn_failure *why);

/* Client: accept a CONNECT_REQUEST (its event acked, private data judged by the
 * caller). Takes over id on success only; on failure the caller still owns it
 * and rejects. The connection is CONNECTING until HELLO has come; number is
 * `conn` in the accept's private data. Does not block. */
int rdma_conn_accept(const rdma_conn_conf *conf, struct rdma_cm_id *id,
                     const rdma_hdr_connect *req, uint32_t number,
                     rdma_conn **out, rdma_conn_failure *why);

/* ---- using one --------------------------------------------------------- */

void rdma_conn_lock(rdma_conn *c);
void rdma_conn_unlock(rdma_conn *c);

/* Any thread; constant after making. */
rdma_hdr_kind rdma_conn_kind(const rdma_conn *c);
uint32_t rdma_conn_number(const rdma_conn *c);
struct ibv_pd *rdma_conn_pd(const rdma_conn *c);
struct rdma_cm_id *rdma_conn_id(const rdma_conn *c);
void *rdma_conn_baton(const rdma_conn *c);
/* "10.77.0.2:41234 #5 write", for log lines; valid as long as the connection. */
const char *rdma_conn_name(const rdma_conn *c);

/* [locked] */
rdma_conn_state rdma_conn_state_get(const rdma_conn *c);
rdma_conn_cause rdma_conn_cause_get(const rdma_conn *c);
/* [locked] When the peer was last heard of, at first when we were made; 1 if it
 * has ever sent a message. */
rdma_conn_time rdma_conn_heard(const rdma_conn *c);
int rdma_conn_has_spoken(const rdma_conn *c);

/* [locked] Queue a message (m->credits is ours to fill) and send what the
 * credits allow. A queued WRITTEN or CONSUMED of the same id is overwritten:
 * they are cumulative. If sent is not NULL, sent->done() is called when the SEND
 * has completed, as for data; not to be combined with overwriting a message
 * that has one. 0; ENOTCONN: not OPEN; ENOBUFS: more messages queued than the
 * owner's ids can cause, the connection has been closed. */
int rdma_conn_say(rdma_conn *c, const rdma_hdr_msg *m, rdma_conn_wr *sent);

/* [locked] How many messages can be queued now. */
unsigned rdma_conn_queue_room(const rdma_conn *c);

/* [locked] Post one signaled RDMA WRITE of len bytes (1 and up), or an RDMA
 * READ into local memory. 0, also when the device refuses it: then the connection
 * has been closed, and done() is called as for all that was in flight; EAGAIN:
 * RDMA_CONN_DATA (READ: RDMA_CONN_READS) are in flight, wait for one; ENOTCONN. */
int rdma_conn_write(rdma_conn *c, rdma_conn_wr *wr, const void *local,
                    uint32_t lkey, uint32_t len, uint64_t to, uint32_t stag);
int rdma_conn_read(rdma_conn *c, rdma_conn_wr *wr, void *local, uint32_t lkey,
                   uint32_t len, uint64_t to, uint32_t stag);

/* [locked] Bytes of data, ever: that were posted, and whose work requests have
 * completed. A message goes when what was posted before it has completed. */
uint64_t rdma_conn_posted(const rdma_conn *c);
uint64_t rdma_conn_moved(const rdma_conn *c);

/* [locked] Wait until test(arg) is true, the connection is CLOSED, or the
 * deadline has passed; the lock is given up while asleep. Any number of threads
 * may wait: one of them reaps the send CQ for all, without another thread's
 * help. With a shared send channel it only sleeps and is woken by
 * rdma_conn_wake(). 0; ECONNRESET; ETIMEDOUT. test is called [locked], and never
 * again once it has returned true. */
int rdma_conn_wait(rdma_conn *c, int (*test)(void *arg), void *arg,
                   rdma_conn_time deadline);
/* [locked] Something that a test() may look at has changed. */
void rdma_conn_wake(rdma_conn *c);

/* The owner's thread, for each event of the receive channel, before its ack: take
 * what came off the connection's CQ, dispatch messages, arm again. Takes the
 * lock. */
void rdma_conn_receive(rdma_conn *c);
/* [locked] Take send completions, call done(), send what is queued. Needed by
 * nobody who waits; rdma_conn_receive() does it too. */
void rdma_conn_reap(rdma_conn *c);
/* The owner's thread, for each CM event of the connection's id; with
 * hang_up_later before its ack, else after it. Takes the lock. */
void rdma_conn_event(rdma_conn *c, enum rdma_cm_event_type type, int status);

/* [locked] A PING, to be answered within what the owner thinks right. */
int rdma_conn_ping(rdma_conn *c);

/* ---- ending one -------------------------------------------------------- */

/* [locked] What was received is delivered first; then CLOSED, closed() and all
 * waiters woken. Again: nothing. Blocks only if it hangs up itself. */
void rdma_conn_close(rdma_conn *c, rdma_conn_cause why);

/* Not locked, any one thread, once: rdma_disconnect, so that the peer hears that
 * we are CLOSED. It, and what destroy does, may block for as long as the driver
 * likes. Nothing if it has been done. */
void rdma_conn_hang_up(rdma_conn *c);

/* Not locked; nobody uses the connection any more, but the threads that read the
 * owner's channels may still be about to call rdma_conn_event() and
 * rdma_conn_receive() for it, if they ack an event only after that call: this
 * waits for their acks. Closes and hangs up if need be, then: QP (from here on nothing
 * lands or leaves), id, CQs, done(ok 0) for what is in flight, gone(), slots, own
 * domain, channel. gone may be NULL; called between QP and domain: the place to
 * give back memory that the peer could reach. */
void rdma_conn_destroy(rdma_conn *c, void (*gone)(void *arg), void *arg);

#endif /* RDMA_CONN_H */
