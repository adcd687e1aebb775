/* A member's addresses, and the file app.db-dust/member.
 *
 * The file is text, of lines that end with a newline, in this order:
 *     # ...                            any number of lines that begin so, for people
 *     format=1
 *     cluster=<32 hex digits>          the cluster's id, not all zeros
 *     id=<number>                      of the member, from 1
 *     address=<address>                where the others reach it; port not 0
 *     bind=<address>                   where it listens
 *     page_size=<number>               of the database, in bytes
 *     role=voter                       or standby
 *     promotion=<number>               optional, of a voter: it has not been made one since it joined, and asks for it
 *                                      once it has applied the entry of this index, not 0
 *     starts=<number>                  optional: how often this member has been started, from 1, 32 bits
 *     seen=<id>:<number>[:<nonce>]     at most 32 times: how often another member has been started, from 1, and the last one's
 *                                      nonce, from 1
 *     refused=copy                     optional: the others have said that this folder is a copy of the member
 *     file_version=<32 hex digits>     optional, with the next: app.db holds this version, not all zeros,
 *     file_index=<number>              made by the log entry of this index, 0 if by none
 *     prior_version=<32 hex digits>    optional, with the next and behind those: or it still holds this one, not all
 *     prior_index=<number>             zeros; for it is noted what app.db is brought to before it is
 *     checksum=<32 hex digits>         BLAKE2b-128 over all bytes before this line
 * Numbers are decimal, without sign and leading zeros; addresses in canonical form; nothing stands behind
 * the last line. The format is looked at before the checksum, so that an older dust can tell a newer file
 * from a damaged one.
 *
 * A member that forgot who it is must not guess: it might vote twice. So a damaged file is refused, with
 * advice, and never repaired.
 *
 * No state; the calls on files are for one thread at a time for one directory. */
#include "raft/member.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/smallfile.h"

#define FORMAT 1
#define FILE_MAX 4096 /* bytes; member_save writes less than 2800 */
#define QUOTE_MAX 80

/* ---- addresses ---- */

/* What somebody gave us, fit to be shown: cut, and without control characters. */
static const char *quote(const char *text, char out[QUOTE_MAX])
{
    size_t n = 0;

    for (; text[n] != '\0' && n < QUOTE_MAX - 1; n++) {
        unsigned char c = (unsigned char)text[n];

        out[n] = (char)(c < 0x20 || c == 0x7f ? '?' : c);
    }
    if (text[n] != '\0') {
        memcpy(out + n - 3, "...", 3);
    }
    out[n] = '\0';
    return out;
}

static int bad_address(struct err *e, const char *text, const char *what)
{
    char shown[QUOTE_MAX];

    return err_set(e, DUST_MISUSE,
        "address '%s': %s; expected is a numeric address and a port, as 10.0.0.1:4001 or [fd00::1]:4001",
        quote(text, shown), what);
}

static bool parse_port(const char *text, uint16_t *port)
{
    unsigned v = 0;
    size_t n = strlen(text);

    if (n == 0 || n > 5) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return false;
        }
        v = v * 10 + (unsigned)(text[i] - '0');
    }
    *port = (uint16_t)v;
    return v <= 65535;
}

int address_parse(const char *text, struct address *out, struct err *e)
{
    struct address a = {.is_v6 = text[0] == '['};
    const char *colon = strrchr(text, ':'), *first = text + a.is_v6, *end = colon;
    char host[INET6_ADDRSTRLEN];

    if (a.is_v6) {
        end = strchr(text, ']');
        if (end == NULL) {
            return bad_address(e, text, "the closing bracket is missing");
        }
        colon = end[1] == ':' ? end + 1 : NULL;
    }
    if (colon == NULL) {
        return bad_address(e, text, "there is no port, or something else stands before it");
    }
    if (!parse_port(colon + 1, &a.port)) {
        return bad_address(e, text, "the port is not a number from 0 to 65535");
    }
    if (end == first) {
        return bad_address(e, text, "there is no host before the port");
    }
    if (!a.is_v6 && memchr(text, ':', (size_t)(end - text)) != NULL) {
        return bad_address(e, text, "an IPv6 address goes in brackets");
    }
    if ((size_t)(end - first) >= sizeof host) {
        return bad_address(
            e, text, "the host is not an IP address: names are not looked up, use a numeric address");
    }
    memcpy(host, first, (size_t)(end - first));
    host[end - first] = '\0';
    if (!a.is_v6 && strcmp(host, "localhost") == 0) {
        memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
    }
    if (inet_pton(a.is_v6 ? AF_INET6 : AF_INET, host, a.ip) != 1) {
        return bad_address(e, text,
            a.is_v6 ? "what stands in the brackets is not an IPv6 address"
                    : "the host is not an IP address: names are not looked up, use a numeric address");
    }
    address_set_text(&a);
    *out = a;
    return DUST_OK;
}

