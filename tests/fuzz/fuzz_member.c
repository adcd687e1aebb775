/* raft/member, member_load: the file that says who a member is.
 *
 * The first byte of the input chooses:
 *   0  the rest is the file
 *   1  the rest is the file without its last line, the checksum, which is added
 *   2  the rest is a struct member, to be saved: what member_save takes, member_load gives back
 * What loads is saved and loaded again, and must be the same. The files lie in a folder of their own under /dev/shm, if
 * there is one. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/member.h"
#include "tests/fuzz/fuzz.h"

static char dir[64], path[80];

static void remove_dir(void)
{
    unlink(path);
    rmdir(dir);
}

static void make_dir(void)
{
    if (dir[0] == '\0') {
        strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/dust-fuzz-XXXXXX" : "/tmp/dust-fuzz-XXXXXX");
        check(mkdtemp(dir) != NULL);
        snprintf(path, sizeof path, "%s/member", dir);
        atexit(remove_dir);
    }
}

static void write_file(const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    close(fd);
}

static bool canonical(const char *text, bool needs_port)
{
    struct address a;

    return memchr(text, '\0', ADDRESS_TEXT_MAX) != NULL && address_parse(text, &a, NULL) == DUST_OK &&
           strcmp(text, a.text) == 0 && (a.port != 0 || !needs_port);
}

static void check_member(const struct member *m)
{
    check(!vid_none(&m->cluster) && m->id != 0);
    check(canonical(m->address, true) && canonical(m->bind, false));
    check(m->page_size >= 512 && m->page_size <= 65536 && (m->page_size & (m->page_size - 1)) == 0);
    check(m->role == MEMBER_VOTER || (m->role == MEMBER_STANDBY && m->promotion == 0));
    check(m->file_index == 0 || !vid_none(&m->file_version));
    check(m->prior_index == 0 || !vid_none(&m->prior_version));
    check(vid_none(&m->prior_version) || !vid_none(&m->file_version));
    check(m->n_seen <= MEMBER_SEEN_MAX);
    for (unsigned i = 0; i < m->n_seen; i++) {
        check(m->seen[i].id != 0 && m->seen[i].starts != 0);
    }
}

static bool same_starts(const struct member *a, const struct member *b)
{
    bool same = a->starts == b->starts && a->n_seen == b->n_seen;

    for (unsigned i = 0; same && i < a->n_seen; i++) {
        same = a->seen[i].id == b->seen[i].id && a->seen[i].starts == b->seen[i].starts;
    }
    return same;
}

static bool same_member(const struct member *a, const struct member *b)
{
    return vid_equal(&a->cluster, &b->cluster) && a->id == b->id && strcmp(a->address, b->address) == 0 &&
           strcmp(a->bind, b->bind) == 0 && a->page_size == b->page_size && a->role == b->role &&
           a->promotion == b->promotion &&
           vid_equal(&a->file_version, &b->file_version) && a->file_index == b->file_index &&
           vid_equal(&a->prior_version, &b->prior_version) && a->prior_index == b->prior_index && a->refused == b->refused &&
           same_starts(a, b);
}

static void save_and_load(const struct member *m)
{
    struct member again;

    check(member_save(dir, m, NULL) == DUST_OK);
    check(member_load(dir, &again, NULL) == DUST_OK);
    check(same_member(m, &again));
}

static void try_file(void)
{
    struct member m;
    struct err e;
    int rv;

    memset(&m, 0x5a, sizeof m);
    err_clear(&e);
    rv = member_load(dir, &m, &e);
    check_err(&e, rv);
    check(rv == DUST_OK || rv == DUST_CORRUPT || rv == DUST_VERSION);
    if (rv == DUST_OK) {
        check_member(&m);
        save_and_load(&m);
    } else {
        check(all_are(&m, 0x5a, sizeof m));
    }
}

/* The text with its checksum, as the format says. */
static void write_with_checksum(const uint8_t *data, size_t size)
{
    char *text = must_alloc(size + 64), hex[VID_HEX_SIZE];
    struct vid sum;

    if (size != 0) {
        memcpy(text, data, size);
    }
    blake(sum.b, data, size);
    size += (size_t)snprintf(text + size, 64, "checksum=%s\n", vid_hex(&sum, hex));
    write_file((uint8_t *)text, size);
    free(text);
}

static void try_struct(struct input *in)
{
    struct member m;
    struct err e;
    int rv;

    memset(&m, 0, sizeof m);
    input_bytes(in, m.cluster.b, 16);
    input_bytes(in, m.file_version.b, 16);
    m.id = input_number(in, 8);
    m.file_index = input_number(in, 8);
    m.page_size = (uint32_t)input_number(in, 4);
    m.role = (enum member_role)(input_number(in, 1) % 3);
    input_bytes(in, m.address, sizeof m.address);
    input_bytes(in, m.bind, sizeof m.bind);
    m.starts = (uint32_t)input_number(in, 4);
    m.n_seen = (unsigned)input_number(in, 1) % (MEMBER_SEEN_MAX + 2);
    for (unsigned i = 0; i < m.n_seen && i < MEMBER_SEEN_MAX; i++) {
        m.seen[i].id = input_number(in, 8);
        m.seen[i].starts = (uint32_t)input_number(in, 4);
    }
    err_clear(&e);
    rv = member_save(dir, &m, &e);
    check_err(&e, rv);
    check(rv == DUST_OK || rv == DUST_MISUSE);
    if (rv == DUST_OK) {
        check_member(&m);
        save_and_load(&m);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned mode = (unsigned)input_number(&in, 1) % 3;

    make_dir();
    if (mode == 2) {
        try_struct(&in);
        return 0;
    }
    if (mode == 1) {
        write_with_checksum(in.p, in.left);
    } else {
        write_file(in.p, in.left);
    }
    try_file();
    return 0;
}
