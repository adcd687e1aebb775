/* Runs a fuzz target without libFuzzer: every file of a corpus folder, then random mutations of these files.
 *
 *     fuzz_NAME FOLDER [--mutations N] [--seed S] [--keep FILE]
 *
 * Output is TAP: one test for the files, one for the mutations. The inputs are run in a child process, which leaves the
 * input at hand in shared memory; when it dies, the parent says at which input, and puts that into FILE. The same seed
 * and the same files give the same mutations. */
#include <dirent.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_MAX ((size_t)1 << 17)
#define FILES_MAX 4096

struct file {
    char name[256];
    uint8_t *data;
    size_t len;
};

/* Shared with the child. */
struct progress {
    unsigned long done;
    char from[256]; /* the file that the input is, or is made of */
    size_t len;
    uint8_t data[INPUT_MAX];
};

static struct file *files;
static size_t n_files;
static uint64_t rng_state;

static uint32_t rnd(uint32_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return below == 0 ? 0 : (uint32_t)(rng_state >> 32) % below;
}

/* ---- the corpus ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct file *)a)->name, ((const struct file *)b)->name);
}

static bool read_file(const char *folder, const char *name, struct file *out)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(out->name, sizeof out->name, "%s", name);
    f = fopen(path, "rb");
    if (f == NULL) {
        return false;
    }
    out->data = must_alloc(INPUT_MAX);
    out->len = fread(out->data, 1, INPUT_MAX, f);
    fclose(f);
    return true;
}

static bool read_corpus(const char *folder)
{
    DIR *d = opendir(folder);
    struct dirent *entry;

    files = calloc(FILES_MAX, sizeof *files);
    if (d == NULL || files == NULL) {
        return false;
    }
    while (n_files < FILES_MAX && (entry = readdir(d)) != NULL) {
        if (entry->d_name[0] != '.') {
            n_files += read_file(folder, entry->d_name, &files[n_files]);
        }
    }
    closedir(d);
    qsort(files, n_files, sizeof *files, by_name);
    return n_files > 0;
}

/* ---- mutations ---- */

/* Put n bytes at `at`, in place of `old` bytes there, as far as there is room. */
static void splice(struct progress *p, size_t at, size_t old, const uint8_t *data, size_t n)
{
    if (p->len - old + n <= INPUT_MAX) {
        memmove(p->data + at + n, p->data + at + old, p->len - at - old);
        memcpy(p->data + at, data, n);
        p->len = p->len - old + n;
    }
}

