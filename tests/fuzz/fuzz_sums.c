/* vfs/sums: the checksums of app.db's pages, and the file that leads from one version of them to the next.
 *
 * Input: a byte of choices, a number of pages (2), the length of what `sums` holds (2), that, and what `sums-next` holds.
 *   bit 0  the header of `sums` is put right, with the number of pages and version 1
 *   bit 1  the checksums of its blocks are put right
 *   bit 2  `sums-next` gets magic, versions 1 to 2, its counts and its checksum
 *   bit 3  app.db is at version 2, else at 1
 *   bit 4  what was read is changed, stored, and read again
 *   bits 5 to 7  how many pages are passed over between two that are looked at
 * What is said to be known is; and it is the same when it is read again. */
#include <fcntl.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "vfs/sums.h"

#define BLOCK 4096
#define PAGES_MAX 1100 /* more than two blocks of sums */

static char dir[64], sums_path[80], next_path[80];

static void remove_dir(void)
{
    unlink(sums_path);
    unlink(next_path);
    rmdir(dir);
}

static void make_dir(void)
{
    if (dir[0] == '\0') {
        strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/dust-fuzz-XXXXXX" : "/tmp/dust-fuzz-XXXXXX");
        check(mkdtemp(dir) != NULL);
        snprintf(sums_path, sizeof sums_path, "%s/sums", dir);
        snprintf(next_path, sizeof next_path, "%s/sums-next", dir);
        atexit(remove_dir);
    }
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    close(fd);
}

static void put(uint8_t *p, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static void write_sums(struct input *in, unsigned choices, uint32_t n_pages, size_t len)
{
    uint8_t file[4 * BLOCK] = {0}, head[40] = "dustsum2";
    size_t size = len < sizeof file ? len : sizeof file;

    input_bytes(in, file, size);
    if (choices & 1) {
        head[8] = 1;
        put(head + 24, n_pages, 8);
        put(head + 32, page_sum(head, 32), 8);
        memcpy(file, head, sizeof head);
        size = sizeof file;
    }
    for (uint64_t block = 0; (choices & 2) && (block + 2) * BLOCK <= size; block++) {
        uint8_t *p = file + (block + 1) * BLOCK;

        put(p + BLOCK - 8, block, 8);
        put(p + BLOCK - 8, page_sum(p, BLOCK), 8);
    }
    write_file(sums_path, file, size);
}

static void write_next(struct input *in, unsigned choices, uint32_t n_pages)
{
    size_t len = in->left, whole = (len > 48 ? len - 48 : 0) / 16, padded;
    uint8_t *file;

    if (!(choices & 4)) {
        write_file(next_path, in->p, in->left);
        return;
    }
    len = 48 + 16 * whole;
    padded = (len + 31) / 32 * 32;
    file = must_alloc(padded + 8);
    memset(file, 0, padded + 8);
    input_bytes(in, file, len);
    memset(file, 0, 48);
    memcpy(file, "dustsumN", 8);
    file[8] = 2;
    file[24] = 1;
    put(file + 40, n_pages, 4);
    put(file + 44, whole, 4);
    for (size_t i = 0; i < whole; i++) {
        put(file + 48 + 16 * i + 2, 0, 6); /* else hardly a number is one of a page */
    }
    put(file + len, page_sum(file, padded), 8);
    write_file(next_path, file, len + 8);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned choices = (unsigned)input_number(&in, 1);
    uint32_t n_pages = (uint32_t)input_number(&in, 2) % PAGES_MAX;
    uint32_t step = 1 + (choices >> 5);
    size_t len = input_number(&in, 2);
    struct vid id = {{choices & 8 ? 2 : 1}};
    struct sums *s, *again;
    struct err e;
    bool known, still;

    make_dir();
    write_sums(&in, choices, n_pages, len);
    write_next(&in, choices, n_pages);
    err_clear(&e);
    check(sums_open(&s, dir, &id, &known, &e) == DUST_OK);
    check(access(next_path, F_OK) != 0);
    check(sums_open(&again, dir, &id, &still, &e) == DUST_OK);
    check(still == known);
    for (uint32_t pgno = 1; pgno <= PAGES_MAX; pgno += step) {
        check(sums_known(s, pgno) == sums_known(again, pgno));
        check(!known || !(choices & 1) || pgno > n_pages || sums_known(s, pgno));
        check(sums_check(s, pgno, 1) == sums_check(again, pgno, 1));
    }
    sums_close(again);
    if (!(choices & 16)) {
        sums_close(s);
        return 0;
    }
    for (uint32_t pgno = 1; pgno <= n_pages; pgno++) {
        sums_set(s, pgno, pgno + 7);
    }
    check(sums_store(s, &id, n_pages, &e) == DUST_OK);
    sums_close(s);
    check(sums_open(&s, dir, &id, &known, &e) == DUST_OK);
    check(known);
    for (uint32_t pgno = 1; pgno <= n_pages; pgno += step) {
        check(sums_check(s, pgno, pgno + 7) && !sums_check(s, pgno, pgno + 8));
    }
    sums_close(s);
    return 0;
}
