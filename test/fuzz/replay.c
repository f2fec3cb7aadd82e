/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A main program for a fuzzer where there is no libFuzzer: runs every file in
 * the folders given (not below them) once, and says how many these were.
 *
 * Exit status: 0; 1 when there was no file, or one could not be read; a
 * finding ends the program by abort() or by a sanitizer.
 */
#include "fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

/* Run one file. The buffer is exactly as long as the file, so that
 * AddressSanitizer sees a step beyond. */
static int run_file(const char *name)
{
    struct stat st;
    FILE *f = fopen(name, "rb");
    uint8_t *data;
    size_t n;

    if (f == NULL || fstat(fileno(f), &st) != 0) {
        perror(name);
        if (f != NULL)
            fclose(f);
        return 0;
    }
    n = (size_t)st.st_size;
    data = malloc(n > 0 ? n : 1);
    if (data == NULL || fread(data, 1, n, f) != n) {
        fprintf(stderr, "%s: cannot be read\n", name);
        free(data);
        fclose(f);
        return 0;
    }
    fclose(f);
    LLVMFuzzerTestOneInput(data, n);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    unsigned files = 0;
    int i, failed = 0;

    for (i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        const struct dirent *entry;

        if (dir == NULL) {
            perror(argv[i]);
            return EXIT_FAILURE;
        }
        while ((entry = readdir(dir)) != NULL) {
            char name[4096];

            if (entry->d_name[0] == '.')
                continue;
            if (snprintf(name, sizeof(name), "%s/%s", argv[i], entry->d_name) >=
                    (int)sizeof(name) ||
                !run_file(name))
                failed = 1;
            files++;
        }
        closedir(dir);
    }
    printf("replayed %u files\n", files);
    return failed || files == 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