static void mutate_once(struct progress *p)
{
    static const uint32_t odd[] = {
        0, 1, 7, 8, 127, 128, 255, 256, 511, 512, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    const struct file *other = &files[rnd((uint32_t)n_files)];
    size_t at = rnd((uint32_t)p->len + 1), n = p->len - at;
    uint8_t chunk[64];

    n = n == 0 ? 0 : 1 + rnd((uint32_t)(n < sizeof chunk ? n : sizeof chunk));
    n = n > p->len - at ? p->len - at : n;
    for (size_t i = 0; i < sizeof chunk; i++) {
        chunk[i] = (uint8_t)rnd(256);
    }
    switch (rnd(9)) {
    case 0:
        if (n != 0) {
            p->data[at] ^= (uint8_t)(1u << rnd(8));
        }
        break;
    case 1:
        splice(p, at, n != 0, chunk, 1);
        break;
    case 2:
        splice(p, at, 0, chunk, 1 + rnd(8));
        break;
    case 3:
        splice(p, at, n, chunk, 0);
        break;
    case 4: /* a number that matters, of either byte order */
        le_put(chunk, odd[rnd(sizeof odd / sizeof *odd)], 4);
        if (rnd(2) != 0) {
            le_put(chunk, __builtin_bswap32((uint32_t)le_get(chunk, 4)), 4);
        }
        if (p->len - at >= 4) {
            splice(p, at, 4, chunk, 4);
        }
        break;
    case 5: /* bytes from elsewhere in it */
        memcpy(chunk, p->data + at, n);
        splice(p, rnd((uint32_t)p->len + 1), 0, chunk, n);
        break;
    case 6:
        p->len = at;
        break;
    case 7: /* it begins as this one and ends as another one */
        at = at < other->len ? at : other->len;
        if (at <= p->len) {
            memcpy(p->data + at, other->data + at, other->len - at);
            p->len = other->len;
        }
        break;
    default:
        if (n != 0) {
            p->data[at] = (uint8_t)(p->data[at] + 1 - 2 * rnd(2));
        }
    }
}

static void mutate(struct progress *p)
{
    const struct file *f = &files[rnd((uint32_t)n_files)];

    strcpy(p->from, f->name);
    memcpy(p->data, f->data, f->len);
    p->len = f->len;
    for (uint32_t n = 1 + rnd(6); n > 0; n--) {
        mutate_once(p);
    }
}

/* ---- running ---- */

static void run_input(const struct progress *p)
{
    uint8_t *copy = exact_copy(p->data, p->len);

    LLVMFuzzerTestOneInput(copy, p->len);
    free(copy);
}

static void run_files(struct progress *p)
{
    for (size_t i = 0; i < n_files; i++) {
        strcpy(p->from, files[i].name);
        memcpy(p->data, files[i].data, files[i].len);
        p->len = files[i].len;
        run_input(p);
        p->done++;
    }
}

static void run_mutations(struct progress *p, unsigned long n, uint64_t seed)
{
    rng_state = seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
    for (; p->done < n; p->done++) {
        mutate(p);
        run_input(p);
    }
}

static void keep_input(const struct progress *p, const char *path)
{
    FILE *f = path != NULL ? fopen(path, "wb") : NULL;

    if (f != NULL) {
        fwrite(p->data, 1, p->len, f);
        fclose(f);
        printf("# the input is in %s\n", path);
    }
}

/* One test: the files, or n mutations of them. */
static bool run_test(struct progress *p, int number, unsigned long n, uint64_t seed, const char *keep)
{
    int status = 0;
    pid_t pid;

    p->done = 0;
    p->len = 0;
    p->from[0] = '\0';
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        if (number == 1) {
            run_files(p);
        } else {
            run_mutations(p, n, seed);
        }
        exit(0); /* leaks are counted here */
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        printf("not ok %d - no child process\n", number);
        return false;
    }
    if (status == 0) {
        printf(number == 1 ? "ok 1 - %lu inputs of the corpus\n" : "ok 2 - %lu mutations\n", p->done);
        return true;
    }
    printf("not ok %d - %s %lu, of %s (%s %d)\n", number, number == 1 ? "input" : "mutation", p->done, p->from,
        WIFSIGNALED(status) ? "signal" : "exit status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    keep_input(p, keep);
    return false;
}

int main(int argc, char **argv)
{
    unsigned long mutations = 0;
    const char *keep = NULL;
    struct progress *p;
    uint64_t seed = 1;
    bool ok;

    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--mutations") == 0) {
            mutations = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoull(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--keep") == 0) {
            keep = argv[i + 1];
        } else {
            argc = 0;
        }
    }
    if (argc < 2 || argc % 2 != 0) {
        fprintf(stderr, "usage: %s FOLDER [--mutations N] [--seed S] [--keep FILE]\n", argv[0]);
        return 2;
    }
    if (!read_corpus(argv[1])) {
        fprintf(stderr, "%s holds no corpus\n", argv[1]);
        return 2;
    }
    p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    printf("1..%d\n", mutations != 0 ? 2 : 1);
    ok = run_test(p, 1, 0, seed, keep);
    if (mutations != 0) {
        ok = run_test(p, 2, mutations, seed, keep) && ok;
    }
    for (size_t i = 0; i < n_files; i++) {
        free(files[i].data);
    }
    free(files);
    munmap(p, sizeof *p);
    return ok ? 0 : 1;
}
