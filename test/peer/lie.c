/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "lie.h"

#include <stdio.h>
#include <string.h>

#include "jobs.h"
#include "loop.h"
#include "peer.h"

enum {
    WRITES = 1 << KIND_WRITE,
    READS = 1 << KIND_READ,
    BOTH = WRITES | READS
};
enum { AWAY = 1 << 30, SOME = 4096, NUDGE_MS = 100 };

struct lie {
    const char *name;
    unsigned kinds;
    bool mute;
    void (*spoil)(uint8_t *data, uint8_t *len);
    /* Afterwards the client has to end it: the connection or the id. */
    void (*tell)(struct job *j);
    const char *what;
};

/* The connect request. */

static void bad_magic(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[3] ^= 1;
}

static void bad_version(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[4] = 2;
}

static void bad_kind(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[5] = 3;
}

static void other_kind(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[5] ^= KIND_WRITE ^ KIND_READ;
}

static void bad_depth(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[6] = 7;
}

static void bad_token(uint8_t *data, uint8_t *len)
{
    (void)len;
    data[REQUEST_SIZE - 1] ^= 1;
}

static void cut_short(uint8_t *data, uint8_t *len)
{
    (void)data;
    *len = REQUEST_SIZE - 1;
}

static void nothing(uint8_t *data, uint8_t *len)
{
    (void)data;
    *len = 0;
}

/* Messages, with credits of theirs and without any rule. */

static void raw(struct job *j, const struct message *m, size_t len)
{
    uint8_t data[RECEIVE_SIZE] = {0};
    struct conn *c = j->remote->conn;
    wire_put(data, m);
    conn_post_raw(c, data, len);
    c->avail -= c->avail > 0;
    trace("serve id %u lies: type=%u id=%u bytes=%llu len=%u credits=%u",
          j->offer.id, m->type, m->id, (unsigned long long)m->bytes, m->len,
          m->credits);
}

static void message(struct job *j, struct message m)
{
    raw(j, &m, MESSAGE_SIZE);
}

static void ping(struct job *j)
{
    message(j, (struct message){.type = PING});
}

static void hello(struct job *j)
{
    message(j, (struct message){.type = HELLO});
}

static void bad_type(struct job *j)
{
    message(j, (struct message){.type = MESSAGE_TYPES, .id = j->offer.id});
}

static void wrong_type(struct job *j)
{
    message(j, (struct message){.type = CONSUMED, .id = j->offer.id});
}

static void other_type(struct job *j)
{
    message(j, (struct message){.type = j->remote->kind == KIND_WRITE ? OFFER
                                                                      : WRITTEN,
                                .id = j->offer.id,
                                .bytes = 2 * SOME,
                                .len = SOME,
                                .to = SOME});
}

static void short_message(struct job *j)
{
    raw(j, &(struct message){.type = PING}, MESSAGE_SIZE - 1);
}

static void long_message(struct job *j)
{
    raw(j, &(struct message){.type = PING}, MESSAGE_SIZE + 1);
}

static void zero_id(struct job *j)
{
    message(j, (struct message){.type = ABORT});
}

static void huge_id(struct job *j)
{
    message(j, (struct message){.type = ABORT, .id = 0x80000000u});
}

static void unknown_id(struct job *j)
{
    message(j, (struct message){.type = ABORT, .id = 2147483646});
}

static void extra_credits(struct job *j)
{
    message(j, (struct message){.type = PONG, .credits = 255});
}

static void flood(struct job *j)
{
    conn_flood(j->remote->conn);
}

static void disconnect(struct job *j)
{
    conn_destroy(j->remote->conn, "lie: disconnect");
}

/* Heads. */

static void write_head(struct job *j)
{
    char field[128];
    snprintf(field, sizeof field, "v=1, id=%u, conn=%u, write;total=%llu",
             j->offer.id, j->remote->number, (unsigned long long)j->size);
    job_head(j, field, "Content-Length: 0");
    job_http_over(j);
}

/* All of the body lies there, or the beginning of a stream. */
static void read_head(struct job *j, uint64_t len, uint32_t stag, uint64_t to,
                      bool all)
{
    char field[256], extra[32] = ";fin";
    if (!all) {
        snprintf(extra, sizeof extra, ";total=%llu",
                 (unsigned long long)j->size);
    }
    snprintf(field, sizeof field,
             "v=1, id=%u, conn=%u, "
             "read;stag=\"%08x\";to=\"%016llx\";len=%llu%s",
             j->offer.id, j->remote->number, stag, (unsigned long long)to,
             (unsigned long long)len, extra);
    job_head(j, field,
             all ? "Content-Length: 0" : "Transfer-Encoding: chunked");
    if (all) {
        job_http_over(j);
    }
}

static void whole_head(struct job *j)
{
    if (j->remote->kind == KIND_WRITE) {
        write_head(j);
    }
    else {
        read_head(j, j->size, j->mr->rkey, (uintptr_t)j->memory, true);
    }
}

