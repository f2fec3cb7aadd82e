/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_hdr: every byte that the two ends exchange, and nothing else.
 *
 *   - the RDMA header field, request and response form (RFC 9651 Dictionary)
 *   - the private data of connect request, accept and reject
 *   - the 32-byte messages
 *
 * docs/PROTOCOL.md is the normative text. This file is pure: no I/O, no
 * allocation, no logging, no global state, nothing but rdma_sfv (which is the
 * same), <string.h> and inet_pton. Every function may be called by any
 * thread. Input is never trusted: a parser takes a pointer and a length, reads
 * not one byte beyond, and leaves *out untouched unless it returns RDMA_HDR_OK.
 */
#ifndef RDMA_HDR_H
#define RDMA_HDR_H

#include <stddef.h>
#include <stdint.h>

#define RDMA_HDR_VERSION    1
#define RDMA_HDR_FIELD      "RDMA" /* field name and connection option */
#define RDMA_HDR_TOKEN_LEN  16
#define RDMA_HDR_ADDR_MAX   46   /* longest canonical literal, with its NUL */
#define RDMA_HDR_FIELD_MAX  4096 /* a longer field value is malformed */
#define RDMA_HDR_FORMAT_MAX 256  /* room for any field value that we write */
#define RDMA_HDR_PORT_MIN   1024
#define RDMA_HDR_PORT_MAX   65535
#define RDMA_HDR_ID_MAX     0x7fffffffu
#define RDMA_HDR_WINDOW_MAX ((uint64_t)1 << 40) /* bytes, PROTOCOL.md */
#define RDMA_HDR_TOTAL_MAX  999999999999999u    /* an RFC 9651 Integer */
#define RDMA_HDR_DEPTH_MIN  8
#define RDMA_HDR_DEPTH_MAX  255

typedef enum rdma_hdr_status {
    RDMA_HDR_OK = 0,
    RDMA_HDR_MALFORMED, /* not the grammar, or a value outside its range */
    RDMA_HDR_UNVERSION, /* well formed, but asks for a later version */
    RDMA_HDR_NOSPACE    /* format only: the buffer is too small */
} rdma_hdr_status;

/* A connection and an offer are of one kind. The values are on the wire. */
typedef enum rdma_hdr_kind {
    RDMA_HDR_NONE = 0,
    RDMA_HDR_WRITE = 1, /* server-write: the server RDMA-WRITEs */
    RDMA_HDR_READ = 2   /* client-read: the client RDMA-READs */
} rdma_hdr_kind;

/* The tokens of "declined", a closed list. */
typedef enum rdma_hdr_declined {
    RDMA_HDR_NOT_DECLINED = 0,
    RDMA_HDR_SMALL,
    RDMA_HDR_POLICY,
    RDMA_HDR_CONNECT,
    RDMA_HDR_BUSY,
    RDMA_HDR_MEMORY,
    RDMA_HDR_TLS,
    RDMA_HDR_DECLINED_MALFORMED,
    RDMA_HDR_DECLINED_VERSION,
    RDMA_HDR_WINDOW,
    RDMA_HDR_DEVICE,
    RDMA_HDR_FAILED,
    RDMA_HDR_DECLINED_COUNT
} rdma_hdr_declined;

/* "small", "policy", ...; NULL for RDMA_HDR_NOT_DECLINED or no such value. */
const char *rdma_hdr_declined_name(rdma_hdr_declined why);

/* ---- the request field ------------------------------------------------- */

typedef struct rdma_hdr_request {
    uint16_t port;    /* the client's RDMA listener */
    int family;       /* of addr: 0 absent, 4 or 6 */
    uint8_t addr[16]; /* network order; 4 bytes used for family 4 */
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    uint32_t id;             /* 1 .. RDMA_HDR_ID_MAX */
    rdma_hdr_kind prefer[2]; /* the client's order; NONE: not offered */
    uint32_t stag;           /* the window, when WRITE is offered */
    uint64_t to;             /* bytes: its tagged offset */
    uint64_t len;            /* bytes: 1 .. RDMA_HDR_WINDOW_MAX */
} rdma_hdr_request;

