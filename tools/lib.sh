# What the tools share: where the project is, what it needs, how it is built. Sourced by bash scripts.

dust_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dust_packages="gcc libc6-dev pkg-config meson ninja-build libsqlite3-dev sqlite3 libraft-dev libuv1-dev
    libnanomsg-dev libsodium-dev libcmocka-dev python3 python3-pytest"

dust_say() {
    printf '%s\n' "$*"
}

dust_die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Install what is missing of that, and of what is named, with apt. Does nothing, and needs neither root nor network, when
# nothing is.
dust_install() {
    local missing=() p sudo=()

    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        dust_say "no apt here: going on with what is there (needed, by their Debian names: $(echo $dust_packages "$@"))"
        return 0
    fi
    for p in $dust_packages "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" != installed ]; then
            missing+=("$p")
        fi
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return 0
    fi
    dust_say "installing: ${missing[*]}"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || dust_die "run this as root, or install sudo: packages are missing: ${missing[*]}"
        sudo=(sudo)
    fi
    mkdir -p "$dust_root/build"
    {
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y \
            --no-install-recommends "${missing[@]}"
    } </dev/null >"$dust_root/build/apt.log" 2>&1 || {
        tail -30 "$dust_root/build/apt.log" >&2
        dust_die "apt-get failed (build/apt.log)"
    }
}

# dust_build DIR [meson options]: configure once, then build what has changed. Output goes to DIR/build.log.
dust_build() {
    local dir=$1 log
    shift
    log=$dir/build.log
    mkdir -p "$dir"
    : >"$log"
    if [ ! -f "$dir/build.ninja" ]; then
        # meson refuses a folder that has a broken build in it, not one with a log.
        rm -rf "$dir/meson-private" "$dir/meson-info"
        meson setup "$@" "$dir" "$dust_root" </dev/null >>"$log" 2>&1 || {
            tail -40 "$log" >&2
            return 1
        }
    fi
    ninja -C "$dir" </dev/null >>"$log" 2>&1 || {
        grep -E -A 12 'error|FAILED|undefined reference' "$log" | head -80 >&2
        return 1
    }
}
