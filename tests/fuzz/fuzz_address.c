/* raft/member, address_parse: an address as people and other members write it. The input is the text. */
#include <arpa/inet.h>

#include "raft/member.h"
#include "tests/fuzz/fuzz.h"

static void check_address(const struct address *a)
{
    char host[INET6_ADDRSTRLEN], text[ADDRESS_TEXT_MAX];
    struct address again;

    check(memchr(a->text, '\0', sizeof a->text) != NULL);
    check(a->is_v6 || all_are(a->ip + 4, 0, 12));
    check(inet_ntop(a->is_v6 ? AF_INET6 : AF_INET, a->ip, host, sizeof host) != NULL);
    snprintf(text, sizeof text, a->is_v6 ? "[%s]:%u" : "%s:%u", host, a->port);
    check(strcmp(text, a->text) == 0);
    check(address_parse(a->text, &again, NULL) == DUST_OK);
    check(again.is_v6 == a->is_v6 && again.port == a->port && memcmp(again.ip, a->ip, 16) == 0);
    check(strcmp(again.text, a->text) == 0);
    check(!(address_is_any(a) && address_is_loopback(a)));
    check(a->is_v6 || address_is_loopback(a) == (a->ip[0] == 127));
    check(a->is_v6 || address_is_any(a) == all_are(a->ip, 0, 4));
}

static void check_refusal(const struct address *a, const struct err *e)
{
    check(all_are(a, 0x5a, sizeof *a));
    for (const char *p = e->text; *p != '\0'; p++) {
        check((unsigned char)*p >= 0x20 && *p != 0x7f); /* fit to be shown */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = must_alloc(size + 1);
    struct address a;
    struct err e;
    int rv;

    if (size != 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    memset(&a, 0x5a, sizeof a);
    err_clear(&e);
    rv = address_parse(text, &a, &e);
    check_err(&e, rv);
    check(rv == DUST_OK || rv == DUST_MISUSE);
    if (rv == DUST_OK) {
        check_address(&a);
    } else {
        check_refusal(&a, &e);
    }
    free(text);
    return 0;
}
