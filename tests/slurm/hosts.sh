#!/bin/bash
# Two hosts on this machine, n1 and n2: each with a network and a name of its own, on one bridge.
#   hosts.sh up DIR           DIR is for their /etc/hosts; it must exist
#   hosts.sh run N DIR CMD..  CMD on host N
#   hosts.sh down
# ARK_HOSTS, a number below 250, keeps several such pairs apart. Wants root and namespaces.
set -euo pipefail
tag=${ARK_HOSTS:-0} net=10.77.${ARK_HOSTS:-0}

up() {
  ip link add "arkbr$tag" type bridge
  ip addr add "$net.254/24" dev "arkbr$tag"
  ip link set "arkbr$tag" up
  printf '127.0.0.1 localhost\n%s.1 n1\n%s.2 n2\n' "$net" "$net" >"$1/hosts"
  for i in 1 2; do
    ip netns add "ark$tag-$i"
    ip link add "arkv$tag-$i" type veth peer name eth0 netns "ark$tag-$i"
    ip link set "arkv$tag-$i" master "arkbr$tag" up
    ip -n "ark$tag-$i" addr add "$net.$i/24" dev eth0
    ip -n "ark$tag-$i" link set eth0 up
    ip -n "ark$tag-$i" link set lo up
  done
}

run() { # N DIR CMD...: `ip netns exec` fails in containers without their own sysfs
  exec nsenter --net="/run/netns/ark$tag-$1" unshare --mount --uts bash -c \
    'mount --bind "$1/hosts" /etc/hosts; hostname "n$0"; shift; exec "$@"' "${@:1:2}" "${@:3}"
}

down() {
  for i in 1 2; do ip netns del "ark$tag-$i" 2>/dev/null || true; done
  ip link del "arkbr$tag" 2>/dev/null || true
}

"$@"
