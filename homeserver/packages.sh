# Sourced by the run scripts: says what is missing on this machine, and installs it where that is possible.

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
stop() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root: directly, or by sudo without a password.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_be_root() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

# need_packages PACKAGE...: installs those Debian packages that are missing.
need_packages() {
  local missing=()
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null || ! can_be_root; then
    stop "these packages (by their Debian names) are missing: ${missing[*]}
  install them, for instance with: sudo apt-get install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    stop "apt-get could not install: ${missing[*]}"
}

# What every build needs: a Rust toolchain, a C compiler (SQLite is compiled in) and OpenSSL's headers.
need_build_tools() {
  if ! command -v cargo >/dev/null; then
    # shellcheck source=/dev/null
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    command -v cargo >/dev/null || stop "no Rust toolchain: install one from https://rustup.rs (1.94 or later)"
  fi
  if command -v dpkg-query >/dev/null; then
    need_packages gcc libc6-dev libssl-dev pkg-config
  else
    command -v cc >/dev/null || stop "no C compiler (cc): install gcc or clang"
    command -v pkg-config >/dev/null && pkg-config --exists openssl ||
      stop "OpenSSL's headers were not found: install pkg-config and OpenSSL's development package"
  fi
}

# Prometheus with promtool, and the exporter of PostgreSQL's metrics; the services themselves are not left running.
need_prometheus() {
  command -v prometheus >/dev/null && command -v promtool >/dev/null &&
    command -v prometheus-postgres-exporter >/dev/null && return
  need_packages prometheus prometheus-postgres-exporter
  [ ! -d /run/systemd/system ] || as_root systemctl disable --quiet --now prometheus prometheus-postgres-exporter
}
