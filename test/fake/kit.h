/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * kit: both sides of the engine's tests. The server's side drives rdma_cache and
 * rdma_body as the output filter does; the client is a listener with a thread,
 * built on rdma_conn_accept(), that can be told to misbehave.
 *
 * Locks: a connection's, then the kit's. No function here may be called with
 * either held unless it says so.
 */
#ifndef KIT_H
#define KIT_H

#include <check.h>
#include <pthread.h>

#include "../../rdma_body.h"
#include "../../rdma_cache.h"
#include "../../rdma_count.h"
#include "common.h"
#include "fake.h"

#define KIT_MS      ((rdma_conn_time)1000)
#define KIT_SECOND  ((rdma_conn_time)1000000)
#define KIT_PATIENT (20 * KIT_SECOND) /* a test that waits so long has failed */
#define KIT_WINDOW  ((size_t)24 * 1024 * 1024) /* bytes */
#define KIT_BODIES  512
#define KIT_CONNS   64

/* ---- the client -------------------------------------------------------- */

/* What it does with a connect request. */
typedef enum kit_manner {
    KIT_ACCEPT,
    KIT_REJECT,      /* busy */
    KIT_HOLD,        /* lets it lie until the manner changes */
    KIT_BAD_ACCEPT,  /* conn 0 */
    KIT_SPEAK_FIRST, /* accepts, and sends before HELLO */
    KIT_LEAVE        /* accepts, and disconnects */
} kit_manner;

typedef struct kit_offer {
    uint64_t bytes, to;
    uint32_t stag, len;
    int fin;
} kit_offer;

#define KIT_OFFERS 4 /* remembered; two may be outstanding, and an empty one */

typedef struct kit_heard {
    uint32_t id;
    uint64_t written;
    int fin; /* WRITTEN(fin) or OFFER(fin) */
    kit_offer offers[KIT_OFFERS]; /* a ring */
    unsigned noffers;             /* ever */
    int aborted;
    uint32_t reason;
} kit_heard;

typedef struct kit_client kit_client;

typedef struct kit_conn {
    kit_client *client;
    rdma_conn *conn; /* lives as long as the client */
    uint32_t number;
    int open, closed; /* the handler has been told */
    rdma_conn_cause cause;
} kit_conn;

struct kit_client {
    struct sockaddr_in addr;
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    rdma_mem *mem;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct ibv_comp_channel *channel;
    struct ibv_pd *pd;
    rdma_mem_region window; /* the server may write */
    rdma_mem_region sink;   /* for READs */
    rdma_mem_region page;   /* for raw SENDs */
    unsigned nraw;          /* that went, of all connections */
    pthread_t thread;
    int wake_fd;
    pthread_mutex_t gate; /* held: the thread does nothing */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    int quit;
    kit_manner manner;
    unsigned depth;  /* of the connections it accepts; 0: as ours */
    int mute;        /* answers nothing: no CONSUMED, no ABORT */
    unsigned nconns; /* that were accepted */
    unsigned nopen;  /* that are */
    unsigned nreqs;  /* connect requests that it has seen */
    kit_conn conns[KIT_CONNS];
    kit_heard heard[KIT_BODIES];
    unsigned nheard;
    struct rdma_cm_id *held[8];
    rdma_hdr_connect held_req[8];
    unsigned nheld;
};

/* By kit_client_new(), which sees to the end, too. */
kit_client *kit_client_make(const char *addr);
void kit_client_free(kit_client *c);
uint16_t kit_client_port(const kit_client *c);
/* Also judges anew the requests that it holds. */
void kit_client_manner(kit_client *c, kit_manner manner);
void kit_client_mute(kit_client *c, int mute);
void kit_client_pause(kit_client *c, int on);

/* The n-th connection (0 and up), once it is OPEN. */
kit_conn *kit_client_conn(kit_client *c, unsigned n);
/* Wait for what has been heard of an id; fails the test if it does not come. */
/* [kit locked] The entry of an id, made if need be. */
kit_heard *kit_entry(kit_client *c, uint32_t id);
kit_heard kit_heard_of(kit_client *c, uint32_t id); /* so far */
kit_heard kit_await_fin(kit_client *c, uint32_t id);
kit_heard kit_await_abort(kit_client *c, uint32_t id);
void kit_await_closed(kit_client *c, unsigned n);
void kit_await_requests(kit_client *c, unsigned n);
/* Until so many WRITEs of the server are stuck on their way to this connection,
 * which is frozen. */