/* Parse a request field value (several field lines joined by ", ", RFC 9110,
 * 5.3) of n bytes. RDMA_HDR_OK, RDMA_HDR_MALFORMED, or RDMA_HDR_UNVERSION when
 * "v" is a valid Integer greater than RDMA_HDR_VERSION (then nothing else is
 * judged but the grammar of RFC 9651). */
rdma_hdr_status rdma_hdr_parse_request(const char *field, size_t n,
                                       rdma_hdr_request *out);

/* Write the field value, NUL-terminated, into buf of size bytes. RDMA_HDR_OK;
 * RDMA_HDR_NOSPACE, and buf is an empty string; or RDMA_HDR_MALFORMED when *req
 * could not be parsed back, and buf is untouched. What the request does not
 * offer (addr with family 0, the window without WRITE) is not looked at. */
rdma_hdr_status rdma_hdr_format_request(const rdma_hdr_request *req, char *buf,
                                        size_t size);

/* 1 if this kind is offered, else 0. */
int rdma_hdr_offers(const rdma_hdr_request *req, rdma_hdr_kind kind);

/* 1 if addr is there, and can be one other host's wherever it is used: no
 * unspecified, multicast, broadcast or reserved address, no loopback, and none that
 * only one link knows. */
int rdma_hdr_names_a_host(const rdma_hdr_request *req);

/* ---- the response field ------------------------------------------------ */

typedef struct rdma_hdr_response {
    uint32_t id;                /* 0: absent (declined=malformed, version) */
    uint32_t conn;              /* 0: absent; see below */
    rdma_hdr_declined declined; /* NOT_DECLINED: by RDMA, see kind */
    rdma_hdr_kind kind;         /* NONE when declined */
    int has_total;
    uint64_t total; /* bytes of the whole content, if has_total */
    uint32_t stag;  /* READ: the part named in the head */
    uint64_t to;
    uint64_t len; /* READ: bytes, 1 .. UINT32_MAX */
    int fin;      /* READ: this part is the whole body */
} rdma_hdr_response;

/* As the request functions. A field that is no form of PROTOCOL.md's table is
 * RDMA_HDR_MALFORMED, in both directions: conn is there with write, read and
 * RDMA_HDR_FAILED, and with nothing else (0: nothing was or will be posted); id
 * is there always, but with DECLINED_MALFORMED and DECLINED_VERSION; total is at
 * least len, and equal to it with fin. */
rdma_hdr_status rdma_hdr_parse_response(const char *field, size_t n,
                                        rdma_hdr_response *out);
rdma_hdr_status rdma_hdr_format_response(const rdma_hdr_response *resp,
                                         char *buf, size_t size);

/* ---- private data ------------------------------------------------------ */

#define RDMA_HDR_CONNECT_LEN 24
#define RDMA_HDR_ACCEPT_LEN  12
#define RDMA_HDR_REJECT_LEN  1

/* Why a client refuses a connection. The values are on the wire. */
typedef enum rdma_hdr_reject {
    RDMA_HDR_REJECT_NONE = 0, /* no reason was given */
    RDMA_HDR_REJECT_MALFORMED = 1,
    RDMA_HDR_REJECT_VERSION = 2,
    RDMA_HDR_REJECT_TOKEN = 3,
    RDMA_HDR_REJECT_KIND = 4,
    RDMA_HDR_REJECT_DEPTH = 5,
    RDMA_HDR_REJECT_BUSY = 6,
    RDMA_HDR_REJECT_ADDRESS = 7
} rdma_hdr_reject;

/* For people: "wrong token" and so on; never NULL. */
const char *rdma_hdr_reject_name(rdma_hdr_reject why);

typedef struct rdma_hdr_connect {
    rdma_hdr_kind kind;
    uint8_t depth; /* receives that the server has posted */
    uint8_t token[RDMA_HDR_TOKEN_LEN];
} rdma_hdr_connect;

typedef struct rdma_hdr_accept {
    rdma_hdr_kind kind;
    uint8_t depth; /* receives that the client has posted */
    uint32_t conn; /* 1 and up */
} rdma_hdr_accept;

void rdma_hdr_put_connect(const rdma_hdr_connect *in,
                          uint8_t out[RDMA_HDR_CONNECT_LEN]);
/* n may be more than RDMA_HDR_CONNECT_LEN: rxe pads; the rest is ignored.
 * Returns RDMA_HDR_REJECT_NONE when *out is good, else MALFORMED, VERSION,
 * KIND or DEPTH: what the client answers with. The token is not judged. */