void address_set_text(struct address *a)
{
    char host[INET6_ADDRSTRLEN];

    inet_ntop(a->is_v6 ? AF_INET6 : AF_INET, a->ip, host, sizeof host);
    snprintf(a->text, sizeof a->text, a->is_v6 ? "[%s]:%u" : "%s:%u", host, a->port);
}

bool address_is_loopback(const struct address *a)
{
    static const uint8_t one[16] = {[15] = 1}, mapped[13] = {[10] = 0xff, [11] = 0xff, [12] = 127};

    if (!a->is_v6) {
        return a->ip[0] == 127;
    }
    return memcmp(a->ip, one, sizeof one) == 0 || memcmp(a->ip, mapped, sizeof mapped) == 0;
}

bool address_is_any(const struct address *a)
{
    static const uint8_t any[16], mapped[16] = {[10] = 0xff, [11] = 0xff};

    return memcmp(a->ip, any, sizeof any) == 0 || (a->is_v6 && memcmp(a->ip, mapped, sizeof mapped) == 0);
}

/* Is it an address, in canonical form? */
static bool address_canonical(const char *text, bool needs_port)
{
    struct address a;

    return memchr(text, '\0', ADDRESS_TEXT_MAX) != NULL && address_parse(text, &a, NULL) == DUST_OK &&
           strcmp(a.text, text) == 0 && (a.port != 0 || !needs_port);
}

/* ---- the file's content ---- */

static bool seen_valid(const struct member *m)
{
    for (unsigned i = 0; i < m->n_seen && i < MEMBER_SEEN_MAX; i++) {
        if (m->seen[i].id == 0 || m->seen[i].starts == 0) {
            return false;
        }
    }
    return m->n_seen <= MEMBER_SEEN_MAX;
}

static bool member_valid(const struct member *m)
{
    return !vid_none(&m->cluster) && m->id != 0 && address_canonical(m->address, true) &&
           address_canonical(m->bind, false) && m->page_size >= 512 && m->page_size <= 65536 &&
           (m->page_size & (m->page_size - 1)) == 0 &&
           (m->role == MEMBER_VOTER || (m->role == MEMBER_STANDBY && m->promotion == 0)) && seen_valid(m) &&
           (m->file_index == 0 || !vid_none(&m->file_version)) &&
           (m->prior_index == 0 || !vid_none(&m->prior_version)) &&
           (vid_none(&m->prior_version) || !vid_none(&m->file_version));
}

static void checksum(const char *text, size_t n, char hex[VID_HEX_SIZE])
{
    struct vid sum;

    crypto_generichash(sum.b, sizeof sum.b, (const uint8_t *)text, n, NULL, 0);
    vid_hex(&sum, hex);
}

/* Returns the number of bytes, less than FILE_MAX. */
static size_t member_print(const struct member *m, char text[FILE_MAX])
{
    char hex[VID_HEX_SIZE];
    int n;

    n = snprintf(text, FILE_MAX,
        "# dust: who this copy of the database is in its cluster. Do not change it, and do not use a\n"
        "# copy of this folder as another member: two members with one identity damage the cluster.\n"
        "format=%d\ncluster=%s\nid=%" PRIu64 "\naddress=%s\nbind=%s\npage_size=%u\nrole=%s\n",
        FORMAT, vid_hex(&m->cluster, hex), m->id, m->address, m->bind, m->page_size,
        m->role == MEMBER_VOTER ? "voter" : "standby");
    if (m->promotion != 0) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "promotion=%" PRIu64 "\n", m->promotion);
    }
    if (m->starts != 0) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "starts=%" PRIu32 "\n", m->starts);
    }
    for (unsigned i = 0; i < m->n_seen; i++) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "seen=%" PRIu64 ":%" PRIu32, m->seen[i].id, m->seen[i].starts);
        if (m->seen[i].nonce != 0) {
            n += snprintf(text + n, FILE_MAX - (size_t)n, ":%" PRIu32, m->seen[i].nonce);
        }
        n += snprintf(text + n, FILE_MAX - (size_t)n, "\n");
    }
    if (m->refused) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "refused=copy\n");
    }
    if (!vid_none(&m->file_version)) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "file_version=%s\nfile_index=%" PRIu64 "\n",
            vid_hex(&m->file_version, hex), m->file_index);
    }
    if (!vid_none(&m->prior_version)) {
        n += snprintf(text + n, FILE_MAX - (size_t)n, "prior_version=%s\nprior_index=%" PRIu64 "\n",
            vid_hex(&m->prior_version, hex), m->prior_index);
    }
    checksum(text, (size_t)n, hex);
    n += snprintf(text + n, FILE_MAX - (size_t)n, "checksum=%s\n", hex);
    return (size_t)n;
}