static void first_head(struct job *j)
{
    if (j->remote->kind == KIND_WRITE) {
        write_head(j);
    }
    else {
        read_head(j, j->size / 2, j->mr->rkey, (uintptr_t)j->memory, false);
    }
}

static void silence(struct job *j)
{
    conn_hold(j->remote->conn, true); /* and PINGs are not answered */
    j->server_last = true;
    first_head(j);
}

/* Windows. */

static void put(struct job *j, uint32_t n, uint32_t stag, uint64_t to)
{
    trace("serve id %u lies: WRITE of %u bytes at window + %lld", j->offer.id,
          n, (long long)(to - j->offer.to));
    conn_move(j->remote->conn, IBV_WR_RDMA_WRITE, j->memory, j->mr, n, stag, to,
              NULL, true);
}

static void written(struct job *j, uint64_t bytes, uint8_t flags)
{
    message(j, (struct message){.type = WRITTEN,
                                .flags = flags,
                                .id = j->offer.id,
                                .bytes = bytes});
}

static void written_falls(struct job *j)
{
    put(j, SOME, j->offer.stag, j->offer.to);
    written(j, SOME, 0);
    written(j, SOME - 1, 0);
}

static void written_beyond(struct job *j)
{
    written(j, j->offer.len + 1, 0);
}

static void written_much(struct job *j)
{
    put(j, (uint32_t)j->size, j->offer.stag, j->offer.to);
    written(j, j->size + 1, FLAG_FIN);
    write_head(j);
}

static void written_little(struct job *j)
{
    put(j, (uint32_t)j->size - 1, j->offer.stag, j->offer.to);
    written(j, j->size - 1, FLAG_FIN);
    write_head(j);
}

static void write_before(struct job *j)
{
    put(j, SOME, j->offer.stag, j->offer.to - SOME);
}

static void write_beyond(struct job *j)
{
    put(j, SOME, j->offer.stag, j->offer.to + j->offer.len - SOME / 2);
}

static void write_far(struct job *j)
{
    put(j, SOME, j->offer.stag, j->offer.to + AWAY);
}

static void write_tag(struct job *j)
{
    put(j, SOME, j->offer.stag ^ 0x00ffff00u, j->offer.to);
}

/* Parts. */

static void offer(struct job *j, uint64_t bytes, uint32_t len, uint64_t to,
                  uint8_t flags)
{
    message(j, (struct message){.type = OFFER,
                                .flags = flags,
                                .id = j->offer.id,
                                .bytes = bytes,
                                .stag = j->mr->rkey,
                                .len = len,
                                .to = to});
}

static void offer_nothing(struct job *j)
{
    offer(j, j->size / 2, 0, 0, 0);
}

static void offer_wraps(struct job *j)
{
    offer(j, j->size, SOME, UINT64_MAX - SOME + 1, 0);
}

static void offer_all(struct job *j)
{
    offer(j, SOME, SOME, (uintptr_t)j->memory, 0);
}

static void offer_gap(struct job *j)
{
    offer(j, 2 * SOME, SOME, (uintptr_t)j->memory + SOME, 0);
    offer(j, 2 * SOME + 1, 0, 0, FLAG_FIN);
}

static void offer_third(struct job *j)
{
    offer(j, 2 * SOME, SOME, (uintptr_t)j->memory + SOME, 0);
    offer(j, 3 * SOME, SOME, (uintptr_t)j->memory + 2 * SOME, 0);
}

static void offer_little(struct job *j)
{
    offer(j, j->size / 2, 0, 0, FLAG_FIN);
    first_head(j);
}

static void part_tag(struct job *j)
{
    read_head(j, j->size, j->mr->rkey ^ 0x00ffff00u, (uintptr_t)j->memory,
              true);
}

static void part_far(struct job *j)
{
    read_head(j, j->size, j->mr->rkey, (uintptr_t)j->memory + AWAY, true);
}

static void part_huge(struct job *j)
{
    read_head(j, UINT32_MAX, j->mr->rkey, (uintptr_t)j->memory, true);
}

