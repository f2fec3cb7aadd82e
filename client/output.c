/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAMES 100000 /* that are tried */

/* What output_forget() removes. Written with the signals blocked. */
static char *volatile temporary;

static void remember(char *name)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    temporary = name;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void output_forget(void)
{
    if (temporary) {
        unlink(temporary);
    }
}

/* The next name that nobody has just now. 0, or an errno. */
static int next_name(output *out)
{
    size_t size = strlen(out->base) + 16;
    struct stat st;

    if (!out->path && !(out->path = malloc(size))) {
        return ENOMEM;
    }
    do {
        snprintf(out->path, size, out->tried ? "%s.%u" : "%s", out->base,
                 out->tried);
        if (out->tried++ == NAMES) {
            return EEXIST;
        }
    } while (lstat(out->path, &st) == 0);
    return 0;
}

/* A temporary file with the rights that an ordinary new file has. */
static int open_temporary(output *out)
{
    static const char suffix[] = ".part-XXXXXX";
    size_t n = strlen(out->path) + sizeof(suffix);
    mode_t mask = umask(0);
    sigset_t all, before;
    int error = 0;

    umask(mask);
    out->temp = malloc(n);
    if (!out->temp) {
        return ENOMEM;
    }
    snprintf(out->temp, n, "%s%s", out->path, suffix);
    /* No signal between the file's birth and its being remembered. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    out->fd = mkostemp(out->temp, O_CLOEXEC);
    error = errno;
    if (out->fd >= 0) {
        temporary = out->temp;
        error = fchmod(out->fd, 0666 & ~mask) ? errno : 0;
    }
    else {
        free(out->temp);
        out->temp = NULL;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/* 0, or an errno. */
static int first_name(output *out, const char *path, int fresh)
{
    if (fresh) {
        out->base = strdup(path);
        return out->base ? next_name(out) : ENOMEM;
    }
    /* A link stays a link: what it points to is replaced. */
    out->path = realpath(path, NULL);
    if (!out->path) {
        out->path = strdup(path);
    }
    return out->path ? 0 : ENOMEM;
}

int output_open(output *out, const char *path, int fresh, int cancel_fd)
{
    struct stat st;
    int error;

    memset(out, 0, sizeof(*out));
    out->fd = -1;
    out->cancel_fd = cancel_fd;
    if (!fresh && strcmp(path, "-") == 0) {
        out->direct = 1;
        out->fd = dup(STDOUT_FILENO);
        return out->fd < 0 ? errno : 0;
    }
    error = first_name(out, path, fresh);
    if (!error && !fresh && stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        out->direct = 1;
        out->fd = open(path, O_WRONLY | O_CLOEXEC);
        error = out->fd < 0 ? errno : 0;
    }
    else if (!error) {
        error = open_temporary(out);
    }
    if (error) {
        output_close(out);
    }
    return error;
}

/* Wait until the pipe, or what it is, takes more. 0, or EINTR: cancelled. */
static int wait_for_room(const output *out)
{
    struct pollfd fds[2] = {{out->fd, POLLOUT, 0}, {out->cancel_fd, POLLIN, 0}};

    while (out->cancel_fd > 0 && !fds[0].revents) {
        poll(fds, 2, -1);
        if (fds[1].revents) {
            return EINTR;
        }
    }
    return 0;
}

int output_write(output *out, const void *bytes, size_t n)
{
    const char *p = bytes;

    while (n > 0) {
        ssize_t done;

        if (out->direct && wait_for_room(out)) {
            return EINTR;
        }
        done = write(out->fd, p, n);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done < 0) {
            return errno;
        }
        p += done;
        n -= (size_t)done;
        out->bytes += (uint64_t)done;
    }
    return 0;
}

int output_rewind(output *out)
{
    if (out->bytes > 0
        && (out->direct || ftruncate(out->fd, 0)
            || lseek(out->fd, 0, SEEK_SET) != 0)) {
        return -1;
    }
    out->bytes = 0;
    return 0;
}

/* The temporary file is no more. */
static void forget_temporary(output *out)
{
    remember(NULL);
    free(out->temp);
    out->temp = NULL;
}

/* As rename(), but not over another file: EEXIST. Not every file system knows
 * renameat2(), nor every one link(). */
static int rename_fresh(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return -1;
    }
    if (link(from, to) == 0) {
        return unlink(from);
    }
    return errno == EEXIST ? -1 : rename(from, to);
}

/* 0, or an errno. */
static int give_name(output *out)
{
    int error;

    if (!out->base) {
        return rename(out->temp, out->path) ? errno : 0;
    }
    while (rename_fresh(out->temp, out->path)) {
        error = errno == EEXIST ? next_name(out) : errno;
        if (error) {
            return error;
        }
    }
    return 0;
}

int output_commit(output *out)
{
    int error = close(out->fd) ? errno : 0;

    out->fd = -1;
    if (!error && out->temp) {
        error = give_name(out);
    }
    if (!error) {
        forget_temporary(out);
    }
    return error;
}

void output_close(output *out)
{
    if (out->fd >= 0) {
        close(out->fd);
        out->fd = -1;
    }
    if (out->temp) {
        unlink(out->temp);
    }
    forget_temporary(out);
    free(out->base);
    free(out->path);
    out->base = out->path = NULL;
}
