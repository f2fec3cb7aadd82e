/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * output: the file that a body goes to. A regular file is written under another
 * name beside its own and gets that when it is complete, so that nothing
 * partial is ever presented as complete; whatever else exists under the name (a
 * device, a pipe) is written to directly, as is standard output.
 *
 * A reader of a pipe may be slow, and its writer cancelled meanwhile.
 *
 * One at a time: output_forget() serves a signal handler.
 */
#ifndef RDMAHTTP_OUTPUT_H
#define RDMAHTTP_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct output {
    int fd;         /* -1: not open */
    int direct;     /* no temporary file */
    char *base;     /* the name wanted; NULL: path it is, whatever is there */
    unsigned tried; /* names that were taken: base, base.1 ... */
    char *path;     /* the name it will have, or has; NULL: standard output */
    char *temp;     /* NULL: direct */
    int cancel_fd;  /* readable: write no more; 0: none */
    uint64_t bytes; /* written */
} output;

/* path "-": standard output. Or, if fresh, a file that takes no other's place,
 * by the first free name of path, path.1, path.2 ... 0, or an errno. */
int output_open(output *out, const char *path, int fresh, int cancel_fd);
/* 0, or an errno; EINTR: cancelled. */
int output_write(output *out, const void *bytes, size_t n);
/* Forget what was written. 0, or -1: it is gone for good. */
int output_rewind(output *out);
/* Complete: give the file its name, which may be another one than before if it
 * has to be fresh. 0, or an errno. */
int output_commit(output *out);
/* To be called in the end. Not committed: leaves nothing behind. Harmless when
 * not open. */
void output_close(output *out);
/* Remove the temporary file, if there is one. For signal handlers. */
void output_forget(void);

#endif /* RDMAHTTP_OUTPUT_H */
