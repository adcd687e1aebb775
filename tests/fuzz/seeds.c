/* Makes the inputs that fuzzing begins with, by dust's own encoders, for every target: FOLDER/NAME/seed-N.
 *
 *     seeds FOLDER
 *
 * The folders must exist. How each target reads its input stands at the top of its file. */
#include "raft/batch.h"
#include "raft/channel.h"
#include "raft/descriptor.h"
#include "raft/fetch.h"
#include "raft/member.h"
#include "raft/roster.h"
#include "raft/snapshot.h"
#include "raft/termfile.h"
#include "raft/wire.h"
#include "tests/fuzz/fuzz.h"
#include "vfs/delta.h"
#include "vfs/entry.h"
#include "vfs/link.h"
#include "vfs/mark.h"
#include "vfs/pair.h"

static const char *folder;

/* ---- an input in the making ---- */

static uint8_t buf[1 << 16];
static size_t len;

static void begin(unsigned first)
{
    buf[0] = (uint8_t)first;
    len = 1;
}

static void add(const void *data, size_t n)
{
    check(len + n <= sizeof buf);
    if (n != 0) {
        memcpy(buf + len, data, n);
    }
    len += n;
}

static void add_number(uint64_t v, unsigned n)
{
    check(len + n <= sizeof buf);
    le_put(buf + len, v, n);
    len += n;
}

