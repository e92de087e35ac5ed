#!/usr/bin/env bash
# The whole stack at work: an image built from nothing, pushed to a registry, pulled, run, watched and removed, and at the
# end the proof that nothing of it is left. `make demo` installs and builds what this needs and names the binaries.
set -euo pipefail

: "${ORLOP:?run make demo}" "${ORLOP_SHIM:?}" "${ORLOPD:?}" "${ORLOPCTL:?}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
demo=$top/target/demo
namespace=orlop-demo
PATH="$PATH:/usr/sbin:/sbin"

[ "$(id -u)" = 0 ] || { echo "make demo needs root: it makes namespaces, mounts and cgroups" >&2; exit 1; }

# shellcheck source=output.sh
. "$here/output.sh"
# shellcheck source=image.sh
. "$here/image.sh"
# shellcheck source=residue.sh
. "$here/residue.sh"

manager=
registry=
ctl() { "$ORLOPCTL" --address "$demo/orlopd.sock" --namespace "$namespace" "$@"; }

# Whatever happens, what was started here is ended and what was mounted is unmounted.
clean_up() {
  status=$?
  trap - EXIT
  if [ $status != 0 ]; then
    say_failed
    [ ! -s "$demo/orlopd.log" ] || tail -n 20 "$demo/orlopd.log" >&2
    end_containers "$demo" "$namespace"
  fi
  [ -z "$manager" ] || { kill "$manager" 2>/dev/null && wait "$manager"; } || true
  [ -z "$registry" ] || { kill "$registry" 2>/dev/null && wait "$registry"; } 2>/dev/null || true
  exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

remove_old_demo "$demo" "$namespace"
mkdir -p "$demo"/{registry,fifo,bin,tmp,shared}
export TMPDIR=$demo/tmp
residue_before "$demo"

heading "The programs"
ln -s "$ORLOP" "$ORLOP_SHIM" "$demo/bin/"
export PATH="$demo/bin:$PATH"
ls -lL "$ORLOP" "$ORLOP_SHIM" "$ORLOPD" "$ORLOPCTL" | awk '{ printf "%6.1f MB  %s\n", $5 / 1000000, $NF }' | sed "s|$top/||"
if command -v file >/dev/null; then
  for program in "$ORLOP" "$ORLOP_SHIM"; do
    echo "$(basename "$program"): $(file -bL "$program" | cut -d, -f1-4)"
  done
fi
run "$ORLOP" --version
run "$ORLOPD" --version

heading "A registry on loopback, and orlopd with all its paths below target/demo"
registry_address=$(start_registry "$demo/registry")
registry=$(cat "$demo/registry/pid")
echo "docker-registry on $registry_address"
# The runtime's state, which lies in /run/orlop by default, goes below target/demo too.
cat >"$demo/config.toml" <<CONFIG
[runtimes."io.containerd.runc.v2"]
shim = "$demo/bin/$(basename "$ORLOP_SHIM")"
binary = "$demo/bin/$(basename "$ORLOP")"
root = "$demo/runtime"
CONFIG
"$ORLOPD" --config "$demo/config.toml" --root "$demo/root" --state "$demo/state" --address "$demo/orlopd.sock" \
  --log-level info >"$demo/orlopd.log" 2>&1 </dev/null &
manager=$!
for _ in $(seq 200); do
  ctl version >/dev/null 2>&1 && break
  kill -0 "$manager" || exit 1
  sleep 0.05
done
echo "orlopd on target/demo/orlopd.sock, process $manager"
run ctl version

image=$registry_address/demo/busybox:latest
heading "An image of two layers, made from Debian's busybox: the second changes one file and deletes another"
make_image "$demo/image" "$image" "$demo/image.tar"
run ctl images import "$demo/image.tar"
run ctl images push --plain-http "$image"
run ctl images rm --sync "$image"
expect "nothing is left of it here" "" "$(ctl images ls -q; ctl content ls -q)"

heading "Pulled back from the registry"
run ctl images pull --plain-http "$image"
run ctl images ls
run ctl content ls
run ctl snapshots ls

heading "A container prints what it sees"
run ctl run --rm --fifo-dir "$demo/fifo" --hostname orlop-demo --memory-limit 67108864 --pids-limit 50 "$image" view sh /etc/view

heading "A detached container: limits, a variable, a bind mount, a log"
echo "written by the host" >"$demo/shared/from-host"
run ctl run -d --fifo-dir "$demo/fifo" --memory-limit 33554432 --cpus 0.5 --pids-limit 20 --env GREETING=hello \
  --mount "type=bind,src=$demo/shared,dst=/shared,options=rbind:rw" --log-uri "file://$demo/container.log" \
  "$image" worker sh /etc/worker
wait_for "the container's log" grep -q ready "$demo/container.log"
show "the log, as the shim wrote it" cat "$demo/container.log"
expect "the bind mount carries a file back" "written by the container" "$(cat "$demo/shared/from-container")"
run ctl tasks ls
show "its limits, as the kernel has them" show_limits "$namespace/worker"
run ctl tasks exec --fifo-dir "$demo/fifo" --exec-id e1 worker sh -c 'echo "exec sees: hostname $(hostname), $GREETING, pids $(ps | wc -l)"'

heading "Paused and resumed"
run ctl tasks pause worker
expect "its state" PAUSED "$(ctl tasks ls | awk '$1 == "worker" { print $3 }')"
run ctl tasks resume worker
expect "its state" RUNNING "$(ctl tasks ls | awk '$1 == "worker" { print $3 }')"
run ctl tasks metrics worker

heading "Killed, waited for, deleted"
ctl tasks wait worker >"$demo/exit-code" &
waiter=$!
run ctl tasks kill -s KILL worker
wait "$waiter" || true
expect "its exit code" 137 "$(grep -oE '[0-9]+' "$demo/exit-code" | tail -n 1)"
ctl tasks delete worker || true
run ctl containers rm worker

heading "The image removed, garbage collected"
run ctl images rm "$image"
run ctl gc
expect "images, content, snapshots and containers left" "" "$(ctl images ls -q; ctl content ls -q; ctl snapshots ls | tail -n +2; ctl containers ls -q)"

heading "Nothing is left"
kill "$manager" && wait "$manager" || true
manager=
kill "$registry" && wait "$registry" 2>/dev/null || true
registry=
residue_after "$demo" "$namespace"
rm -rf "$demo"
say_done