void kit_await_stuck(kit_client *c, unsigned n, unsigned stuck);

/* [kit locked] Sleep for a change; the test fails if none comes. */
void kit_sleep_on(kit_client *c, const char *what);

void kit_say(kit_conn *k, rdma_hdr_type type, uint32_t id, uint64_t bytes,
             unsigned flags);
/* Send these bytes, around all rules. */
void kit_send_raw(kit_conn *k, const void *bytes, size_t len);
void kit_disconnect(kit_conn *k);
/* Its first connection stops (1: it hears and says nothing) or goes on; or ends,
 * by the client's word or without one. */
void kit_freeze(kit_client *c, int on);
/* It is frozen, but takes one more thing. */
void kit_crawl(kit_client *c);
void kit_lose(kit_client *c, int politely);
/* Confirm one byte after the other, each in good time, until the server says
 * ABORT. Returns what has been heard then. */
kit_heard kit_say_crumbs(kit_client *c, uint32_t id);

/* READ len bytes of the server's part to sink + at. 0, or -1. */
int kit_read(kit_conn *k, const rdma_hdr_response *head, size_t at);

/* ---- what may be read -------------------------------------------------- */

/* The server has told this client that it may READ so many bytes there, with which
 * its body has come to `end`. */
void kit_lend(const kit_client *c, uint32_t id, uint64_t end, uint32_t stag,
              uint64_t to, size_t len);
/* Before the client says so: it needs what ends there or before no longer; last:
 * nothing of the id. */
void kit_returned(const kit_client *c, uint32_t id, uint64_t bytes, int last);
/* The test fails if somebody may still read these bytes, or the device may look at
 * them or change them. */
void kit_check_is_free(const char *at, size_t len);
void kit_close_book(void);

/* ---- the server -------------------------------------------------------- */

#define KIT_CLIENTS 48

typedef struct kit_server {
    rdma_cache_conf conf;
    rdma_cache *cache; /* NULL: not there, or stopped */
    kit_client *clients[KIT_CLIENTS];
    unsigned nclients;
    unsigned logged[100]; /* lines, by id */
    unsigned pongs;       /* that the server has said */
} kit_server;

/* Of the running test; kit_setup() and kit_teardown() are its fixtures. conf
 * may be changed before kit_go(). */
extern kit_server kit;

void kit_setup(void);
void kit_go(void);
/* A client at this address, which ends with the test. */
kit_client *kit_client_new(const char *addr);
/* Both: the client that most tests have is at 192.0.2.1. */
kit_client *kit_go_with_client(void);
/* Before kit_go(): how long the server waits for progress, and for the end. */
void kit_deadlines(rdma_conn_time each);
/* After it: they are long from now on, since what follows has to succeed. */
void kit_be_patient(void);
void kit_stop(void); /* hard */
/* What this process has counted. */
uint64_t kit_count(rdma_count_id id);
/* Stop the cache and free the clients, and prove that nothing is left. */
void kit_teardown(void);
/* Tests with these fixtures. */
TCase *kit_group(Suite *s, const char *name);

/* One request, step by step as the filter takes them. */
typedef struct kit_work {
    kit_client *client;
    rdma_hdr_kind kind;
    uint32_t id;
    uint64_t total;
    uint32_t stag;   /* of the window */
    size_t at;       /* the window's, or sink's, offset */
    uint64_t window; /* bytes of the window that are offered */
    int stream;      /* in any case */
    int unknown;     /* the server is not told total */
    uint64_t pause;  /* bytes after which the source pauses; 0: it does not */
    int lazy;        /* the client confirms as seldom as it may */
    rdma_conn_time nap; /* ... and sleeps after each bite */

    rdma_cache_slot *slot;
    rdma_body_set *set;
    rdma_body *body;
    uint64_t filled;
    rdma_hdr_declined why; /* of acquire, wait and open */
    const char *step;      /* the one that failed, or NULL */
    uint32_t conn; /* abandoned, or used twice: what declined=failed names */
    rdma_hdr_response head;
    int headed; /* it is out; under the client's lock */
    int over;   /* the server is through with it; likewise */
    pthread_t thread; /* of kit_run() */
} kit_work;

extern const rdma_hdr_kind kit_kinds[2]; /* for tests that loop over both */