static const struct lie lies[] = {
    {"connect-magic", BOTH, false, bad_magic, NULL, "another magic"},
    {"connect-version", BOTH, false, bad_version, NULL, "version 2"},
    {"connect-kind", BOTH, false, bad_kind, NULL, "kind 3"},
    {"connect-other", BOTH, false, other_kind, NULL, "the other kind"},
    {"connect-depth", BOTH, false, bad_depth, NULL, "7 receives"},
    {"connect-token", BOTH, false, bad_token, NULL, "another token"},
    {"connect-short", BOTH, false, cut_short, NULL, "23 bytes"},
    {"connect-bare", BOTH, false, nothing, NULL, "no private data"},
    {"no-hello", BOTH, true, NULL, whole_head, "a head, and never HELLO"},
    {"late-hello", BOTH, true, NULL, ping, "PING before HELLO"},
    {"second-hello", BOTH, false, NULL, hello, "HELLO again"},
    {"bad-type", BOTH, false, NULL, bad_type, "a message of type 8"},
    {"wrong-type", BOTH, false, NULL, wrong_type, "CONSUMED, from the server"},
    {"other-type", BOTH, false, NULL, other_type, "what the other kind says"},
    {"bad-length", BOTH, false, NULL, short_message, "31 bytes"},
    {"long-message", BOTH, false, NULL, long_message, "33 bytes"},
    {"zero-id", BOTH, false, NULL, zero_id, "ABORT of id 0"},
    {"huge-id", BOTH, false, NULL, huge_id, "ABORT of id 2^31"},
    {"unknown-id", BOTH, false, NULL, unknown_id, "ABORT of an id to come"},
    {"extra-credits", BOTH, false, NULL, extra_credits, "PONG, 255 credits"},
    {"flood", BOTH, false, NULL, flood, "PINGs, and no credit in return"},
    {"disconnect", BOTH, false, NULL, disconnect, "the connection's end"},
    {"silence", BOTH, false, NULL, silence, "a head, and nothing more"},
    {"written-falls", WRITES, false, NULL, written_falls,
     "WRITTEN of a byte less than before"},
    {"written-beyond", WRITES, false, NULL, written_beyond,
     "WRITTEN beyond the window"},
    {"written-much", WRITES, false, NULL, written_much,
     "WRITTEN(fin) beyond the body"},
    {"written-little", WRITES, false, NULL, written_little,
     "WRITTEN(fin) before the body's end"},
    {"write-before", WRITES, false, NULL, write_before,
     "WRITE before the window"},
    {"write-beyond", WRITES, false, NULL, write_beyond,
     "WRITE over the window's end"},
    {"write-far", WRITES, false, NULL, write_far,
     "WRITE 1 GiB behind the window"},
    {"write-tag", WRITES, false, NULL, write_tag, "WRITE with another tag"},
    {"offer-nothing", READS, false, NULL, offer_nothing,
     "OFFER of no byte, without fin"},
    {"offer-wraps", READS, false, NULL, offer_wraps, "OFFER round the end"},
    {"offer-all", READS, false, NULL, offer_all, "OFFER of the body's begin"},
    {"offer-gap", READS, false, NULL, offer_gap, "OFFER(fin) behind a gap"},
    {"offer-third", READS, false, NULL, offer_third, "three parts at once"},
    {"offer-little", READS, false, NULL, offer_little,
     "OFFER(fin) before the body's end"},
    {"part-tag", READS, false, NULL, part_tag, "a part with another tag"},
    {"part-far", READS, false, NULL, part_far, "a part 1 GiB away"},
    {"part-huge", READS, false, NULL, part_huge, "a part of 4 GiB"},
};
enum { LIES = sizeof lies / sizeof *lies };

const struct lie *lie_find(const char *name, uint8_t kind)
{
    size_t n = strcspn(name, "&");
    for (size_t i = 0; i < LIES; i++) {
        if (strlen(lies[i].name) == n && memcmp(lies[i].name, name, n) == 0
            && (lies[i].kinds & 1u << kind) != 0) {
            return &lies[i];
        }
    }
    return NULL;
}

void lie_connect(const struct lie *l, uint8_t *data, uint8_t *len)
{
    if (l->spoil != NULL) {
        l->spoil(data, len);
    }
}

bool lie_is_mute(const struct lie *l)
{
    return l->mute;
}

/* siw can overlook what comes while its end is still accepting, until something
 * else does. */
static void nudge(void *arg)
{
    struct remote *r = arg;
    uint8_t data[MESSAGE_SIZE];
    if (r->conn != NULL && !r->conn->held) {
        wire_put(data, &(struct message){.type = PING});
        conn_post_raw(r->conn, data, sizeof data);
    }
}

bool lie_tell(struct job *j)
{
    if (j->lie->tell == NULL) {
        return false;
    }
    j->stage = RUNNING;
    if (!job_memory(j, j->size,
                    j->remote->kind == KIND_WRITE ? IBV_ACCESS_LOCAL_WRITE
                                                  : IBV_ACCESS_REMOTE_READ)) {
        conn_destroy(j->remote->conn, "no memory to lie with");
        return true;
    }
    job_stamps(j->memory, 0, j->size, j->seed);
    if (job_option(j, "early") != NULL) {
        first_head(j);
    }
    j->lie->tell(j);
    if (j->lie->tell != whole_head) { /* whose silence is the lie */
        loop_timer(NUDGE_MS, nudge, j->remote);
    }
    return true;
}

void lie_help(void)
{
    puts("Lies of a server (GET /SEED/SIZE?lie=NAME; with &early after a"
         " head):");
    for (size_t i = 0; i < LIES; i++) {
        printf("  %-16s %s\n", lies[i].name, lies[i].what);
    }
}
