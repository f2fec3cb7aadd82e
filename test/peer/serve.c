/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "serve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "http.h"
#include "job.h"
#include "loop.h"

struct session {
    int fd;
    struct sockaddr_storage peer, local;
    char in[16384];
    size_t in_len;
    uint8_t *out;
    size_t out_len, out_done;
    struct job *job;
    bool last;
};

static void on_session(void *arg, unsigned events);
static void take_requests(struct session *s);

void session_end(struct session *s)
{
    loop_unwatch(s->fd);
    send(s->fd, s->out + s->out_done, s->out_len - s->out_done, MSG_NOSIGNAL);
    close(s->fd);
    if (s->job != NULL) {
        job_left(s->job);
    }
    free(s->out);
    loop_free(s);
}

void session_send(struct session *s, const void *data, size_t len)
{
    s->out = need(realloc(s->out, s->out_len + len + 1));
    memcpy(s->out + s->out_len, data, len);
    s->out_len += len;
    loop_watch(s->fd, EPOLLIN | EPOLLOUT, on_session, s);
}

void session_done(struct session *s)
{
    s->job = NULL;
    take_requests(s);
}

static void take_requests(struct session *s)
{
    char *end;
    s->in[s->in_len] = '\0';
    while (s->job == NULL && (end = strstr(s->in, "\r\n\r\n")) != NULL) {
        static char head[sizeof s->in];
        size_t n = (size_t)(end - s->in) + 4;
        memcpy(head, s->in, n);
        head[n] = '\0';
        memmove(s->in, s->in + n, s->in_len - n + 1);
        s->in_len -= n;
        job_new(s, &s->peer, &s->local, head, &s->job);
    }
}

static void on_session(void *arg, unsigned events)
{
    struct session *s = arg;
    if ((events & EPOLLOUT) != 0) {
        ssize_t n = send(s->fd, s->out + s->out_done, s->out_len - s->out_done,
                         MSG_NOSIGNAL);
        s->out_done += n > 0 ? (size_t)n : 0;
        if (s->out_done == s->out_len) {
            s->out_done = s->out_len = 0;
            loop_watch(s->fd, EPOLLIN, on_session, s);
        }
    }
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        ssize_t n =
            recv(s->fd, s->in + s->in_len, sizeof s->in - 1 - s->in_len, 0);
        if (n <= 0 && errno != EAGAIN) {
            session_end(s);
        }
        else if (n > 0) {
            s->in_len += (size_t)n;
            take_requests(s);
        }
    }
}

static void on_listener(void *arg, unsigned events)
{
    int fd, one = 1, listener = *(int *)arg;
    (void)events;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct session *s = need(calloc(1, sizeof *s));
        socklen_t size = sizeof s->peer;
        s->fd = fd;
        getpeername(fd, (struct sockaddr *)&s->peer, &size);
        size = sizeof s->local;
        getsockname(fd, (struct sockaddr *)&s->local, &size);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        loop_watch(fd, EPOLLIN, on_session, s);
    }
}

int serve(const struct sockaddr_storage *local, uint16_t port)
{
    static bool never;
    struct sockaddr_storage at = *local;
    int one = 1;
    int fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    ((struct sockaddr_in *)&at)->sin_port = htons(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, address_size(&at)) != 0
        || listen(fd, 512) != 0) {
        perror("rdma_peer: listen");
        return 4;
    }
    puts("ready");
    fflush(stdout);
    loop_watch(fd, EPOLLIN, on_listener, &fd);
    loop_run(&never);
    return 0;
}