kit_work kit_request(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                     uint64_t total);
/* The endpoint that it is for. */
rdma_cache_target kit_target(const kit_client *c, rdma_hdr_kind kind);
/* 0, or -1 with w->step; what has been taken by then is given back. */
int kit_begin(kit_work *w); /* acquire, wait, use_id */
int kit_open(kit_work *w);
int kit_fill(kit_work *w, uint64_t bytes);
int kit_flush(kit_work *w);
int kit_finish(kit_work *w);
void kit_abandon(kit_work *w, rdma_hdr_abort why);
/* All of them, with w->pause; w->over at the end. */
int kit_serve(kit_work *w);
void *kit_serve_thread(void *work);
/* The same from kit_open() on. */
void *kit_go_on_thread(void *work);

/* All steps up to the first so many bytes; none of them may fail. */
void kit_start(kit_work *w, uint64_t bytes);
/* These steps (kit_serve_thread, or alike) on a thread of its own; wait for their
 * end. What is in w stays where it is meanwhile. */
void kit_run(kit_work *w, void *(*steps)(void *work));
void kit_join(kit_work *w);
/* Stop the client, and run a worker that has more to WRITE than can go then: it
 * waits when this returns. */
void kit_get_stuck(kit_work *w, kit_client *c, uint32_t id);

/* Run a worker whose client, a new one at this address, is in a black hole. */
void kit_fall_in(kit_work *w, const char *addr);

typedef struct kit_gang {
    kit_work works[24];
    unsigned n;
} kit_gang;
/* n workers, each with a body of its own and its slice of the window. */
void kit_gang_send(kit_gang *g, kit_client *c, rdma_hdr_kind kind, unsigned n,
                   uint32_t first_id, uint64_t total);
void kit_gang_join(kit_gang *g);

/* The client's part: take the body, compare it, say the last word. */
void kit_take(kit_work *w);
/* What is left of a body that was started, and take it. */
void kit_complete(kit_work *w);
/* Join the gang, and take all of its bodies. */
void kit_gang_take(kit_gang *g);
/* A request that is served whole, and not taken yet: of kind read, a lease. */
kit_work kit_lease(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                   uint64_t total);
/* ... and taken. */
kit_work kit_pass(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                  uint64_t total);
/* The same, without haste, until nothing is left of it. All that it needed is
 * there again, and the client has had so many connections. */
void kit_next_works(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                    unsigned nconns);
/* A request that the server turns down at this step, for this reason. */
void kit_declined(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                  uint64_t total, const char *step, rdma_hdr_declined why);
/* Compare what lies in window or sink. 1: it is the body. */
int kit_body_is_right(const kit_work *w);

/* The same for a stream, while it is served: bites of so many bytes (0: all there
 * is), each compared and confirmed, until the end or until at least so many have
 * been taken, the last of which are not confirmed. Returns how many. */
uint64_t kit_take_stream(kit_work *w, uint64_t bite, uint64_t most);
/* Serve it on a thread and take all of it. */
void kit_pass_stream(kit_work *w, uint64_t bite);
/* 1: these are the body's bytes from there on. */
int kit_piece_is_right(const kit_work *w, uint64_t from, size_t n,
                       const char *at);

/* Wait until the server has called rdma_connect() for this client. */
void kit_await_connect(const kit_client *c);
/* Wait until the cache has n slots (connections, and those in the making). */
void kit_await_slots(unsigned n);
/* ... until nothing is kept of the device. */
void kit_await_no_devices(void);
/* ... until no id is open. */
void kit_await_no_bodies(void);
/* ... until so many bytes are registered by the server. */
void kit_await_used(unsigned bytes);
unsigned kit_used(void);
/* ... until every block of the pool is free. Nobody else takes one meanwhile. */
void kit_await_all_blocks(void);
/* ... both: what bodies of this kind have used has come back. */
void kit_await_all_back(rdma_hdr_kind kind);
/* Until a worker sleeps for completions of the one connection; have it look. */
void kit_await_sleeper(void);
void kit_rouse_sleeper(void);
/* For how long a client that has failed will be left alone; no longer. */
rdma_conn_time kit_backed_off(kit_client *c, rdma_hdr_kind kind);
/* Its address has not answered a connect. */
int kit_is_suspect(kit_client *c);
void kit_age_back_off(kit_client *c, rdma_hdr_kind kind);
/* So is the pause after a want of resources. */
void kit_end_pause(void);
/* The channel of completions of the first device reports an error from now on. */
void kit_break_channel(void);
/* The progress thread does nothing until this is called with 0. */
void kit_stop_progress(int on);
/* As if the server's connections had been silent for so long. */
void kit_age(rdma_conn_time by);

#endif /* KIT_H */
