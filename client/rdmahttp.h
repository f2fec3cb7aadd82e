/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * librdmahttp: GET over HTTP, the body by RDMA where both ends can.
 *
 *     rdmahttp_conf conf = RDMAHTTP_CONF_INIT;
 *     rdmahttp *h = rdmahttp_create(&conf);
 *     status = rdmahttp_get(h, "http://server.example/big.iso", NULL, &sink,
 *                           &result);
 *     rdmahttp_result_clear(&result);
 *     rdmahttp_destroy(h);
 *
 * One rdmahttp may be used by several threads; each rdmahttp_get() blocks its
 * caller. It makes one endpoint per origin (an RDMA listener with a token and
 * windows of its own, and a thread), so that no server can name the windows of
 * another. Whatever stands in the way of RDMA, the body comes by TCP, and the
 * result says why.
 *
 * curl_global_init() is the program's business (rdmahttp_create() calls it, and
 * that is safe as long as only one thread runs).
 */
#ifndef RDMAHTTP_H
#define RDMAHTTP_H

#include <stddef.h>
#include <stdint.h>

typedef struct rdmahttp rdmahttp;

typedef enum rdmahttp_mode {
    RDMAHTTP_AUTO = 0, /* write, else read */
    RDMAHTTP_WRITE,    /* server-write only */
    RDMAHTTP_READ,     /* client-read only */
    RDMAHTTP_OFF       /* never */
} rdmahttp_mode;

typedef enum rdmahttp_path {
    RDMAHTTP_BY_TCP = 0,
    RDMAHTTP_BY_WRITE,
    RDMAHTTP_BY_READ
} rdmahttp_path;

/* "tcp", "write", "read". */
const char *rdmahttp_path_name(rdmahttp_path path);

/* Levels of a log line, as syslog's. Lines never contain a token or a steering
 * tag, nor a control character, whatever the server sent. */
#define RDMAHTTP_LOG_WARNING 4
#define RDMAHTTP_LOG_INFO    6 /* fields, status and header lines, connects */
#define RDMAHTTP_LOG_DEBUG   7 /* changes of state */

#define RDMAHTTP_WINDOW      ((size_t)4 * 1024 * 1024)
#define RDMAHTTP_TIMEOUT_MS  30000u
#define RDMAHTTP_CONNECTIONS 64u

typedef struct rdmahttp_conf {
    rdmahttp_mode mode;
    size_t window;     /* bytes of one window; 0: RDMAHTTP_WINDOW */
    unsigned windows;  /* requests at a time per origin; 0: 1 */
    uint16_t port_min; /* listener's port, from 1024; 0: any */
    uint16_t port_max;
    const char *bind_address; /* local IPv4 or IPv6 literal; NULL: by route */
    int over_tls;           /* 1: offer on https, although RDMA is plaintext */
    int any_peer;           /* 1: accept RDMA from any address */
    unsigned timeout_ms;    /* without progress; 0: RDMAHTTP_TIMEOUT_MS */
    unsigned connections;   /* per endpoint; 0: RDMAHTTP_CONNECTIONS */
    const char *user_agent; /* NULL: librdmahttp's */
    /* By any thread, but one line at a time in the process; calls none of us. */
    void (*log)(void *baton, int level, const char *line);
    void *log_baton;
} rdmahttp_conf;

#define RDMAHTTP_CONF_INIT                                                     \
    {                                                                          \
        RDMAHTTP_AUTO, 0, 0, 0, 0, NULL, 0, 0, 0, 0, NULL, NULL, NULL          \
    }

typedef enum rdmahttp_status {
    RDMAHTTP_OK = 0,    /* complete, whatever the HTTP status is */
    RDMAHTTP_EUSAGE,    /* the URL or the configuration is no good */
    RDMAHTTP_EMEMORY,   /* this process is out of something */
    RDMAHTTP_ENETWORK,  /* name, connect, cut, no progress in time */
    RDMAHTTP_ETLS,      /* certificate or handshake */
    RDMAHTTP_EPROTOCOL, /* the server broke HTTP or PROTOCOL.md */
    RDMAHTTP_ESINK,     /* the sink said no */
    RDMAHTTP_ECANCELLED /* options.cancel_fd said so */
} rdmahttp_status;

#define RDMAHTTP_TEXT_MAX 256

typedef struct rdmahttp_result {
    rdmahttp_path path;
    long http;           /* status code; 0: no head came */
    int has_length;      /* the length of the content is known */
    uint64_t length;     /* bytes */
    uint64_t bytes_rdma; /* handed to the sink, came by RDMA */
    uint64_t bytes_tcp;  /* handed to the sink, came by TCP */
    unsigned redirects;
    unsigned attempts;           /* requests sent, without redirects */
    const char *declined;        /* the server's token: "busy", ...; or NULL */
    char why[RDMAHTTP_TEXT_MAX]; /* why by TCP, for people; "" if by RDMA */
    char message[RDMAHTTP_TEXT_MAX]; /* what failed; "" if nothing did */
    char *url; /* after redirects; NULL before the first */
} rdmahttp_result;

void rdmahttp_result_clear(rdmahttp_result *result);

/* Where the body goes. Called by the thread in rdmahttp_get(). */
typedef struct rdmahttp_sink {
    /* The final head is here (not that of a redirect): result's path, http,
     * length, declined and why are set. 0: send the body to write(); 1: drop
     * the body, of which no more than a MiB is waited for; -1: give up,
     * RDMAHTTP_ESINK. Comes again after rewind(). May be NULL. */
    int (*head)(void *baton, const rdmahttp_result *result);
    /* The next n bytes. 0, or -1: give up, RDMAHTTP_ESINK. */
    int (*write)(void *baton, const void *bytes, size_t n);
    /* Forget all bytes so far: the body comes again from the start. 0, or -1:
     * cannot. NULL: never can. */
    int (*rewind)(void *baton);
    void *baton;
} rdmahttp_sink;

typedef struct rdmahttp_options {
    /* "Name: value" lines for every request, NULL-terminated; Authorization
     * and Cookie do not follow a redirect to another origin. */
    const char *const *headers;
    /* When this descriptor is readable, give up; 0: none. It is not read. */
    int cancel_fd;
} rdmahttp_options;

/* NULL: out of memory. conf is copied; its strings are too. */
rdmahttp *rdmahttp_create(const rdmahttp_conf *conf);

/* No rdmahttp_get() runs. Tells the servers, within a second or two. */
void rdmahttp_destroy(rdmahttp *h);

/* GET url; options may be NULL. Follows up to 20 redirects. When RDMA fails in
 * a way that leaves no body, and the sink can start over, asks once more
 * without RDMA; but not for a stream (content larger than the window, or of
 * unknown length) of which the sink has had a part: that fails. *result is set in any case; the caller clears it. */
rdmahttp_status rdmahttp_get(rdmahttp *h, const char *url,
                             const rdmahttp_options *options,
                             const rdmahttp_sink *sink,
                             rdmahttp_result *result);

#endif /* RDMAHTTP_H */