rdma_hdr_reject rdma_hdr_get_connect(const void *data, size_t n,
                                     rdma_hdr_connect *out);
void rdma_hdr_put_accept(const rdma_hdr_accept *in,
                         uint8_t out[RDMA_HDR_ACCEPT_LEN]);
/* The same; conn 0 is MALFORMED. That the kind is the one that was asked for is
 * the caller's to check. */
rdma_hdr_reject rdma_hdr_get_accept(const void *data, size_t n,
                                    rdma_hdr_accept *out);
void rdma_hdr_put_reject(rdma_hdr_reject why, uint8_t out[RDMA_HDR_REJECT_LEN]);
/* RDMA_HDR_REJECT_NONE when there is no byte or no such reason. */
rdma_hdr_reject rdma_hdr_get_reject(const void *data, size_t n);

/* 1 if equal, in a time that does not depend on the contents. */
int rdma_hdr_token_equal(const uint8_t a[RDMA_HDR_TOKEN_LEN],
                         const uint8_t b[RDMA_HDR_TOKEN_LEN]);

/* ---- messages ---------------------------------------------------------- */

#define RDMA_HDR_MSG_LEN 32

typedef enum rdma_hdr_type {
    RDMA_HDR_HELLO = 1,
    RDMA_HDR_WRITTEN = 2,
    RDMA_HDR_OFFER = 3,
    RDMA_HDR_CONSUMED = 4,
    RDMA_HDR_ABORT = 5,
    RDMA_HDR_PING = 6,
    RDMA_HDR_PONG = 7
} rdma_hdr_type;

#define RDMA_HDR_FIN 0x01u /* the one flag */

/* ABORT's reasons, in msg.len; for people and counters, never for decisions.
 * An unknown one is valid. */
typedef enum rdma_hdr_abort {
    RDMA_HDR_ABORT_UNSPECIFIED = 0,
    RDMA_HDR_ABORT_CANCELLED = 1,  /* the application or the HTTP peer left */
    RDMA_HDR_ABORT_TIMEOUT = 2,    /* no progress within the deadline */
    RDMA_HDR_ABORT_LEASE = 3,      /* the lease has run out: give it back */
    RDMA_HDR_ABORT_CONTENT = 4,    /* the content could not be made or taken */
    RDMA_HDR_ABORT_SHUTDOWN = 5,   /* this end is stopping */
    RDMA_HDR_ABORT_UNKNOWN_ID = 6, /* this id is given up or failed here */
    RDMA_HDR_ABORT_ANSWER = 7      /* answers the other end's ABORT */
} rdma_hdr_abort;

typedef struct rdma_hdr_msg {
    uint8_t type;     /* rdma_hdr_type */
    uint8_t flags;    /* RDMA_HDR_FIN */
    uint16_t credits; /* receives posted again since the last message */
    uint32_t id;
    uint64_t bytes; /* cumulative body bytes: WRITTEN, OFFER, CONSUMED */
    uint32_t stag;  /* OFFER */
    uint32_t len;   /* OFFER: bytes; ABORT: reason */
    uint64_t to;    /* OFFER */
} rdma_hdr_msg;

/* Fields that the type does not use are sent as 0, whatever *in has there. */
void rdma_hdr_put_msg(const rdma_hdr_msg *in, uint8_t out[RDMA_HDR_MSG_LEN]);

/* n is the completion's byte count. RDMA_HDR_OK, or RDMA_HDR_MALFORMED: a
 * length other than RDMA_HDR_MSG_LEN, an unknown type, an id outside 1 ..
 * RDMA_HDR_ID_MAX in a message that carries one, an OFFER whose to + len wraps,
 * whose len is greater than its bytes, or is 0 without fin. Fields that the type
 * does not use (an OFFER's stag and to when its len is 0), and unknown flags,
 * are set to 0, whatever came. */
rdma_hdr_status rdma_hdr_get_msg(const void *data, size_t n, rdma_hdr_msg *out);

/* "HELLO", "WRITTEN", ...; "?" for no such type. */
const char *rdma_hdr_type_name(unsigned type);
/* "write", "read", "none". */
const char *rdma_hdr_kind_name(rdma_hdr_kind kind);

#endif /* RDMA_HDR_H */