/* If the line at *p has this key, cut its value off as a string, move *p behind the line and return the
 * value; else NULL, and nothing is changed. The text is NUL-terminated. */
static char *take(char **p, const char *key)
{
    size_t n = strlen(key);
    char *end = strchr(*p, '\n'), *value;

    if (end == NULL || strncmp(*p, key, n) != 0 || (*p)[n] != '=') {
        return NULL;
    }
    value = *p + n + 1;
    *end = '\0';
    *p = end + 1;
    return value;
}

static bool number(const char *text, uint64_t *out)
{
    uint64_t v = 0;

    if (text == NULL || *text == '\0' || (text[0] == '0' && text[1] != '\0')) {
        return false;
    }
    for (; *text != '\0'; text++) {
        unsigned digit = (unsigned)(*text - '0');

        if (*text < '0' || *text > '9' || v > (UINT64_MAX - digit) / 10) {
            return false;
        }
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

static bool take_number(char **p, const char *key, uint64_t *out)
{
    return number(take(p, key), out);
}

/* ID:NUMBER, or ID:NUMBER:NONCE. */
static bool take_seen(char *text, struct member *m)
{
    char *starts = strchr(text, ':'), *nonce = starts != NULL ? strchr(starts + 1, ':') : NULL;
    uint64_t v, w = 0;

    if (starts == NULL) {
        return false;
    }
    *starts++ = '\0';
    if (nonce != NULL) {
        *nonce++ = '\0';
        if (!number(nonce, &w) || w == 0 || w > UINT32_MAX) {
            return false;
        }
    }
    if (!number(text, &m->seen[m->n_seen].id) || !number(starts, &v) || v > UINT32_MAX) {
        return false;
    }
    m->seen[m->n_seen].starts = (uint32_t)v;
    m->seen[m->n_seen].nonce = (uint32_t)w;
    return true;
}

/* Lines "starts" and "seen", none of which need be there. */
static bool take_starts(char **p, struct member *m)
{
    uint64_t v;
    char *text;

    if (strncmp(*p, "starts=", 7) == 0) {
        if (!take_number(p, "starts", &v) || v == 0 || v > UINT32_MAX) {
            return false;
        }
        m->starts = (uint32_t)v;
    }
    while (strncmp(*p, "seen=", 5) == 0) {
        text = take(p, "seen");
        if (text == NULL || m->n_seen == MEMBER_SEEN_MAX || !take_seen(text, m)) {
            return false;
        }
        m->n_seen++;
    }
    return true;
}

static bool take_vid(char **p, const char *key, struct vid *out)
{
    const char *text = take(p, key);

    return text != NULL && strlen(text) == VID_HEX_SIZE - 1 && vid_parse(out, text);
}

static bool take_address(char **p, const char *key, char out[ADDRESS_TEXT_MAX])
{
    const char *text = take(p, key);

    if (text == NULL || strlen(text) >= ADDRESS_TEXT_MAX) {
        return false;
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}

/* The lines between the format and the checksum, which was right. Returns false if they are not as they
 * should be. */
static bool parse_lines(char *p, struct member *m)
{
    uint64_t page_size;
    const char *role, *refused;

    if (!take_vid(&p, "cluster", &m->cluster) || !take_number(&p, "id", &m->id) ||
        !take_address(&p, "address", m->address) || !take_address(&p, "bind", m->bind) ||
        !take_number(&p, "page_size", &page_size) || page_size > UINT32_MAX) {
        return false;
    }
    m->page_size = (uint32_t)page_size;
    role = take(&p, "role");
    if (role == NULL || (strcmp(role, "voter") != 0 && strcmp(role, "standby") != 0)) {
        return false;
    }
    m->role = role[0] == 'v' ? MEMBER_VOTER : MEMBER_STANDBY;
    if (strncmp(p, "promotion=", 10) == 0 && (!take_number(&p, "promotion", &m->promotion) || m->promotion == 0)) {
        return false;
    }
    if (!take_starts(&p, m)) {
        return false;
    }
    refused = take(&p, "refused");
    if (refused != NULL && strcmp(refused, "copy") != 0) {
        return false;
    }
    m->refused = refused != NULL;
    if (*p != '\0' && (!take_vid(&p, "file_version", &m->file_version) ||
                          !take_number(&p, "file_index", &m->file_index) || vid_none(&m->file_version))) {
        return false;
    }
    if (*p != '\0' && (!take_vid(&p, "prior_version", &m->prior_version) ||
                          !take_number(&p, "prior_index", &m->prior_index) || vid_none(&m->prior_version))) {
        return false;
    }
    return *p == '\0' && member_valid(m);
}

/* Parse n bytes with a NUL behind them; they are changed. Returns DUST_OK, DUST_VERSION (*format says which)
 * or DUST_CORRUPT (*why says why). */
static int parse(char *text, size_t n, struct member *out, uint64_t *format, const char **why)
{
    struct member m = {.id = 0};
    char sum[VID_HEX_SIZE], *p = text, *body, *last, *given;

    *why = "it does not begin as such a file";
    if (n == 0) {
        *why = "it is empty";
        return DUST_CORRUPT;
    }
    if (memchr(text, '\0', n) != NULL) {
        return DUST_CORRUPT;
    }
    while (*p == '#') {
        p = strchr(p, '\n');
        if (p == NULL) {
            *why = "it is cut short";
            return DUST_CORRUPT;
        }
        p++;
    }
    body = p;
    if (!take_number(&body, "format", format) || *format == 0) {
        return DUST_CORRUPT;
    }
    if (*format > FORMAT) {
        return DUST_VERSION;
    }
    body[-1] = '\n'; /* the checksum covers it */
    *why = "it is cut short";
    last = strstr(body, "checksum=");
    if (last == NULL || last[-1] != '\n') {
        return DUST_CORRUPT;
    }
    checksum(text, (size_t)(last - text), sum);
    p = last;
    given = take(&p, "checksum");
    if (given == NULL) {
        return DUST_CORRUPT;
    }
    *why = "it was changed, or has decayed: its checksum is wrong";
    if (strcmp(given, sum) != 0 || *p != '\0') {
        return DUST_CORRUPT;
    }
    *last = '\0';
    *why = "a line in it is missing or has an impossible value";
    if (!parse_lines(body, &m)) {
        return DUST_CORRUPT;
    }
    *out = m;
    return DUST_OK;
}

/* ---- the file ---- */

int member_load(const char *dir, struct member *out, struct err *e)
{
    char path[PATH_MAX], text[FILE_MAX + 1];
    const char *why;
    uint64_t format;
    size_t n;
    int rv;

    rv = smallfile_path(path, dir, "member", e);
    if (rv == DUST_OK) {
        rv = smallfile_read(path, text, FILE_MAX, &n, e);
    }
    if (rv == DUST_NOTFOUND) {
        return err_set(e, DUST_NOTFOUND, "%s does not exist: this database is not a member of a cluster",
            smallfile_shown(path));
    }
    if (rv == DUST_OK) {
        rv = parse(text, n, out, &format, &why);
    } else if (rv == DUST_TOOBIG) {
        why = "it is too long";
        rv = DUST_CORRUPT;
    } else {
        return rv;
    }
    if (rv == DUST_VERSION) {
        return err_set(e, DUST_VERSION,
            "%s has format %" PRIu64
            " and this dust knows formats up to %d: a newer dust wrote it; upgrade this one",
            smallfile_shown(path), format, FORMAT);
    }
    if (rv == DUST_CORRUPT) {
        return err_set(e, DUST_CORRUPT,
            "%s is damaged: %s. Put the original back; or remove this member at another one, delete its "
            "folder and "
            "app.db here, and join anew",
            smallfile_shown(path), why);
    }
    return rv;
}

int member_save(const char *dir, const struct member *m, struct err *e)
{
    char path[PATH_MAX], text[FILE_MAX];

    if (!member_valid(m)) {
        if (smallfile_path(path, dir, "member", e) != DUST_OK) {
            return DUST_MISUSE;
        }
        return err_set(e, DUST_MISUSE, "%s was not written: a value for it is missing or impossible",
            smallfile_shown(path));
    }
    return smallfile_save(dir, "member", text, member_print(m, text), e);
}