static void save(const char *target)
{
    static const char *last = "";
    static unsigned number;
    char path[4096];
    FILE *f;

    number = strcmp(last, target) == 0 ? number + 1 : 0;
    last = target;
    snprintf(path, sizeof path, "%s/%s/seed-%02u", folder, target, number);
    f = fopen(path, "wb");
    if (f == NULL || fwrite(buf, 1, len, f) != len || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

/* ---- wire ---- */

static const struct wire_head head = {.cluster = {1, 2, 3}, .from = 7, .to = 9, .boot = 99, .address = "10.0.0.1:4001"};

static void save_message(const struct raft_message *m)
{
    for (unsigned right = 0; right < 2; right++) {
        begin(right);
        wire_raft_put(&head, m, buf + 1);
        len += wire_raft_size(&head, m);
        save("wire");
    }
}

static void save_note(const struct note *note)
{
    for (unsigned right = 0; right < 2; right++) {
        begin(right);
        wire_note_put(&head, note, buf + 1);
        len += wire_note_size(&head, note);
        save("wire");
    }
}

static void wire_seeds(void)
{
    uint8_t payload[24] = {1, 2, 3};
    struct raft_entry entries[] = {
        {.term = 3, .type = RAFT_COMMAND, .buf = {payload, 24}},
        {.term = 3, .type = RAFT_BARRIER, .buf = {payload, 8}},
        {.term = 4, .type = RAFT_CHANGE, .buf = {payload, 16}},
    };
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES};
    struct note note = {.kind = 3, .req = 5};

    m.append_entries = (struct raft_append_entries){
        .term = 4, .prev_log_index = 10, .prev_log_term = 3, .leader_commit = 9, .entries = entries, .n_entries = 3};
    save_message(&m);
    m.append_entries.n_entries = 0;
    save_message(&m);
    m = (struct raft_message){.type = RAFT_IO_APPEND_ENTRIES_RESULT};
    m.append_entries_result.term = 4;
    m.append_entries_result.last_log_index = 12;
    save_message(&m);
    m = (struct raft_message){.type = RAFT_IO_REQUEST_VOTE};
    m.request_vote.term = 5;
    m.request_vote.candidate_id = 7;
    m.request_vote.pre_vote = true;
    save_message(&m);
    m = (struct raft_message){.type = RAFT_IO_REQUEST_VOTE_RESULT};
    m.request_vote_result.term = 5;
    m.request_vote_result.vote_granted = true;
    m.request_vote_result.pre_vote = raft_tribool_true;
    save_message(&m);
    m = (struct raft_message){.type = RAFT_IO_INSTALL_SNAPSHOT};
    raft_configuration_init(&m.install_snapshot.conf);
    check(raft_configuration_add(&m.install_snapshot.conf, 1, "10.0.0.1:4001", RAFT_VOTER) == 0);
    check(raft_configuration_add(&m.install_snapshot.conf, 2, "[::1]:4002", RAFT_SPARE) == 0);
    m.install_snapshot.last_index = 100;
    m.install_snapshot.data = (struct raft_buffer){payload, 24};
    save_message(&m);
    raft_configuration_close(&m.install_snapshot.conf);
    m = (struct raft_message){.type = RAFT_IO_TIMEOUT_NOW};
    m.timeout_now.term = 5;
    save_message(&m);
    save_note(&note);
    note = (struct note){.kind = 12,
        .code = -3,
        .term = 4,
        .req = 1,
        .num = {1, 2, 3, 4, 5, 6, 7, 8},
        .text = "hello",
        .text_len = 5,
        .data = payload,
        .data_len = sizeof payload};
    memset(note.id, 0x11, sizeof note.id);
    save_note(&note);
}

/* ---- entry ---- */

static struct sealed *sealed_of(size_t part_max, const char *sql, unsigned n_pages)
{
    struct entry_meta meta = {.parent = {{9, 9}},
        .origin = 2,
        .origin_seq = 17,
        .page_size = 512,
        .n_pages_after = n_pages + 1,
        .sql = sql,
        .sql_len = strlen(sql)};
    uint8_t page[512], old[512] = {1};
    struct sealed *out;
    struct seal s;

    check(seal_begin(&s, &meta, part_max, NULL) == DUST_OK);
    for (uint32_t i = 1; i <= n_pages; i++) {
        memset(page, 0, sizeof page);
        for (unsigned k = 0; k < (i % 3 == 0 ? 512u : 10u); k++) {
            page[k] = (uint8_t)(k * 7 + i);
        }
        check(seal_page(&s, i, page, i % 2 ? NULL : old, NULL, NULL) == DUST_OK);
    }
    check(seal_finish(&s, &out, NULL) == DUST_OK);
    return out;
}

static void entry_seeds(void)
{
    static const size_t part_max[] = {ENTRY_PART_MAX, 1200, 700};

    for (unsigned i = 0; i < 3; i++) {
        struct sealed *s = sealed_of(part_max[i], i == 1 ? "" : "UPDATE t SET a = 1", 2 + i);

        for (uint32_t k = 0; k < s->n_parts; k++) {
            begin(0);
            add(s->parts[k].data, s->parts[k].len);
            save("entry");
            begin(1);
            add(s->parts[k].data, (size_t)le_get(s->parts[k].data + 8, 4));
            save("entry");
        }
        begin(2);
        for (uint32_t k = 0; k < s->n_parts; k++) {
            size_t used = (size_t)le_get(s->parts[k].data + 8, 4);

            add_number(used, 2);
            add(s->parts[k].data, used);
        }
        save("entry");
        sealed_free(s);
    }
    for (unsigned i = 0; i < 6; i++) { /* a description */
        begin(3);
        for (unsigned k = 0; k < 150; k++) {
            add_number(k * (i + 5) >> 2, 1);
        }
        save("entry");
    }
}

/* ---- delta ---- */

static void delta_seeds(void)
{
    static const uint32_t sizes[] = {64, 128, 192, 512, 1024, 4096, 16384, 65536};
    static uint8_t old[65536], new[65536], out[65536];

    for (unsigned i = 0; i < 8; i++) {
        memset(new, 0, sizeof new);
        new[0] = 1;
        memset(new + 20, 7, 20);
        new[sizes[i] - 1] = 3;
        begin(i << 2 | 1);
        add_number(0, 1);
        add(out, delta_encode(old, new, sizes[i], out));
        save("delta");
        for (unsigned zeros = 0; zeros < 4; zeros += 2) {
            begin(i << 2 | zeros);
            add_number(200, 1);
            for (unsigned k = 0; k < 4; k++) {
                add_number(sizes[i] / 5 * k, 2);
                add_number(k, 1);
                add("abcdef", k + 1);
            }
            save("delta");
        }
    }
}

/* ---- member, address, roster, mark ---- */

static void member_seeds(void)
{
    char dir[] = "/tmp/dust-seeds-XXXXXX", path[64], *last;
    struct member m = {.cluster = {{1, 2}}, .id = 7, .address = "10.0.0.1:4001", .bind = "[::]:0", .page_size = 4096};
    size_t n;
    FILE *f;

    check(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/member", dir);
    for (unsigned i = 0; i < 3; i++) {
        m.role = i == 1 ? MEMBER_STANDBY : MEMBER_VOTER;
        m.promotion = i == 2 ? 33 : 0;
        m.file_version.b[3] = (uint8_t)i;
        m.file_index = i * 1000;
        m.prior_version.b[5] = i == 2;
        m.prior_index = i == 2 ? 900 : 0;
        m.refused = i == 2;
        m.starts = i * 3;
        m.n_seen = i;
        m.seen[0].id = 1;
        m.seen[0].starts = 4;
        m.seen[1].id = 9;
        m.seen[1].starts = 1;
        check(member_save(dir, &m, NULL) == DUST_OK);
        f = fopen(path, "rb");
        check(f != NULL);
        begin(0);
        n = fread(buf + 1, 1, sizeof buf - 2, f);
        fclose(f);
        len += n;
        buf[len] = '\0';
        save("member");
        last = strstr((char *)buf + 1, "checksum=");
        check(last != NULL);
        buf[0] = 1;
        len = (size_t)(last - (char *)buf);
        save("member");
    }
    remove(path);
    remove(dir);
    begin(1);
    add("format=2\n", 9);
    save("member");
    begin(2);
    add(m.cluster.b, 16);
    add(m.file_version.b, 16);
    add_number(m.id, 8);
    add_number(m.file_index, 8);
    add_number(m.page_size, 4);
    add_number(0, 1);
    add(m.address, sizeof m.address);
    add(m.bind, sizeof m.bind);
    save("member");
}

static void sums_seeds(void)
{
    static const uint8_t zeros[4096];

    for (unsigned choices = 0; choices < 32; choices++) {
        begin((uint8_t)choices);
        add_number(520, 2);
        add_number(2 * 4096, 2);
        add(zeros, sizeof zeros);
        for (uint64_t i = 1; i <= 512; i++) {
            add_number(i * 1000003, 8);
        }
        add(zeros, 48);
        for (uint64_t i = 1; i < 4; i++) {
            add_number(i * 170, 8); /* page number, sum */
            add_number(i, 8);
        }
        save("sums");
    }
}

static void address_seeds(void)
{
    static const char *const texts[] = {"10.0.0.1:4001", "localhost:0", "[::1]:65535", "[fd00::1:2]:80",
        "[::ffff:127.0.0.1]:1", "0.0.0.0:1", "[::]:1", "example.org:80", "1.2.3.4", "[::1", "::1:80", ":80",
        "1.2.3.4:65536", "[2001:db8:1111:2222:3333:4444:5555:6666]:12345",
        "a-very-long-name-that-goes-on-and-on-until-no-address-could-be-that-long-and-then-some-more.example.org:80"};

    for (unsigned i = 0; i < sizeof texts / sizeof *texts; i++) {
        len = 0;
        add(texts[i], strlen(texts[i]));
        save("address");
    }
}

static void roster_seeds(void)
{
    struct roster_line lines[ROSTER_MAX];
    static const unsigned n[] = {1, 3, ROSTER_MAX};

    for (unsigned i = 0; i < ROSTER_MAX; i++) {
        lines[i] = (struct roster_line){.id = i + 1, .match_index = 100 * i, .heard_ms = (int64_t)i - 1,
            .boot = (uint64_t)i << 32 | 7};
    }
    for (unsigned i = 0; i < 3; i++) {
        len = n[i] * ROSTER_LINE_SIZE;
        roster_encode(lines, n[i], buf);
        save("roster");
    }
}

static void mark_seeds(void)
{
    struct vid id = {{1, 2, 3}};
    uint8_t page[HEADER_SIZE] = "SQLite format 3";

    page[16] = 16;
    page[18] = page[19] = 1;
    page[27] = page[95] = 5;
    for (unsigned i = 0; i < 4; i++) {
        if (i == 1) {
            mark_write(page, &id);
        }
        page[75] = i == 2 ? 2 : page[75];
        page[18] = i == 3 ? 1 : page[18];
        page[95] = i == 3 ? 6 : page[95];
        len = 0;
        add_number(i * 20, 2);
        add_number(100, 2);
        add(id.b, 16);
        add(page, sizeof page);
        save("mark");
    }
}

/* ---- snapshots and state transfer ---- */

static void descriptor_seeds(void)
{
    struct descriptor d = {.index = 1000, .page_size = 4096, .n_pages = 77, .id = {{1}}, .cluster = {{2}}};

    len = DESCRIPTOR_SIZE;
    descriptor_write(&d, buf);
    save("descriptor");
    buf[4] = 2;
    save("descriptor");
}

static void fetch_seeds(void)
{
    static const uint8_t hash[FETCH_HASH_SIZE];
    uint8_t page[516] = {0};

    for (unsigned flags = 0; flags < 8; flags += 4) {
        begin(flags);
        add_number(5, flags != 0 ? 1 : 8);
        add_number(3, flags != 0 ? 1 : 8);
        add_number(0, 8);
        add_number(0, flags != 0 ? 1 : 8);
        add_number(0, 8);
        add(hash, sizeof hash);
        add(hash, sizeof hash);
        save("fetch");
    }
    for (unsigned n = 0; n < 3; n++) {
        begin(1 | 2 | 4);
        add_number(5, 1);
        add_number(3, 1);
        add_number(100, 8);
        add_number(7, 1);
        add_number(512, 8);
        for (unsigned i = 0; i < n; i++) {
            fetch_page_put(page, 5 + 2 * i);
            add(page, sizeof page);
        }
        save("fetch");
    }
}

/* ---- the log's files ---- */

static const uint8_t key[] = FUZZ_KEY;

/* Sealed; n entries of these bytes each. */
static size_t batch_of(uint8_t *out, const struct batch *like, uint32_t n, uint32_t size)
{
    static const uint8_t data[6000] = "an entry of the log";
    struct batch b = *like;
    size_t at = BATCH_HEAD;

    for (uint32_t i = 0; i < n; i++) {
        struct batch_entry entry = {.term = 3 + i, .data = data, .size = size, .type = (uint8_t)(1 + i % 3)};

        at = batch_put(out, at, &entry);
    }
    b.n = n;
    b.size = (uint32_t)at;
    return batch_seal(out, &b, key);
}

static void batch_seeds(void)
{
    static const struct {
        uint32_t n, size;
    } of[] = {{1, 8}, {3, 21}, {2, 300}, {0, 0}, {1, 0}, {1, 4096 - 72 - 16}};
    const struct batch follows = {.seq = 2ull << 32 | 5, .follows = 2ull << 32 | 4, .first = 77, .floor = 12};
    const struct batch anew = {.seq = 1ull << 32 | 1, .first = 1000, .kind = BATCH_ANEW};
    uint8_t out[2 * BATCH_BLOCK];

    for (unsigned i = 0; i < 6; i++) {
        size_t whole = batch_of(out, i % 2 ? &anew : &follows, of[i].n, of[i].size), used = (size_t)le_get(out + 60, 4);

        for (unsigned how = 0; how < 3; how++) {
            begin(how | (i & 3) << 2);
            add_number(7 * i, 2);
            add_number(i, 1);
            add(out, i == 0 ? whole : used);
            save("batch");
        }
    }
    for (unsigned i = 0; i < 4; i++) { /* a description */
        begin(3 | i << 2);
        add_number(70 + i, 2);
        add_number(1, 1);
        add_number(i, 1);
        for (unsigned k = 0; k < 4; k++) { /* follows, seq, first, floor */
            add_number(i == 3 ? 0xff : k * i, 1);
            add_number(UINT64_MAX - k, i == 3 ? 8 : 0);
        }
        for (unsigned k = 0; k < 3 * i; k++) { /* term, type, size, where it begins */
            add_number(k, 1);
            add_number(k % 4, 1);
            add_number(i == 2 ? 0xf0 : 10 * k, 1);
            add_number(1000 * k, i == 2 ? 8 : 0);
            add_number(k, 1);
        }
        save("batch");
    }
}

/* The file that a member has after so many elections. */
static void termfile_seeds(void)
{
    char dir[] = "/tmp/dust-seeds-XXXXXX", path[64];
    uint8_t file[TERMFILE_SIZE];
    struct termfile t;
    FILE *f;

    check(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/term", dir);
    check(termfile_open(&t, dir, true, NULL) == DUST_OK);
    for (unsigned i = 0; i < 3; i++) {
        f = fopen(path, "rb");
        check(f != NULL && fread(file, 1, sizeof file, f) == sizeof file);
        fclose(f);
        begin(32);
        add_number(i * 64 + 20, 2);
        add_number(1, 1);
        add(file, sizeof file);
        save("termfile");
        for (unsigned right = 0; right < 4; right++) {
            begin(right == 0 ? 0 : right == 1 ? 64 | 7 : right == 2 ? 24 | 7 : 2);
            add_number(i * 64 + 20, 2);
            add_number(1, 1);
            for (unsigned k = 0; k < 3; k++) {
                add(file + (size_t)k * TERMFILE_BLOCK, 64);
            }
            save("termfile");
        }
        check(termfile_set(&t, 5 + i, i * 7, 1 + i, NULL) == DUST_OK);
    }
    termfile_close(&t);
    remove(path);
    remove(dir);
}

static void snapshot_seeds(void)
{
    static const char *const addresses[] = {"10.0.0.1:4001", "[::1]:4002", "localhost:80"};
    char dir[] = "/tmp/dust-seeds-XXXXXX", path[64];
    uint8_t file[1024], content[DESCRIPTOR_SIZE];
    struct descriptor d = {.index = 1000, .page_size = 4096, .n_pages = 77, .id = {{1}}, .cluster = {{2}}};
    struct raft_buffer buf = {content, sizeof content};
    struct raft_snapshot s = {.index = 1000, .term = 7, .configuration_index = 900, .bufs = &buf, .n_bufs = 1};

    check(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/snapshot", dir);
    descriptor_write(&d, content);
    raft_configuration_init(&s.configuration);
    for (unsigned i = 0; i < 3; i++) {
        size_t n, conf;
        FILE *f;

        check(raft_configuration_add(&s.configuration, 7 + i, addresses[i], (int)(i + 1) % 3) == 0);
        buf.len = i == 1 ? 0 : sizeof content;
        check(snapshot_save(dir, key, &s, NULL) == DUST_OK);
        f = fopen(path, "rb");
        check(f != NULL);
        n = fread(file, 1, sizeof file, f);
        fclose(f);
        conf = (size_t)le_get(file + 32, 4);
        for (unsigned how = 0; how < 5; how++) {
            begin(how < 4 ? how : 0xe0 | 2);
            add_number(i + 21 * how, 2);
            add_number(i, 1);
            add(file + (how == 3 ? 40 : 0), how == 3 ? conf : how == 0 ? n : n - 16);
            save("snapshot");
        }
        for (unsigned refused = 1; refused < 8; refused++) {
            begin(refused << 2);
            add_number(0, 3);
            add(file, n);
            save("snapshot");
        }
    }
    raft_configuration_close(&s.configuration);
    remove(path);
    remove(dir);
    for (size_t n = ADDRESS_TEXT_MAX - 1; n <= ADDRESS_TEXT_MAX; n++) { /* the longest address, and one that is too long */
        char address[ADDRESS_TEXT_MAX + 1] = {0};

        memset(address, 'a', n);
        begin(3);
        add_number(0, 3);
        add_number(1, 1);
        add_number(1, 8);
        add_number(7, 8);
        add(address, n + 1);
        add_number(RAFT_VOTER, 1);
        save("snapshot");
    }
}

/* ---- journals ---- */

#define COUNT_ALL 0xffffffffu

/* A header and n records, as SQLite and a fold write them. */
static void add_journal(
    uint32_t sector, uint32_t page_size, uint32_t count, uint32_t n_pages, uint32_t first, uint32_t n)
{
    uint8_t head[512] = {0}, page[4096];

    memcpy(head, journal_magic, 8);
    put_be32(head + 8, count);
    put_be32(head + 12, 12345);
    put_be32(head + 16, n_pages);
    put_be32(head + 20, sector);
    put_be32(head + 24, page_size);
    add(head, sector);
    for (uint32_t pgno = first; pgno < first + n; pgno++) {
        uint8_t number[4];

        memset(page, (int)pgno + 100, page_size);
        put_be32(number, pgno);
        add(number, 4);
        add(page, page_size);
        put_be32(number, journal_checksum(12345, page, page_size));
        add(number, 4);
    }
}

static void add_super_name(const char *name)
{
    uint8_t tail[16];
    uint32_t n = (uint32_t)strlen(name), sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += (uint32_t)name[i];
    }
    put_be32(tail, n);
    put_be32(tail + 4, sum);
    memcpy(tail + 8, journal_magic, 8);
    add("\0\0\0\1", 4);
    add(name, n);
    add(tail, sizeof tail);
}

static void journal_begin(unsigned flags, unsigned fail_at, unsigned db_len)
{
    begin(flags);
    add_number(fail_at, 1);
    add_number(db_len / 256, 1);
    add_number(1, 1);
}

static void journal_seeds(void)
{
    for (unsigned i = 0; i < 6; i++) {
        journal_begin(i == 5 ? 0 : 1, 0, i == 3 ? 0 : 4096);
        add_journal(i == 2 ? 32 : 512, 512, i == 4 ? COUNT_ALL : 2, i == 1 ? 3 : 10, 2, 2);
        save("journal");
    }
    for (unsigned flags = 0; flags < 4; flags++) { /* two headers; a super-journal */
        journal_begin(flags, 0, 2048);
        add_journal(32, 512, 1, 4, 1, 1);
        while ((len - 4) % 32 != 0) {
            add_number(0, 1);
        }
        add_journal(32, 512, 1, 4, 3, 1);
        if (flags & 2) {
            add_super_name("/m/super");
        }
        save("journal");
    }
    for (unsigned at = 0; at < 24; at++) { /* failures */
        journal_begin(16 | (at % 2) << 5 | (at % 4) << 6, at, at % 5 * 512);
        add_journal(32, 512, 1, 4, 2, 1);
        save("journal");
    }
    journal_begin(4, 0, 2048);
    add_journal(32, 512, 1, 4, 1, 1);
    save("journal");
    journal_begin(8, 0, 0);
    add_journal(32, 512, 1, 4, 1, 1);
    save("journal");
    journal_begin(0, 0, 2048);
    add_number(0, 8);
    save("journal");
}

static void add_link(uint8_t type, uint32_t number, const void *body, uint32_t n)
{
    uint8_t link[LINK_HEAD];

    link_head(link, type, number, n);
    add(link, sizeof link);
    add(body, n);
}

/* Streams of one, two and three messages. */
static void link_seeds(void)
{
    uint8_t commit[41], done[24 + 5], reply[4 + 5] = {7, 0, 0, 0, 't', 'e', 'x', 't', '.'};

    memset(commit, 1, sizeof commit);
    le_put(commit, 3, 4);
    le_put(commit + 4, 1, 4);
    memset(done, 0, sizeof done);
    le_put(done + 4, 9, 8);
    le_put(done + 12, 2, 4);
    memcpy(done + 24, "text.", 5);
    len = 0;
    add_link(LINK_HELLO, 1, commit, 13);
    save("link");
    add_link(LINK_COMMIT, 2, commit, sizeof commit);
    save("link");
    add_link(LINK_PART, 2, commit, 8);
    add_link(LINK_DONE, 2, done, sizeof done);
    add_link(LINK_REPLY, 3, reply, sizeof reply);
    save("link");
    len = 0;
    add_link(LINK_REPLY, 3, reply, sizeof reply);
    add_link(LINK_DONE, 2, done, 24);
    save("link");
}

/* What is inside a sealed message; and one as it comes. */
static void channel_seeds(void)
{
    static const char address[] = "10.0.0.1:4001", line[] = "dust-key-1:" "5151515151515151515151515151515151515151515151515151515151515151\n";
    static const struct session to = {{1}};
    uint8_t sixteen[16], msg[CHANNEL_HEAD + 4 + CHANNEL_TAIL] = {0};
    struct channel *c = NULL;
    struct keys keys;

    memset(sixteen, 5, sizeof sixteen);
    for (unsigned flags = 0; flags < 4; flags++) {
        len = 0;
        add_number(1u << 1 | flags << 4, 1);
        add(sixteen, sizeof sixteen);
        add("body", 4);
        save("channel");
    }
    len = 0;
    add_number(2u << 1, 1);
    add(sixteen, sizeof sixteen);
    add_number(sizeof address - 1, 1);
    add(address, sizeof address - 1);
    save("channel");
    len = 0;
    add_number(3u << 1, 1);
    add(sixteen, sizeof sixteen);
    save("channel");
    len = 0;
    add_number(0xc0 | 1u << 1, 1); /* changed */
    add_number(40, 2);
    add_number(1, 1);
    add(sixteen, sizeof sixteen);
    save("channel");
    check(keys_parse(line, sizeof line - 1, "it", &keys, NULL) == DUST_OK && channel_new(&c, &keys, NULL) == DUST_OK);
    channel_seal(c, &to, 0, msg, 4);
    channel_free(c);
    len = 0;
    add_number(1, 1);
    add(msg, sizeof msg);
    save("channel");

    len = 0;
    add(line, sizeof line - 1);
    save("key");
    len = 0;
    add("# two\n\n", 7);
    add(line, sizeof line - 1);
    add(line, 40);
    add("1", 1);
    add(line + 41, sizeof line - 42);
    save("key");
}

/* Keys and nonces that are the same each time. */
static const char *no_name(void)
{
    return "none";
}

static void no_random(void *const out, const size_t n)
{
    static uint64_t state = 1;

    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ((uint8_t *)out)[i] = (uint8_t)(state >> 56);
    }
}

static uint32_t no_number(void)
{
    uint32_t v;

    no_random(&v, sizeof v);
    return v;
}

static struct randombytes_implementation not_random = {
    .implementation_name = no_name, .random = no_number, .buf = no_random};

int main(int argc, char **argv)
{
    randombytes_set_implementation(&not_random);
    if (argc != 2 || sodium_init() < 0) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    folder = argv[1];
    wire_seeds();
    entry_seeds();
    delta_seeds();
    sums_seeds();
    batch_seeds();
    termfile_seeds();
    snapshot_seeds();
    member_seeds();
    address_seeds();
    roster_seeds();
    mark_seeds();
    descriptor_seeds();
    fetch_seeds();
    journal_seeds();
    link_seeds();
    channel_seeds();
    return 0;
}
